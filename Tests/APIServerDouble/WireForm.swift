import ClusterSource
import LocalAPI

/// Objects as bytes, in the form that a client accepts.
package enum WireForm: Sendable {
  case json
  case protobuf
  /// For people.
  case table

  /// The first that is accepted and served.
  init(accept: String, servesProtobuf: Bool, servesTables: Bool = false) throws(Refusal) {
    for part in accept.split(separator: ",") {
      let pieces = part.split(separator: ";").map { $0.filter { $0 != " " } }
      if pieces.contains(where: { $0.hasPrefix("as=") }) {
        guard servesTables, pieces.contains("as=Table"), pieces.contains("v=v1") else { continue }
        self = .table
        return
      }
      switch pieces.first {
      case "application/json", "*/*", "application/*":
        self = .json
        return
      case "application/vnd.kubernetes.protobuf" where servesProtobuf:
        self = .protobuf
        return
      default: continue
      }
    }
    if accept.isEmpty {
      self = .json
    } else {
      throw Refusal(406, "NotAcceptable", "only the following media types are accepted: application/json")
    }
  }

  func contentType(isWatch: Bool) -> String {
    switch self {
    case .json, .table: "application/json"
    case .protobuf: "application/vnd.kubernetes.protobuf\(isWatch ? ";stream=watch" : "")"
    }
  }

  func object(_ object: JSONValue, _ kind: ServedKind) -> [UInt8] {
    switch self {
    case .json: Array(object.serialized().utf8)
    case .table: Array(table([object], kind, metadata: [:]).utf8)
    case .protobuf:
      ProtobufWriter.envelope(apiVersion: kind.apiVersion, kind: kind.kind, message(object, kind))
    }
  }

  func status(_ refusal: Refusal) -> [UInt8] {
    switch self {
    case .json, .table: Array(refusal.json.serialized().utf8)
    case .protobuf:
      ProtobufWriter.envelope(
        apiVersion: "v1", kind: "Status", ProtobufWriter.message(refusal.json, MessageSchema.status))
    }
  }

  /// A page; items of it do not name their type.
  package func list(_ items: [JSONValue], _ kind: ServedKind, metadata: JSONValue) -> [UInt8] {
    switch self {
    case .json:
      let list: JSONValue = [
        "kind": .string(kind.kind + "List"), "apiVersion": .string(kind.apiVersion), "metadata": metadata,
        "items": .array(
          items.map { item in
            .object(
              JSONObject(
                (item.objectValue ?? [:]).filter { !["kind", "apiVersion"].contains($0.key) }.map {
                  ($0.key, $0.value)
                }))
          }),
      ]
      return Array(list.serialized().utf8)
    case .table: return Array(table(items, kind, metadata: metadata).utf8)
    case .protobuf:
      let content = ProtobufWriter.write { writer in
        writer.bytes(1, ProtobufWriter.message(metadata, MessageSchema.listMeta))
        for item in items { writer.bytes(2, message(item, kind)) }
      }
      return ProtobufWriter.envelope(apiVersion: kind.apiVersion, kind: kind.kind + "List", content)
    }
  }

  /// One event of a watch.
  func frame(_ type: String, _ object: JSONValue, _ kind: ServedKind) -> [UInt8] {
    switch self {
    case .json:
      let event: JSONValue = ["type": .string(type), "object": object]
      return Array((event.serialized() + "\n").utf8)
    case .table:
      let shown = type == "BOOKMARK" ? object : TableForm.table([object], kind, metadata: Self.version(of: object))
      let event: JSONValue = ["type": .string(type), "object": shown]
      return Array((event.serialized() + "\n").utf8)
    case .protobuf: return frame(type, self.object(object, kind))
    }
  }

  func errorFrame(_ refusal: Refusal) -> [UInt8] {
    switch self {
    case .json, .table:
      let event: JSONValue = ["type": "ERROR", "object": refusal.json]
      return Array((event.serialized() + "\n").utf8)
    case .protobuf: return frame("ERROR", status(refusal))
    }
  }

  private func table(_ items: [JSONValue], _ kind: ServedKind, metadata: JSONValue) -> String {
    TableForm.table(items, kind, metadata: metadata).serialized()
  }

  private static func version(of object: JSONValue) -> JSONValue {
    ["resourceVersion": object["metadata"]?["resourceVersion"] ?? ""]
  }

  private func frame(_ type: String, _ object: [UInt8]) -> [UInt8] {
    let event = ProtobufWriter.write { writer in
      writer.bytes(1, Array(type.utf8))
      writer.bytes(2, ProtobufWriter.write { $0.bytes(1, object) })
    }
    let length = UInt32(event.count)
    return [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: length >> $0) } + event
  }

  private func message(_ object: JSONValue, _ kind: ServedKind) -> [UInt8] {
    guard let decoded = kind.decodedKind else { return [] }
    return ProtobufWriter.message(object, MessageSchema.object(decoded))
  }
}
