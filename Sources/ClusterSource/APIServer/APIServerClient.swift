import AsyncHTTPClient
import Foundation
import KubernetesObjects
import LocalAPI
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL

/// Asks API servers by HTTP: the one that answered last, else the next.
actor APIServerClient: APIServerConnection {
  private let access: APIServerAccess
  private let limits: HTTPSession.Limits
  private let reader: CredentialReader
  private var session: HTTPSession?
  /// Index of the server that is asked.
  private var current = 0

  init(_ access: APIServerAccess, limits: HTTPSession.Limits = .init()) {
    self.access = access
    self.limits = limits
    reader = CredentialReader(access)
  }

  /// Where requests go now.
  var server: APIServerURL { access.servers[current] }

  func get(_ request: ObjectRequest) async throws -> APIAnswer {
    try await authorized { session, index in
      let server = session.server
      let response = try await session.send(.GET, request.path, accept: request.accepted, limit: Self.longestWait)
      let type = response.headers.first(name: "content-type") ?? ""
      let format = WireFormat(contentType: type)
      guard response.status == .ok else {
        throw try await Self.status(of: response, format)
      }
      guard let format else { throw AccessProblem("\(server): answers with '\(type)', not as an API server does") }
      let body = ResponseBody(response.body, session)
      return APIAnswer(
        format: format,
        body: AsyncThrowingStream {
          do { return try await body.next() } catch {
            // Of other requests it is not known whether they are heard.
            if !(error is CancellationError) { await self.lost(session, index) }
            throw Self.named(error, server)
          }
        })
    }
  }

  /// - Parameter path: of the objects of its kind.
  func create(_ object: JSONValue, at path: String) async throws {
    try await authorized { session, _ in
      let json = WireFormat.json
      let response = try await session.send(
        .POST, path, accept: json.accepted(isWatch: false), json: Array(object.serialized().utf8), limit: .seconds(5))
      guard response.status == .created else { throw try await Self.status(of: response, json) }
      _ = try await response.body.collect(upTo: 1 << 20)
    }
  }

  /// With what is said of us now, and once more where that was refused.
  private func authorized<Answer: Sendable>(
    _ body: (HTTPSession, Int) async throws -> Answer
  ) async throws -> Answer {
    let credentials = try await reader.read()
    do { return try await exchange(credentials, body) } catch let status as APIStatus where status.code == 401 {
      // It may have expired between two readings.
      await reader.refused(credentials)
      let newer = try await reader.read()
      guard newer != credentials else { throw status }
      return try await exchange(newer, body)
    }
  }

  /// Has something asked of the server whose turn it is; where that fails, the next one is asked from now on.
  private func exchange<Answer: Sendable>(
    _ credentials: Credentials, _ body: (HTTPSession, Int) async throws -> Answer
  ) async throws -> Answer {
    let index = current
    let session = try session(credentials)
    do { return try await body(session, index) } catch let status as APIStatus {
      // 500 and more is about the server, less is about the request.
      if status.code >= 500 { turn(from: index) }
      throw status
    } catch {
      if !(error is CancellationError) { lost(session, index) }
      throw Self.named(error, session.server)
    }
  }

  /// Until an answer begins. Lists that come from storage take a while.
  private static let longestWait = Duration.seconds(60)

  /// The one at hand where nothing of what it was made of has changed.
  private func session(_ credentials: Credentials) throws -> HTTPSession {
    if let session, session.credentials == credentials, session.server == server { return session }
    let new = try HTTPSession(access, server, credentials, limits)
    session = new
    return new
  }

  // MARK: Failures

  /// No answer came, or not all of it. Connections that are dead without saying so must not be used again.
  private func lost(_ session: HTTPSession, _ index: Int) {
    if self.session === session { self.session = nil }
    turn(from: index)
  }

  private func turn(from index: Int) {
    guard current == index else { return }
    current = (index + 1) % access.servers.count
  }

  private static func status(of response: HTTPClientResponse, _ format: WireFormat?) async throws -> APIStatus {
    let code = Int(response.status.code)
    let asked = response.headers.first(name: "retry-after").flatMap { Int($0) }
    let body = try await response.body.collect(upTo: 1 << 20)
    var status = APIStatus(code: code, reason: "", message: response.status.reasonPhrase)
    if let told = try? format?.status(Array(body.readableBytesView)) { status = told }
    // A proxy's answer says nothing of itself.
    if status.code == 0 { status.code = code }
    status.retryAfterSeconds = status.retryAfterSeconds ?? asked
    return status
  }

  /// What went wrong, in an operator's words.
  private static func named(_ error: any Error, _ server: APIServerURL) -> any Error {
    let text: String
    switch error {
    case is CancellationError, is AccessProblem, is APIStatus: return error
    case let error as HTTPClientError:
      switch error {
      case .cancelled: return CancellationError()
      case .connectTimeout, .tlsHandshakeTimeout: text = "no connection in time"
      case .readTimeout, .deadlineExceeded: text = "no longer answers"
      case .remoteConnectionClosed: text = "closed the connection"
      default: text = error.shortDescription
      }
    case let error as NIOConnectionError:
      text = error.connectionErrors.map { ioText($0.error) }.first ?? "cannot be resolved"
    case let error as NIOSSLError: text = "TLS: \(tlsText("\(error)"))"
    case let error as NIOSSLExtraError:
      let isName = error == .failedToValidateHostname
      text = "TLS: \(isName ? "its certificate is for other names and addresses" : "\(error)")"
    default: text = ioText(error)
    }
    return AccessProblem("\(server): \(text)")
  }

  /// - Parameter error: how the library prints it.
  private static func tlsText(_ error: String) -> String {
    if error.contains("CERTIFICATE_VERIFY_FAILED") { return "its certificate is not by authorities that we trust" }
    if error.contains("EOF during handshake") { return "the connection ended in the handshake" }
    return error
  }

  private static func ioText(_ error: any Error) -> String {
    guard let error = error as? IOError else {
      let text = "\(error)"
      // The library for HTTP/2 has no public name for it.
      return text.hasPrefix("StreamClosed") ? "ended its answer in the middle" : text
    }
    return String(cString: strerror(error.errnoCode))
  }
}

extension ObjectRequest {
  /// Servers answer in the first form that they have. Both are read alike.
  var accepted: String { WireFormat.allCases.map { $0.accepted(isWatch: isWatch) }.joined(separator: ",") }
}
