import LocalAPI

/// Changes to an object as requests write them, by RFC 7386 and
/// https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch. JSON patches and server-side apply are refused.
enum Patch {
  private static let merge = "application/merge-patch+json"
  private static let strategic = "application/strategic-merge-patch+json"

  static func apply(
    _ patch: JSONValue, _ contentType: String, to object: JSONValue, _ kind: ServedKind
  ) throws(Refusal) -> JSONValue {
    switch contentType.split(separator: ";").first.map(String.init) {
    case merge: return merged(object, patch)
    case strategic: return try Strategic(kind: kind).merged(object, patch)
    default:
      throw Refusal(
        415, "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: \(merge), \(strategic)")
    }
  }

  /// null removes, objects are merged, all else is replaced.
  private static func merged(_ old: JSONValue?, _ patch: JSONValue) -> JSONValue {
    guard let changes = patch.objectValue else { return patch }
    var result = old?.objectValue ?? [:]
    for change in changes {
      result[change.key] = change.value.isNull ? nil : merged(result[change.key], change.value)
    }
    return .object(result)
  }

  /// Lists of things that have a name are merged by it.
  private struct Strategic {
    let kind: ServedKind

    /// nil: such a list is replaced as a whole.
    private func key(of list: String) -> String? {
      switch list {
      case "containers", "initContainers", "env", "volumes", "imagePullSecrets": "name"
      case "ports" where kind == .service: "port"
      case "ports" where kind == .pod || kind == .deployment: "containerPort"
      case "volumeMounts": "mountPath"
      case "conditions": "type"
      case "ownerReferences": "uid"
      case "podIPs": "ip"
      default: nil
      }
    }

    func merged(_ old: JSONValue?, _ patch: JSONValue) throws(Refusal) -> JSONValue {
      guard var changes = patch.objectValue else { return patch }
      let directive = changes["$patch"]?.stringValue
      guard [nil, "replace", "merge"].contains(directive) else {
        throw .badRequest("$patch: \(directive ?? "") of an object is not understood")
      }
      if let unknown = changes.first(where: {
        $0.key.hasPrefix("$") && !["$patch", "$retainKeys"].contains($0.key) && !$0.key.hasPrefix("$setElementOrder/")
      }) {
        throw .badRequest("\(unknown.key) is not understood")
      }
      var result = directive == "replace" ? [:] : old?.objectValue ?? [:]
      if let retained = changes["$retainKeys"]?.arrayValue {
        for key in result.map(\.key) where !retained.contains(.string(key)) { result[key] = nil }
      }
      changes["$patch"] = nil
      changes["$retainKeys"] = nil
      for change in changes where !change.key.hasPrefix("$") {
        let name = change.key
        if change.value.isNull {
          result[name] = nil
        } else if let items = change.value.arrayValue, let key = key(of: name) {
          result[name] = .array(try mergedList(result[name]?.arrayValue ?? [], items, by: key))
        } else {
          result[name] = try merged(result[name], change.value)
        }
      }
      for change in changes {
        guard change.key.hasPrefix("$setElementOrder/") else { continue }
        let name = String(change.key.dropFirst("$setElementOrder/".count))
        guard let key = key(of: name), let items = result[name]?.arrayValue else { continue }
        let order = (change.value.arrayValue ?? []).compactMap { $0[key] }
        result[name] = .array(
          order.compactMap { place in items.first { $0[key] == place } }
            + items.filter { item in !order.contains { $0 == item[key] } })
      }
      return .object(result)
    }

    private func mergedList(_ old: [JSONValue], _ items: [JSONValue], by key: String) throws(Refusal) -> [JSONValue] {
      var result = items.contains { $0["$patch"]?.stringValue == "replace" } ? [] : old
      for item in items where item["$patch"]?.stringValue != "replace" {
        guard let name = item[key] else {
          throw .badRequest("map: \(item) does not contain declared merge key: \(key)")
        }
        let place = result.firstIndex { $0[key] == name }
        if item["$patch"]?.stringValue == "delete" {
          if let place { result.remove(at: place) }
        } else if let place {
          result[place] = try merged(result[place], item)
        } else {
          result.append(try merged(nil, item))
        }
      }
      return result
    }
  }
}
