import ClusterSource
import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
import HummingbirdHTTP2
import LocalAPI
import Logging
import NIOCore
import NIOSSL
import Synchronization

/// An API server for tests: TLS, authentication, lists and watches by its real protocol, over objects that tests change. It is
/// strict: what a real server refuses, it refuses. Faults happen on demand.
package final class APIServerDouble: Sendable {
  package struct Options: Sendable {
    /// PEM files; nil: HTTP without TLS.
    package var certificate: String?
    package var key: String?
    /// Of those whose certificates are believed; nil: clients' certificates are not asked for.
    package var clientAuthorities: String?
    package var tokens: Set<String> = []
    /// Whoever asks is let in.
    package var isOpen = false
    package var servesProtobuf = true
    package var streamsLists = true
    /// Kinds that an older server would not know.
    package var unserved: Set<String> = []
    /// Real servers take a minute.
    package var bookmarkInterval = Duration.seconds(60)

    package var host = "127.0.0.1"
    /// Pods on nodes are run by somebody: one that is deleted stays until it has ended.
    package var runsPods = false

    package init() {}
  }

  package struct Counts: Sendable {
    package var lists = 0
    package var pages = 0
    package var watches = 0
    package var gets = 0
    package var unauthorized = 0
  }

  package let store: ObjectStore
  /// What is checked is still so when it is written.
  private let writing = Mutex(())
  package let faults: Faults
  private let options: Mutex<Options>
  private let counted = Mutex(Counts())
  private let running = Mutex<Task<Void, Never>?>(nil)

  package init(_ options: Options, store: ObjectStore = ObjectStore(), faults: Faults = Faults(seed: 0)) {
    (self.store, self.faults) = (store, faults)
    self.options = Mutex(options)
  }

  package var counts: Counts { counted.withLock { $0 } }

  /// Tokens that are good from now on.
  package func setTokens(_ tokens: Set<String>) { options.withLock { $0.tokens = tokens } }

  // MARK: Running

  /// - Parameter port: 0: any.
  /// - Returns: the port.
  package func start(port: Int = 0) async throws -> Int {
    var logger = Logger(label: "apiserver-double")
    logger.logLevel = .critical
    let (ports, bound) = AsyncStream.makeStream(of: Int.self)
    let application = Application(
      responder: CallbackResponder<DoubleContext> { request, context in await self.answer(request, context) },
      server: try server(), configuration: .init(address: .hostname(options.withLock { $0.host }, port: port)),
      onServerRunning: { channel in
        bound.yield(channel.localAddress?.port ?? 0)
        bound.finish()
      }, logger: logger)
    let task = Task {
      do { try await application.run() } catch {}
      bound.finish()
    }
    running.withLock { $0 = task }
    for await port in ports { return port }
    throw Refusal(500, "InternalError", "the double cannot listen")
  }

  package func stop() async {
    let task = running.withLock { $0 }
    task?.cancel()
    await task?.value
  }

  private func server() throws -> HTTPServerBuilder {
    let options = options.withLock { $0 }
    guard let certificate = options.certificate, let key = options.key else { return .http1() }
    var tls = TLSConfiguration.makeServerConfiguration(
      certificateChain: try NIOSSLCertificate.fromPEMFile(certificate).map { .certificate($0) },
      privateKey: .privateKey(try NIOSSLPrivateKey(file: key, format: .pem)))
    tls.minimumTLSVersion = .tlsv12
    if let authorities = options.clientAuthorities {
      tls.trustRoots = .file(authorities)
      tls.certificateVerification = .optionalVerification
    }
    return try .http2Upgrade(tlsConfiguration: tls)
  }

  // MARK: Answering

  private func answer(_ request: Request, _ context: DoubleContext) async -> Response {
    let options = options.withLock { $0 }
    let accept = request.headers[.accept] ?? ""
    do throws(Refusal) {
      try await authenticate(request, context, options)
      try await strike()
      if request.method == .get, let answer = discovery(request.uri.path, options) { return answer }
      let asked = try APIRequest(
        method: request.method.rawValue, path: request.uri.path, query: request.uri.query ?? "")
      guard !options.unserved.contains(asked.kind.kind) else {
        throw .notFound("the server could not find the requested resource")
      }
      let isRead = [.get, .list, .watch].contains(asked.verb)
      let servesProtobuf = options.servesProtobuf && asked.kind.decodedKind != nil
      let form = try WireForm(accept: accept, servesProtobuf: servesProtobuf, servesTables: isRead)
      if asked.isScale { return try await scale(asked, request, form) }
      switch asked.verb {
      case .list:
        try asked.validateOptions(streamsLists: options.streamsLists)
        return body(try list(asked, form), form)
      case .watch:
        try asked.validateOptions(streamsLists: options.streamsLists)
        counted.withLock { $0.watches += 1 }
        let watch = try WatchAnswer(
          asked, form: form, store: store, faults: faults, bookmarkInterval: options.bookmarkInterval)
        return stream(watch, form)
      case .get:
        counted.withLock { $0.gets += 1 }
        return body(form.object(try object(asked), asked.kind), form)
      case .create:
        let object = try await bodyObject(of: request)
        let stored = try writing.withLock { (_) throws(Refusal) in
          let new = try Admission(store: store).create(object, asked)
          return asked.isDryRun ? new : try store.put(new, asked.kind)
        }
        var response = body(form.object(stored, asked.kind), form)
        response.status = .created
        return response
      case .replace:
        let new = try await bodyObject(of: request)
        return body(form.object(try replace(asked, by: { _ throws(Refusal) in new }), asked.kind), form)
      case .patch:
        let patch = try await bodyObject(of: request)
        let type = request.headers[.contentType] ?? ""
        let patched = try replace(asked) { (old) throws(Refusal) in try Patch.apply(patch, type, to: old, asked.kind) }
        return body(form.object(patched, asked.kind), form)
      case .delete:
        let wishes = try await bodyObject(of: request)
        let left = try writing.withLock { (_) throws(Refusal) in try delete(asked, wishes, options) }
        return body(form.object(left, asked.kind), form)
      }
    } catch {
      let form = (try? WireForm(accept: accept, servesProtobuf: options.servesProtobuf)) ?? .json
      var response = body(form.status(error), form)
      response.status = .init(code: error.code)
      if let seconds = error.retryAfterSeconds { response.headers[.retryAfter] = "\(seconds)" }
      return response
    }
  }

  private func authenticate(
    _ request: Request, _ context: DoubleContext, _ options: Options
  ) async throws(Refusal) {
    if options.isOpen { return }
    if let header = request.headers[.authorization], header.hasPrefix("Bearer "),
      options.tokens.contains(String(header.dropFirst("Bearer ".count)))
    {
      return
    }
    if options.clientAuthorities != nil, await context.hasCertificate { return }
    counted.withLock { $0.unauthorized += 1 }
    throw Refusal(401, "Unauthorized", "Unauthorized")
  }

  private func strike() async throws(Refusal) {
    if faults.strike(.slowAnswer) { try? await Task.sleep(for: .milliseconds(faults.number(in: 10...300))) }
    if faults.strike(.unauthorized) { throw Refusal(401, "Unauthorized", "Unauthorized") }
    if faults.strike(.serverError) { throw Refusal(500, "InternalError", "etcdserver: request timed out") }
    if faults.strike(.unavailable) { throw Refusal(503, "ServiceUnavailable", "apiserver is shutting down") }
    if faults.strike(.tooManyRequests) {
      var refusal = Refusal(429, "TooManyRequests", "Too many requests, please try again later.")
      refusal.retryAfterSeconds = 1
      throw refusal
    }
  }

  private func object(_ asked: APIRequest) throws(Refusal) -> JSONValue {
    let name = ObjectStore.Name(asked.namespace ?? "", asked.name ?? "")
    guard let object = store.objects(asked.kind)[name] else {
      throw .notFound("\(asked.kind.resource) \"\(name.name)\"")
    }
    return object
  }

  private func discovery(_ path: String, _ options: Options) -> Response? {
    if path == "/openapi/v2" {
      return Response(
        status: .ok, headers: [.contentType: Discovery.openAPIType],
        body: .init(byteBuffer: ByteBuffer(bytes: Discovery.openAPI)))
    }
    let kinds = ServedKind.all.filter { !options.unserved.contains($0.kind) }
    return Discovery.answer(path, kinds).map { body(Array($0.serialized().utf8), .json) }
  }

  // MARK: Changing

  /// - Parameter change: of the object there is; asked again where somebody else was quicker, unless it named a version.
  private func replace(
    _ asked: APIRequest, by change: (JSONValue) throws(Refusal) -> JSONValue
  ) throws(Refusal) -> JSONValue {
    try writing.withLock { (_) throws(Refusal) in try exchange(asked, by: change) }
  }

  private func exchange(
    _ asked: APIRequest, by change: (JSONValue) throws(Refusal) -> JSONValue
  ) throws(Refusal) -> JSONValue {
    var attempts = 0
    while true {
      let old = try object(asked)
      let version = old["metadata"]?["resourceVersion"]
      let new = try Admission(store: store).replace(try change(old), old, asked)
      let namesVersion = ![nil, version].contains(new["metadata"]?["resourceVersion"])
      // Nothing that changes nothing is an event.
      if !namesVersion, new.with("metadata", "resourceVersion", value: version) == old { return old }
      if asked.isDryRun { return new }
      do throws(Refusal) {
        return try store.put(
          namesVersion ? new : new.with("metadata", "resourceVersion", value: version), asked.kind)
      } catch {
        attempts += 1
        guard !namesVersion, error.code == 409, attempts < 5 else { throw error }
      }
    }
  }

  /// - Parameter wishes: DeleteOptions.
  private func delete(_ asked: APIRequest, _ wishes: JSONValue, _ options: Options) throws(Refusal) -> JSONValue {
    let old = try object(asked)
    for key in ["uid", "resourceVersion"] {
      guard let wanted = wishes["preconditions"]?[key], wanted != old["metadata"]?[key] else { continue }
      throw Refusal(
        409, "Conflict",
        "Operation cannot be fulfilled on \(asked.kind.resource) \"\(asked.name ?? "")\": the \(key) in the precondition "
          + "(\(wanted.stringValue ?? "")) does not match (\(old["metadata"]?[key]?.stringValue ?? ""))")
    }
    if asked.isDryRun || wishes["dryRun"]?.arrayValue == ["All"] { return old }
    let name = ObjectStore.Name(asked.namespace ?? "", asked.name ?? "")
    guard options.runsPods else {
      try store.delete(asked.kind, name)
      return old
    }
    return try store.end(asked.kind, name)
  }

  /// How many there shall be of something, apart from all else about it.
  private func scale(_ asked: APIRequest, _ request: Request, _ form: WireForm) async throws(Refusal) -> Response {
    func shown(_ object: JSONValue) -> JSONValue {
      let old = object["metadata"]
      return [
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": [
          "name": old?["name"] ?? "", "namespace": old?["namespace"] ?? "", "uid": old?["uid"] ?? "",
          "resourceVersion": old?["resourceVersion"] ?? "",
        ],
        "spec": ["replicas": object["spec"]?["replicas"] ?? 0],
        "status": [
          "replicas": object["status"]?["replicas"] ?? 0,
          "selector": .string(
            PodObject.strings(object["spec"]?["selector"]?["matchLabels"]).map { "\($0.key)=\($0.value)" }.sorted()
              .joined(separator: ",")),
        ],
      ]
    }
    var result = try object(asked)
    if asked.verb == .replace || asked.verb == .patch {
      let change = try await bodyObject(of: request)
      let type = request.headers[.contentType] ?? ""
      let isPatch = asked.verb == .patch
      result = try replace(asked) { (old) throws(Refusal) in
        let scale = isPatch ? try Patch.apply(change, type, to: shown(old), asked.kind) : change
        guard let replicas = scale["spec"]?["replicas"]?.intValue else {
          throw .invalid("Scale", "spec.replicas", "Required value")
        }
        return old.with("spec", "replicas", value: .int(replicas))
          .with("metadata", "resourceVersion", value: isPatch ? nil : scale["metadata"]?["resourceVersion"])
      }
    }
    return body(Array(shown(result).serialized().utf8), .json)
  }

  private func bodyObject(of request: Request) async throws(Refusal) -> JSONValue {
    guard request.headers[.contentType]?.contains("protobuf") != true else {
      throw Refusal(415, "UnsupportedMediaType", "the double reads no objects written as protobuf: use JSON")
    }
    let bytes: ByteBuffer
    do { bytes = try await request.body.collect(upTo: 3 << 20) } catch {
      throw Refusal(413, "RequestEntityTooLarge", "the body cannot be read, or is longer than 3 MiB: \(error)")
    }
    // `kubectl delete` may have nothing to say.
    guard bytes.readableBytes > 0 else { return [:] }
    do { return try JSONValue(parsing: Array(bytes.readableBytesView)) } catch {
      throw .badRequest("the body is no JSON: \(error)")
    }
  }

  private func list(_ asked: APIRequest, _ form: WireForm) throws(Refusal) -> [UInt8] {
    let selector = try asked.selector
    let version = try asked.version()
    var after: ObjectStore.Name?
    var at = asked.isExact ? version.number : nil
    if !asked.next.isEmpty {
      let token = try ContinueToken(asked.next)
      after = token.name
      at = token.rv
      if faults.strike(.expiredList) { throw .expired("The provided continue parameter is too old") }
    }
    if let number = version.number, number > store.version { throw .tooLarge(number, current: store.version) }
    counted.withLock { counts in
      counts.pages += 1
      if after == nil { counts.lists += 1 }
    }
    let (objects, shown) = try store.objects(asked.kind, at: at)
    var meant = objects.filter { name, object in
      (asked.namespace.map { $0 == name.namespace } ?? true) && selector.matches(object)
    }
    if let after { meant = Array(meant.drop { $0.0 <= after }) }
    // What is answered from the watch cache is answered whole.
    let limit = asked.limit > 0 && !(version.isAny && after == nil) ? asked.limit : Int.max
    var metadata: JSONObject = ["resourceVersion": .string("\(shown)")]
    var page = Array(meant.prefix(limit))
    if let last = page.last, meant.count > page.count {
      metadata["continue"] = .string(ContinueToken(version: shown, after: last.0).text)
      metadata["remainingItemCount"] = .int(Int64(meant.count - page.count))
    }
    if faults.strike(.shuffledList) {
      var random = faults.generator()
      page = (page + page.prefix(2)).shuffled(using: &random)
    }
    return form.list(page.map { $0.1 }, asked.kind, metadata: .object(metadata))
  }

  // MARK: Writing

  private func body(_ bytes: [UInt8], _ form: WireForm) -> Response {
    Response(
      status: .ok, headers: [.contentType: form.contentType(isWatch: false)],
      body: .init(byteBuffer: ByteBuffer(bytes: bytes)))
  }

  private func stream(_ watch: WatchAnswer, _ form: WireForm) -> Response {
    let content = ResponseBody { writer in
      try await watch.write { try await writer.write(ByteBuffer(bytes: $0)) }
      try await writer.finish(nil)
    }
    return Response(status: .ok, headers: [.contentType: form.contentType(isWatch: true)], body: content)
  }
}

/// Knows whether whoever asks has shown a certificate that is believed.
struct DoubleContext: RequestContext {
  var coreContext: CoreRequestContextStorage
  private let channel: any Channel

  init(source: ApplicationRequestContextSource) {
    coreContext = .init(source: source)
    channel = source.channel
  }

  var hasCertificate: Bool {
    get async {
      // By HTTP/2 each request has a channel within the connection's.
      let connection = channel.parent.flatMap { $0.parent == nil ? nil : $0 } ?? channel
      return (try? await connection.nioSSL_peerCertificate().get()) != nil
    }
  }
}
