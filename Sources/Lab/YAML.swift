import LocalAPI

/// Writes values as the block YAML people write by hand.
enum YAML {
  static func document(_ value: JSONValue) -> String {
    var text = ""
    write(value, indent: 0, into: &text)
    return text
  }

  /// Several documents in one file.
  static func documents(_ values: [JSONValue]) -> String { values.map(document).joined(separator: "---\n") }

  private static func write(_ value: JSONValue, indent: Int, into text: inout String) {
    switch value {
    case .object(let object): writeMembers(object, indent: indent, firstIsIndented: false, into: &text)
    case .array(let elements): writeElements(elements, indent: indent, into: &text)
    default: text += scalar(value) + "\n"
    }
  }

  private static func writeMembers(
    _ object: JSONObject, indent: Int, firstIsIndented: Bool, into text: inout String
  ) {
    for (position, member) in object.enumerated() {
      if position > 0 || !firstIsIndented { text += String(repeating: " ", count: indent) }
      text += scalar(.string(member.key)) + ":"
      switch member.value {
      case .object(let inner) where !inner.isEmpty:
        text += "\n"
        writeMembers(inner, indent: indent + 2, firstIsIndented: false, into: &text)
      case .array(let elements) where !elements.isEmpty:
        text += "\n"
        writeElements(elements, indent: indent, into: &text)
      default: text += " " + scalar(member.value) + "\n"
      }
    }
  }

  private static func writeElements(_ elements: [JSONValue], indent: Int, into text: inout String) {
    for element in elements {
      text += String(repeating: " ", count: indent) + "- "
      if case .object(let inner) = element, !inner.isEmpty {
        writeMembers(inner, indent: indent + 2, firstIsIndented: true, into: &text)
      } else {
        // An array in an array does not occur in what the lab writes; JSON is YAML, should it ever.
        text += scalar(element) + "\n"
      }
    }
  }

  /// Strings that YAML would read as something else are quoted as JSON does.
  private static func scalar(_ value: JSONValue) -> String {
    guard case .string(let text) = value, isPlain(text) else { return value.serialized() }
    return text
  }

  private static func isPlain(_ text: String) -> Bool {
    guard let first = text.unicodeScalars.first, isLetter(first) || first == "/" else { return false }
    let words: Set = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"]
    let isSafe = text.unicodeScalars.allSatisfy {
      isLetter($0) || ("0"..."9").contains($0) || "-._/".unicodeScalars.contains($0)
    }
    return isSafe && !words.contains(text.lowercased())
  }

  private static func isLetter(_ scalar: Unicode.Scalar) -> Bool {
    ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar)
  }
}
