import KubernetesObjects
import Synchronization
import Testing

@testable import ClusterSource

/// What servers do that no chance brings about, each by itself.
@Suite("Following one kind, case by case") struct KindFollowerCases {
  /// Answers by script, in JSON; its clock goes on while somebody sleeps.
  private final class ScriptedServer: APIServerConnection {
    struct State {
      var requests: [ObjectRequest] = []
      var now = Duration.zero
      var events: [KindEvent] = []
    }
    let state = Mutex(State())
    private let answer: @Sendable (ObjectRequest, Int) throws -> String

    init(_ answer: @escaping @Sendable (ObjectRequest, Int) throws -> String) { self.answer = answer }

    func get(_ request: ObjectRequest) async throws -> APIAnswer {
      let number = state.withLock { state in
        state.requests.append(request)
        return state.requests.count
      }
      let text = try answer(request, number)
      let (body, rest) = AsyncThrowingStream.makeStream(of: [UInt8].self)
      rest.yield(Array(text.utf8))
      rest.finish()
      return APIAnswer(format: .json, body: body)
    }

    var surroundings: FollowerSurroundings {
      FollowerSurroundings(
        now: { self.state.withLock { $0.now } },
        sleep: { duration in
          self.state.withLock { $0.now += duration }
          await Task.yield()
        }, random: { SystemRandomNumberGenerator() })
    }

    /// Follows until so many requests were made.
    func follow(_ kind: ObjectKind, requests: Int, journal: ObjectJournal? = nil) async -> State {
      nonisolated(unsafe) let journal = journal
      let task = Task {
        var follower = KindFollower(kind, connection: self, surroundings: surroundings, journal: journal) { event in
          self.state.withLock { $0.events.append(event) }
        }
        await follower.run()
      }
      while state.withLock({ $0.requests.count }) < requests { await Task.yield() }
      task.cancel()
      await task.value
      return state.withLock { $0 }
    }
  }

  private static func list(_ version: Int, _ items: String = "") -> String {
    "{\"kind\":\"NamespaceList\",\"metadata\":{\"resourceVersion\":\"\(version)\"},\"items\":[\(items)]}"
  }

  private static func namespace(_ name: String, _ version: Int) -> String {
    "{\"kind\":\"Namespace\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"\(name)\",\"resourceVersion\":\"\(version)\"}}"
  }

  private static func refuseStreamedLists(_ request: ObjectRequest) throws {
    if case .watchFromStart = request.form { throw APIStatus(code: 400, reason: "BadRequest", message: "") }
  }

  @Test("a 404 for what every server has is somebody else's answer: nothing is taken for gone")
  func notFound() async {
    let server = ScriptedServer { _, _ in throw APIStatus(code: 404, reason: "", message: "default backend") }
    let state = await server.follow(.service, requests: 4)
    #expect(!state.events.contains(.synced))
    #expect(state.events.contains(.reached(.away("404: default backend"))))
    #expect(!state.events.contains(.reached(.notServed)))
  }

  @Test("what no watch gets past is passed by a list")
  func undecodable() async {
    let server = ScriptedServer { request, _ in
      try Self.refuseStreamedLists(request)
      if case .watch = request.form { return "{\"type\":\"ADDED\"}\n" }
      return Self.list(7)
    }
    let state = await server.follow(.namespace, requests: 12)
    let forms = state.requests.map {
      if case .list = $0.form { "list" } else { $0.form.isWatchAfter ? "watch" : "start" }
    }
    #expect(
      Array(forms.prefix(10)) == [
        "start", "list", "watch", "watch", "watch", "list", "watch", "watch", "watch", "list",
      ])
  }

  @Test("a server that forgets at once is not asked for lists without end")
  func alwaysExpired() async {
    let server = ScriptedServer { request, _ in
      try Self.refuseStreamedLists(request)
      if case .watch = request.form { throw APIStatus(code: 410, reason: "Expired", message: "too old") }
      return Self.list(7)
    }
    let state = await server.follow(.namespace, requests: 20)
    // One list at once; the others are waited for, longer and longer.
    #expect(state.now > .seconds(60), "\(state.now)")
  }

  @Test("a version beyond all that the server has counts no more, once the server says so")
  func setBack() async {
    let server = ScriptedServer { request, number in
      try Self.refuseStreamedLists(request)
      switch request.form {
      case .watch:
        throw APIStatus(code: 504, reason: "Timeout", message: "Too large resource version: 900, current: 7")
      case .list(let version, _): return Self.list(version == "0" ? 900 : 7)
      case .watchFromStart: return ""
      }
    }
    let state = await server.follow(.namespace, requests: 4)
    #expect(state.requests[3].form == .list(version: "", next: ""))
  }

  @Test("what was wrong with an object is forgotten with the object, also where nobody saw it go")
  func forgottenProblems() async {
    let bad = "{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"3\",\"labels\":[]}}"
    let server = ScriptedServer { request, number in
      try Self.refuseStreamedLists(request)
      if case .watch = request.form { throw APIStatus(code: 410, reason: "Expired", message: "too old") }
      return number == 2 ? Self.list(7, bad) : Self.list(8)
    }
    let state = await server.follow(.namespace, requests: 5)
    let problems = state.events.compactMap { if case .problems(let all, _) = $0 { all.count } else { nil } }
    #expect(problems == [1, 0])
  }

  @Test(
    "a bad version of an object in a list that is a watch keeps the last good one, unless a good one or its end follows"
  )
  func badWithinList() async throws {
    let folder = try TestFolder()
    let journal = ObjectJournal(folder: folder.path, kind: .namespace, cluster: "c")
    let bad =
      "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"NAME\",\"resourceVersion\":\"3\",\"labels\":[]}}}\n"
    let end =
      "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"9\","
      + "\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n"
    func event(_ type: String, _ name: String, _ version: Int) -> String {
      "{\"type\":\"\(type)\",\"object\":\(Self.namespace(name, version))}\n"
    }
    let first = ["kept", "gone", "healed"].map { event("ADDED", $0, 1) }.joined() + end
    let second =
      ["kept", "gone", "healed"].map { bad.replacing("NAME", with: $0) }.joined() + event("DELETED", "gone", 5)
      + event("MODIFIED", "healed", 6) + end
    let server = ScriptedServer { request, number in
      switch number {
      case 1: return first
      case 2: throw APIStatus(code: 410, reason: "Expired", message: "too old")
      case 3: return second
      default: throw APIStatus(code: 500, reason: "", message: "")
      }
    }
    _ = await server.follow(.namespace, requests: 4, journal: journal)
    let again = ObjectJournal(folder: folder.path, kind: .namespace, cluster: "c")
    let reader = try #require(again.reader())
    var versions: [String: String] = [:]
    while let (frame, _, _) = reader.next() {
      if case .present(let tree) = frame, let key = tree.key(of: .namespace) {
        versions[key.name] = tree.resourceVersion
      }
      if case .gone(let tree) = frame, let key = tree.key(of: .namespace) { versions[key.name] = nil }
    }
    #expect(versions == ["kept": "1", "healed": "6"])
  }

  @Test("a memory without ServiceCIDRs is whole: servers need not have them")
  func noServiceCIDRs() async throws {
    let folder = try TestFolder()
    let journal = ObjectJournal(folder: folder.path, kind: .serviceCIDR, cluster: "c")
    let server = ScriptedServer { _, _ in throw APIStatus(code: 500, reason: "", message: "") }
    let state = await server.follow(.serviceCIDR, requests: 2, journal: journal)
    #expect(state.events.contains(.restored))
  }
}

extension ObjectRequest.Form {
  fileprivate var isWatchAfter: Bool { if case .watch = self { true } else { false } }
}
