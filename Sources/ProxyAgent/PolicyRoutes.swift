import DataplaneModel
import HTTPTypes
import Hummingbird
import KubernetesObjects
import LocalAPI
import NIOCore
import ServiceLifecycle

/// A request context that knows its connection: a stream whose reader is stuck ends with it.
struct LocalContext: RequestContext {
  var coreContext: CoreRequestContextStorage
  let channel: any Channel

  init(source: ApplicationRequestContextSource) {
    coreContext = CoreRequestContextStorage(source: source)
    channel = source.channel
  }
}

/// A request that cannot be answered as it is.
struct RequestProblem: Error, CustomStringConvertible {
  var status: HTTPResponse.Status
  var description: String

  /// What is wrong with one argument.
  init(_ argument: String, _ what: String) { (status, description) = (.badRequest, "\(argument): \(what)") }

  static func notFound(_ argument: String, _ what: String) -> RequestProblem {
    var problem = RequestProblem(argument, what)
    problem.status = .notFound
    return problem
  }
}

extension HTTPServers {
  /// The part of the local API that is about policies.
  static func addPolicyRoutes(to router: Router<LocalContext>, _ reconciler: Reconciler) {
    router.get("v1/policies") { request, _ in
      await answer(request, ["namespace", "name"]) { query in
        try await reconciler.policyList(namespace: query["namespace"], name: query["name"])
      }
    }
    router.get("v1/policies/diff") { request, _ in
      await answer(request, []) { _ in try await reconciler.policyDiff() }
    }
    router.get("v1/identities") { request, _ in
      await answer(request, []) { _ in await reconciler.identityList() }
    }
    router.get("v1/explain") { request, _ in
      await answer(request, ExplainRequest.arguments) { query in
        try await reconciler.explain(ExplainRequest(query))
      }
    }
    router.get("v1/monitor") { request, context in
      do {
        let query = try MonitorQuery(arguments(of: request, MonitorQuery.arguments))
        // Refused before there is a response that cannot be taken back.
        try await reconciler.listen(to: query.filter.kinds, by: 0)
        return monitor(query, reconciler, request, context.channel)
      } catch {
        return refusal(error)
      }
    }
  }

  private static func answer(
    _ request: Request, _ known: Set<String>, _ body: ([String: String]) async throws -> JSONValue
  ) async -> Response {
    do {
      return json(try await body(arguments(of: request, known)))
    } catch {
      return refusal(error)
    }
  }

  private static func arguments(of request: Request, _ known: Set<String>) throws -> [String: String] {
    var arguments: [String: String] = [:]
    for (key, value) in request.uri.queryParameters {
      let key = String(key)
      guard known.contains(key) else { throw RequestProblem(key, "unknown argument") }
      guard arguments.updateValue(String(value), forKey: key) == nil else { throw RequestProblem(key, "given twice") }
    }
    return arguments
  }

  private static func refusal(_ error: any Error) -> Response {
    let status = (error as? RequestProblem)?.status ?? .serviceUnavailable
    return json(["error": .string("\(error)")], status: status)
  }

  /// A line per event until the client goes, the agent ends, or everything there was has been told.
  private static func monitor(
    _ query: MonitorQuery, _ reconciler: Reconciler, _ request: Request, _ channel: any Channel
  ) -> Response {
    let reader = reconciler.events.reader(query.filter, last: query.last, follows: query.follows)
    let wanted = query.follows ? query.filter.kinds : []
    let body = ResponseBody { writer in
      try? await reconciler.listen(to: wanted, by: 1)
      // Whichever way it ends: the client that goes is an error here.
      defer { Task { try? await reconciler.listen(to: wanted, by: -1) } }
      try await withGracefulShutdownHandler {
        try await request.body.consumeWithInboundCloseHandler { _ in
          while let events = await reader.next() {
            var lines = ByteBuffer()
            for event in events { lines.writeString(event.json.serialized() + "\n") }
            try await writer.write(lines)
          }
        } onInboundClosed: {
          reader.close()
        }
      } onGracefulShutdown: {
        reader.close()
        // A client that does not read would keep the agent from ending.
        channel.eventLoop.scheduleTask(in: .seconds(1)) { channel.close(promise: nil) }
      }
      try await writer.finish(nil)
    }
    return Response(status: .ok, headers: [.contentType: "application/x-ndjson"], body: body)
  }
}

/// The arguments of `/v1/monitor`.
struct MonitorQuery: Sendable, Equatable {
  var filter = EventFilter()
  var last: Int?
  var follows = false

  static let arguments: Set<String> = [
    "last", "follow", "type", "reason", "from", "to", "pod", "namespace", "since",
  ]

  /// Throws `RequestProblem`, which names the argument.
  init(_ arguments: [String: String], now: PolicyEvent.Time = .now) throws {
    if let text = arguments["last"] {
      guard let number = Int(text), number >= 0 else { throw RequestProblem("last", "'\(text)' is no count") }
      last = number
    }
    if let text = arguments["follow"] {
      guard let flag = Bool(text) else { throw RequestProblem("follow", "'\(text)' is neither true nor false") }
      follows = flag
    }
    for word in Self.list(arguments["type"]) {
      guard let kind = PolicyEvent.Kind(rawValue: word), kind != .lost else {
        throw RequestProblem("type", "'\(word)' is none of drop, audit, verdict, lb, trace")
      }
      filter.kinds.insert(kind)
    }
    for word in Self.list(arguments["reason"]) {
      guard DropReason(rawValue: word) != nil else {
        let known = DropReason.allCases.map(\.rawValue).joined(separator: ", ")
        throw RequestProblem("reason", "'\(word)' is none of \(known)")
      }
      filter.reasons.insert(word)
    }
    filter.source = try Self.end("from", arguments)
    filter.destination = try Self.end("to", arguments)
    filter.either = try Self.end("pod", arguments)
    filter.namespace = arguments["namespace"]
    if let text = arguments["since"] {
      guard let seconds = UInt64(text) else { throw RequestProblem("since", "'\(text)' is no number of seconds") }
      filter.since = PolicyEvent.Time(
        seconds: now.seconds > seconds ? now.seconds - seconds : 0, microseconds: now.microseconds)
    }
  }

  private static func list(_ text: String?) -> [String] {
    (text ?? "").split(separator: ",").map(String.init)
  }

  private static func end(_ name: String, _ arguments: [String: String]) throws -> EventFilter.End? {
    guard let text = arguments[name] else { return nil }
    guard let end = EventFilter.End(text) else {
      throw RequestProblem(name, "'\(text)' is neither namespace/pod nor an IP address")
    }
    return end
  }
}
