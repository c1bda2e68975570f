/// Why a text is not JSON, and where.
public struct JSONError: Error, Hashable, CustomStringConvertible {
  /// Bytes from the start of the text.
  public let offset: Int
  public let reason: String

  public var description: String { "byte \(offset): \(reason)" }
}

extension JSONValue {
  /// Deeper nesting is refused: input must not be able to exhaust the stack.
  public static let depthLimit = 64

  /// Parses one JSON text (RFC 8259), strictly: valid UTF-8, nothing behind the value, no leading zeros, surrogates in
  /// pairs. Of a key that occurs twice the last value is kept, as most readers do.
  public init(parsing text: String) throws(JSONError) { try self.init(parsing: Array(text.utf8)) }

  public init(parsing bytes: [UInt8]) throws(JSONError) {
    var parser = JSONParser(bytes: bytes)
    self = try parser.document()
  }
}

private struct JSONParser {
  let bytes: [UInt8]
  var offset = 0

  init(bytes: [UInt8]) { self.bytes = bytes }

  var current: UInt8? { offset < bytes.count ? bytes[offset] : nil }

  func failure(_ reason: String, at offset: Int? = nil) -> JSONError {
    JSONError(offset: offset ?? self.offset, reason: reason)
  }

  func unexpected(_ wanted: String) -> JSONError {
    guard let current else { return failure("expected \(wanted), found the end") }
    let shown =
      (0x21...0x7e).contains(current)
      ? "'\(Character(Unicode.Scalar(current)))'" : "byte 0x" + String(current, radix: 16)
    return failure("expected \(wanted), found \(shown)")
  }

  mutating func document() throws(JSONError) -> JSONValue {
    skipSpace()
    let value = try value(depth: 0)
    skipSpace()
    guard current == nil else { throw unexpected("the end") }
    return value
  }

  mutating func skipSpace() {
    while let byte = current, byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 { offset += 1 }
  }

  mutating func take(_ wanted: Unicode.Scalar) -> Bool {
    guard current == UInt8(ascii: wanted) else { return false }
    offset += 1
    return true
  }

  mutating func value(depth: Int) throws(JSONError) -> JSONValue {
    guard depth < JSONValue.depthLimit else { throw failure("nested deeper than \(JSONValue.depthLimit)") }
    switch current {
    case UInt8(ascii: "{"): return .object(try object(depth: depth))
    case UInt8(ascii: "["): return .array(try array(depth: depth))
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    case .some(UInt8(ascii: "-")), .some(UInt8(ascii: "0")...UInt8(ascii: "9")): return try number()
    default: throw unexpected("a value")
    }
  }

  mutating func word(_ word: StaticString, _ value: JSONValue) throws(JSONError) -> JSONValue {
    let end = offset + word.utf8CodeUnitCount
    let matches = word.withUTF8Buffer { wanted in end <= bytes.count && bytes[offset..<end].elementsEqual(wanted) }
    guard matches else { throw unexpected("a value") }
    offset = end
    return value
  }

  mutating func object(depth: Int) throws(JSONError) -> JSONObject {
    offset += 1
    var members: [JSONObject.Member] = []
    skipSpace()
    if take("}") { return JSONObject() }
    while true {
      skipSpace()
      guard current == UInt8(ascii: "\"") else { throw unexpected("a key") }
      let key = try string()
      skipSpace()
      guard take(":") else { throw unexpected("':'") }
      skipSpace()
      members.append(JSONObject.Member(key: key, value: try value(depth: depth + 1)))
      skipSpace()
      if take("}") { return JSONObject(members: members) }
      guard take(",") else { throw unexpected("',' or '}'") }
    }
  }

  mutating func array(depth: Int) throws(JSONError) -> [JSONValue] {
    offset += 1
    var elements: [JSONValue] = []
    skipSpace()
    if take("]") { return elements }
    while true {
      skipSpace()
      elements.append(try value(depth: depth + 1))
      skipSpace()
      if take("]") { return elements }
      guard take(",") else { throw unexpected("',' or ']'") }
    }
  }

  mutating func string() throws(JSONError) -> String {
    let start = offset
    offset += 1
    var text: [UInt8] = []
    while let byte = current {
      switch byte {
      case UInt8(ascii: "\""):
        offset += 1
        guard let string = String(validating: text, as: UTF8.self) else {
          throw failure("string is not UTF-8", at: start)
        }
        return string
      case UInt8(ascii: "\\"):
        offset += 1
        try escape(into: &text)
      case 0..<0x20: throw failure("control character in a string")
      default:
        text.append(byte)
        offset += 1
      }
    }
    throw failure("string does not end", at: start)
  }

  mutating func escape(into text: inout [UInt8]) throws(JSONError) {
    guard let byte = current else { throw unexpected("an escape") }
    offset += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
    case UInt8(ascii: "b"): text.append(0x08)
    case UInt8(ascii: "f"): text.append(0x0c)
    case UInt8(ascii: "n"): text.append(0x0a)
    case UInt8(ascii: "r"): text.append(0x0d)
    case UInt8(ascii: "t"): text.append(0x09)
    case UInt8(ascii: "u"):
      let start = offset - 2
      var code = UInt32(try hex4())
      if (0xd800..<0xdc00).contains(code) {
        guard take("\\"), take("u") else { throw failure("first surrogate without a second", at: start) }
        let second = UInt32(try hex4())
        guard (0xdc00..<0xe000).contains(second) else {
          throw failure("first surrogate without a second", at: start)
        }
        code = 0x10000 + (code - 0xd800) << 10 + (second - 0xdc00)
      }
      guard let scalar = Unicode.Scalar(code) else { throw failure("second surrogate without a first", at: start) }
      text += String(Character(scalar)).utf8
    default: throw failure("unknown escape", at: offset - 2)
    }
  }

  mutating func hex4() throws(JSONError) -> UInt16 {
    var value: UInt16 = 0
    for _ in 0..<4 {
      guard let byte = current, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
        throw unexpected("four hex digits")
      }
      value = value << 4 | UInt16(digit)
      offset += 1
    }
    return value
  }

  mutating func digits() throws(JSONError) {
    let start = offset
    while let byte = current, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { offset += 1 }
    guard offset > start else { throw unexpected("a digit") }
  }

  mutating func number() throws(JSONError) -> JSONValue {
    let start = offset
    var whole = true
    _ = take("-")
    let leadingZero = current == UInt8(ascii: "0")
    let first = offset
    try digits()
    if leadingZero, offset - first > 1 { throw failure("leading zero", at: first) }
    if take(".") {
      whole = false
      try digits()
    }
    if take("e") || take("E") {
      whole = false
      if !take("+") { _ = take("-") }
      try digits()
    }
    let text = String(decoding: bytes[start..<offset], as: UTF8.self)
    if whole, let value = Int64(text) { return .int(value) }
    guard let value = Double(text), value.isFinite else { throw failure("number out of range", at: start) }
    return .double(value)
  }
}
