import ArgumentParser
import LocalAPI

/// The classes of addresses that policies tell apart.
struct IdentityCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "identity", abstract: "Classes of addresses that policies tell apart.",
    subcommands: [IdentityList.self], defaultSubcommand: IdentityList.self, aliases: ["id"])
}

struct IdentityList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Every identity with whose addresses it has.")
  @OptionGroup var options: GlobalOptions
  @OptionGroup var namespaces: NamespaceOptions

  func run() throws {
    let answer = Self.only(namespaces.wanted, of: try options.answer("/v1/identities"))
    Output.list(answer, options, name: { $0.text("id") }, table: Self.table)
  }

  /// The answer with the identities of one namespace; with all for nil.
  static func only(_ namespace: String?, of answer: JSONValue) -> JSONValue {
    guard let namespace, case .object(var object) = answer else { return answer }
    object["items"] = .array((answer["items"]?.arrayValue ?? []).filter { $0.text("namespace") == namespace })
    return .object(object)
  }

  static func table(_ items: [JSONValue], wide: Bool) -> Table {
    Table(
      headers: ["ID", "FAMILY", "KIND", "NAMESPACE", "ADDRESSES", "PAIRS", "LABELS"],
      rows: items.map { item in
        [
          item.text("id"), item.text("family"), item.text("kind"), item.text("namespace"), addresses(item),
          item.text("pairs"), labels(item, wide: wide),
        ]
      })
  }

  /// The world is counted in ranges: it has more addresses than are worth counting.
  private static func addresses(_ item: JSONValue) -> String {
    let count = item.number("addresses")
    guard item.text("kind") == "world" || item.text("kind") == "unknown" else { return "\(count)" }
    return count == 1 ? "1 range" : "\(count) ranges"
  }

  /// One set of labels per group of pods.
  private static func labels(_ item: JSONValue, wide: Bool) -> String {
    let groups = item["labels"]?.arrayValue?.compactMap(\.stringValue).map { $0.isEmpty ? "<none>" : $0 } ?? []
    guard !wide, groups.count > 2 else { return groups.joined(separator: "; ") }
    return groups.prefix(2).joined(separator: "; ") + "; +\(groups.count - 2)"
  }
}
