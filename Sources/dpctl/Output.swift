import LocalAPI

/// Rows for a person, or the agent's answer for a program.
struct Table {
  var headers: [String]
  var rows: [[String]] = []

  func text(withHeaders: Bool) -> String {
    let all = (withHeaders ? [headers] : []) + rows
    let widths = headers.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
    return all.map { row in
      var line = ""
      for (column, cell) in row.enumerated() {
        line += cell
        if column < row.count - 1 { line += String(repeating: " ", count: widths[column] - cell.count + 3) }
      }
      return line
    }.joined(separator: "\n")
  }
}

enum Output {
  /// Prints a list answer (`items`) as asked for.
  static func list(
    _ answer: JSONValue, _ options: GlobalOptions, name: (JSONValue) -> String,
    table: ([JSONValue], _ wide: Bool) -> Table
  ) {
    let items = answer["items"]?.arrayValue ?? []
    switch options.output {
    case .json: print(answer.serialized(pretty: true))
    case .jsonl: for item in items { print(item.serialized()) }
    case .yaml: print(yaml(answer, indent: 0))
    case .name:
      var seen: Set<String> = []
      for item in items where seen.insert(name(item)).inserted { print(name(item)) }
    case .table, .wide:
      let table = table(items, options.output == .wide)
      let text = table.text(withHeaders: !options.noHeaders)
      if !text.isEmpty { print(text) }
    }
  }

  /// Block style; strings always quoted, so that nothing is read back as something else.
  static func yaml(_ value: JSONValue, indent: Int) -> String {
    let space = String(repeating: "  ", count: indent)
    switch value {
    case .object(let object) where !object.isEmpty:
      return object.map { member in
        isBlock(member.value)
          ? "\(space)\(member.key):\n\(yaml(member.value, indent: indent + 1))"
          : "\(space)\(member.key): \(member.value.serialized())"
      }.joined(separator: "\n")
    case .array(let array) where !array.isEmpty:
      return array.map { item in
        guard isBlock(item) else { return "\(space)- \(item.serialized())" }
        let block = yaml(item, indent: indent + 1)
        return space + "- " + block.dropFirst((indent + 1) * 2)
      }.joined(separator: "\n")
    default: return space + value.serialized()
    }
  }

  private static func isBlock(_ value: JSONValue) -> Bool {
    switch value {
    case .object(let object): !object.isEmpty
    case .array(let array): !array.isEmpty
    default: false
    }
  }
}

extension JSONValue {
  /// The member's text for a table; empty where it is absent.
  func text(_ key: String) -> String {
    guard let value = self[key], !value.isNull else { return "" }
    return value.stringValue ?? value.serialized()
  }
  func number(_ key: String) -> Int64 { self[key]?.intValue ?? 0 }
}
