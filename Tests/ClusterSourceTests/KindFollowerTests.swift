import APIServerDouble
import KubernetesObjects
import LocalAPI
import Synchronization
import Testing

@testable import ClusterSource

/// One kind followed through whatever an API server does.
@Suite("Following one kind") struct KindFollowerTests {
  @Test(
    "through faults of every kind, what has been told is in the end what the server has, by lists and by watches",
    arguments: [20_261_122, UInt64.random(in: 0 ... .max)], [true, false])
  func faults(_ seed: UInt64, _ streamsLists: Bool) async throws {
    let server = FaultyServer(seed: seed, streamsLists: streamsLists)
    let told = Told()
    let follower = Task {
      var follower = KindFollower(.namespace, connection: server, surroundings: server.surroundings) {
        told.take($0)
      }
      await follower.run()
    }
    while server.faults < 400 || !server.hasMetAll && server.faults < 4000 {
      server.changeInTime()
      await Task.yield()
    }
    server.calmDown()
    var isEqual = false
    let deadline = ContinuousClock.now + .seconds(30)
    while !isEqual, ContinuousClock.now < deadline {
      isEqual = told.names == server.names
      await Task.yield()
    }
    follower.cancel()
    await follower.value
    let counts = server.counts
    #expect(isEqual, "seed \(seed): \(counts)")
    #expect(told.isSynced && told.reach == .following && told.problems.isEmpty)
    print(
      "follower: seed \(seed), \(server.faults) faults, \(counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" })"
    )
    // Each was met, or the test shows nothing.
    for fault in FaultyServer.Fault.allCases { #expect(counts["\(fault)", default: 0] > 0, "\(fault), seed \(seed)") }
  }

  @Test("a server without lists as watches is asked for lists, once it has said so")
  func lists() async throws {
    let server = FaultyServer(seed: 1, streamsLists: false)
    server.calmDown()
    for _ in 0..<1200 { server.change() }
    let told = try await follow(server) { $0 == server.names }
    #expect(told == server.names)
    let counts = server.counts
    #expect(counts["watchFromStart"] == 1 && counts["list"].map { $0 >= 1 } == true, "\(counts)")
  }

  @Test("a kind that the server does not have is empty, and synced")
  func notServed() async throws {
    let server = FaultyServer(seed: 2, isServed: false)
    let told = Told()
    let follower = Task {
      var follower = KindFollower(.serviceCIDR, connection: server, surroundings: server.surroundings) {
        told.take($0)
      }
      await follower.run()
    }
    while server.requests < 3 { await Task.yield() }
    follower.cancel()
    await follower.value
    #expect(told.isSynced && told.reach == .notServed && told.names.isEmpty)
    #expect(server.slept >= .seconds(60), "it is asked again, seldom")
  }

  private func follow(
    _ server: FaultyServer, until isDone: @escaping @Sendable (Set<String>) -> Bool
  ) async throws -> Set<String> {
    let told = Told()
    let follower = Task {
      var follower = KindFollower(.namespace, connection: server, surroundings: server.surroundings) {
        told.take($0)
      }
      await follower.run()
    }
    for _ in 0..<100_000 {
      if isDone(told.names) { break }
      await Task.yield()
    }
    follower.cancel()
    await follower.value
    return told.names
  }

  @Test("waits grow, are never together, forgive, and keep to what the server asks")
  func backoff() {
    var random = SeededGenerator(seed: 5)
    var backoff = Backoff()
    var now = Duration.zero
    var waits: [Duration] = []
    for _ in 0..<12 {
      let wait = backoff.fail(now: now, &random)
      waits.append(wait)
      now += wait
    }
    #expect(waits[0] >= .milliseconds(800) && waits[0] <= .milliseconds(1600))
    #expect(waits[1] >= .milliseconds(1600) && waits[1] <= .milliseconds(3200))
    #expect(waits.allSatisfy { $0 <= .seconds(30) } && waits[11] == .seconds(30))
    #expect(backoff.fail(now: now, asked: .seconds(77), &random) == .seconds(77))
    #expect(backoff.fail(now: now + .seconds(300), &random) <= .milliseconds(1600))
    #expect(Set(waits.prefix(4).map { "\($0)" }).count == 4)
  }
}

/// What a follower has told.
private final class Told: Sendable {
  private struct State {
    /// With their labels, as the server names them.
    var objects: [String: String] = [:]
    var isSynced = false
    var reach: ReachState?
    var problems: [ObjectID: [ObjectProblem]] = [:]
  }
  private let state = Mutex(State())

  var names: Set<String> { state.withLock { Set($0.objects.map { "\($0.key)=\($0.value)" }) } }
  var isSynced: Bool { state.withLock { $0.isSynced } }
  var reach: ReachState? { state.withLock { $0.reach } }
  var problems: [ObjectID: [ObjectProblem]] { state.withLock { $0.problems } }

  func take(_ event: KindEvent) {
    state.withLock { state in
      switch event {
      case .changes(let changes, _):
        for change in changes {
          switch change {
          case .upsert(.namespace(let namespace)): state.objects[namespace.name] = namespace.labels["v"] ?? ""
          case .upsert: break
          case .delete(_, let key): state.objects[key.name] = nil
          }
        }
      case .problems(let all, let id): state.problems[id] = all.isEmpty ? nil : all
      case .synced: state.isSynced = true
      case .reached(let reach): state.reach = reach
      case .restored, .journal: break
      }
    }
  }
}

@Suite("Requests") struct ObjectRequestTests {
  @Test(
    "what is asked for, as the API has it",
    arguments: [
      (
        ObjectKind.service, ObjectRequest.Form.list(version: "0", next: ""),
        "/api/v1/services?limit=500&resourceVersion=0&resourceVersionMatch=NotOlderThan"
      ),
      (.node, .list(version: "", next: ""), "/api/v1/nodes?limit=500"),
      (.pod, .list(version: "7", next: "a+b=/"), "/api/v1/pods?limit=500&continue=a%2Bb%3D%2F"),
      (
        .endpointSlice, .watch(after: "42", seconds: 301),
        "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C%21"
          + "service.kubernetes.io%2Fheadless&watch=true&resourceVersion=42&allowWatchBookmarks=true&timeoutSeconds=301"
      ),
      (
        .networkPolicy, .watchFromStart(version: "0", seconds: 400),
        "/apis/networking.k8s.io/v1/networkpolicies?watch=true&sendInitialEvents=true&resourceVersion=0"
          + "&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=400"
      ),
      (.serviceCIDR, .list(version: "", next: ""), "/apis/networking.k8s.io/v1/servicecidrs?limit=500"),
    ])
  func paths(_ kind: ObjectKind, _ form: ObjectRequest.Form, _ path: String) {
    #expect(ObjectRequest(kind: kind, form: form).path == path)
  }
}
