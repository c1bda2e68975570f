import Foundation
import LocalAPI

/// `labelSelector` and `fieldSelector` of a request.
struct Selector: Sendable {
  private enum Requirement: Sendable {
    case exists(String)
    case isAbsent(String)
    case isIn(String, Set<String>)
    case isNotIn(String, Set<String>)
  }

  private let labels: [Requirement]
  private let fields: [(key: String, value: String, isEqual: Bool)]

  init(labels: String, fields: String) throws(Refusal) {
    var requirements: [Requirement] = []
    for part in Self.parts(labels) { requirements.append(try Self.requirement(part)) }
    self.labels = requirements
    var wanted: [(String, String, Bool)] = []
    for part in fields.split(separator: ",") {
      let isEqual = !part.contains("!=")
      let pair = part.components(separatedBy: isEqual ? (part.contains("==") ? "==" : "=") : "!=")
      guard pair.count == 2 else { throw .badRequest("unable to parse field selector \(part)") }
      guard ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"].contains(pair[0]) else {
        throw .badRequest("field label not supported: \(pair[0])")
      }
      wanted.append((pair[0], pair[1], isEqual))
    }
    self.fields = wanted
  }

  func matches(_ object: JSONValue) -> Bool {
    let held = object["metadata"]?["labels"]
    let labelsMatch = labels.allSatisfy { requirement in
      switch requirement {
      case .exists(let key): held?[key] != nil
      case .isAbsent(let key): held?[key] == nil
      case .isIn(let key, let values): held?[key]?.stringValue.map(values.contains) ?? false
      case .isNotIn(let key, let values): held?[key]?.stringValue.map { !values.contains($0) } ?? true
      }
    }
    return labelsMatch
      && fields.allSatisfy { field in
        let value = field.key.split(separator: ".").reduce(Optional(object)) { $0?[String($1)] }
        return ((value?.stringValue ?? "") == field.value) == field.isEqual
      }
  }

  /// Cut at commas that are not within parentheses.
  private static func parts(_ text: String) -> [String] {
    var parts: [String] = [""]
    var depth = 0
    for character in text {
      if character == "(" { depth += 1 } else if character == ")" { depth -= 1 }
      if character == ",", depth == 0 { parts.append("") } else { parts[parts.count - 1].append(character) }
    }
    return parts.map { $0.trimmingCharacters(in: .whitespaces) }.filter { !$0.isEmpty }
  }

  private static func requirement(_ text: String) throws(Refusal) -> Requirement {
    for (word, isIn) in [(" notin ", false), (" in ", true)] {
      guard let range = text.range(of: word) else { continue }
      let key = String(text[..<range.lowerBound])
      let list = text[range.upperBound...].trimmingCharacters(in: CharacterSet(charactersIn: "() "))
      let values = Set(list.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) })
      return isIn ? .isIn(key, values) : .isNotIn(key, values)
    }
    for (sign, isIn) in [("!=", false), ("==", true), ("=", true)] {
      guard let range = text.range(of: sign) else { continue }
      let (key, value) = (String(text[..<range.lowerBound]), String(text[range.upperBound...]))
      return isIn ? .isIn(key, [value]) : .isNotIn(key, [value])
    }
    if text.hasPrefix("!") { return .isAbsent(String(text.dropFirst())) }
    guard text.allSatisfy({ $0.isLetter || $0.isNumber || "-_./".contains($0) }) else {
      throw .badRequest("unable to parse requirement: \(text)")
    }
    return .exists(text)
  }
}
