import DataplaneModel
import LocalAPI
import NetworkTypes

/// One event as one line:
///
///     12:04:01.221 DROP egress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN  policy denied by shop/deny-db (NetworkPolicy)
///     12:04:01.250 TRACE shop/cart-7d9:40124 <- shop/web-1:8080 tcp ACK  passes
enum MonitorLine {
  static func text(_ event: JSONValue, _ terminal: Terminal, wide: Bool) -> String {
    let type = event.text("type")
    // Who began the flow stands on the left.
    let isReply = event["isReply"]?.boolValue == true
    let ends = [end(event.present("source")), end(event.present("destination"))]
    let words = [
      event.text("direction"), ends[isReply ? 1 : 0], isReply ? "<-" : "->", ends[isReply ? 0 : 1],
      event.text("protocol"), event.text("flags"), event["icmpType"]?.intValue.map { "type \($0)" } ?? "",
    ]
    let packet = words.filter { !$0.isEmpty }.joined(separator: " ")
    let color: Terminal.Color? = type == "drop" ? .red : type == "audit" ? .yellow : nil
    let line = Terminal.printable("\(packet)  \(why(event))" + (wide ? details(event) : ""))
    return time(event, wide: wide) + " " + terminal.paint(Terminal.printable(type.uppercased()), color) + " " + line
  }

  /// `12:04:01.221`; wide with the date, as it came.
  private static func time(_ event: JSONValue, wide: Bool) -> String {
    let text = Terminal.printable(event.text("time"))
    guard !wide, let start = text.firstIndex(of: "T") else { return text }
    let time = text[text.index(after: start)...]
    return String(time.last == "Z" ? time.dropLast() : time)
  }

  /// The pod's name, else the address, with the port where there is one; `?` where the packet could not be read.
  private static func end(_ end: JSONValue?) -> String {
    guard let end else { return "?" }
    let (pod, address) = (end.text("pod"), end.text("address"))
    let port = end["port"]?.intValue.flatMap { $0 == 0 ? nil : $0 }
    if !pod.isEmpty { return pod + (port.map { ":\($0)" } ?? "") }
    guard let port else { return address }
    return IPAddress(address)?.family == .v6 ? "[\(address)]:\(port)" : "\(address):\(port)"
  }

  private static func why(_ event: JSONValue) -> String {
    let reason = event.text("reason")
    let isAudit = event.text("type") == "audit"
    switch event.text("type") {
    case "verdict": return allowed(event)
    case "lb" where reason.isEmpty: return translation(event)
    case "lb": return reason
    case "trace": return "passes"
    default: break
    }
    guard isAudit || reason == DropReason.policyDenied.rawValue else {
      return reason + (DropReason(rawValue: reason).map { " (\($0.explanation))" } ?? "")
    }
    var by = (event["policies"]?.arrayValue ?? []).compactMap(\.stringValue).joined(separator: ", ")
    if let rule = event.present("rule") { by = "\(rule.text("policy")) rule \(rule.text("index"))" }
    let verb = isAudit ? "would be denied" : "policy denied"
    guard !by.isEmpty else { return verb + (isAudit ? " (audit)" : "") }
    return "\(verb) by \(by) (NetworkPolicy\(isAudit ? ", audit" : ""))"
  }

  private static func allowed(_ event: JSONValue) -> String {
    let policies = (event["policies"]?.arrayValue ?? []).compactMap(\.stringValue)
    return policies.isEmpty
      ? "allowed, not isolated" : "allowed by \(policies.joined(separator: ", ")) (NetworkPolicy)"
  }

  /// Only the ends that change.
  private static func translation(_ event: JSONValue) -> String {
    let changes = [("source", "as"), ("destination", "to")].compactMap { key, word in
      let (old, new) = (event.present(key), event.present("translated")?.present(key))
      return new.flatMap { end($0) == end(old) ? nil : "\(word) \(end($0))" }
    }
    return changes.joined(separator: " ")
  }

  private static func details(_ event: JSONValue) -> String {
    func identity(_ key: String) -> String? { event[key]?["identity"]?.intValue.map { "\($0)" } }
    // A pod's name does not say by which of its addresses the packet went.
    func hasName(_ key: String) -> Bool { !(event[key]?.text("pod") ?? "").isEmpty }
    let addresses =
      hasName("source") || hasName("destination")
      ? ["source", "destination"].map { event[$0]?.text("address") ?? "" }.joined(separator: " -> ") : nil
    let interface = event.text("interface")
    let identities = [identity("source"), identity("destination")]
    let details = [
      addresses, interface.isEmpty ? nil : interface, event["length"]?.intValue.map { "\($0) bytes" },
      identities.allSatisfy { $0 == nil }
        ? nil : "identities " + identities.map { $0 ?? "none" }.joined(separator: " -> "),
      event["revision"]?.intValue.map { "revision \($0)" }, event.present("place")?.stringValue,
    ].compactMap { $0 }
    return details.isEmpty ? "" : "  [\(details.joined(separator: ", "))]"
  }
}
