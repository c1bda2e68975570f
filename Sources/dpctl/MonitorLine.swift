import DataplaneModel
import LocalAPI
import NetworkTypes

/// One event as one line:
///
///     12:04:01.221 DROP egress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN  policy denied by shop/deny-db (NetworkPolicy)
enum MonitorLine {
  static func text(_ event: JSONValue, _ terminal: Terminal, wide: Bool) -> String {
    let type = event.text("type")
    let words = [
      event.text("direction"), end(event.present("source")), "->", end(event.present("destination")),
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
    guard isAudit || reason == DropReason.policyDenied.rawValue else {
      return reason + (DropReason(rawValue: reason).map { " (\($0.explanation))" } ?? "")
    }
    var by = (event["policies"]?.arrayValue ?? []).compactMap(\.stringValue).joined(separator: ", ")
    if let rule = event.present("rule") { by = "\(rule.text("policy")) rule \(rule.text("index"))" }
    let verb = isAudit ? "would be denied" : "policy denied"
    guard !by.isEmpty else { return verb + (isAudit ? " (audit)" : "") }
    return "\(verb) by \(by) (NetworkPolicy\(isAudit ? ", audit" : ""))"
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
      event["revision"]?.intValue.map { "revision \($0)" },
    ].compactMap { $0 }
    return details.isEmpty ? "" : "  [\(details.joined(separator: ", "))]"
  }
}
