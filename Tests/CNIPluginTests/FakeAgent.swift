import Glibc
import LocalAPI
import Synchronization

/// Plays the agent on a unix socket: answers every request as told and keeps what it was asked.
final class FakeAgent: Sendable {
  enum Behaviour: Sendable {
    case programs
    /// As one of a version that knew no host ports.
    case programsNoHostPorts
    case refuses
    /// Takes the request and never answers.
    case silent
  }

  private struct State {
    var behaviour: Behaviour
    var requests: [(line: String, body: String)] = []
    var silenced: [CInt] = []
  }

  private let descriptor: CInt
  private let state: StateBox

  private final class StateBox: Sendable {
    let value: Mutex<State>
    init(_ behaviour: Behaviour) { value = Mutex(State(behaviour: behaviour)) }
  }

  init(path: String, _ behaviour: Behaviour = .programs) throws {
    state = StateBox(behaviour)
    descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard bound == 0, listen(descriptor, 128) == 0 else {
      throw FileError(path: path, operation: "listen", errno: errno)
    }
    let (listener, state) = (descriptor, state)
    startThread {
      while true {
        let connection = accept(listener, nil, nil)
        guard connection >= 0 else { return }
        Self.serve(connection, state)
      }
    }
  }

  deinit {
    shutdown(descriptor, CInt(SHUT_RDWR))
    close(descriptor)
    for connection in state.value.withLock({ $0.silenced }) { close(connection) }
  }

  /// Lines such as `POST /v1/endpoints` with their bodies, in order.
  var requests: [(line: String, body: String)] { state.value.withLock { $0.requests } }

  private static func serve(_ connection: CInt, _ state: StateBox) {
    var text = ""
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = recv(connection, &chunk, chunk.count, 0)
      guard count > 0 else {
        close(connection)
        return
      }
      text += String(decoding: chunk[0..<count], as: UTF8.self)
      if let request = parse(text) {
        let behaviour = state.value.withLock { state in
          state.requests.append(request)
          if state.behaviour == .silent { state.silenced.append(connection) }
          return state.behaviour
        }
        guard behaviour != .silent else { return }
        let mappings = (try? JSONValue(parsing: request.body))?["portMappings"]?.arrayValue ?? []
        let body =
          behaviour == .programs
          ? #"{"programmed":true,"hostPorts":\#(mappings.count)}"#
          : behaviour == .programsNoHostPorts ? #"{"programmed":true}"# : #"{"error":"no room"}"#
        let status = behaviour == .refuses ? "503 Unavailable" : "200 OK"
        let answer = Array("HTTP/1.1 \(status)\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)".utf8)
        send(connection, answer, answer.count, CInt(MSG_NOSIGNAL))
        close(connection)
        return
      }
    }
  }

  /// nil while the request is not complete.
  private static func parse(_ text: String) -> (line: String, body: String)? {
    let lines = text.split(separator: "\r\n", omittingEmptySubsequences: false)
    guard let end = lines.firstIndex(of: ""), let first = lines.first else { return nil }
    let body = lines[(end + 1)...].joined(separator: "\r\n")
    let length = lines.first { $0.lowercased().hasPrefix("content-length:") }
      .flatMap { Int($0.split(separator: " ")[1]) }
    guard body.utf8.count >= length ?? 0 else { return nil }
    return (first.split(separator: " ").prefix(2).joined(separator: " "), body)
  }
}

/// Runs `body` on a thread of its own.
func startThread(_ body: @escaping @Sendable () -> Void) {
  final class Box {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }
  var thread = pthread_t()
  pthread_create(
    &thread, nil,
    { pointer in
      if let pointer { Unmanaged<Box>.fromOpaque(pointer).takeRetainedValue().run() }
      return nil
    }, Unmanaged.passRetained(Box(body)).toOpaque())
  pthread_detach(thread)
}
