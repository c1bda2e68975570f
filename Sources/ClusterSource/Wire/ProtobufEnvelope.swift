/// What stands around each object in protobuf: four bytes, then `runtime.Unknown` with the object's type and its bytes.
enum ProtobufEnvelope {
  static let magic: [UInt8] = [0x6b, 0x38, 0x73, 0x00]

  /// The kind that the envelope names, and where the object stands.
  static func open(_ bytes: [UInt8], _ range: Range<Int>) throws(WireProblem) -> (kind: String, content: Range<Int>) {
    guard range.count >= magic.count, bytes[range].starts(with: magic) else {
      throw WireProblem("protobuf: does not begin with \"k8s\"")
    }
    var fields = ProtobufFields(bytes, in: range.dropFirst(magic.count))
    var kind = ""
    var content: Range<Int>?
    while let (number, value) = try fields.next() {
      guard case .bytes(let field) = value else { continue }
      switch number {
      case 1: kind = try self.kind(bytes, field)
      case 2: content = field
      // A coding such as gzip, which nothing asks for.
      case 3 where !field.isEmpty: throw WireProblem("protobuf: the object is encoded once more")
      default: continue
      }
    }
    // An object without any field has no bytes.
    return (kind, content ?? range.upperBound..<range.upperBound)
  }

  private static func kind(_ bytes: [UInt8], _ range: Range<Int>) throws(WireProblem) -> String {
    var fields = ProtobufFields(bytes, in: range)
    var kind = ""
    while let (number, value) = try fields.next() {
      if number == 2, case .bytes(let field) = value { kind = MessageSchema.text(bytes, field) }
    }
    return kind
  }
}
