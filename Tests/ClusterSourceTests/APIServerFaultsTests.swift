import APIServerDouble
import Foundation
import KubernetesObjects
import LocalAPI
import Synchronization
import Testing

@testable import ClusterSource

/// Everything that can happen to a client of an API server, at the same time.
@Suite("Through faults of API servers") struct APIServerFaultsTests {
  /// As many as `SLUICE_API_FAULTS` says.
  static let wanted = ProcessInfo.processInfo.environment["SLUICE_API_FAULTS"].flatMap { Int($0) } ?? 300

  /// Refuses to go back: what is told of an object is never older than what was told before.
  private final class Watcher: Sendable {
    private struct State {
      var newest: [ObjectID: Int] = [:]
      var wentBack: [String] = []
    }
    private let state = Mutex(State())
    var wentBack: [String] { state.withLock { $0.wentBack } }

    func take(_ event: SourceEvent) {
      guard case .changes(let changes, _) = event else { return }
      state.withLock { state in
        for case .upsert(let object) in changes {
          guard let number = Self.number(of: object) else { continue }
          if let before = state.newest[object.id], number < before {
            state.wentBack.append("\(object.id): \(before), then \(number)")
          }
          state.newest[object.id] = number
        }
      }
    }

    private static func number(of object: ClusterObject) -> Int? {
      switch object {
      case .namespace(let namespace): namespace.labels["v"].flatMap { Int($0) }
      case .pod(let pod): pod.labels["v"].flatMap { Int($0) }
      default: nil
      }
    }
  }

  @Test("at the end what is known is what the server has, and it never went back on the way", .timeLimit(.minutes(60)))
  func faults() async throws {
    let seed = ProcessInfo.processInfo.environment["SLUICE_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0 ... .max)
    print("API faults: SLUICE_TEST_SEED=\(seed)")
    let folder = try TestFolder()
    let certificates = try TestCertificates(folder: folder.path)
    var options = APIServerDouble.Options()
    options.certificate = certificates.serverCertificate
    options.key = certificates.serverKey
    options.tokens = ["t0"]
    options.bookmarkInterval = .milliseconds(200)
    let faults = Faults(seed: seed)
    let store = ObjectStore()
    // One of them speaks JSON only and knows no lists as watches: an upgrade of the cluster that is under way.
    let newer = APIServerDouble(options, store: store, faults: faults)
    options.servesProtobuf = false
    options.streamsLists = false
    let older = APIServerDouble(options, store: store, faults: faults)
    let relays = [
      try FaultyRelay(to: try await newer.start()), try FaultyRelay(to: try await older.start()),
    ]
    try folder.write("token", "t0")
    var access = APIServerAccess(servers: try relays.map { try #require(APIServerURL("https://127.0.0.1:\($0.port)")) })
    access.trust = .authorities(.file(certificates.authorities))
    access.token = .file("\(folder.path)/token")

    var world = World(store: store, seed: seed)
    for _ in 0..<4000 { try world.change() }
    let watcher = Watcher()
    let following = Following(
      access, journal: folder.path, limits: .init(connect: .seconds(2), silence: .seconds(1)), hurry: 100
    ) { watcher.take($0) }
    try await following.account.until("the first list") { $0.isSynced }

    faults.set(Faults.manyOfEach)
    for relay in relays { relay.set(tearsOneOf: 400, slowsOneOf: 300) }
    var (round, storms, rotations) = (0, 0, 0)
    var sum: Int { faults.total + relays.reduce(0) { $0 + $1.counts.torn } + storms + rotations }
    while sum < Self.wanted || faults.counts.count < Faults.Fault.allCases.count {
      round += 1
      for _ in 0..<world.number(in: 0...8) { try world.change() }
      if world.number(in: 0...60) == 0 {
        store.compact(keeping: 0)
        relays[round % 2].tearAll()
        storms += 1
      }
      if world.number(in: 0...80) == 0 {
        rotations += 1
        newer.setTokens(["t\(rotations)"])
        older.setTokens(["t\(rotations)"])
        relays[round % 2].tearAll()
        // Rotation is seldom in one step.
        try await Task.sleep(for: .milliseconds(world.number(in: 0...30)))
        try folder.write("token", "t\(rotations)")
      }
      if world.number(in: 0...200) == 0 {
        relays[round % 2].setSilent(true)
        try await Task.sleep(for: .milliseconds(1200))
        relays[round % 2].setSilent(false)
        relays[round % 2].tearAll()
      }
      try await Task.sleep(for: .milliseconds(5))
    }
    faults.set([:])
    for relay in relays { relay.set(tearsOneOf: 0, slowsOneOf: 0) }
    let expected = Sample.expected(store)
    let end = try await following.account.until("being equal", seconds: 60) {
      $0.objects == expected && $0.reach == .following
    }
    #expect(watcher.wentBack.isEmpty, "\(watcher.wentBack.prefix(5))")
    #expect(end.problems.isEmpty)
    let told = faults.counts.map { "\($0.key) \($0.value)" }.sorted().joined(separator: ", ")
    print(
      "API faults: \(sum) in all: \(told), torn \(relays.map { $0.counts.torn }), storms \(storms), rotations \(rotations); "
        + "\(world.changes) changes at the server, \(end.changes) told")
    // What the journal has is what is known.
    await following.stop()
    for kind in ObjectKind.allCases {
      let journal = ObjectJournal(folder: folder.path, kind: kind, cluster: access.clusterName)
      #expect(
        Set(Self.remembered(journal, kind)) == Set(expected.keys.filter { $0.kind == kind }.map(\.key)), "\(kind)")
    }
    for relay in relays { relay.stop() }
    await newer.stop()
    await older.stop()
  }

  private static func remembered(_ journal: ObjectJournal, _ kind: ObjectKind) -> Set<ObjectKey> {
    var keys: Set<ObjectKey> = []
    let reader = journal.reader()
    while let (frame, _, _) = reader?.next() {
      switch frame {
      case .present(let tree): if let key = tree.key(of: kind) { keys.insert(key) }
      case .gone(let tree): if let key = tree.key(of: kind) { keys.remove(key) }
      case .bookmark, .failed: continue
      }
    }
    return keys
  }

  /// Objects that come, change and go, each change with a number of its own.
  private struct World {
    let store: ObjectStore
    var random: SeededGenerator
    var changes = 0

    init(store: ObjectStore, seed: UInt64) {
      self.store = store
      random = SeededGenerator(seed: seed)
    }

    mutating func number(in range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &random) }

    mutating func change() throws {
      changes += 1
      // More than a page of each.
      let number = number(in: 0..<900)
      let isGone = self.number(in: 0...3) == 0
      switch self.number(in: 0...3) {
      case 0:
        let name = ObjectStore.Name("", "n\(number)")
        if isGone {
          try? store.delete(.namespace, name)
        } else {
          try store.put(Sample.namespace(name.name, labels: ["v": "\(changes)"]), .namespace)
        }
      case 1:
        let name = ObjectStore.Name("shop", "p\(number)")
        if isGone {
          try? store.delete(.pod, name)
        } else {
          try store.put(Sample.pod(name.name, ip: "10.244.1.\(number % 250 + 1)", labels: ["v": "\(changes)"]), .pod)
        }
      case 2:
        let name = ObjectStore.Name("shop", "s\(number)")
        if isGone {
          try? store.delete(.service, name)
        } else {
          try store.put(Sample.service(name.name, port: changes % 60_000 + 1), .service)
        }
      default:
        let name = ObjectStore.Name("shop", "e\(number)")
        // Now and then it is one that nobody asks for.
        let labels = self.number(in: 0...9) == 0 ? ["service.kubernetes.io/headless": ""] : [:]
        if isGone {
          try? store.delete(.endpointSlice, name)
        } else {
          let addresses = (0..<self.number(in: 0...5)).map { "10.244.\($0).\(changes % 250 + 1)" }
          try store.put(
            Sample.slice(name.name, service: "s\(number)", labels: labels, addresses: addresses), .endpointSlice)
        }
      }
    }
    private mutating func number(in range: Range<Int>) -> Int { Int.random(in: range, using: &random) }
  }
}
