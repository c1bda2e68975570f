import KubernetesObjects

/// The body of a list, cut into its objects while it comes: a list may be a hundred times as large as what is kept of it.
package struct ListStream {
  private enum Reader {
    case protobuf(ProtobufList)
    case json(JSONList)
  }
  private var reader: Reader

  package init(_ kind: ObjectKind, _ format: WireFormat) {
    reader =
      switch format {
      case .protobuf: .protobuf(ProtobufList(.object(kind)))
      case .json: .json(JSONList())
      }
  }

  /// - Returns: the objects that are complete now.
  package mutating func append(_ bytes: some Sequence<UInt8>) throws(WireProblem) -> [ManifestNode] {
    switch reader {
    case .protobuf(var list):
      // Nobody else holds the bytes while they are appended to.
      reader = .json(JSONList())
      defer { reader = .protobuf(list) }
      return try list.append(bytes)
    case .json(var list):
      reader = .json(JSONList())
      defer { reader = .json(list) }
      return try list.append(bytes)
    }
  }

  /// At the end of the body.
  ///
  /// - Throws: where the list has not ended.
  package func finish() throws(WireProblem) -> ListProgress {
    let progress: ListProgress? =
      switch reader {
      case .protobuf(let list): list.progress
      case .json(let list): list.progress
      }
    guard let progress else { throw WireProblem("list: ends before its end") }
    return progress
  }
}

/// The envelope names the length of all; within it metadata and objects stand one behind the other.
private struct ProtobufList {
  private let schema: MessageSchema
  private var queue = ByteQueue()
  private var hasBegun = false
  /// Bytes of the list that are still to come; nil: it has not begun.
  private var rest: Int?
  private var found = ListProgress()

  init(_ schema: MessageSchema) { self.schema = schema }

  var progress: ListProgress? { rest == 0 ? found : nil }

  mutating func append(_ more: some Sequence<UInt8>) throws(WireProblem) -> [ManifestNode] {
    queue.append(more)
    if !hasBegun {
      guard queue.count >= ProtobufEnvelope.magic.count else { return [] }
      guard queue.bytes[queue.take(ProtobufEnvelope.magic.count)].elementsEqual(ProtobufEnvelope.magic) else {
        throw WireProblem("list: does not begin with \"k8s\"")
      }
      hasBegun = true
    }
    guard try findList() else { return [] }
    return try objects()
  }

  /// Passes over what the envelope has before the list. What it has behind says nothing.
  private mutating func findList() throws(WireProblem) -> Bool {
    while rest == nil {
      guard let field = try ProtobufFields.head(queue.bytes, in: queue.range) else { return false }
      if field.number == 2 {
        _ = queue.take(field.head)
        rest = field.content
      } else {
        guard field.content <= WireFormat.objectLimit else {
          throw WireProblem("list: \(field.content) bytes before it")
        }
        guard queue.count >= field.head + field.content else { return false }
        _ = queue.take(field.head + field.content)
      }
    }
    return true
  }

  private mutating func objects() throws(WireProblem) -> [ManifestNode] {
    var objects: [ManifestNode] = []
    while let left = rest, left > 0, let field = try ProtobufFields.head(queue.bytes, in: queue.range) {
      guard field.content <= left - field.head else { throw WireProblem("list: an object is longer than the list") }
      guard field.content <= WireFormat.objectLimit else {
        throw WireProblem("list: an object of \(field.content) bytes")
      }
      guard queue.count >= field.head + field.content else { break }
      _ = queue.take(field.head)
      let content = queue.take(field.content)
      rest = left - field.head - field.content
      switch field.number {
      case 1: found = ListProgress(try MessageSchema.listMeta.tree(queue.bytes, in: content))
      case 2: objects.append(try schema.tree(queue.bytes, in: content))
      default: continue
      }
    }
    return objects
  }
}

/// `{"kind": ..., "metadata": {...}, "items": [{...}, ...]}` in any order, cut without being parsed as a whole.
private struct JSONList {
  private enum Place {
    /// Before the list's brace.
    case outside
    /// Among its members, none begun.
    case members
    case key
    /// Behind a key, before its value.
    case colon
    case value
    /// In the array of items, none begun.
    case items
    case item
    case end
  }

  private var queue = ByteQueue()
  private var place = Place.outside
  /// How many bytes of what is left have been looked at.
  private var seen = 0
  private var key = ""
  private var depth = 0
  private var isInText = false
  private var isEscaped = false
  private var found = ListProgress()

  var progress: ListProgress? { place == .end ? found : nil }

  mutating func append(_ more: some Sequence<UInt8>) throws(WireProblem) -> [ManifestNode] {
    queue.append(more)
    var objects: [ManifestNode] = []
    while seen < queue.count {
      let byte = queue.bytes[queue.start + seen]
      if [.key, .value, .item].contains(place) {
        seen += 1
        if let object = try continued(byte) { objects.append(object) }
        guard seen <= WireFormat.objectLimit else { throw WireProblem("list: a value of more than \(seen) bytes") }
      } else if [0x20, 0x09, 0x0a, 0x0d].contains(byte) {
        _ = queue.take(1)
      } else {
        try begin(byte)
      }
    }
    return objects
  }

  /// A byte that is no part of a value, or begins one.
  private mutating func begin(_ byte: UInt8) throws(WireProblem) {
    let next: Place? =
      switch (place, UnicodeScalar(byte)) {
      case (.outside, "{"): .members
      case (.members, "\""): .key
      case (.members, ","): .members
      case (.members, "}"): .end
      case (.colon, ":"): .colon
      case (.colon, "["): key == "items" ? .items : .value
      case (.colon, _): .value
      case (.items, "{"): .item
      case (.items, ","): .items
      case (.items, "]"): .members
      default: nil
      }
    guard let next else { throw WireProblem("list: byte 0x\(String(byte, radix: 16)) where it cannot stand") }
    place = next
    guard [.key, .value, .item].contains(next) else {
      _ = queue.take(1)
      return
    }
    (seen, depth, isInText, isEscaped) = (0, 0, false, false)
  }

  /// A byte of a key, a value or an item. A value that is a bare word ends before what follows it.
  private mutating func continued(_ byte: UInt8) throws(WireProblem) -> ManifestNode? {
    if isInText {
      if isEscaped {
        isEscaped = false
      } else if byte == UInt8(ascii: "\\") {
        isEscaped = true
      } else if byte == UInt8(ascii: "\"") {
        isInText = false
      }
    } else {
      switch UnicodeScalar(byte) {
      case "\"": isInText = true
      case "{", "[": depth += 1
      case "}" where depth == 0, "," where depth == 0:
        seen -= 1
        return try ended()
      case "}", "]": depth -= 1
      default: break
      }
    }
    let opener = UnicodeScalar(queue.bytes[queue.start])
    return !isInText && depth == 0 && (opener == "{" || opener == "[" || opener == "\"") ? try ended() : nil
  }

  private mutating func ended() throws(WireProblem) -> ManifestNode? {
    let content = queue.bytes[queue.take(seen)]
    seen = 0
    switch place {
    case .item:
      place = .items
      return try JSONTree.tree(content)
    case .key:
      place = .colon
      key = try JSONTree.tree(content).textValue ?? ""
    default:
      place = .members
      if key == "metadata" { found = ListProgress(try JSONTree.tree(content)) }
    }
    return nil
  }
}
