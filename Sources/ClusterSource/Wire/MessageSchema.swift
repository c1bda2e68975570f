import KubernetesObjects

/// What of a protobuf message is read, and the names that the same has in JSON.
package struct MessageSchema: Sendable {
  package indirect enum Kind: Sendable {
    case text
    case number
    case flag
    /// `map<string, string>`.
    case map
    /// `metav1.Time`.
    case time
    /// `intstr.IntOrString`.
    case numberOrText
    case message(MessageSchema)
  }

  package struct Field: Sendable {
    package var name: String
    package var kind: Kind
    package var isRepeated = false
    /// Whether zero and empty mean something else than absence. Of a field that is no pointer in Kubernetes' Go types the API
    /// server writes them all, which JSON leaves out.
    package var isPointer = false

    static func text(_ name: String) -> Field { Field(name: name, kind: .text) }
    static func number(_ name: String) -> Field { Field(name: name, kind: .number) }
    static func flag(_ name: String) -> Field { Field(name: name, kind: .flag) }
    static func map(_ name: String) -> Field { Field(name: name, kind: .map) }
    static func time(_ name: String) -> Field { Field(name: name, kind: .time) }
    static func numberOrText(_ name: String) -> Field { Field(name: name, kind: .numberOrText) }
    static func message(_ name: String, _ schema: MessageSchema) -> Field { Field(name: name, kind: .message(schema)) }

    var repeated: Field {
      var field = self
      field.isRepeated = true
      return field
    }
    var pointer: Field {
      var field = self
      field.isPointer = true
      return field
    }
  }

  /// By field number.
  private let fields: [Field?]

  package var numberedFields: [(Int, Field)] {
    fields.enumerated().compactMap { number, field in field.map { (number, $0) } }
  }

  var knownFields: [Field] { fields.compactMap { $0 } }

  init(_ fields: [Int: Field]) {
    var table = [Field?](repeating: nil, count: (fields.keys.max() ?? 0) + 1)
    for (number, field) in fields { table[number] = field }
    self.fields = table
  }

  /// The message's tree; what the schema does not know is passed over.
  func tree(_ bytes: [UInt8], in range: Range<Int>) throws(WireProblem) -> ManifestNode {
    var reader = ProtobufFields(bytes, in: range)
    var entries: [ManifestNode.Entry] = []
    // Elements of a repeated field need not stand together.
    var lists: [(number: Int, elements: [ManifestNode])] = []
    while let (number, value) = try reader.next() {
      guard number < fields.count, let field = fields[number] else { continue }
      if case .map = field.kind {
        let pair = try Self.pair.tree(bytes, in: try Self.bytes(value, field.name))
        append(pair, to: number, &lists)
        continue
      }
      let node = try self.node(value, field, bytes)
      if field.isRepeated {
        append(node, to: number, &lists)
      } else if field.isPointer || !Self.isZero(node) {
        // Of a field that stands twice the last counts.
        entries.removeAll { $0.key == field.name }
        entries.append(ManifestNode.Entry(field.name, node))
      }
    }
    for (number, elements) in lists {
      guard let field = fields[number] else { continue }
      if case .map = field.kind {
        entries.append(ManifestNode.Entry(field.name, Self.mapping(elements)))
      } else {
        entries.append(ManifestNode.Entry(field.name, .sequence(elements, line: 0)))
      }
    }
    return .mapping(entries, line: 0)
  }

  private func append(
    _ node: ManifestNode, to number: Int, _ lists: inout [(number: Int, elements: [ManifestNode])]
  ) {
    if let index = lists.firstIndex(where: { $0.number == number }) {
      lists[index].elements.append(node)
    } else {
      lists.append((number, [node]))
    }
  }

  private func node(_ value: ProtobufFields.Value, _ field: Field, _ bytes: [UInt8]) throws(WireProblem) -> ManifestNode
  {
    switch field.kind {
    case .text:
      return .scalar(Self.text(bytes, try Self.bytes(value, field.name)), isQuoted: true, line: 0)
    case .number:
      // A negative number, of 32 bits too, is written as one of 64.
      return .scalar("\(Int64(bitPattern: try Self.number(value, field.name)))", isQuoted: false, line: 0)
    case .flag: return .scalar(try Self.number(value, field.name) == 0 ? "false" : "true", isQuoted: false, line: 0)
    case .time: return try Self.time(bytes, Self.bytes(value, field.name))
    case .numberOrText: return try Self.numberOrText(bytes, Self.bytes(value, field.name))
    case .message(let schema): return try schema.tree(bytes, in: Self.bytes(value, field.name))
    case .map: return .null(line: 0)
    }
  }

  // MARK: Values

  private static func number(_ value: ProtobufFields.Value, _ name: String) throws(WireProblem) -> UInt64 {
    guard case .number(let number) = value else { throw WireProblem("protobuf: \(name) is no number") }
    return number
  }

  private static func bytes(_ value: ProtobufFields.Value, _ name: String) throws(WireProblem) -> Range<Int> {
    guard case .bytes(let range) = value else { throw WireProblem("protobuf: \(name) is a number") }
    return range
  }

  /// What is no text is replaced, as in the JSON of Kubernetes: one object with a client's odd annotation must not take all
  /// of its kind along.
  static func text(_ bytes: [UInt8], _ range: Range<Int>) -> String { String(decoding: bytes[range], as: UTF8.self) }

  private static func isZero(_ node: ManifestNode) -> Bool {
    switch node {
    case .null, .scalar("", _, _), .scalar("0", isQuoted: false, _), .scalar("false", isQuoted: false, _): true
    default: false
    }
  }

  private static let pair = MessageSchema([1: .text("key").pointer, 2: .text("value").pointer])

  /// Of a key that stands twice the last value counts.
  private static func mapping(_ pairs: [ManifestNode]) -> ManifestNode {
    func text(_ node: ManifestNode?) -> String {
      if case .scalar(let text, _, _)? = node { text } else { "" }
    }
    var values: [String: String] = [:]
    for pair in pairs { values[text(pair["key"])] = text(pair["value"]) }
    let sorted = values.sorted { $0.key < $1.key }
    return .mapping(sorted.map { .init($0.key, .scalar($0.value, isQuoted: true, line: 0)) }, line: 0)
  }

  /// Seconds and nanoseconds since 1970 as JSON has them. No second at all is how no time is written.
  private static func time(_ bytes: [UInt8], _ range: Range<Int>) throws(WireProblem) -> ManifestNode {
    var fields = ProtobufFields(bytes, in: range)
    var seconds: Int64?
    while let (number, value) = try fields.next() {
      if number == 1 { seconds = Int64(bitPattern: try Self.number(value, "seconds")) }
    }
    return seconds.map { .scalar(rfc3339(unixSeconds: $0), isQuoted: true, line: 0) } ?? .null(line: 0)
  }

  private static func numberOrText(_ bytes: [UInt8], _ range: Range<Int>) throws(WireProblem) -> ManifestNode {
    var fields = ProtobufFields(bytes, in: range)
    var (isText, number, text) = (false, Int64(0), "")
    while let (field, value) = try fields.next() {
      switch field {
      case 1: isText = try Self.number(value, "type") != 0
      case 2: number = Int64(bitPattern: try Self.number(value, "intVal"))
      case 3: text = Self.text(bytes, try Self.bytes(value, "strVal"))
      default: continue
      }
    }
    return isText ? .scalar(text, isQuoted: true, line: 0) : .scalar("\(number)", isQuoted: false, line: 0)
  }
}
