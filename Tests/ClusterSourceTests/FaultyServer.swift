import APIServerDouble
import KubernetesObjects
import LocalAPI
import Synchronization

@testable import ClusterSource

/// An API server's memory of Namespaces, with lists, watches and a horizon, that answers at random as servers do in bad times.
/// Its clock goes on while somebody sleeps, and at no other time.
final class FaultyServer: APIServerConnection {
  enum Fault: String, CaseIterable {
    case unreachable, serverError, tooManyRequests, forbidden, expired, expiredInWatch, cutShort, badBytes, endsAtOnce
  }

  private struct Change {
    var version: Int
    var type: String
    var object: String
  }

  private struct State {
    var random: SeededGenerator
    var version = 100
    var labels: [String: Int] = [:]
    var log: [Change] = []
    var isCalm = false
    var counts: [String: Int] = [:]
    var now = Duration.zero
    var slept = Duration.zero
    var requests = 0
    /// Of what the follower did: asking, reading, sleeping.
    var steps = 0
    var changes = 0
    /// What the list that is being told was when it began.
    var snapshot: (version: Int, objects: [(name: String, label: Int)]) = (0, [])

    mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &random) < percent }
    mutating func fault(_ fault: Fault, _ percent: Int) -> Bool {
      guard !isCalm, chance(percent) else { return false }
      counts["\(fault)", default: 0] += 1
      return true
    }
    func object(_ name: String, _ version: Int, _ label: Int) -> String {
      "{\"kind\":\"Namespace\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"\(name)\",\"resourceVersion\":\"\(version)\","
        + "\"labels\":{\"v\":\"\(label)\"}}}"
    }
  }

  private struct Unreachable: Error {}

  private let state: Mutex<State>
  private let streamsLists: Bool
  private let isServed: Bool

  init(seed: UInt64, streamsLists: Bool = true, isServed: Bool = true) {
    state = Mutex(State(random: SeededGenerator(seed: seed)))
    (self.streamsLists, self.isServed) = (streamsLists, isServed)
  }

  var surroundings: FollowerSurroundings {
    let seed = state.withLock { $0.random.next() }
    return FollowerSurroundings(
      now: { self.state.withLock { $0.now } },
      sleep: { duration in
        self.state.withLock {
          $0.now += duration
          $0.slept += duration
          $0.steps += 1
        }
        await Task.yield()
      }, random: { SeededGenerator(seed: seed) })
  }

  var names: Set<String> { state.withLock { Set($0.labels.map { "\($0.key)=\($0.value)" }) } }
  var counts: [String: Int] { state.withLock { $0.counts } }
  var faults: Int { state.withLock { state in Fault.allCases.reduce(0) { $0 + state.counts["\($1)", default: 0] } } }
  var hasMetAll: Bool {
    state.withLock { state in Fault.allCases.allSatisfy { state.counts["\($0)", default: 0] > 0 } }
  }
  var requests: Int { state.withLock { $0.requests } }
  var slept: Duration { state.withLock { $0.slept } }

  func calmDown() { state.withLock { $0.isCalm = true } }

  /// As `change`, but not more often than the follower takes a step: on a busy machine it would be behind for ever.
  func changeInTime() {
    if state.withLock({ $0.changes <= $0.steps }) { change() }
  }

  /// One object comes, changes or goes.
  func change() {
    state.withLock { state in
      state.version += 1
      state.changes += 1
      let name = "n\(Int.random(in: 0..<900, using: &state.random))"
      let old = state.labels[name]
      if let old, state.chance(40) {
        state.labels[name] = nil
        state.log.append(
          Change(version: state.version, type: "DELETED", object: state.object(name, state.version, old)))
      } else {
        state.labels[name] = state.version
        let object = state.object(name, state.version, state.version)
        state.log.append(Change(version: state.version, type: old == nil ? "ADDED" : "MODIFIED", object: object))
      }
      if state.log.count > 400 { state.log.removeFirst(200) }
    }
  }

  // MARK: Requests

  func get(_ request: ObjectRequest) async throws -> APIAnswer {
    try state.withLock { state in
      state.requests += 1
      state.steps += 1
      guard isServed else { throw APIStatus(code: 404, reason: "NotFound", message: "no such kind") }
      if state.fault(.unreachable, 5) { throw Unreachable() }
      if state.fault(.serverError, 4) { throw APIStatus(code: 500, reason: "InternalError", message: "etcd") }
      if state.fault(.forbidden, 2) { throw APIStatus(code: 403, reason: "Forbidden", message: "not now") }
      if state.fault(.tooManyRequests, 3) {
        throw APIStatus(code: 429, reason: "TooManyRequests", message: "busy", retryAfterSeconds: 2)
      }
      if state.fault(.expired, 3) { throw APIStatus(code: 410, reason: "Expired", message: "compacted") }
      switch request.form {
      case .list(_, let next):
        state.counts["list", default: 0] += 1
        return answer(list(next, &state), more: nil, &state)
      case .watchFromStart:
        state.counts["watchFromStart", default: 0] += 1
        guard streamsLists else { throw APIStatus(code: 400, reason: "BadRequest", message: "sendInitialEvents") }
        let objects = state.labels.map { (name, label) in
          "{\"type\":\"ADDED\",\"object\":\(state.object(name, label, label))}\n"
        }
        return answer(objects.joined() + bookmark(state.version, isEnd: true), more: state.version, &state)
      case .watch(let after, _):
        state.counts["watch", default: 0] += 1
        guard let after = Int(after) else { throw APIStatus(code: 400, reason: "BadRequest", message: "version") }
        if state.fault(.endsAtOnce, 10) { return answer("", more: nil, &state) }
        if after < (state.log.first?.version ?? 0) - 1 || state.fault(.expiredInWatch, 12) { return expired(&state) }
        return answer("", more: after, &state)
      }
    }
  }

  private func expired(_ state: inout State) -> APIAnswer {
    let status = "{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"message\":\"too old resource version\"}"
    return answer("{\"type\":\"ERROR\",\"object\":\(status)}\n", more: nil, &state)
  }

  private func bookmark(_ version: Int, isEnd: Bool) -> String {
    let annotations = isEnd ? ",\"annotations\":{\"\(WireFormat.initialEventsEnd)\":\"true\"}" : ""
    return "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"\(version)\"\(annotations)}}}\n"
  }

  /// Pages are of the objects as they were when the list began, in order of their names.
  private func list(_ next: String, _ state: inout State) -> String {
    let parts = next.split(separator: "/")
    if next.isEmpty {
      state.snapshot = (state.version, state.labels.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
    } else if parts.first != "\(state.snapshot.version)" {
      return "{\"metadata\":{},\"items\":[]"
    }
    let (version, sorted) = state.snapshot
    let start = parts.count == 2 ? Int(parts[1]) ?? 0 : 0
    let page = sorted[min(start, sorted.count)...].prefix(ObjectRequest.pageSize)
    let items = page.map { state.object($0.name, $0.label, $0.label) }.joined(separator: ",")
    let end = start + page.count
    let token = end < sorted.count ? ",\"continue\":\"\(version)/\(end)\"" : ""
    return
      "{\"kind\":\"NamespaceList\",\"metadata\":{\"resourceVersion\":\"\(version)\"\(token)},\"items\":[\(items)]}"
  }

  /// - Parameter more: the version from which on a watch goes on with what comes; nil: nothing does.
  private func answer(_ text: String, more: Int?, _ state: inout State) -> APIAnswer {
    var bytes = Array(text.utf8)
    var isCut = false
    if !bytes.isEmpty, state.fault(.cutShort, 5) {
      bytes.removeLast(Int.random(in: 1...bytes.count, using: &state.random))
      isCut = true
    } else if !bytes.isEmpty, state.fault(.badBytes, 2) {
      bytes[Int.random(in: 0..<bytes.count, using: &state.random)] = 0xff
    }
    let body = Body(rest: bytes[...], isCut: isCut, after: more)
    return APIAnswer(format: .json, body: AsyncThrowingStream { try await self.next(body) })
  }

  private final class Body: @unchecked Sendable {
    var rest: ArraySlice<UInt8>
    var isCut: Bool
    var after: Int?
    init(rest: ArraySlice<UInt8>, isCut: Bool, after: Int?) {
      (self.rest, self.isCut, self.after) = (rest, isCut, after)
    }
  }

  private func next(_ body: Body) async throws -> [UInt8]? {
    while true {
      try Task.checkCancellation()
      state.withLock { $0.steps += 1 }
      if !body.rest.isEmpty {
        let count = state.withLock { Int.random(in: 1...max(1, body.rest.count / 2), using: &$0.random) }
        defer { body.rest = body.rest.dropFirst(count) }
        return Array(body.rest.prefix(count))
      }
      if body.isCut { throw Unreachable() }
      guard let after = body.after else { return nil }
      enum Step { case wait, end, fail, text(String, Int) }
      let step: Step = state.withLock { state in
        if state.chance(1) { return .end }
        let news = state.log.filter { $0.version > after }
        // What has been forgotten meanwhile cannot be told.
        if let first = state.log.first, first.version > after + 1 { return .end }
        guard let last = news.last else {
          return state.chance(5) ? .text(bookmark(max(after, 0), isEnd: false), after) : .wait
        }
        state.now += .seconds(2)
        return .text(news.map { "{\"type\":\"\($0.type)\",\"object\":\($0.object)}\n" }.joined(), last.version)
      }
      switch step {
      case .wait: await Task.yield()
      case .end: return nil
      case .fail: throw Unreachable()
      case .text(let text, let version):
        var bytes = Array(text.utf8)
        state.withLock { state in
          if state.fault(.badBytes, 4) { bytes[Int.random(in: 0..<bytes.count, using: &state.random)] = 0xff }
          if state.fault(.cutShort, 4) {
            bytes.removeLast(Int.random(in: 1...bytes.count, using: &state.random))
            body.isCut = true
          }
        }
        (body.rest, body.after) = (bytes[...], version)
      }
    }
  }
}
