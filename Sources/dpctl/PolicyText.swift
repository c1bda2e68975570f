import LocalAPI

/// The agent's answer about policies, for a person.
enum PolicyText {
  static func name(_ item: JSONValue) -> String { "\(item.text("namespace"))/\(item.text("name"))" }

  static func list(_ items: [JSONValue], wide: Bool) -> Table {
    var table = Table(
      headers: ["POLICY", "MODE", "DIRECTIONS", "STATE", "PODS", "ALLOWED", "DENIED", "WOULD-DENY"]
        + (wide ? ["ALLOWED-BYTES", "DENIED-BYTES", "WOULD-DENY-BYTES", "POD-NAMES"] : []))
    for item in items {
      let pods = strings(item, "pods")
      var row = [
        name(item), item.text("mode"), strings(item, "directions").joined(separator: ","), state(item),
        "\(pods.count)", "\(allowed(item, "packets"))", "\(both(item, "denied", "packets"))",
        "\(both(item, "wouldDeny", "packets"))",
      ]
      if wide {
        row += [
          "\(allowed(item, "bytes"))", "\(both(item, "denied", "bytes"))", "\(both(item, "wouldDeny", "bytes"))",
          pods.joined(separator: ","),
        ]
      }
      table.rows.append(row)
    }
    return table
  }

  /// What the policy is, then its rules; after a direction's rules what no rule let through.
  static func detail(_ item: JSONValue, withHeaders: Bool) -> String {
    let pods = strings(item, "pods")
    let lines = [
      "Policy      \(name(item))",
      "Mode        \(item.text("mode")), \(state(item))",
      "Directions  \(strings(item, "directions").joined(separator: ", "))",
      "Pods        \(pods.isEmpty ? "none on this node" : pods.joined(separator: ", "))",
    ]
    var table = Table(headers: ["DIRECTION", "RULE", "VERDICT", "PACKETS", "BYTES"])
    for direction in ["ingress", "egress"] {
      let rules = (item["rules"]?.arrayValue ?? []).filter { $0.text("direction") == direction }
      for rule in rules {
        table.rows.append([direction, rule.text("index"), "allow", counted(rule, "packets"), counted(rule, "bytes")])
      }
      guard strings(item, "directions").contains(direction) else { continue }
      for (key, verdict) in [("denied", "deny"), ("wouldDeny", "would deny")] {
        guard let counters = item[key]?[direction] else { continue }
        // What the mode rules out is shown only where it happened, before the mode was changed.
        let belongs = (item.text("mode") == "audit") == (key == "wouldDeny")
        guard belongs || counters.number("packets") > 0 else { continue }
        table.rows.append([direction, "none", verdict, counted(counters, "packets"), counted(counters, "bytes")])
      }
    }
    return Terminal.printable(lines: lines) + (table.rows.isEmpty ? "" : "\n\n" + table.text(withHeaders: withHeaders))
  }

  private static func state(_ item: JSONValue) -> String {
    item["inForce"]?.boolValue == true ? "in-force" : "pending"
  }

  private static func strings(_ item: JSONValue, _ key: String) -> [String] {
    item[key]?.arrayValue?.compactMap(\.stringValue) ?? []
  }

  private static func counted(_ counters: JSONValue, _ unit: String) -> String { "\(counters.number(unit))" }

  private static func allowed(_ item: JSONValue, _ unit: String) -> Int64 {
    (item["rules"]?.arrayValue ?? []).reduce(0) { $0 &+ $1.number(unit) }
  }

  private static func both(_ item: JSONValue, _ key: String, _ unit: String) -> Int64 {
    ["ingress", "egress"].reduce(0) { $0 &+ (item[key]?[$1]?.number(unit) ?? 0) }
  }
}
