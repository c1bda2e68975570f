import DataplaneModel
import LocalAPI
import Testing

@testable import dpctl

@Suite("Lines of dpctl monitor")
struct MonitorLineTests {
  private func line(_ changes: JSONObject = [:], wide: Bool = false, colored: Bool = false) throws -> String {
    MonitorLine.text(try Canned.event(changes), Terminal(isColored: colored), wide: wide)
  }

  private func end(_ address: String, _ port: JSONValue, pod: JSONValue = nil) -> JSONValue {
    ["address": .string(address), "port": port, "pod": pod, "kind": "world", "identity": nil]
  }

  @Test("a drop names flow, verdict and policy")
  func drop() throws {
    #expect(
      try line()
        == "12:04:01.221 DROP egress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN  "
        + "policy denied by shop/deny-db (NetworkPolicy)")
  }

  @Test("wide lines add date, addresses, interface, length, identities and revision, as far as they are known")
  func wide() throws {
    #expect(
      try line(wide: true)
        == "2026-11-21T12:04:01.221Z DROP egress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN  "
        + "policy denied by shop/deny-db (NetworkPolicy)  "
        + "[10.1.2.3 -> 10.1.2.4, slc0123, 60 bytes, identities 16 -> 18, revision 412]")
    let unknown: JSONObject = [
      "interface": nil, "revision": nil, "source": end("10.0.0.1", 5), "destination": end("10.0.0.2", 6),
    ]
    #expect(try line(unknown, wide: true).hasSuffix("(NetworkPolicy)  [60 bytes]"))
    let half: JSONObject = ["source": end("10.0.0.1", 5), "length": nil]
    #expect(
      try line(half, wide: true).hasSuffix("  [10.0.0.1 -> 10.1.2.4, slc0123, identities none -> 18, revision 412]"))
  }

  @Test("an audit says who would deny")
  func audit() throws {
    let changes: JSONObject = ["type": "audit", "direction": "ingress", "policies": ["shop/x", "shop/y"]]
    #expect(
      try line(changes)
        == "12:04:01.221 AUDIT ingress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN  "
        + "would be denied by shop/x, shop/y (NetworkPolicy, audit)")
  }

  @Test("what is told on request: who allows, what becomes of both ends, and who began the flow on the left")
  func onRequest() throws {
    let flow = "egress shop/cart-7d9:40122 -> shop/db-0:5432 tcp SYN"
    func line(_ type: String, _ changes: [(String, JSONValue)] = [], wide: Bool = false) throws -> String {
      var all: JSONObject = ["type": .string(type), "reason": ""]
      for (key, value) in changes { all[key] = value }
      return try self.line(all, wide: wide)
    }
    #expect(try line("verdict") == "12:04:01.221 VERDICT \(flow)  allowed by shop/deny-db (NetworkPolicy)")
    #expect(try line("verdict", [("policies", [])]).hasSuffix("  allowed, not isolated"))
    let translated: JSONValue = [
      "source": end("10.1.2.3", 40122, pod: "shop/cart-7d9"), "destination": end("10.1.2.9", 8080, pod: "shop/db-1"),
    ]
    #expect(try line("lb", [("translated", translated)]) == "12:04:01.221 LB \(flow)  to shop/db-1:8080")
    let both: JSONValue = ["source": end("192.0.2.1", 61000), "destination": end("10.1.2.9", 8080)]
    #expect(try line("lb", [("translated", both)]).hasSuffix("  as 192.0.2.1:61000 to 10.1.2.9:8080"))
    #expect(try line("lb", [("reason", "rejected")]).hasSuffix("  rejected"))
    #expect(
      try line("trace", [("isReply", true), ("flags", "ACK"), ("direction", .null)])
        == "12:04:01.221 TRACE shop/db-0:5432 <- shop/cart-7d9:40122 tcp ACK  passes")
    #expect(try line("trace", [("place", "endpoint.c:31")], wide: true).hasSuffix(", endpoint.c:31]"))
  }

  @Test("a deny by a rule names the rule, one by nobody known nobody")
  func rules() throws {
    #expect(
      try line(["rule": ["policy": "shop/x", "index": 3]])
        .hasSuffix("  policy denied by shop/x rule 3 (NetworkPolicy)"))
    #expect(try line(["policies": []]).hasSuffix(" SYN  policy denied"))
    #expect(try line(["policies": [], "type": "audit"]).hasSuffix(" SYN  would be denied (audit)"))
  }

  @Test("addresses without a pod stand for themselves, IPv6 in brackets where a port follows")
  func addresses() throws {
    let v6: JSONObject = ["source": end("fd00::1", 1), "destination": end("2001:db8::9", 53), "protocol": "udp"]
    #expect(try line(v6).contains(" egress [fd00::1]:1 -> [2001:db8::9]:53 udp "))
    let v4: JSONObject = ["source": end("203.0.113.9", 80), "destination": end("10.0.0.1", nil)]
    #expect(try line(v4).contains(" egress 203.0.113.9:80 -> 10.0.0.1 tcp "))
  }

  @Test("a packet whose header could not be read has no ends")
  func unreadable() throws {
    let changes: JSONObject = [
      "source": nil, "destination": nil, "protocol": nil, "flags": nil, "direction": nil, "reason": "no-verdict",
    ]
    #expect(try line(changes).hasPrefix("12:04:01.221 DROP ? -> ?  no-verdict ("))
  }

  @Test("packets without ports have none, ICMP its type")
  func icmp() throws {
    let changes: JSONObject = [
      "source": end("10.1.2.3", nil, pod: "shop/cart-7d9"), "destination": end("fd00::1", nil), "protocol": "icmpv6",
      "flags": nil, "icmpType": 128,
    ]
    #expect(
      try line(changes)
        == "12:04:01.221 DROP egress shop/cart-7d9 -> fd00::1 icmpv6 type 128  "
        + "policy denied by shop/deny-db (NetworkPolicy)")
  }

  @Test("every other reason comes with its explanation, one from a newer agent as it is")
  func reasons() throws {
    for reason in DropReason.allCases where reason != .policyDenied {
      let changes: JSONObject = [
        "reason": .string(reason.rawValue), "direction": nil, "flags": nil, "protocol": "udp", "policies": [],
      ]
      #expect(
        try line(changes)
          == "12:04:01.221 DROP shop/cart-7d9:40122 -> shop/db-0:5432 udp  \(reason.rawValue) (\(reason.explanation))")
    }
    #expect(try line(["reason": "brand-new"]).hasSuffix(" SYN  brand-new"))
  }

  @Test("colours only mark the verdict")
  func color() throws {
    #expect(try line(colored: true).hasPrefix("12:04:01.221 \u{1b}[1;31mDROP\u{1b}[0m egress "))
    #expect(try line(["type": "audit"], colored: true).hasPrefix("12:04:01.221 \u{1b}[1;33mAUDIT\u{1b}[0m egress "))
  }

  @Test("no text from elsewhere steers the terminal or breaks the line")
  func hostile() throws {
    let evil: JSONValue = "a\u{1b}[2J\n\r\u{7f}\u{9b}\u{202e}b"
    let changes: JSONObject = [
      "time": evil, "type": evil, "reason": evil, "direction": evil, "protocol": evil, "flags": evil,
      "interface": evil, "source": ["pod": evil, "address": evil], "destination": ["address": evil, "port": 1],
    ]
    for wide in [false, true] {
      let text = try line(changes, wide: wide)
      #expect(text.unicodeScalars.allSatisfy { (0x20...0x7e).contains($0.value) })
      #expect(text.contains("a?[2J?????b"))
    }
    #expect(MonitorLine.text(.null, Terminal(isColored: false), wide: true).contains("->"))
  }
}

@Suite("Lost events")
struct LossCountTests {
  private func note(_ events: [JSONValue]) -> [String?] {
    var losses = LossCount()
    return events.map { losses.note($0) }
  }

  @Test("are told with how many there were in all")
  func told() {
    #expect(
      note([["type": "drop", "lost": 22], ["type": "lost", "count": 12, "lost": 34], ["type": "drop", "lost": 34]])
        == [nil, "... 12 events lost (34 in all)", nil])
    #expect(note([["type": "lost", "count": 12, "lost": 34]]) == ["... 12 events lost (34 in all)"])
  }

  @Test("are seen by the running total where no event says so")
  func silent() {
    #expect(
      note([["type": "drop", "lost": 22], ["type": "audit", "lost": 25], ["type": "drop", "lost": 25]])
        == [nil, "... 3 events lost (25 in all)", nil])
  }

  @Test("before the first event are not this reader's, and a total that falls is no loss")
  func baseline() {
    #expect(
      note([["type": "drop", "lost": 1000], ["type": "drop", "lost": 4], ["type": "drop", "lost": 1000]]) == [
        nil, nil, nil,
      ])
    #expect(note([["type": "drop"], [:], .null, ["type": "lost", "count": -1]]) == [nil, nil, nil, nil])
    #expect(note([["type": "drop", "lost": .int(.min)], ["type": "drop", "lost": .int(.max)]]) == [nil, nil])
  }
}
