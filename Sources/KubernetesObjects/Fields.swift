import NetworkTypes

/// Reading typed fields out of a manifest: the type of the field decides what a scalar means.

/// What is wrong with one field; the path grows while the error leaves the nested readers, so that reading a good
/// object builds no path at all.
package struct FieldError: Error {
  package var path: String
  package var line: Int
  package var message: String

  package init(_ node: ManifestNode, _ message: String) {
    path = ""
    line = node.line
    self.message = message
  }

  func within(_ step: String) -> FieldError {
    var error = self
    error.path = path.isEmpty || path.hasPrefix("[") ? step + path : "\(step).\(path)"
    return error
  }
}

package typealias FieldReader<Value> = (ManifestNode) throws(FieldError) -> Value

extension ManifestNode {
  /// The entries of a mapping; null counts as empty, as it does for the API.
  func entries() throws(FieldError) -> [Entry] {
    switch self {
    case .mapping(let entries, _): return entries
    case .null: return []
    default: throw FieldError(self, "must be a mapping, is \(summary)")
    }
  }

  func elements() throws(FieldError) -> [ManifestNode] {
    switch self {
    case .sequence(let elements, _): return elements
    case .null: return []
    default: throw FieldError(self, "must be a list, is \(summary)")
    }
  }

  /// nil where the field is missing or null.
  package func optional<Value>(_ key: String, _ read: FieldReader<Value>) throws(FieldError) -> Value? {
    _ = try entries()
    guard let value = self[key] else { return nil }
    do throws(FieldError) { return try read(value) } catch { throw error.within(key) }
  }

  package func required<Value>(_ key: String, _ read: FieldReader<Value>) throws(FieldError) -> Value {
    guard let value = try optional(key, read) else { throw wrong(key, "is missing") }
    return value
  }

  /// The field, or an empty mapping in its place.
  package func section<Value>(_ key: String, _ read: FieldReader<Value>) throws(FieldError) -> Value {
    guard let value = try optional(key, read) else {
      do throws(FieldError) { return try read(.mapping([], line: line)) } catch { throw error.within(key) }
    }
    return value
  }

  /// Empty where the field is missing or null. A null element is passed on, to be read as an empty mapping.
  package func list<Value>(_ key: String, _ read: FieldReader<Value>) throws(FieldError) -> [Value] {
    try indexedList(key) { (element, _) throws(FieldError) in try read(element) }
  }

  func indexedList<Value>(
    _ key: String, _ read: (ManifestNode, Int) throws(FieldError) -> Value
  ) throws(FieldError) -> [Value] {
    try optional(key) { (list) throws(FieldError) in
      let elements = try list.elements()
      var values: [Value] = []
      values.reserveCapacity(elements.count)
      for (index, element) in elements.enumerated() {
        do throws(FieldError) { values.append(try read(element, index)) } catch { throw error.within("[\(index)]") }
      }
      return values
    } ?? []
  }

  /// An error at a field of this mapping: its own line where it is written, else the mapping's.
  package func wrong(_ key: String, _ message: String) -> FieldError {
    FieldError(self[key] ?? self, message).within(key)
  }

  /// nil also for "", which is how the API writes several defaults.
  package func nonEmpty<Value>(_ key: String, _ read: FieldReader<Value>) throws(FieldError) -> Value? {
    if case .scalar("", _, _)? = self[key] { return nil }
    return try optional(key, read)
  }
}

/// Readers of one field's value, to be handed to the functions above.
package enum Read {
  // MARK: Scalars

  /// Any scalar, as it is written.
  package static func text(_ field: ManifestNode) throws(FieldError) -> String {
    guard case .scalar(let text, _, _) = field else { throw FieldError(field, "must be text, is \(field.summary)") }
    return text
  }

  /// An unquoted scalar that is a whole number in YAML 1.1 or JSON: `80`, `0x50`, `8e1`.
  static func integer(_ field: ManifestNode, _ range: ClosedRange<Int>) throws(FieldError) -> Int {
    guard case .scalar(let text, false, _) = field, case .integer(let number)? = YAMLNumber(text) else {
      throw FieldError(field, "must be a whole number, is \(field.summary)")
    }
    guard range.contains(number) else {
      throw FieldError(field, "must be \(range.lowerBound) to \(range.upperBound), is \(number)")
    }
    return number
  }

  package static func flag(_ field: ManifestNode) throws(FieldError) -> Bool {
    if case .scalar(let text, false, _) = field, text.utf8.count <= 5 {
      switch text.lowercased() {
      case "true", "yes", "on", "y": return true
      case "false", "no", "off", "n": return false
      default: break
      }
    }
    throw FieldError(field, "must be true or false, is \(field.summary)")
  }

  /// One of an enumeration's raw values.
  package static func choice<Choice>(_ field: ManifestNode) throws(FieldError) -> Choice
  where Choice: RawRepresentable<String> & CaseIterable {
    let text = try text(field)
    guard let choice = Choice(rawValue: text) else {
      let all = Choice.allCases.map(\.rawValue).joined(separator: ", ")
      throw FieldError(field, "must be one of \(all), is \(quoted(text))")
    }
    return choice
  }

  /// A value of a map of strings: as kubectl does, an unquoted number or boolean is refused, for its author may mean
  /// either; null is the empty string.
  static func stringMapValue(_ field: ManifestNode) throws(FieldError) -> String {
    if case .null = field { return "" }
    let text = try text(field)
    guard case .scalar(_, false, _) = field else { return text }
    if YAMLNumber(text) != nil {
      throw FieldError(field, "must be text, is the number \(text) (write it in quotes: \"\(text)\")")
    }
    if text.utf8.count <= 5, ["true", "false"].contains(text.lowercased()) {
      throw FieldError(field, "must be text, is the boolean \(text) (write it in quotes: \"\(text)\")")
    }
    return text
  }

  // MARK: Network types

  static func port(_ field: ManifestNode) throws(FieldError) -> Port {
    guard let port = Port(try integer(field, 1...65535)) else { throw FieldError(field, "must be 1 to 65535") }
    return port
  }

  /// 0 is how the API spells "none".
  static func portOrNone(_ field: ManifestNode) throws(FieldError) -> Port? { Port(try integer(field, 0...65535)) }

  /// Empty is how the API spells the default.
  static func transportProtocol(_ field: ManifestNode) throws(FieldError) -> L4Protocol {
    let text = try text(field)
    guard let proto = text.isEmpty ? .tcp : L4Protocol(kubernetesName: text) else {
      throw FieldError(field, "must be one of TCP, UDP, SCTP, is \(quoted(text))")
    }
    return proto
  }

  static func address(_ field: ManifestNode) throws(FieldError) -> IPAddress {
    let text = try text(field)
    guard let address = IPAddress(text) else {
      throw FieldError(field, "must be an IPv4 or IPv6 address, is \(quoted(text))")
    }
    return address
  }

  /// An address that can be somebody else's: not unspecified, loopback, link-local or multicast.
  static func routableAddress(_ field: ManifestNode) throws(FieldError) -> IPAddress {
    let address = try address(field)
    if let range = address.specialRange { throw FieldError(field, "must not be \(range), is \(address)") }
    return address
  }

  static func cidr(_ field: ManifestNode) throws(FieldError) -> CIDR {
    let text = try text(field)
    guard let cidr = CIDR(text) else {
      throw FieldError(field, "must be an address range such as 10.0.0.0/8 or fd00::/64, is \(quoted(text))")
    }
    return cidr
  }
}

extension IPAddress {
  /// The name of the range that makes the address useless for others to reach, nil for a normal one.
  var specialRange: String? {
    if isUnspecified { return "the unspecified address" }
    if isLoopback { return "a loopback address" }
    if isLinkLocal { return "a link-local address" }
    if isMulticast { return "a multicast address" }
    return nil
  }
}

extension Array where Element == IPAddress {
  /// The first address whose family another one before it has.
  var repeatedFamily: IPFamily? {
    for index in indices where self[..<index].contains(where: { $0.family == self[index].family }) {
      return self[index].family
    }
    return nil
  }
}
