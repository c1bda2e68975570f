import LocalAPI

/// What controllers read of a Pod.
package struct PodObject {
  package let json: JSONValue

  package init(_ json: JSONValue) { self.json = json }

  package var namespace: String { json["metadata"]?["namespace"]?.stringValue ?? "" }
  package var name: String { json["metadata"]?["name"]?.stringValue ?? "" }
  package var uid: String { json["metadata"]?["uid"]?.stringValue ?? "" }
  package var node: String? { json["spec"]?["nodeName"]?.stringValue }
  package var labels: [String: String] { Self.strings(json["metadata"]?["labels"]) }
  package var isTerminating: Bool { json["metadata"]?["deletionTimestamp"] != nil }
  package var addresses: [String] { (json["status"]?["podIPs"]?.arrayValue ?? []).compactMap { $0["ip"]?.stringValue } }

  package var isReady: Bool {
    (json["status"]?["conditions"]?.arrayValue ?? []).contains {
      $0["type"]?.stringValue == "Ready" && $0["status"]?.stringValue == "True"
    }
  }

  /// Name ("" for none), protocol and number of each.
  package var ports: [(name: String, transport: String, number: Int)] {
    (json["spec"]?["containers"]?.arrayValue ?? []).flatMap { $0["ports"]?.arrayValue ?? [] }.compactMap { port in
      port["containerPort"]?.intValue.map {
        (port["name"]?.stringValue ?? "", port["protocol"]?.stringValue ?? "TCP", Int($0))
      }
    }
  }

  func isOwned(by uid: String) -> Bool {
    (json["metadata"]?["ownerReferences"]?.arrayValue ?? []).contains { $0["uid"]?.stringValue == uid }
  }

  static func strings(_ object: JSONValue?) -> [String: String] {
    Dictionary((object?.objectValue ?? [:]).map { ($0.key, $0.value.stringValue ?? "") }) { $1 }
  }
}

extension JSONValue {
  /// The same with a member set or, by nil, removed; objects that are missing on the way are made.
  package func with(_ path: String..., value: JSONValue?) -> JSONValue { with(path[...], value) }

  /// The same with all members in alphabetical order, as the comparison of two heeds it.
  var inOrder: JSONValue {
    if let items = arrayValue { return .array(items.map(\.inOrder)) }
    guard let members = objectValue else { return self }
    return .object(JSONObject(members.map { ($0.key, $0.value.inOrder) }.sorted { $0.0 < $1.0 }))
  }

  private func with(_ path: ArraySlice<String>, _ value: JSONValue?) -> JSONValue {
    guard let key = path.first else { return value ?? .null }
    var object = objectValue ?? [:]
    if path.count == 1 {
      object[key] = value
    } else {
      object[key] = (object[key] ?? [:]).with(path.dropFirst(), value)
    }
    return .object(object)
  }
}
