/// A JSON document as a value: what the CNI plugin, the agent's local API and `dpctl` exchange.
///
/// Own code because the plugin links no Foundation: it starts in under a millisecond.
public enum JSONValue: Sendable, Hashable {
  case null
  case bool(Bool)
  /// A number without fraction and exponent that fits 64 bits.
  case int(Int64)
  case double(Double)
  case string(String)
  case array([JSONValue])
  case object(JSONObject)

  public var isNull: Bool { self == .null }

  public var stringValue: String? {
    if case .string(let value) = self { value } else { nil }
  }

  /// The number where it is a whole one, also when it was written as `1.0` or `1e3`.
  public var intValue: Int64? {
    switch self {
    case .int(let value): value
    case .double(let value): Int64(exactly: value)
    default: nil
    }
  }

  public var doubleValue: Double? {
    switch self {
    case .int(let value): Double(value)
    case .double(let value): value
    default: nil
    }
  }

  public var boolValue: Bool? {
    if case .bool(let value) = self { value } else { nil }
  }

  public var arrayValue: [JSONValue]? {
    if case .array(let value) = self { value } else { nil }
  }

  public var objectValue: JSONObject? {
    if case .object(let value) = self { value } else { nil }
  }

  /// The member of an object; nil where the key is missing or this is no object.
  public subscript(key: String) -> JSONValue? { objectValue?[key] }
}

/// The members of a JSON object in the order they were written. Equality includes the order.
public struct JSONObject: Sendable, Hashable, RandomAccessCollection {
  public struct Member: Sendable, Hashable {
    public var key: String
    public var value: JSONValue

    public init(key: String, value: JSONValue) {
      self.key = key
      self.value = value
    }
  }

  private var members: [Member]

  public init() { members = [] }

  /// A key that occurs twice keeps its first place and its last value.
  public init(_ pairs: some Sequence<(String, JSONValue)>) {
    self.init(members: pairs.map { Member(key: $0, value: $1) })
  }

  init(members: [Member]) {
    self.members = []
    self.members.reserveCapacity(members.count)
    // A hostile document may hold very many keys; below this a scan of short strings is faster than hashing.
    guard members.count > 16 else {
      for member in members { self[member.key] = member.value }
      return
    }
    var places: [String: Int] = [:]
    for member in members {
      if let place = places[member.key] {
        self.members[place].value = member.value
      } else {
        places[member.key] = self.members.count
        self.members.append(member)
      }
    }
  }

  public var startIndex: Int { 0 }
  public var endIndex: Int { members.count }
  public subscript(position: Int) -> Member { members[position] }
  public var keys: [String] { members.map(\.key) }

  /// Reads, sets, or (with nil) removes a member; a new key goes to the end.
  public subscript(key: String) -> JSONValue? {
    get { members.first { $0.key == key }?.value }
    set {
      let place = members.firstIndex { $0.key == key }
      switch (place, newValue) {
      case (let place?, let value?): members[place].value = value
      case (let place?, nil): members.remove(at: place)
      case (nil, let value?): members.append(Member(key: key, value: value))
      case (nil, nil): break
      }
    }
  }

  /// The member whose key equals `key` without regard to ASCII case: containerd sends Go field names (`HostPort`).
  public func valueIgnoringCase(_ key: String) -> JSONValue? {
    if let exact = self[key] { return exact }
    let wanted = key.lowercased()
    return members.first { $0.key.lowercased() == wanted }?.value
  }
}

extension JSONObject: ExpressibleByDictionaryLiteral {
  public init(dictionaryLiteral elements: (String, JSONValue)...) { self.init(elements) }
}

extension JSONValue: ExpressibleByNilLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByFloatLiteral, ExpressibleByStringLiteral, ExpressibleByStringInterpolation, ExpressibleByArrayLiteral,
  ExpressibleByDictionaryLiteral
{
  public init(nilLiteral: ()) { self = .null }
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  public init(integerLiteral value: Int64) { self = .int(value) }
  public init(floatLiteral value: Double) { self = .double(value) }
  public init(stringLiteral value: String) { self = .string(value) }
  public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
  public init(dictionaryLiteral elements: (String, JSONValue)...) { self = .object(JSONObject(elements)) }
}

// MARK: Writing

extension JSONValue: CustomStringConvertible {
  public var description: String { serialized() }

  /// JSON text; `pretty` indents by two spaces. Numbers that JSON cannot hold (infinite, NaN) become null.
  public func serialized(pretty: Bool = false) -> String {
    var output: [UInt8] = []
    write(to: &output, indent: pretty ? 0 : nil)
    return String(decoding: output, as: UTF8.self)
  }

  private func write(to output: inout [UInt8], indent: Int?) {
    switch self {
    case .null: output += "null".utf8
    case .bool(let value): output += (value ? "true" : "false").utf8
    case .int(let value): output += value.description.utf8
    case .double(let value): output += (value.isFinite ? value.description : "null").utf8
    case .string(let value): Self.write(value, to: &output)
    case .array(let elements):
      Self.write("[", "]", elements, to: &output, indent: indent) { element, output, indent in
        element.write(to: &output, indent: indent)
      }
    case .object(let object):
      Self.write("{", "}", object, to: &output, indent: indent) { member, output, indent in
        Self.write(member.key, to: &output)
        output += (indent == nil ? ":" : ": ").utf8
        member.value.write(to: &output, indent: indent)
      }
    }
  }

  private static func write<Elements: Collection>(
    _ open: Unicode.Scalar, _ close: Unicode.Scalar, _ elements: Elements, to output: inout [UInt8], indent: Int?,
    element write: (Elements.Element, inout [UInt8], Int?) -> Void
  ) {
    output.append(UInt8(ascii: open))
    let inner = indent.map { $0 + 2 }
    func newLine(_ width: Int?) -> [UInt8] { width.map { [0x0a] + [UInt8](repeating: 0x20, count: $0) } ?? [] }
    var first = true
    for element in elements {
      if !first { output.append(UInt8(ascii: ",")) }
      first = false
      output += newLine(inner)
      write(element, &output, inner)
    }
    if !first { output += newLine(indent) }
    output.append(UInt8(ascii: close))
  }

  private static func write(_ text: String, to output: inout [UInt8]) {
    let hex = Array("0123456789abcdef".utf8)
    output.append(UInt8(ascii: "\""))
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"): output += [UInt8(ascii: "\\"), byte]
      case 0x0a: output += "\\n".utf8
      case 0x0d: output += "\\r".utf8
      case 0x09: output += "\\t".utf8
      case 0..<0x20, 0x7f: output += "\\u00".utf8 + [hex[Int(byte >> 4)], hex[Int(byte & 15)]]
      default: output.append(byte)
      }
    }
    output.append(UInt8(ascii: "\""))
  }
}
