import CLinux
import Glibc
import LocalAPI
import Synchronization

/// Plays the agent on a unix socket in a folder of its own: answers what it is told to and keeps what it was asked.
final class FakeAgent: Sendable {
  enum Answer: Sendable {
    case json(JSONValue)
    case failure(Int, String)
    /// Lines as a chunked stream that ends in order.
    case lines([String])
    /// Lines of a stream that stays open: until `say` or the end of the fake.
    case open([String])
    /// Lines of a stream that breaks off.
    case broken([String])
    /// Takes the request and says nothing.
    case silence
  }

  private struct State {
    var targets: [String] = []
    var connections: [CInt] = []
  }
  private final class StateBox: Sendable {
    let value = Mutex(State())
  }

  let path: String
  private let folder: String
  private let descriptor: CInt
  private let state = StateBox()

  init(_ answer: Answer) throws {
    var template = Array("/tmp/sluice-dpctl-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw FileError(path: "/tmp", operation: "mkdtemp", errno: errno) }
    folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    path = "\(folder)/agent.sock"
    descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard bound == 0, listen(descriptor, 8) == 0 else {
      throw FileError(path: path, operation: "listen", errno: errno)
    }
    let (listener, state) = (descriptor, state)
    startThread {
      while true {
        let connection = accept(listener, nil, nil)
        guard connection >= 0 else {
          // Closed by whoever uses it: a number closed elsewhere may already be another test's socket.
          close(listener)
          return
        }
        _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
        Self.serve(connection, answer, state)
      }
    }
  }

  deinit {
    shutdown(descriptor, CInt(SHUT_RDWR))
    for connection in state.value.withLock({ $0.connections }) { close(connection) }
    unlink(path)
    rmdir(folder)
  }

  /// What was asked for, in order: `/v1/policies?namespace=shop`.
  var targets: [String] { state.value.withLock { $0.targets } }

  /// Sends another line on the streams that are open.
  func say(_ line: String) {
    for connection in state.value.withLock({ $0.connections }) { Self.send(Self.chunk(line), connection) }
  }

  private static func serve(_ connection: CInt, _ answer: Answer, _ state: StateBox) {
    var text = ""
    var bytes = [UInt8](repeating: 0, count: 65536)
    while !text.contains("\r\n\r\n") {
      let count = recv(connection, &bytes, bytes.count, 0)
      guard count > 0 else {
        close(connection)
        return
      }
      text += String(decoding: bytes[0..<count], as: UTF8.self)
    }
    let words = text.split(separator: " ")
    let staysOpen =
      switch answer {
      case .open, .silence: true
      default: false
      }
    state.value.withLock { state in
      state.targets.append(words.count > 1 ? String(words[1]) : text)
      if staysOpen { state.connections.append(connection) }
    }
    let stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    switch answer {
    case .json(let value): send(whole(200, value.serialized()), connection)
    case .failure(let status, let message): send(whole(status, message), connection)
    case .lines(let lines): send(stream + lines.map(chunk).joined() + "0\r\n\r\n", connection)
    case .open(let lines), .broken(let lines): send(stream + lines.map(chunk).joined(), connection)
    case .silence: break
    }
    guard !staysOpen else { return }
    // A program that another test starts at this moment may have the connection too: closing alone would not end it.
    shutdown(connection, CInt(SHUT_RDWR))
    close(connection)
  }

  private static func whole(_ status: Int, _ body: String) -> String {
    "HTTP/1.1 \(status) X\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
  }

  private static func chunk(_ line: String) -> String {
    "\(String(line.utf8.count + 1, radix: 16))\r\n\(line)\n\r\n"
  }

  private static func send(_ text: String, _ connection: CInt) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.send(connection, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
      guard count > 0 else { return }
      bytes = bytes.dropFirst(count)
    }
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
