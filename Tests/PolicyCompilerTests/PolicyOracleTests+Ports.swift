import Testing

@testable import PolicyWorlds

@Suite("The policy oracle: ports and protocols") struct PolicyOraclePortTests {
  /// Of the flows that are asked, those that a rule with these ports allows into `shop/api`.
  private func allowed(_ ports: String, _ flows: [FlowProtocol], from: String = "shop/web") throws -> [FlowProtocol] {
    let scene = try PolicyScene(["np": "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: \(ports)}]}"])
    return flows.filter { scene.ingress(from, "shop/api", $0) == "allowed by shop/np rule 0" }
  }

  @Test("policy.md 9: a missing protocol is TCP, a missing port every port of the protocol, and none is another's")
  func defaults() throws {
    let flows: [FlowProtocol] = [
      .tcp(0), .tcp(80), .tcp(65535), .udp(80), .sctp(80), .icmpEcho, .other(47),
    ]
    #expect(try allowed("[{}]", flows) == [.tcp(0), .tcp(80), .tcp(65535)])
    #expect(try allowed("[{protocol: TCP}]", flows) == [.tcp(0), .tcp(80), .tcp(65535)])
    #expect(try allowed("[{protocol: UDP}]", flows) == [.udp(80)])
    #expect(try allowed("[{protocol: SCTP}]", flows) == [.sctp(80)])
    #expect(try allowed("[{port: 80}]", flows) == [.tcp(80)])
    #expect(try allowed("[{port: 80, protocol: UDP}, {port: 80, protocol: SCTP}]", flows) == [.udp(80), .sctp(80)])
    #expect(try allowed("[]", flows) == flows)
  }

  @Test("policy.md 10: endPort is the last port of the range")
  func ranges() throws {
    let flows: [FlowProtocol] = [79, 80, 81, 89, 90, 91].map { .tcp($0) } + [.udp(80)]
    #expect(try allowed("[{port: 80, endPort: 90}]", flows) == [.tcp(80), .tcp(81), .tcp(89), .tcp(90)])
    #expect(try allowed("[{port: 80, endPort: 80}]", flows) == [.tcp(80)])
    #expect(
      try allowed("[{port: 1, endPort: 80}, {port: 91, endPort: 65535}]", flows) == [.tcp(79), .tcp(80), .tcp(91)])
  }

  @Test("policy.md 11: for ingress a named port is that of the selected pod, all of that name and protocol")
  func namedIngress() throws {
    let flows: [FlowProtocol] = [
      .tcp(80), .tcp(8080), .tcp(8081), .tcp(9090), .udp(80), .tcp(53), .udp(53), .tcp(5353), .udp(5353),
    ]
    // `shop/web` and `shop/db`, which send, have 8080 and 9090 of that name.
    #expect(try allowed("[{port: http}]", flows) == [.tcp(80), .tcp(8081)])
    #expect(try allowed("[{port: http}]", flows, from: "shop/db") == [.tcp(80), .tcp(8081)])
    #expect(try allowed("[{port: http}]", flows, from: "203.0.113.7") == [.tcp(80), .tcp(8081)])
    #expect(try allowed("[{port: dns}]", flows) == [.tcp(5353)])
    #expect(try allowed("[{port: dns, protocol: UDP}]", flows) == [.udp(53)])
    #expect(try allowed("[{port: http, protocol: UDP}]", flows) == [])
    #expect(try allowed("[{port: nothing}]", flows) == [])
  }

  @Test("policy.md 11: for egress a named port is that of each destination pod, and of no other destination")
  func namedEgress() throws {
    let scene = try PolicyScene([
      "np": "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"
    ])
    for (to, port, verdict) in [
      ("shop/api", 80, "allowed by shop/np rule 0"), ("shop/api", 8081, "allowed by shop/np rule 0"),
      ("shop/api", 9090, "denied, isolated by shop/np"), ("shop/db", 9090, "allowed by shop/np rule 0"),
      ("shop/db", 80, "denied, isolated by shop/np"), ("shop/db", 8080, "denied, isolated by shop/np"),
      ("bank/web", 8080, "denied, isolated by shop/np"), ("203.0.113.7", 80, "denied, isolated by shop/np"),
      ("172.18.0.2", 80, "denied, isolated by shop/np"), ("10.244.2.99", 80, "denied, isolated by shop/np"),
      // The sender's own number of that name.
      ("203.0.113.7", 8080, "denied, isolated by shop/np"), ("10.244.2.99", 8080, "denied, isolated by shop/np"),
    ] as [(String, UInt16, String)] {
      #expect(scene.egress("shop/web", to, .tcp(port)) == verdict, "\(to) \(port)")
    }
    #expect(scene.egress("shop/web", "shop/db v6", .tcp(9090)) == "allowed by shop/np rule 0")
    #expect(scene.egress("shop/web", "shop/db", .udp(9090)) == "denied, isolated by shop/np")
  }

  @Test("policy.md 11: a named port beside a peer, and one that the pod no longer has")
  func namedWithPeer() throws {
    var scene = try PolicyScene([
      "np": """
      {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}], \
      ports: [{port: http}]}, {to: [{ipBlock: {cidr: 10.244.0.0/16}}], ports: [{port: http}]}]}
      """
    ])
    #expect(scene.egress("shop/web", "shop/db", .tcp(9090)) == "allowed by shop/np rule 0")
    #expect(scene.egress("shop/web", "shop/api", .tcp(80)) == "allowed by shop/np rule 1")
    scene.change("shop/db") { $0.containerPorts = [] }
    #expect(scene.egress("shop/web", "shop/db", .tcp(9090)) == "denied, isolated by shop/np")
  }

  @Test("policy.md 18: what has no ports is allowed only where a rule has none")
  func withoutPorts() throws {
    let scene = try PolicyScene([
      "np": """
      {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress],
       ingress: [{ports: [{}, {protocol: UDP}, {protocol: SCTP}]}, {from: [{podSelector: {matchLabels: {app: db}}}]}],
       egress: [{ports: [{}]}, {to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}
      """
    ])
    for proto in [.icmpEcho, .other(47), .other(50), .other(136)] as [FlowProtocol] {
      #expect(scene.ingress("shop/web", "shop/api", proto) == "denied, isolated by shop/np")
      #expect(scene.ingress("shop/db", "shop/api", proto) == "allowed by shop/np rule 1")
      #expect(scene.ingress("shop/db v6", "shop/api v6", proto) == "allowed by shop/np rule 1")
      #expect(scene.egress("shop/api", "shop/web", proto) == "denied, isolated by shop/np")
      #expect(scene.egress("shop/api", "203.0.113.7", proto) == "allowed by shop/np rule 1")
      #expect(scene.ingress("shop/db", "shop/web", proto) == "not isolated")
    }
    for proto in [.tcp(1), .udp(1), .sctp(1)] as [FlowProtocol] {
      #expect(scene.ingress("shop/web", "shop/api", proto) == "allowed by shop/np rule 0")
    }
    #expect(scene.egress("shop/api", "shop/web", .udp(1)) == "denied, isolated by shop/np")
    #expect(scene.egress("shop/api", "shop/web", .sctp(1)) == "denied, isolated by shop/np")
  }
}
