import Glibc

/// Why a request to the agent got no usable answer.
public enum LocalAPIError: Error, Hashable, CustomStringConvertible {
  /// There is no socket, or nobody listens on it: the agent does not run.
  case unreachable(path: String, errno: CInt)
  case permission(path: String, errno: CInt)
  /// No complete answer in time.
  case timeout(path: String, milliseconds: Int)
  /// What came back is not HTTP, too long, or breaks off.
  case badResponse(path: String, reason: String)
  /// A stream was refused: the status with the agent's own words.
  case refused(path: String, status: Int, message: String)
  /// Another failure of a system call.
  case system(path: String, operation: String, errno: CInt)

  public var description: String {
    switch self {
    case .unreachable(let path, let code): "\(path): nobody answers: \(Self.text(code))"
    case .permission(let path, let code): "\(path): not allowed: \(Self.text(code))"
    case .timeout(let path, let milliseconds): "\(path): no answer within \(milliseconds) ms"
    case .badResponse(let path, let reason): "\(path): bad answer: \(reason)"
    case .refused(let path, let status, let message): "\(path): refused with status \(status): \(message)"
    case .system(let path, let operation, let code): "\(path): \(operation): \(Self.text(code))"
    }
  }

  private static func text(_ code: CInt) -> String { String(cString: strerror(code)) }
}

/// A blocking HTTP/1.1 client for one request at a time over a unix stream socket; every request has a connection of
/// its own. Made for programs that run for milliseconds: no event loop, no Foundation.
public struct UnixHTTPClient: Sendable {
  public let path: String
  /// For the whole request, connection included.
  public let timeoutMilliseconds: Int

  /// A longer body of a plain request is a bad answer.
  static let bodyLimit = 256 << 20

  public init(path: String = LocalAPIDefaults.agentSocket, timeoutMilliseconds: Int = 10_000) {
    self.path = path
    self.timeoutMilliseconds = timeoutMilliseconds
  }

  /// Sends one request and reads the whole answer, whatever its status.
  public func request(
    _ method: String, _ target: String, body: JSONValue? = nil
  ) throws(LocalAPIError) -> (status: Int, body: [UInt8]) {
    let connection = try open(method, target, body: body)
    var parser = HTTPResponseParser()
    var status = 0
    var content: [UInt8] = []
    while let event = try nextEvent(&parser, connection, deadline: connection.deadline) {
      switch event {
      case .head(let code): status = code
      case .body(let bytes):
        content += bytes
        guard content.count <= Self.bodyLimit else {
          throw LocalAPIError.badResponse(path: path, reason: "longer than \(Self.bodyLimit) bytes")
        }
      case .end: return (status, content)
      }
    }
    throw LocalAPIError.badResponse(path: path, reason: "no end")
  }

  /// The `error` member of the agent's answer, else the body itself, cut to a printable size.
  public static func message(in body: [UInt8]) -> String {
    if let json = try? JSONValue(parsing: body), let message = json["error"]?.stringValue { return message }
    return String(String(decoding: body, as: UTF8.self).prefix(200))
  }

  // MARK: The connection

  struct Connection: ~Copyable {
    let descriptor: CInt
    let deadline: Deadline
    deinit { close(descriptor) }
  }

  /// CLOCK_MONOTONIC, read directly: `ContinuousClock` would pull the concurrency runtime into the plugin.
  struct Deadline: Sendable {
    let nanoseconds: Int64

    init(milliseconds: Int) { nanoseconds = Self.now() + Int64(milliseconds) * 1_000_000 }

    static func now() -> Int64 {
      var time = timespec()
      clock_gettime(CLOCK_MONOTONIC, &time)
      return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }

    /// Rounded up, so that a wait never turns into a busy loop; 0 when it has passed.
    var milliseconds: CInt {
      let left = nanoseconds - Self.now()
      return left <= 0 ? 0 : CInt(clamping: left / 1_000_000 + 1)
    }
  }

  func open(_ method: String, _ target: String, body: JSONValue?) throws(LocalAPIError) -> Connection {
    let connection = try connect()
    var head = "\(method) \(target) HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\nAccept: application/json\r\n"
    let content = body.map { Array($0.serialized().utf8) } ?? []
    if body != nil { head += "Content-Type: application/json\r\n" }
    if body != nil || method == "POST" || method == "PUT" { head += "Content-Length: \(content.count)\r\n" }
    try send(Array((head + "\r\n").utf8) + content, connection)
    return connection
  }

  private func connect() throws(LocalAPIError) -> Connection {
    let deadline = Deadline(milliseconds: timeoutMilliseconds)
    let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw LocalAPIError.system(path: path, operation: "socket", errno: errno) }
    let connection = Connection(descriptor: descriptor, deadline: deadline)

    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let name = Array(path.utf8)
    guard !name.isEmpty, name.count < MemoryLayout.size(ofValue: address.sun_path) else {
      throw LocalAPIError.system(path: path, operation: "connect", errno: ENAMETOOLONG)
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
    // A full backlog makes connect wait: the send timeout bounds that.
    var limit = timeval(tv_sec: Int(deadline.milliseconds) / 1000, tv_usec: Int(deadline.milliseconds) % 1000 * 1000)
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    while true {
      let result = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      if result == 0 { return connection }
      switch errno {
      case EINTR: continue
      case ENOENT, ECONNREFUSED, ENOTDIR: throw LocalAPIError.unreachable(path: path, errno: errno)
      case EACCES, EPERM: throw LocalAPIError.permission(path: path, errno: errno)
      case EAGAIN: throw LocalAPIError.timeout(path: path, milliseconds: timeoutMilliseconds)
      default: throw LocalAPIError.system(path: path, operation: "connect", errno: errno)
      }
    }
  }

  private func send(_ bytes: [UInt8], _ connection: borrowing Connection) throws(LocalAPIError) {
    var sent = 0
    while sent < bytes.count {
      let flags = CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT)
      let count = bytes[sent...].withUnsafeBytes { Glibc.send(connection.descriptor, $0.baseAddress, $0.count, flags) }
      if count >= 0 {
        sent += count
      } else if errno == EAGAIN {
        try wait(for: Int16(POLLOUT), connection, deadline: connection.deadline)
      } else if errno == EPIPE || errno == ECONNRESET {
        // The agent may have answered and closed before it read all: what it said is worth reading.
        return
      } else if errno != EINTR {
        throw LocalAPIError.system(path: path, operation: "send", errno: errno)
      }
    }
  }

  func nextEvent(
    _ parser: inout HTTPResponseParser, _ connection: borrowing Connection, deadline: Deadline?
  ) throws(LocalAPIError) -> HTTPResponseParser.Event? {
    do throws(HTTPResponseParser.Malformed) {
      if let event = try parser.next() { return event }
    } catch {
      throw LocalAPIError.badResponse(path: path, reason: error.description)
    }
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = recv(connection.descriptor, &chunk, chunk.count, CInt(MSG_DONTWAIT))
      if count < 0 {
        switch errno {
        case EINTR: continue
        case EAGAIN: try wait(for: Int16(POLLIN), connection, deadline: deadline)
        case ECONNRESET: throw LocalAPIError.badResponse(path: path, reason: "connection reset")
        default: throw LocalAPIError.system(path: path, operation: "receive", errno: errno)
        }
        continue
      }
      do throws(HTTPResponseParser.Malformed) {
        parser.append(chunk[0..<count])
        if let event = try parser.next(closed: count == 0) { return event }
        if count == 0 { return nil }
      } catch {
        throw LocalAPIError.badResponse(path: path, reason: error.description)
      }
    }
  }

  private func wait(
    for events: Int16, _ connection: borrowing Connection, deadline: Deadline?
  ) throws(LocalAPIError) {
    while true {
      var poll = pollfd(fd: connection.descriptor, events: events, revents: 0)
      let ready = Glibc.poll(&poll, 1, deadline?.milliseconds ?? -1)
      if ready > 0 { return }
      if ready == 0 { throw LocalAPIError.timeout(path: path, milliseconds: timeoutMilliseconds) }
      if errno != EINTR { throw LocalAPIError.system(path: path, operation: "poll", errno: errno) }
    }
  }
}
