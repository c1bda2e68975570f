import KubernetesObjects

/// The body of a watch, cut into what it tells.
struct WatchStream {
  private let format: WireFormat
  private let schema: MessageSchema
  private var queue = ByteQueue()
  /// No line of JSON ends before this many bytes of what is left.
  private var searched = 0

  init(_ kind: ObjectKind, _ format: WireFormat) {
    (self.format, schema) = (format, .object(kind))
  }

  /// - Returns: the frames that are complete now.
  /// - Throws: what comes after is of no use. Frames before it are lost too: the watch begins anew where it was last heard of.
  mutating func append(_ bytes: some Sequence<UInt8>) throws(WireProblem) -> [WatchFrame] {
    queue.append(bytes)
    var frames: [WatchFrame] = []
    while let range = try next() {
      guard !range.isEmpty else { continue }
      switch format {
      case .protobuf: frames.append(try protobufFrame(range))
      case .json: frames.append(try jsonFrame(range))
      }
    }
    return frames
  }

  private mutating func next() throws(WireProblem) -> Range<Int>? {
    switch format {
    case .protobuf:
      guard queue.count >= 4 else { return nil }
      let length = queue.bytes[queue.range.prefix(4)].reduce(0) { $0 << 8 | Int($1) }
      guard length <= WireFormat.objectLimit else { throw WireProblem("watch: a frame of \(length) bytes") }
      guard queue.count >= 4 + length else { return nil }
      _ = queue.take(4)
      return queue.take(length)
    case .json:
      guard let end = queue.bytes[queue.range.dropFirst(searched)].firstIndex(of: 0x0a) else {
        searched = queue.count
        guard searched <= WireFormat.objectLimit else {
          throw WireProblem("watch: a line of more than \(searched) bytes")
        }
        return nil
      }
      searched = 0
      let line = queue.take(end - queue.start)
      _ = queue.take(1)
      return line
    }
  }

  private func protobufFrame(_ range: Range<Int>) throws(WireProblem) -> WatchFrame {
    let bytes = queue.bytes
    var fields = ProtobufFields(bytes, in: range)
    var type = ""
    var object: Range<Int>?
    while let (number, value) = try fields.next() {
      guard case .bytes(let field) = value else { continue }
      switch number {
      case 1: type = MessageSchema.text(bytes, field)
      case 2:
        var raw = ProtobufFields(bytes, in: field)
        while let (number, value) = try raw.next() {
          if number == 1, case .bytes(let content) = value { object = content }
        }
      default: continue
      }
    }
    guard let object else { throw WireProblem("watch: \(type) without an object") }
    let content = try ProtobufEnvelope.open(bytes, object).content
    return try frame(type) { (schema) throws(WireProblem) in try schema.tree(bytes, in: content) }
  }

  private func jsonFrame(_ range: Range<Int>) throws(WireProblem) -> WatchFrame {
    let tree = try JSONTree.tree(queue.bytes[range])
    guard let type = tree["type"]?.textValue, let object = tree["object"] else {
      throw WireProblem("watch: a line without type or object")
    }
    return try frame(type) { (_) throws(WireProblem) in object }
  }

  private func frame(
    _ type: String, _ tree: (MessageSchema) throws(WireProblem) -> ManifestNode
  ) throws(WireProblem) -> WatchFrame {
    switch type {
    case "ADDED", "MODIFIED": return .present(try tree(schema))
    case "DELETED": return .gone(try tree(schema))
    case "BOOKMARK":
      let object = try tree(.bookmark)
      let mark = object["metadata"]?["annotations"]?[WireFormat.initialEventsEnd]?.textValue
      return .bookmark(resourceVersion: object.resourceVersion, isEndOfList: mark == "true")
    case "ERROR": return .failed(APIStatus(try tree(.status)))
    default: throw WireProblem("watch: the type \(type.prefix(20))")
    }
  }
}
