import Glibc
import Testing

@testable import LocalAPI

@Suite("Streams of lines over a unix socket")
struct StreamTests {
  /// The lines of an answer, and what ended the stream but its regular end.
  private func lines(
    of answer: String, limit: Int = UnixHTTPClient.defaultLineLimit, taking count: Int = .max, keepOpen: Bool = false
  ) throws -> (lines: [String], error: LocalAPIError?, path: String) {
    let server = try CannedServer(answer, keepOpen: keepOpen)
    defer { withExtendedLifetime(server) {} }
    var lines: [String] = []
    do {
      let client = UnixHTTPClient(path: server.path, timeoutMilliseconds: 10_000)
      try client.stream("/v1/monitor", lineLimit: limit) { line in
        lines.append(line)
        return lines.count < count
      }
    } catch let error as LocalAPIError {
      return (lines, error, server.path)
    }
    return (lines, nil, server.path)
  }

  @Test("hands over lines wherever chunks end, without empty ones, and what follows the last end")
  func lines() throws {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    let answer = chunked + "3\r\n{\"a\r\n8\r\n\":1}\r\n\n\n\r\n8\r\n{}\n{\"b\":\r\n2\r\n2}\r\n0\r\n\r\n"
    let whole = try lines(of: answer, keepOpen: true)
    #expect(whole.lines == [#"{"a":1}"#, "{}", #"{"b":2}"#])
    #expect(whole.error == nil)
    #expect(try lines(of: "HTTP/1.1 200 OK\r\n\r\na\nb").lines == ["a", "b"])
    #expect(try lines(of: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\n", keepOpen: true).lines == ["a", "b"])
  }

  @Test("ends when told to, though the agent goes on")
  func stop() throws {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\na\nb\nc\n\r\n"
    let result = try lines(of: answer, taking: 2, keepOpen: true)
    #expect(result.lines == ["a", "b"])
    #expect(result.error == nil)
  }

  @Test("passes on what the reader of the lines throws")
  func readerFails() throws {
    struct Full: Error {}
    let server = try CannedServer("HTTP/1.1 200 OK\r\n\r\na\nb\n")
    #expect(throws: Full.self) {
      try UnixHTTPClient(path: server.path).stream("/") { _ in throw Full() }
    }
  }

  @Test("a refused stream carries the agent's words, of which a bounded part is kept")
  func refused() throws {
    let body = #"{"error":"no"}"#
    let result = try lines(of: "HTTP/1.1 404 No\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)")
    #expect(result.error == .refused(path: result.path, status: 404, message: "no"))
    let long = String(repeating: "x", count: 100_000)
    let flooded = try lines(of: "HTTP/1.1 500 No\r\n\r\n\(long)")
    #expect(flooded.error == .refused(path: flooded.path, status: 500, message: String(long.prefix(200))))
    // Cut, it is no JSON any more.
    let cut = #"{"error":"\#(long)"}"#
    let cutOff = try lines(of: "HTTP/1.1 500 No\r\n\r\n\(cut)")
    #expect(cutOff.error == .refused(path: cutOff.path, status: 500, message: String(cut.prefix(200))))
  }

  @Test("an agent that vanishes in the middle is no regular end, and what it said before is not lost")
  func vanishes() throws {
    for rest in ["", "5\r\nb", "5\r\nb\nc\nd", "0\r\n"] {
      let result = try lines(of: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n\(rest)")
      #expect(result.lines.first == "a")
      guard case .badResponse = result.error else {
        Issue.record("\(rest.debugDescription): \(String(describing: result.error))")
        continue
      }
    }
  }

  @Test("a line longer than the limit is a bad answer, one of the limit is not")
  func longLines() throws {
    let head = "HTTP/1.1 200 OK\r\n\r\n"
    #expect(try lines(of: head + "12345678\n12345678\r\n12345678", limit: 8).lines.count == 3)
    for line in ["123456789\n", "123456789", "1234567890123", "123456789\r\n"] {
      let result = try lines(of: head + "a\n" + line, limit: 8)
      #expect(result.lines == ["a"])
      #expect(result.error == .badResponse(path: result.path, reason: "a line is longer than 8 bytes"))
    }
    // Without waiting for its end.
    var endless = LineSplitter(limit: 8)
    endless.append("1234567890".utf8)
    #expect(throws: LineSplitter.LineTooLong.self) { try endless.next() }
  }

  @Test("the time limit is for the head: lines may come later")
  func slowLines() throws {
    // The second line is sent once the first was read and the limit has passed.
    let milliseconds = 2000
    let folder = try TemporaryFolder()
    let listener = try CannedServer.listen("\(folder.path)/s")
    defer { close(listener) }
    let first = Array("HTTP/1.1 200 OK\r\n\r\na\n".utf8)
    let connection = Handover()
    Thread.start {
      let descriptor = accept(listener, nil, nil)
      var request = [UInt8](repeating: 0, count: 65536)
      _ = recv(descriptor, &request, request.count, 0)
      send(descriptor, first, first.count, CInt(MSG_NOSIGNAL))
      connection.give(descriptor)
    }
    var lines: [String] = []
    try UnixHTTPClient(path: "\(folder.path)/s", timeoutMilliseconds: milliseconds).stream("/") { line in
      lines.append(line)
      guard lines.count == 1 else { return true }
      usleep(UInt32(milliseconds + 100) * 1000)
      Thread.start {
        let descriptor = connection.take()
        // Time for the client to begin to wait.
        usleep(100_000)
        send(descriptor, "b\n", 2, CInt(MSG_NOSIGNAL))
        close(descriptor)
      }
      return true
    }
    #expect(lines == ["a", "b"])
  }

  @Test("an agent that takes the request and says nothing is given up")
  func silent() throws {
    let server = try CannedServer(nil)
    #expect {
      try UnixHTTPClient(path: server.path, timeoutMilliseconds: 50).stream("/") { _ in true }
    } throws: {
      ($0 as? LocalAPIError) == .timeout(path: server.path, milliseconds: 50)
    }
  }

  @Test("mutated streams give the same lines in whatever pieces they come")
  func fuzz() {
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    let original = Array(
      "\(head)5\r\nab\ncd\r\nb\r\n\n\nefghijkl\r\n4\r\n\nm\nn\r\n0\r\n\r\n".utf8
    )
    #expect(Self.read([original]) == (["ab", "cd", "efghijkl", "m", "n"], true))
    var complete = 0
    for _ in 0..<5_000 {
      let bytes = random.mutate(original)
      var pieces: [[UInt8]] = []
      var rest = bytes[...]
      while !rest.isEmpty {
        let count = Int.random(in: 1...min(7, rest.count), using: &random)
        pieces.append(Array(rest.prefix(count)))
        rest = rest.dropFirst(count)
      }
      let (whole, inPieces) = (Self.read([bytes]), Self.read(pieces))
      #expect(whole == inPieces, "seed \(seed): \(bytes)")
      #expect(whole.lines.allSatisfy { $0.utf8.count <= 3 * 8 }, "seed \(seed): \(bytes)")
      if whole.isComplete { complete += 1 }
    }
    #expect(complete > 0 && complete < 5_000, "seed \(seed)")
  }

  /// What `UnixHTTPClient.stream` does with the bytes of an answer, with lines of at most 8 bytes.
  private static func read(_ pieces: [[UInt8]]) -> (lines: [String], isComplete: Bool) {
    var parser = HTTPResponseParser()
    var splitter = LineSplitter(limit: 8)
    var lines: [String] = []
    do {
      for (index, piece) in (pieces + [[]]).enumerated() {
        parser.append(piece)
        while let event = try parser.next(closed: index == pieces.count) {
          switch event {
          case .head: break
          case .body(let bytes):
            splitter.append(bytes)
            while let line = try splitter.next() { lines.append(line) }
          case .end:
            if let line = try splitter.last() { lines.append(line) }
            return (lines, true)
          }
        }
      }
    } catch {
      return (lines, false)
    }
    return (lines, false)
  }
}

/// One descriptor from one thread to another.
private final class Handover: Sendable {
  private let ends: (read: CInt, write: CInt)

  init() {
    var ends: [CInt] = [0, 0]
    pipe(&ends)
    self.ends = (ends[0], ends[1])
  }

  func give(_ descriptor: CInt) {
    var descriptor = descriptor
    write(ends.write, &descriptor, MemoryLayout<CInt>.size)
  }

  /// Waits until there is one.
  func take() -> CInt {
    var descriptor: CInt = -1
    _ = read(ends.read, &descriptor, MemoryLayout<CInt>.size)
    return descriptor
  }

  deinit {
    close(ends.read)
    close(ends.write)
  }
}

@Suite("Queries to the agent")
struct QueryTests {
  @Test("encode values and leave out what is not set")
  func encoding() {
    #expect(AgentPath.query("/v1/x", []) == "/v1/x")
    #expect(AgentPath.query("/v1/x", [("a", nil)]) == "/v1/x")
    #expect(
      AgentPath.query("/v1/x", [("a", "shop/db-0"), ("b", nil), ("c", "fd00::1 &=+é"), ("d", "")])
        == "/v1/x?a=shop%2Fdb-0&c=fd00%3A%3A1%20%26%3D%2B%C3%A9&d=")
  }
}
