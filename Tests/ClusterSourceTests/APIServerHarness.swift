import APIServerDouble
import Foundation
import KubernetesObjects
import LocalAPI
import Synchronization

@testable import ClusterSource

/// A folder that goes with the test.
final class TestFolder: Sendable {
  let path: String

  init() throws {
    path = FileManager.default.temporaryDirectory.appendingPathComponent("sluice-api-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func write(_ name: String, _ text: String) throws {
    // In one step, as whoever rotates tokens does.
    try Data(text.utf8).write(to: URL(fileURLWithPath: "\(path)/\(name)"), options: .atomic)
  }
}

/// What a source has told, as one who keeps its account knows it.
final class Account: Sendable {
  struct State {
    var objects: [ObjectID: ClusterObject] = [:]
    /// Changes that changed something.
    var changes = 0
    var isSynced = false
    var isRemembered = false
    var reach: SourceReach?
    var reasons: [String] = []
    var problems: [String: [ObjectProblem]] = [:]
  }
  private let state = Mutex(State())

  var now: State { state.withLock { $0 } }

  func take(_ event: SourceEvent) {
    state.withLock { state in
      switch event {
      case .changes(let changes, _):
        for change in changes {
          let before = state.objects[change.id]
          switch change {
          case .upsert(let object): state.objects[change.id] = object
          case .delete: state.objects[change.id] = nil
          }
          if before != state.objects[change.id] { state.changes += 1 }
        }
      case .problems(let all, let place): state.problems[place] = all.isEmpty ? nil : all
      case .synced(let isRemembered): (state.isSynced, state.isRemembered) = (true, isRemembered)
      case .ignoredKinds: break
      case .reach(let reach):
        state.reach = reach
        if case .away(let reason) = reach { state.reasons.append(reason) }
      }
    }
  }

  struct TimedOut: Error, CustomStringConvertible { var description: String }

  @discardableResult
  func until(_ what: String, seconds: Int = 20, _ holds: (State) -> Bool) async throws -> State {
    for _ in 0..<(seconds * 200) {
      let now = now
      if holds(now) { return now }
      try await Task.sleep(for: .milliseconds(5))
    }
    let now = now
    throw TimedOut(
      description:
        "\(what) did not happen: \(now.objects.count) objects, synced \(now.isSynced), \(now.reasons.suffix(3))")
  }
}

/// A source that is followed for as long as this lives.
final class Following: Sendable {
  let account = Account()
  let progress = SourceProgress()
  private let task: Task<Void, Never>

  init(
    _ access: APIServerAccess, journal: String? = nil, limits: HTTPSession.Limits = .init(),
    patience: Duration = .seconds(5), hurry: Double = 1, tell: @escaping @Sendable (SourceEvent) -> Void = { _ in }
  ) {
    var source = APIServerSource(access: access, journalFolder: journal, progress: progress)
    source.patience = patience
    var surroundings = FollowerSurroundings.real
    surroundings.sleep = { try await Task.sleep(for: $0 / hurry) }
    task = Task { [account, source, surroundings] in
      await source.follow(connection: APIServerClient(access, limits: limits), surroundings: surroundings) {
        tell($0)
        account.take($0)
      }
    }
  }

  /// Waits until of every kind all is taken in up to a version, and no more is claimed.
  func reached(_ version: Int) async throws {
    for _ in 0..<4000 {
      let versions = progress.resourceVersions.values.map { Int($0) ?? -1 }
      if versions.count == ObjectKind.allCases.count, versions.allSatisfy({ $0 == version }) { return }
      try await Task.sleep(for: .milliseconds(5))
    }
    throw Account.TimedOut(description: "not all have reached \(version): \(progress.resourceVersions)")
  }

  func stop() async {
    task.cancel()
    await task.value
  }

  deinit { task.cancel() }
}

/// Objects to have at a server.
enum Sample {
  static func service(_ name: String, port: Int = 80) -> JSONValue {
    [
      "metadata": ["name": .string(name), "namespace": "shop"],
      "spec": [
        "type": "ClusterIP", "clusterIP": "10.96.0.\(1 + abs(name.hashValue) % 200)",
        "clusterIPs": ["10.96.0.\(1 + abs(name.hashValue) % 200)"], "selector": ["app": .string(name)],
        "ports": [["name": "http", "protocol": "TCP", "port": .int(Int64(port)), "targetPort": 8080]],
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
      ],
    ]
  }

  static func slice(_ name: String, service: String, labels: [String: String] = [:], addresses: [String]) -> JSONValue {
    var all: [(String, JSONValue)] = [("kubernetes.io/service-name", .string(service))]
    all += labels.map { ($0.key, .string($0.value)) }
    return [
      "metadata": ["name": .string(name), "namespace": "shop", "labels": .object(JSONObject(all))],
      "addressType": "IPv4", "ports": [["name": "http", "protocol": "TCP", "port": 8080]],
      "endpoints": .array(
        addresses.map { ["addresses": [.string($0)], "conditions": ["ready": true], "nodeName": "node-1"] }),
    ]
  }

  static func pod(_ name: String, ip: String, labels: [String: String] = ["app": "web"]) -> JSONValue {
    let labels = JSONObject(labels.sorted { $0.key < $1.key }.map { ($0.key, JSONValue.string($0.value)) })
    return [
      "metadata": ["name": .string(name), "namespace": "shop", "labels": .object(labels)],
      "spec": ["nodeName": "node-1", "containers": [["name": "c", "ports": [["containerPort": 8080]]]]],
      "status": ["phase": "Running", "podIP": .string(ip), "podIPs": [["ip": .string(ip)]]],
    ]
  }

  static func namespace(_ name: String, labels: [String: String] = [:]) -> JSONValue {
    let all = JSONObject(labels.sorted { $0.key < $1.key }.map { ($0.key, JSONValue.string($0.value)) })
    return ["metadata": ["name": .string(name), "labels": .object(all)]]
  }

  /// What the server has, as it should be known.
  static func expected(_ store: ObjectStore) -> [ObjectID: ClusterObject] {
    var objects: [ObjectID: ClusterObject] = [:]
    let decoder = ObjectDecoder()
    for kind in ServedKind.all {
      for object in store.objects(kind).values {
        // What nobody asks for.
        if object["metadata"]?["labels"]?["service.kubernetes.io/headless"] != nil { continue }
        if case .object(let decoded, _, _) = decoder.decode(JSONTree.tree(object), file: "") {
          objects[decoded.id] = decoded
        }
      }
    }
    return objects
  }
}
