/// The fields of one protobuf message in the order they stand, by https://protobuf.dev/programming-guides/encoding.
///
/// Own code because what is wanted is the decoder's neutral tree with a handful of fields of each message: the library's
/// generated types would be a second model of every object, converted once more (docs/decisions.md).
struct ProtobufFields {
  enum Value: Equatable {
    case number(UInt64)
    /// Text, bytes or another message: where they stand.
    case bytes(Range<Int>)
    /// Eight or four bytes, which no message here has a use for.
    case fixed
  }

  private let bytes: [UInt8]
  private(set) var offset: Int
  private let end: Int

  init(_ bytes: [UInt8], in range: Range<Int>) {
    self.bytes = bytes
    (offset, end) = (range.lowerBound, range.upperBound)
  }

  /// nil at the message's end.
  mutating func next() throws(WireProblem) -> (number: Int, value: Value)? {
    guard offset < end else { return nil }
    let tag = try number()
    guard let field = Int(exactly: tag >> 3), (1..<1 << 29).contains(field) else {
      throw problem("field number \(tag >> 3)")
    }
    switch tag & 7 {
    case 0: return (field, .number(try number()))
    case 1:
      try skip(8)
      return (field, .fixed)
    case 2:
      let count = try number()
      guard count <= UInt64(end - offset) else { throw problem("field \(field) is \(count) bytes long, past the end") }
      let start = offset
      offset += Int(count)
      return (field, .bytes(start..<offset))
    case 5:
      try skip(4)
      return (field, .fixed)
    default: throw problem("field \(field) has wire type \(tag & 7)")
    }
  }

  /// The field that begins at the range's start, though its content may not all be there: bytes until the content begins, and
  /// those of the content. nil where not even these are there.
  static func head(
    _ bytes: [UInt8], in range: Range<Int>
  ) throws(WireProblem) -> (number: Int, head: Int, content: Int)? {
    // A tag and a length have at most ten bytes each.
    let isWhole = range.count >= 20
    var fields = ProtobufFields(bytes, in: range)
    do throws(WireProblem) {
      let tag = try fields.number()
      guard tag & 7 == 2, let number = Int(exactly: tag >> 3) else {
        throw WireProblem("protobuf: wire type \(tag & 7) where a message should stand")
      }
      guard let content = Int(exactly: try fields.number()) else { throw WireProblem("protobuf: a length of 64 bits") }
      return (number, fields.offset - range.lowerBound, content)
    } catch {
      guard isWhole || fields.offset < range.upperBound else { return nil }
      throw error
    }
  }

  /// A number of variable length: seven bits a byte, the lowest first.
  private mutating func number() throws(WireProblem) -> UInt64 {
    var result: UInt64 = 0
    for index in 0..<10 {
      guard offset < end else { throw problem("ends within a number") }
      let byte = bytes[offset]
      offset += 1
      // Of the tenth byte only one bit fits.
      guard index < 9 || byte <= 1 else { break }
      result |= UInt64(byte & 0x7f) << UInt64(7 * index)
      if byte < 0x80 { return result }
    }
    throw problem("a number of more than 64 bits")
  }

  private mutating func skip(_ count: Int) throws(WireProblem) {
    guard count <= end - offset else { throw problem("ends within a field") }
    offset += count
  }

  private func problem(_ what: String) -> WireProblem { WireProblem("protobuf, byte \(offset): \(what)") }
}
