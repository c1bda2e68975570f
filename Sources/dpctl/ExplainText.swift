import DataplaneModel
import LocalAPI

/// The agent's answer about one flow, for a person.
struct ExplainText {
  private let answer: JSONValue

  init(_ answer: JSONValue) { self.answer = answer }

  private var paths: [JSONValue] { answer["paths"]?.arrayValue ?? [] }

  /// How often the kernel's own look-ups gave something else than the agent's tables.
  var disagreements: Int {
    paths.flatMap { [$0["egress"], $0["ingress"]] }.filter { $0?["kernel"]?["agrees"]?.boolValue == false }.count
  }

  /// True only where the agent says so and the kernel does not differ.
  var isAllowed: Bool { answer.text("verdict") == "allowed" && disagreements == 0 }

  func text(_ terminal: Terminal, wide: Bool) -> String {
    var lines = [
      "source       " + Self.end(answer["source"] ?? .null, wide: wide),
      "destination  " + Self.end(answer["destination"] ?? .null, wide: wide),
    ]
    let service = answer.present("service")
    if let service { lines.append("service      " + self.service(service)) }
    for path in paths {
      if service != nil { lines += ["", "backend " + Self.backend(path)] }
      for direction in ["egress", "ingress"] {
        lines += decision(direction, path[direction] ?? .null, terminal, wide: wide)
      }
    }
    let more = answer.number("morePaths")
    if more > 0 { lines += ["", "... and \(more) more backends, not shown"] }
    if service != nil { lines.append("") }
    lines.append("verdict " + verdict(terminal))
    return lines.joined(separator: "\n")
  }

  // MARK: Ends

  /// `shop/cart-7d9  10.1.2.3  pod, identity 12, app=cart`
  private static func end(_ end: JSONValue, wide: Bool) -> String {
    let (text, address) = (end.text("text"), end.text("address"))
    var properties = [end.text("kind")]
    if let identity = end["identity"]?.intValue { properties.append("identity \(identity)") }
    properties.append(end.text("labels"))
    if wide { properties.append(end["local"]?.boolValue == true ? "on this node" : "elsewhere") }
    let known = [text, address == text ? "" : address, properties.filter { !$0.isEmpty }.joined(separator: ", ")]
    return Terminal.printable(known.filter { !$0.isEmpty }.joined(separator: "  "))
  }

  /// `shop/api  10.96.0.10:80/tcp  translated to one of 2 backends`
  private func service(_ service: JSONValue) -> String {
    let count = Int64(paths.count) + answer.number("morePaths")
    let outcome: String
    switch service.text("outcome") {
    case "translated": outcome = count == 1 ? "translated to its one backend" : "translated to one of \(count) backends"
    case let other: outcome = other
    }
    var reason = service.text("reason")
    if let known = DropReason(rawValue: reason)?.explanation ?? RejectReason(rawValue: reason)?.explanation {
      reason += " (\(known))"
    }
    return Terminal.printable(
      "\(service.text("text"))  \(service.text("frontend"))  \(outcome)" + (reason.isEmpty ? "" : ": \(reason)"))
  }

  private static func backend(_ path: JSONValue) -> String {
    let (address, name) = (path.text("backend"), path.text("backendText"))
    if address.isEmpty { return "none" }
    return Terminal.printable(name.isEmpty || name == address ? address : "\(address) (\(name))")
  }

  // MARK: Decisions

  /// One line for the decision; a second for the kernel's answer where it differs, or where all is asked for.
  private func decision(_ direction: String, _ decision: JSONValue, _ terminal: Terminal, wide: Bool) -> [String] {
    let verdict = decision.text("verdict")
    var text = decision.text("text")
    let nearest = decision["nearest"]?.text("text") ?? ""
    if !nearest.isEmpty, !text.contains("nearest") { text += "; nearest: \(nearest)" }
    var lines = [Self.padded(direction, to: 8) + Self.columns(text, verdict, terminal)]
    if wide {
      let policies = (decision["policies"]?.arrayValue ?? []).compactMap(\.stringValue)
      if !policies.isEmpty {
        lines.append("        policies: \(Terminal.printable(policies.joined(separator: ", ")))")
      }
    }
    let kernel = decision.present("kernel")
    if let kernel, kernel["agrees"]?.boolValue == false {
      lines.append(
        "        " + terminal.paint("!! THE KERNEL SAYS OTHERWISE:", .red) + " "
          + Terminal.printable(kernel.text("text")))
    } else if wide, decision["applies"]?.boolValue == true {
      lines.append("        kernel: " + (kernel.map { Terminal.printable($0.text("text")) } ?? "not asked"))
    }
    return lines
  }

  /// The verdict's word in its colour and as wide as the longest, then what follows it. The agent's text begins with the
  /// word where there is a verdict.
  private static func columns(_ text: String, _ verdict: String, _ terminal: Terminal) -> String {
    let text = Terminal.printable(text)
    var (word, color) = word(verdict)
    var rest = text[...]
    let first = text.prefix { $0 != " " }
    if !first.isEmpty, first.allSatisfy({ $0 == "-" || ($0.isASCII && $0.isUppercase) }) {
      word = String(first)
      rest = text[first.endIndex...].drop { $0 == " " }
    }
    guard !rest.isEmpty else { return terminal.paint(word, color) }
    return terminal.paint(word, color) + String(repeating: " ", count: max(1, 7 - word.count)) + rest
  }

  private static func padded(_ text: String, to width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  private static func word(_ verdict: String) -> (String, Terminal.Color?) {
    switch verdict {
    case "allow", "exempt", "unrestricted": ("ALLOW", .green)
    case "deny": ("DENY", .red)
    case "dropped": ("DROP", .red)
    case "audit-deny": ("AUDIT", .yellow)
    default: ("-", nil)
    }
  }

  /// Another node has a say too: it has the pod at one end.
  private func isJudgedElsewhere(_ path: JSONValue) -> Bool {
    func isElsewhere(_ direction: String, _ end: String) -> Bool {
      path[direction]?.text("verdict") == "not-local" && answer[end]?.text("kind") == "pod"
        && answer[end]?["local"]?.boolValue == false
    }
    let isBackendElsewhere = path.present("backendText") != nil && path["ingress"]?.text("verdict") == "not-local"
    return isElsewhere("egress", "source") || isElsewhere("ingress", "destination") || isBackendElsewhere
  }

  /// In how many of the paths the flow is allowed, where that differs.
  private func verdict(_ terminal: Terminal) -> String {
    switch answer.text("verdict") {
    case "allowed":
      return terminal.paint("ALLOWED", .green) + (paths.contains(where: isJudgedElsewhere) ? " by this node" : "")
    case "mixed":
      let allowed = paths.filter { $0["allowed"]?.boolValue == true }.count
      let shown = answer.number("morePaths") > 0 ? "the \(paths.count) backends shown" : "\(paths.count) backends"
      return terminal.paint("MIXED", .yellow) + ": \(allowed) of \(shown) allowed"
    case let other: return terminal.paint(Terminal.printable(other.uppercased()), .red)
    }
  }
}
