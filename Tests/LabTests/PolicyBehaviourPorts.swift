// Ports, ranges and names.
import NetworkTypes
import Testing

@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("ports", .serialized)
  struct Ports {
    @Test("policy.md 9: a missing protocol is TCP, a missing port every port of the protocol")
    func defaults() throws {
      try PolicyStage.run("np-ports") { stage in
        try stage.fourPods()
        func open(_ ports: String) throws {
          try stage.policy("a/np", "{podSelector: {}, ingress: [{ports: [\(ports)]}]}")
        }
        try open("{port: 80}")
        try stage.expect(.allowed("b/x", "a/x", .tcp(80)), .denied("b/x", "a/x", .udp(80), .tcp(81), .icmpEcho))
        try open("{}")
        try stage.expect(.allowed("b/x", "a/x", .tcp(80), .tcp(81)), .denied("b/x", "a/x", .udp(80), .udp(81)))
        try open("{protocol: UDP}")
        try stage.expect(.allowed("b/x", "a/x", .udp(80), .udp(81)), .denied("b/x", "a/x", .tcp(80), .tcp(81)))
        // SCTP is no TCP.
        try open("{protocol: SCTP}, {protocol: SCTP, port: 80}")
        try stage.expect(.denied("b/x", "a/x", .tcp(80), .udp(80), .tcp(81), .udp(81)))
      }
    }

    @Test("policy.md 10: a range has both its ends, in both directions")
    func ranges() throws {
      try PolicyStage.run("np-range") { stage in
        try stage.fourPods()
        let cases: [(ports: String, allowed: [UInt16])] = [
          ("{port: 80, endPort: 81}", [80, 81]), ("{port: 80, endPort: 80}", [80]), ("{port: 1, endPort: 80}", [80]),
          ("{port: 81, endPort: 65535}", [81]), ("{port: 82, endPort: 90}", []), ("{port: 1, endPort: 79}", []),
        ]
        for (ports, allowed) in cases {
          try stage.policy("a/in", "{podSelector: {}, ingress: [{ports: [\(ports)]}]}")
          try stage.policy("b/out", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [\(ports)]}]}")
          for port in [UInt16(80), 81] {
            let isAllowed = allowed.contains(port)
            // Ingress of a, egress of b: one of the two is not isolated.
            try stage.expect(
              isAllowed ? .allowed("a/x", "a/y", .tcp(port)) : .denied("a/x", "a/y", .tcp(port)),
              isAllowed ? .allowed("b/x", "b/y", .tcp(port)) : .denied("b/x", "b/y", .tcp(port)))
          }
        }
      }
    }

    @Test("policy.md 11: a name is the selected pod's for ingress, each destination's for egress, nobody's elsewhere")
    func names() throws {
      try PolicyStage.run("np-names") { stage in
        try stage.pod("a/x", on: "node1", web: 80)
        try stage.pod("a/y", on: "node2", web: 81)
        try stage.pod("b/x", on: "node1", web: 80)
        try stage.serve(on: "node2")
        try stage.serve(on: "client")
        try stage.policy("a/np", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}")
        try stage.expect(
          .allowed("b/x", "a/x", .tcp(80)), .denied("b/x", "a/x", .tcp(81)), .allowed("b/x", "a/y", .tcp(81)),
          .denied("b/x", "a/y", .tcp(80), .udp(81)))
        try stage.removePolicy("a/np")
        try stage.policy("b/np", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}")
        try stage.expect(
          .allowed("b/x", "a/x", .tcp(80)), .denied("b/x", "a/x", .tcp(81)), .allowed("b/x", "a/y", .tcp(81)),
          .denied("b/x", "a/y", .tcp(80)), .denied("b/x", "node2", .tcp(80), .tcp(81)),
          .denied("b/x", "client", .tcp(80), .tcp(81)))
      }
    }
  }
}
