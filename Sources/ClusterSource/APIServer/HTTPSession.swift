import AsyncHTTPClient
import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL

/// Connections to one API server with certain credentials. It lives as long as a request made through it: a watch goes on while
/// new requests already use newer certificates.
final class HTTPSession: Sendable {
  let server: APIServerURL
  let credentials: Credentials
  private let client: HTTPClient
  private let serverName: String?

  struct Limits: Sendable {
    /// Until TCP and TLS are there.
    var connect = Duration.seconds(5)
    /// Without a byte: watches hear a bookmark once a minute.
    var silence = Duration.seconds(150)
  }

  init(
    _ access: APIServerAccess, _ server: APIServerURL, _ credentials: Credentials, _ limits: Limits
  ) throws {
    self.server = server
    serverName = server.isSecure ? access.serverName : nil
    self.credentials = credentials
    var configuration = HTTPClient.Configuration(
      tlsConfiguration: try Self.tls(access, credentials), redirectConfiguration: .disallow,
      timeout: .init(connect: TimeAmount(limits.connect), read: TimeAmount(limits.silence)), decompression: .disabled)
    // Whether and when to try again is decided by who follows a kind; also, another server may be better.
    configuration.connectionPool.retryConnectionEstablishment = false
    // By HTTP/1.1, where there is no TLS, each watch has a connection of its own.
    configuration.connectionPool.concurrentHTTP1ConnectionsPerHostSoftLimit = 16
    if let proxy = access.proxy { configuration.proxy = .server(host: proxy.host, port: proxy.port) }
    // The name is asked for and checked in TLS; where it is, is said here.
    if let serverName { configuration.dnsOverride[serverName] = server.host }
    configuration.http1_1ConnectionDebugInitializer = Self.findDeadPeers
    configuration.http2ConnectionDebugInitializer = Self.findDeadPeers
    client = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
  }

  deinit {
    let client = client
    Task { try? await client.shutdown() }
  }

  private static func tls(_ access: APIServerAccess, _ credentials: Credentials) throws -> TLSConfiguration {
    var tls = TLSConfiguration.makeClientConfiguration()
    tls.minimumTLSVersion = .tlsv12
    if case .anyone = access.trust { tls.certificateVerification = .none }
    if let authorities = credentials.authorities {
      tls.trustRoots = .certificates(
        try read("certificate-authority", "certificates") { try NIOSSLCertificate.fromPEMBytes(authorities) })
    }
    if let identity = credentials.identity {
      tls.certificateChain = try read("client-certificate", "certificates") {
        try NIOSSLCertificate.fromPEMBytes(identity.certificate).map { .certificate($0) }
      }
      tls.privateKey = .privateKey(
        try read("client-key", "a private key") { try NIOSSLPrivateKey(bytes: identity.key, format: .pem) })
    }
    return tls
  }

  private static func read<Value>(_ field: String, _ what: String, _ body: () throws -> Value) throws -> Value {
    do { return try body() } catch { throw AccessProblem("\(field): is not \(what) in PEM form") }
  }

  /// A server that is gone without a word, or a middle box that has forgotten us, is found within half a minute.
  private static let findDeadPeers: @Sendable (any Channel) -> EventLoopFuture<Void> = { channel in
    let tcp = CInt(IPPROTO_TCP)
    let options: [(level: CInt, name: CInt, value: SocketOptionValue)] = [
      (SOL_SOCKET, SO_KEEPALIVE, 1), (tcp, TCP_KEEPIDLE, 15), (tcp, TCP_KEEPINTVL, 5), (tcp, TCP_KEEPCNT, 3),
      (tcp, TCP_USER_TIMEOUT, 30_000),
    ]
    let set = options.map { option in
      channel.setOption(
        ChannelOptions.socket(SocketOptionLevel(option.level), SocketOptionName(option.name)), value: option.value)
    }
    // What is not a TCP socket has no such options, and needs none.
    return EventLoopFuture.andAllComplete(set, on: channel.eventLoop)
  }

  /// - Parameters:
  ///   - path: with its query.
  ///   - json: what is written; nil: nothing is, something is asked for.
  ///   - limit: until the answer begins.
  func send(
    _ method: HTTPMethod, _ path: String, accept: String, json: [UInt8]? = nil, limit: Duration
  ) async throws -> HTTPClientResponse {
    var request = HTTPClientRequest(url: url + path)
    request.method = method
    if let json {
      request.headers.add(name: "Content-Type", value: "application/json")
      request.body = .bytes(json)
    }
    request.headers.add(name: "Accept", value: accept)
    request.headers.add(name: "User-Agent", value: Self.userAgent)
    if let token = credentials.token { request.headers.add(name: "Authorization", value: "Bearer \(token)") }
    return try await client.execute(request, timeout: TimeAmount(limit))
  }

  private var url: String {
    serverName.map { "https://\($0):\(server.port)\(server.path)" } ?? server.description
  }

  static let userAgent = "sluice-agent"
}

/// A body as it comes; keeps its session while it is read.
final class ResponseBody: @unchecked Sendable {
  private let session: HTTPSession
  /// Only the one who reads the stream gets here.
  private var iterator: HTTPClientResponse.Body.AsyncIterator

  init(_ body: HTTPClientResponse.Body, _ session: HTTPSession) {
    self.session = session
    iterator = body.makeAsyncIterator()
  }

  func next() async throws -> [UInt8]? { try await iterator.next().map { Array($0.readableBytesView) } }
}
