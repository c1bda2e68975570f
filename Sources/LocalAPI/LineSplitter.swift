/// Cuts bytes that arrive in pieces of any size into lines. Pure, so that hostile bytes can be tried on it; what it holds
/// is bounded by one line and one piece.
struct LineSplitter: Sendable {
  /// A line has more bytes than the limit, its end not counted.
  struct LineTooLong: Error, Hashable {}

  /// Bytes, the line's end not counted.
  let limit: Int
  private var buffer: [UInt8] = []
  private var position = 0
  /// There is no line end before this.
  private var searched = 0

  init(limit: Int) { self.limit = limit }

  mutating func append(_ bytes: some Sequence<UInt8>) {
    if position > 0 {
      buffer.removeFirst(position)
      searched -= position
      position = 0
    }
    buffer += bytes
  }

  /// The next line that is not empty, without its end (`\n` or `\r\n`); nil when more bytes are needed.
  mutating func next() throws(LineTooLong) -> String? {
    while let end = buffer[searched...].firstIndex(of: 0x0a) {
      let line = buffer[position..<end]
      searched = end + 1
      position = searched
      if let text = try text(line) { return text }
    }
    searched = buffer.count
    // One more than the limit may be a carriage return.
    guard buffer.count - position <= limit + 1 else { throw LineTooLong() }
    return nil
  }

  /// What follows the last line end, once no more bytes will come.
  mutating func last() throws(LineTooLong) -> String? {
    defer { (buffer, position, searched) = ([], 0, 0) }
    return try text(buffer[position...])
  }

  private func text(_ line: ArraySlice<UInt8>) throws(LineTooLong) -> String? {
    let line = line.last == 0x0d ? line.dropLast() : line
    guard line.count <= limit else { throw LineTooLong() }
    return line.isEmpty ? nil : String(decoding: line, as: UTF8.self)
  }
}
