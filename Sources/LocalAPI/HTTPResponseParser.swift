/// Reads the answer to one HTTP/1.1 request from bytes as they arrive. Pure, so that hostile bytes can be tried on it.
public struct HTTPResponseParser: Sendable {
  public enum Event: Sendable, Hashable {
    case head(status: Int)
    case body([UInt8])
    case end
  }

  /// What is wrong with the answer.
  public struct Malformed: Error, Hashable, CustomStringConvertible {
    public let description: String
  }

  private enum State {
    case head
    /// Bytes of the body still to come.
    case counted(Int)
    case chunkSize
    case chunk(Int)
    case chunkEnd
    case trailer
    case untilClose
    case done
  }

  /// A status line with all headers; also the limit of one chunk-size or trailer line.
  static let headLimit = 64 << 10

  private var state = State.head
  private var buffer: [UInt8] = []
  private var position = 0

  public init() {}

  public mutating func append(_ bytes: some Sequence<UInt8>) {
    if position > 0 {
      buffer.removeFirst(position)
      position = 0
    }
    buffer += bytes
  }

  /// The next thing known, nil when more bytes are needed. `closed` says that none will come.
  public mutating func next(closed: Bool = false) throws(Malformed) -> Event? {
    while true {
      switch state {
      case .head:
        guard let event = try head(closed: closed) else { return nil }
        if case .head(let status) = event, (100..<200).contains(status) { continue }
        return event
      case .counted(0):
        state = .done
        return .end
      case .counted(let left):
        guard let bytes = try take(upTo: left, closed: closed) else { return nil }
        state = .counted(left - bytes.count)
        return .body(bytes)
      case .chunkSize:
        guard let line = try line(closed: closed) else { return nil }
        let digits = line.split(separator: ";", maxSplits: 1, omittingEmptySubsequences: false)[0]
        guard !digits.isEmpty, digits.utf8.count <= 8, digits.allSatisfy(\.isHexDigit),
          let size = Int(digits, radix: 16)
        else { throw Malformed(description: "bad chunk size '\(line.prefix(20))'") }
        state = size == 0 ? .trailer : .chunk(size)
      case .chunk(let left):
        guard let bytes = try take(upTo: left, closed: closed) else { return nil }
        state = bytes.count == left ? .chunkEnd : .chunk(left - bytes.count)
        return .body(bytes)
      case .chunkEnd:
        guard let line = try line(closed: closed) else { return nil }
        guard line.isEmpty else { throw Malformed(description: "chunk longer than its size") }
        state = .chunkSize
      case .trailer:
        guard let line = try line(closed: closed) else { return nil }
        if line.isEmpty {
          state = .done
          return .end
        }
      case .untilClose:
        if let bytes = available(upTo: .max) { return .body(bytes) }
        guard closed else { return nil }
        state = .done
        return .end
      case .done: return nil
      }
    }
  }

  private mutating func available(upTo limit: Int) -> [UInt8]? {
    let count = Swift.min(limit, buffer.count - position)
    guard count > 0 else { return nil }
    defer { position += count }
    return Array(buffer[position..<position + count])
  }

  private mutating func take(upTo limit: Int, closed: Bool) throws(Malformed) -> [UInt8]? {
    if let bytes = available(upTo: limit) { return bytes }
    if closed { throw Malformed(description: "connection closed within the body") }
    return nil
  }

  /// A line without its end, nil while it is not complete.
  private mutating func line(closed: Bool) throws(Malformed) -> String? {
    guard let end = buffer[position...].firstIndex(of: 0x0a) else {
      guard buffer.count - position <= Self.headLimit else { throw Malformed(description: "line too long") }
      if closed { throw Malformed(description: "connection closed within the answer") }
      return nil
    }
    var bytes = buffer[position..<end]
    position = end + 1
    if bytes.last == 0x0d { bytes.removeLast() }
    return String(decoding: bytes, as: UTF8.self)
  }

  private mutating func head(closed: Bool) throws(Malformed) -> Event? {
    let start = position
    var lines: [String] = []
    while true {
      guard buffer.count - start <= Self.headLimit || position - start <= Self.headLimit else {
        throw Malformed(description: "head longer than \(Self.headLimit) bytes")
      }
      guard let line = try line(closed: closed) else {
        position = start
        guard buffer.count - start <= Self.headLimit else {
          throw Malformed(description: "head longer than \(Self.headLimit) bytes")
        }
        return nil
      }
      if line.isEmpty { break }
      lines.append(line)
    }
    let words = (lines.first ?? "").split(separator: " ", maxSplits: 2)
    guard words.count >= 2, words[0].hasPrefix("HTTP/1."), words[1].utf8.count == 3, let status = Int(words[1]),
      (100..<600).contains(status)
    else { throw Malformed(description: "bad status line '\((lines.first ?? "").prefix(40))'") }

    var length: Int?
    var chunked = false
    for line in lines.dropFirst() {
      guard let colon = line.firstIndex(of: ":") else {
        throw Malformed(description: "bad header '\(line.prefix(40))'")
      }
      let value = line[line.index(after: colon)...].drop { $0 == " " || $0 == "\t" }
      switch line[..<colon].lowercased() {
      case "content-length":
        guard let number = Int(value), number >= 0, length == nil || length == number else {
          throw Malformed(description: "bad Content-Length '\(value.prefix(40))'")
        }
        length = number
      case "transfer-encoding":
        guard value.lowercased() == "chunked" else {
          throw Malformed(description: "unknown Transfer-Encoding '\(value.prefix(40))'")
        }
        chunked = true
      default: break
      }
    }
    if (100..<200).contains(status) {
      state = .head
    } else if status == 204 || status == 304 {
      state = .counted(0)
    } else if chunked {
      state = .chunkSize
    } else {
      state = length.map { .counted($0) } ?? .untilClose
    }
    return .head(status: status)
  }
}
