// Ping, errors, neighbour discovery, and what a denied sender sees.
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("protocols", .serialized)
  struct Protocols {
    @Test("policy.md 18: ping follows rules without ports alone; neighbour discovery and errors always pass")
    func ping() throws {
      try PolicyStage.run("np-icmp") { stage in
        try stage.fourPods()
        try stage.policy("a/np", "{podSelector: {}, ingress: [{ports: [{}, {protocol: UDP}, {protocol: SCTP}]}]}")
        try stage.expect(.denied("b/x", "a/x", .icmpEcho), .allowed("b/x", "a/x", .tcp(80), .udp(80)))
        try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}")
        try stage.expect(.allowed("b/x", "a/x", .icmpEcho), .denied("a/y", "a/x", .icmpEcho))
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}")
        try stage.expect(.denied("a/x", "b/x", .icmpEcho), .denied("a/x", "node1", .icmpEcho))

        // Nothing is allowed, and all neighbours are forgotten: they are found again.
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
        try stage.expect(.denied("a/x", "b/x"))
        for place in [LabTarget.node("node1"), .pod(PodName("a", "x"))] {
          let flush = try stage.lab.exec(in: place, ["/usr/sbin/ip", "neigh", "flush", "all"])
          #expect(flush.status == 0, "\(flush.stderr)")
        }
        try stage.expect(.allowed("node1", "a/x", .tcp(80), .icmpEcho))

        // An error belongs to the flow that it is about: nobody listens on 99.
        try stage.policy(
          "a/np",
          "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{protocol: UDP, port: 99}]}]}")
        try stage.policy(
          "b/np", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{protocol: UDP}]}]}")
        try stage.expect(.denied("a/x", "b/x", .udp(80), .tcp(80), .icmpEcho))
        for family in IPFamily.allCases {
          try LabHarness.eventually("\(family): the sender hears that nobody listens") {
            try stage.outcome(.udp(99), from: "a/x", to: "b/x", family) == .refused
          }
        }
      }
    }

    @Test("policy.md 22: what is denied is dropped, not rejected, at both ends")
    func dropped() throws {
      try PolicyStage.run("np-dropped") { stage in
        try stage.fourPods()
        func outcomes(
          _ source: String, _ destination: String, waits: Bool = false
        ) throws -> Set<MatrixOutcome> {
          // Ports that nobody listens on: whoever is heard, is refused.
          let targets = try IPFamily.allCases.flatMap { family in
            let address = try stage.address(destination, family)
            return [MatrixTarget(.tcp, address, 99), MatrixTarget(.udp, address, 99)]
          }
          let expected = targets.map { _ in waits }
          return Set(
            try stage.lab.network(of: LabTarget(source)).run { try MatrixProber.ask(targets, expected: expected) })
        }
        #expect(try outcomes("b/x", "a/x", waits: true) == [.refused])
        try stage.policy("a/np", "{podSelector: {matchLabels: {pod: x}}, policyTypes: [Ingress, Egress]}")
        try stage.expect(.denied("b/x", "a/x"), .denied("a/x", "b/x"), .allowed("b/x", "a/y"))
        #expect(try outcomes("b/x", "a/x") == [.silent])
        #expect(try outcomes("b/y", "a/x") == [.silent])
        #expect(try outcomes("a/x", "b/x") == [.silent])
        #expect(try outcomes("a/x", "b/y") == [.silent])
        #expect(try outcomes("b/x", "a/y", waits: true) == [.refused])
      }
    }
  }
}
