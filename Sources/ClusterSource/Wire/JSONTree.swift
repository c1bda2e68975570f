import KubernetesObjects
import LocalAPI

/// JSON as the decoder's tree.
package enum JSONTree {
  static func tree(_ bytes: ArraySlice<UInt8>) throws(WireProblem) -> ManifestNode {
    do throws(JSONError) { return tree(try JSONValue(parsing: Array(bytes))) } catch {
      throw WireProblem("JSON, \(error)")
    }
  }

  static func tree(_ value: JSONValue) -> ManifestNode {
    switch value {
    case .null: .null(line: 0)
    case .bool(let flag): .scalar(flag ? "true" : "false", isQuoted: false, line: 0)
    case .int(let number): .scalar("\(number)", isQuoted: false, line: 0)
    case .double(let number): .scalar("\(number)", isQuoted: false, line: 0)
    case .string(let text): .scalar(text, isQuoted: true, line: 0)
    case .array(let elements): .sequence(elements.map(tree), line: 0)
    case .object(let members): .mapping(members.map { .init($0.key, tree($0.value)) }, line: 0)
    }
  }

  /// The other way, with no line kept.
  package static func value(_ tree: ManifestNode) -> JSONValue {
    switch tree {
    case .null: .null
    case .scalar(let text, true, _): .string(text)
    case .scalar("true", _, _): true
    case .scalar("false", _, _): false
    case .scalar(let text, _, _): Int64(text).map { .int($0) } ?? Double(text).map { .double($0) } ?? .string(text)
    case .sequence(let elements, _): .array(elements.map(value))
    case .mapping(let entries, _): .object(JSONObject(entries.map { ($0.key, value($0.value)) }))
    }
  }
}
