import Glibc
import Testing

@testable import LocalAPI

/// Answers each connection with fixed bytes, on a thread of its own; nil accepts and stays silent.
final class CannedServer: Sendable {
  let path: String
  private let folder: TemporaryFolder
  private let descriptor: CInt
  /// There is no thread that waits for connections.
  private let isSilent: Bool

  init(_ answer: String?, keepOpen: Bool = false) throws {
    folder = try TemporaryFolder()
    path = "\(folder.path)/s"
    descriptor = try Self.listen(path)
    isSilent = answer == nil
    guard let answer else { return }
    let listener = descriptor
    Thread.start {
      while true {
        let connection = accept(listener, nil, nil)
        guard connection >= 0 else {
          // Closed by whoever uses it: a number closed elsewhere may already be another test's socket.
          close(listener)
          return
        }
        var request = [UInt8](repeating: 0, count: 65536)
        _ = recv(connection, &request, request.count, 0)
        // In pieces, so that every boundary is met by some test.
        for byte in answer.utf8 {
          var byte = byte
          send(connection, &byte, 1, CInt(MSG_NOSIGNAL))
        }
        if !keepOpen { close(connection) }
      }
    }
  }

  /// A listening socket.
  static func listen(_ path: String) throws -> CInt {
    let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard bound == 0, Glibc.listen(descriptor, 8) == 0 else {
      throw FileError(path: path, operation: "listen", errno: errno)
    }
    return descriptor
  }

  deinit {
    shutdown(descriptor, CInt(SHUT_RDWR))
    if isSilent { close(descriptor) }
  }
}

enum Thread {
  private final class Body {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  static func start(_ body: @escaping @Sendable () -> Void) {
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { pointer in
        if let pointer { Unmanaged<Body>.fromOpaque(pointer).takeRetainedValue().run() }
        return nil
      }, Unmanaged.passRetained(Body(body)).toOpaque())
    pthread_detach(thread)
  }
}

@Suite("HTTP over a unix socket")
struct UnixHTTPClientTests {
  private func get(_ answer: String, keepOpen: Bool = false) throws -> (status: Int, text: String) {
    let server = try CannedServer(answer, keepOpen: keepOpen)
    let client = UnixHTTPClient(path: server.path, timeoutMilliseconds: 2000)
    let (status, body) = try client.request("GET", "/")
    withExtendedLifetime(server) {}
    return (status, String(decoding: body, as: UTF8.self))
  }

  @Test("reads bodies of stated length, in chunks, up to the end, and none")
  func bodies() throws {
    #expect(try get("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", keepOpen: true) == (200, "hello"))
    #expect(
      try get(
        "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: 1\r\n\r\n",
        keepOpen: true) == (503, "abc0123456789abcdef"))
    #expect(try get("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\n\nto the end") == (200, "to the end"))
    #expect(try get("HTTP/1.1 204 No Content\r\n\r\n", keepOpen: true) == (204, ""))
  }

  @Test(
    "refuses what is not HTTP or breaks off",
    arguments: [
      "", "hello\r\n\r\n", "HTTP/1.1 99 X\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ])
  func malformed(answer: String) {
    #expect {
      try get(answer)
    } throws: {
      if case .badResponse = $0 as? LocalAPIError { true } else { false }
    }
  }

  @Test("tells a missing socket, a socket without listener and a silent agent apart")
  func unreachable() throws {
    let folder = try TemporaryFolder()
    #expect {
      try UnixHTTPClient(path: "\(folder.path)/none").request("GET", "/")
    } throws: {
      ($0 as? LocalAPIError) == .unreachable(path: "\(folder.path)/none", errno: ENOENT)
    }
    let silent = try CannedServer(nil)
    #expect {
      try UnixHTTPClient(path: silent.path, timeoutMilliseconds: 50).request("GET", "/")
    } throws: {
      ($0 as? LocalAPIError) == .timeout(path: silent.path, milliseconds: 50)
    }
    try LocalFile.create("\(folder.path)/file", with: [])
    #expect {
      try UnixHTTPClient(path: "\(folder.path)/file").request("GET", "/")
    } throws: {
      ($0 as? LocalAPIError) == .unreachable(path: "\(folder.path)/file", errno: ECONNREFUSED)
    }
  }

  @Test("mutated answers neither crash nor loop")
  func fuzz() {
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    let original = Array(
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nhello\r\n0\r\n\r\n".utf8)
    for _ in 0..<5_000 {
      var parser = HTTPResponseParser()
      parser.append(random.mutate(original))
      var events = 0
      while let event = try? parser.next(closed: true), event != .end { events += 1 }
      #expect(events <= original.count + 8, "seed \(seed)")
    }
  }
}
