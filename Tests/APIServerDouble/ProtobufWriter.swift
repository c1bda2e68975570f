import ClusterSource
import Foundation
import LocalAPI

/// Objects as the API server writes them in protobuf, of those fields that Sluice reads: their numbers are proven by the bytes
/// that Kubernetes' own libraries wrote (WireCorpusTests).
struct ProtobufWriter {
  private(set) var bytes: [UInt8] = []

  mutating func varint(_ number: UInt64) {
    var rest = number
    while rest >= 0x80 {
      bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    bytes.append(UInt8(rest))
  }

  mutating func number(_ field: Int, _ value: Int64) {
    varint(UInt64(field) << 3)
    varint(UInt64(bitPattern: value))
  }

  mutating func bytes(_ field: Int, _ content: some Collection<UInt8>) {
    varint(UInt64(field) << 3 | 2)
    varint(UInt64(content.count))
    bytes += content
  }

  static func write(_ body: (inout ProtobufWriter) -> Void) -> [UInt8] {
    var writer = ProtobufWriter()
    body(&writer)
    return writer.bytes
  }

  /// A message from what stands for it in JSON. Of what is no pointer in Kubernetes' Go types zeros are written too.
  static func message(_ value: JSONValue, _ schema: MessageSchema) -> [UInt8] {
    write { writer in
      for (number, field) in schema.numberedFields {
        let value = value[field.name]
        if case .map = field.kind {
          for pair in value?.objectValue ?? [:] {
            let bytes = write {
              $0.bytes(1, Array(pair.key.utf8))
              $0.bytes(2, Array((pair.value.stringValue ?? "").utf8))
            }
            writer.bytes(number, bytes)
          }
        } else if field.isRepeated {
          for element in value?.arrayValue ?? [] { writer.field(number, field.kind, element) }
        } else if let value {
          writer.field(number, field.kind, value)
        } else if !field.isPointer {
          writer.field(number, field.kind, .null)
        }
      }
    }
  }

  private mutating func field(_ number: Int, _ kind: MessageSchema.Kind, _ value: JSONValue) {
    switch kind {
    case .text: bytes(number, Array((value.stringValue ?? "").utf8))
    case .number: self.number(number, value.intValue ?? 0)
    case .flag: self.number(number, value.boolValue == true ? 1 : 0)
    case .message(let schema): bytes(number, Self.message(value, schema))
    case .time:
      let date = value.stringValue.flatMap { try? Date($0, strategy: .iso8601) }
      bytes(number, Self.write { if let date { $0.number(1, Int64(date.timeIntervalSince1970)) } })
    case .numberOrText:
      bytes(
        number,
        Self.write {
          $0.number(1, value.stringValue == nil ? 0 : 1)
          $0.number(2, value.intValue ?? 0)
          $0.bytes(3, Array((value.stringValue ?? "").utf8))
        })
    case .map: break
    }
  }

  /// An object, a list or a status by itself: four bytes, its type, and its message.
  static func envelope(apiVersion: String, kind: String, _ message: [UInt8]) -> [UInt8] {
    [0x6b, 0x38, 0x73, 0x00]
      + write { unknown in
        unknown.bytes(
          1,
          write {
            $0.bytes(1, Array(apiVersion.utf8))
            $0.bytes(2, Array(kind.utf8))
          })
        unknown.bytes(2, message)
        unknown.bytes(3, [])
        unknown.bytes(4, [])
      }
  }
}
