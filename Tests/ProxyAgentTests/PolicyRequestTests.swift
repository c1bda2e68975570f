import DataplaneModel
import KubernetesObjects
import NFTables
import NetworkTypes
import Testing

@testable import ProxyAgent

@Suite("Arguments of the local API") struct PolicyRequestTests {
  private func error(_ body: () throws -> Void) -> String {
    do {
      try body()
      return "none"
    } catch {
      return "\(error)"
    }
  }

  @Test("explain takes pods, Services, addresses, this node and the world")
  func parties() throws {
    let shop = ObjectKey(namespace: "shop", name: "api")
    #expect(ExplainRequest.Party("shop/api") == .named(shop))
    #expect(ExplainRequest.Party("pod/shop/api") == .pod(shop))
    #expect(ExplainRequest.Party("svc/shop/api") == .service(shop))
    #expect(ExplainRequest.Party("fd00::1") == .address(try #require(IPAddress("fd00::1"))))
    #expect(ExplainRequest.Party("host") == .host)
    #expect(ExplainRequest.Party("world") == .world)
    for text in ["", "api", "/api", "shop/", "a/b/c/d", "x/shop/api", "10.0.0"] {
      #expect(ExplainRequest.Party(text) == nil, "\(text)")
    }
  }

  @Test("what is wrong with explain's arguments is named")
  func explain() throws {
    func error(_ changes: [String: String], without missing: String = "") -> String {
      var arguments = ["source": "shop/a", "destination": "shop/b", "port": "80"].merging(changes) { $1 }
      arguments[missing] = nil
      return self.error { _ = try ExplainRequest(arguments) }
    }
    #expect(error([:]) == "none")
    #expect(error([:], without: "source") == "source: missing")
    #expect(error(["source": "svc/shop/a"]).hasPrefix("source: 'svc/shop/a'"))
    #expect(error(["source": "a"]).hasPrefix("source: 'a' is no"))
    #expect(error(["destination": "host"]).hasPrefix("destination: 'host' is no"))
    #expect(error([:], without: "port") == "port: missing")
    for port in ["0", "65536", "http", "-1"] { #expect(error(["port": port]) == "port: '\(port)' is not 1 to 65535") }
    #expect(error(["protocol": "gre"]) == "protocol: 'gre' is none of tcp, udp, sctp, icmp")
    #expect(error(["protocol": "icmp"]) == "port: icmp has none")
    #expect(error(["protocol": "icmp"], without: "port") == "none")
    #expect(error(["family": "IPv5"]) == "family: 'IPv5' is neither IPv4 nor IPv6")
    let request = try ExplainRequest([
      "source": "world", "destination": "10.0.0.1", "protocol": "sctp", "port": "9", "family": "ipv6",
    ])
    #expect(request.transport == .ports(.sctp, try #require(Port(9))))
    #expect(request.family == .v6)
    #expect(ExplainRequest.Transport.icmp.number(.v4) == 1)
    #expect(ExplainRequest.Transport.icmp.number(.v6) == 58)
  }

  @Test("monitor's arguments become a filter")
  func monitor() throws {
    let now = PolicyEvent.Time(seconds: 1000, microseconds: 5)
    let query = try MonitorQuery(
      [
        "last": "7", "follow": "true", "type": "drop,audit", "reason": "policy-denied", "from": "shop/a",
        "to": "10.0.0.1", "pod": "shop/b", "namespace": "shop", "since": "60",
      ], now: now)
    #expect(query.last == 7 && query.follows)
    #expect(query.filter.kinds == [.drop, .audit])
    #expect(query.filter.reasons == ["policy-denied"])
    #expect(query.filter.source == .pod(ObjectKey(namespace: "shop", name: "a")))
    #expect(query.filter.destination == .address(try #require(IPAddress("10.0.0.1"))))
    #expect(query.filter.either == .pod(ObjectKey(namespace: "shop", name: "b")))
    #expect(query.filter.since == PolicyEvent.Time(seconds: 940, microseconds: 5))
    #expect(try MonitorQuery(["since": "2000"], now: now).filter.since?.seconds == 0)
    #expect(try MonitorQuery([:], now: now) == MonitorQuery(["follow": "false"], now: now))
  }

  @Test(
    "what is wrong with monitor's arguments is named",
    arguments: [
      ("last", "-1"), ("last", "x"), ("follow", "yes"), ("type", "lost"), ("type", "traces"), ("reason", "boredom"),
      ("from", "shop"), ("to", "a/b/c"), ("pod", ""), ("since", "1m"),
    ])
  func monitorErrors(name: String, value: String) {
    #expect(error { _ = try MonitorQuery([name: value]) }.hasPrefix("\(name): '\(value)'"))
  }

  @Test("times are told as RFC 3339 has them, in UTC")
  func times() {
    #expect(PolicyEvent.Time(seconds: 1_795_262_641, microseconds: 7_999).text == "2026-11-21T12:04:01.007Z")
    #expect(PolicyEvent.Time(seconds: 0, microseconds: 0).text == "1970-01-01T00:00:00.000Z")
  }
}

@Suite("Totals by name") struct PolicyTotalsTests {
  private static func reference(_ name: String) -> PolicyReference { PolicyReference(namespace: "shop", name: name) }

  private static let ingress = Attribution(
    direction: .ingress,
    rules: [RuleReference(policy: reference("a"), index: 2), RuleReference(policy: reference("b"), index: 0)],
    isolating: [reference("a"), reference("b")], auditing: [reference("c")])

  /// Clauses of two attributions that say the same, as two pairs' can.
  private static func totals() -> PolicyTotals {
    var counters = PolicyCounters()
    var meanings: [ClauseKey: ClauseHistory.Meaning] = [:]
    func add(_ attribution: UInt32, _ clause: Clause, _ packets: UInt64) {
      let key = ClauseKey(AttributionID(rawValue: attribution), clause)
      counters.clauses[key] = TrafficCount(packets: packets, bytes: packets * 100)
      meanings[key] = ClauseHistory.Meaning(attribution: ingress, clause: clause)
    }
    for attribution in UInt32(1)...2 {
      add(attribution, Clause(.allow, 0), 1)
      add(attribution, Clause(.allow, 1), 10)
      add(attribution, Clause(.defaultDeny), 100)
      add(attribution, Clause(.auditDeny), 1000)
      add(attribution, Clause(.notIsolated), 5)
    }
    // Nobody remembers what it was.
    counters.clauses[ClauseKey(AttributionID(rawValue: 3), Clause(.allow, 0))] = TrafficCount(packets: 7, bytes: 7)
    return PolicyTotals(counters) { meanings[$0] }
  }

  @Test("clauses of one rule, and denials of the same policies, are one number")
  func sums() {
    let totals = Self.totals()
    #expect(
      totals.rules == [
        .init(direction: .ingress, rule: Self.ingress.rules[0]): TrafficCount(packets: 2, bytes: 200),
        .init(direction: .ingress, rule: Self.ingress.rules[1]): TrafficCount(packets: 20, bytes: 2000),
      ])
    for name in ["a", "b"] {
      #expect(totals.denied(by: Self.reference(name), .ingress) == TrafficCount(packets: 200, bytes: 20_000))
      #expect(totals.denied(by: Self.reference(name), .egress) == TrafficCount())
      #expect(totals.wouldDeny(by: Self.reference(name), .ingress) == TrafficCount())
    }
    #expect(totals.wouldDeny(by: Self.reference("c"), .ingress).packets == 2000)
  }

  @Test("metrics name policies that exist")
  func metrics() {
    func text(_ exists: (PolicyReference) -> Bool) -> [String] {
      Self.totals().samples(exists: exists).map { sample in
        sample.labels.map { "\($0)=\($1)" }.joined(separator: " ") + " \(sample.value)"
      }
    }
    #expect(
      text { _ in true } == [
        "direction=ingress policy=shop/a rule=2 verdict=allow 2",
        "direction=ingress policy=shop/a,shop/b rule= verdict=deny 200",
        "direction=ingress policy=shop/b rule=0 verdict=allow 20",
        "direction=ingress policy=shop/c rule= verdict=would-deny 2000",
      ])
    #expect(
      text { $0.name != "b" } == [
        "direction=ingress policy=shop/a rule=2 verdict=allow 2",
        "direction=ingress policy=shop/c rule= verdict=would-deny 2000",
      ])
  }
}
