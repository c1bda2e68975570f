// Whom a policy isolates, and whom a rule means.
import NetworkTypes
import Testing

@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("selection", .serialized)
  struct Selection {
    @Test("policy.md 2: isolation is per pod and per direction, and both ends must allow")
    func isolation() throws {
      try PolicyStage.run("np-isolation") { stage in
        try stage.fourPods()
        try stage.policy("a/in", "{podSelector: {matchLabels: {pod: x}}, policyTypes: [Ingress]}")
        // Isolated for ingress alone: it still asks, and its neighbours are still asked.
        try stage.expect(.denied("b/x", "a/x"), .allowed("b/x", "a/y"), .allowed("a/x", "b/x"))
        try stage.policy("a/in", "{podSelector: {matchLabels: {pod: x}}, policyTypes: [Egress]}")
        try stage.expect(.allowed("b/x", "a/x"), .denied("a/x", "b/x"), .denied("a/x", "a/y"), .allowed("a/y", "b/x"))
        try stage.policy(
          "a/in",
          "{podSelector: {matchLabels: {pod: x}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}")
        try stage.policy(
          "b/in",
          "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: a}}}], ports: [{port: 80}]}]}")
        try stage.expect(
          .allowed("a/x", "b/x", .tcp(80)), .denied("a/x", "b/x", .udp(80), .tcp(81)), .denied("b/y", "b/x"))
      }
    }

    @Test(
      "policy.md 3: a podSelector that is missing, null or empty is every pod of the policy's own namespace",
      arguments: ["{policyTypes: [Ingress]}", "{podSelector: null}", "{podSelector: {}}"])
    func everyPod(spec: String) throws {
      try PolicyStage.run("np-all") { stage in
        try stage.fourPods()
        try stage.policy("a/all", spec)
        try stage.expect(
          .denied("b/x", "a/x"), .denied("b/x", "a/y"), .denied("a/x", "a/y"), .allowed("a/x", "b/x"),
          .allowed("b/y", "b/x"))
      }
    }

    @Test("policy.md 4: without rules nothing is allowed; the rule {} allows everything")
    func emptyRules() throws {
      try PolicyStage.run("np-empty") { stage in
        try stage.fourPods()
        for spec in ["{podSelector: {}, ingress: []}", "{podSelector: {}, policyTypes: [Ingress]}"] {
          try stage.policy("a/np", spec)
          try stage.expect(.denied("b/x", "a/x", .tcp(80), .udp(81), .icmpEcho), .denied("client", "a/y"))
          try stage.policy("a/np", "{podSelector: {}, ingress: [{}]}")
          try stage.expect(.allowed("b/x", "a/x", .tcp(80), .udp(81), .icmpEcho), .allowed("client", "a/y"))
        }
      }
    }

    @Test("policy.md 5: no peers is anybody, no ports is anything; peers and ports must both match")
    func emptyLists() throws {
      try PolicyStage.run("np-lists") { stage in
        try stage.fourPods()
        try stage.serve(on: "client")
        try stage.policy(
          "a/np", "{podSelector: {}, ingress: [{from: [], ports: [{port: 80}, {protocol: UDP, port: 81}]}]}")
        try stage.expect(
          .allowed("client", "a/x", .tcp(80), .udp(81)), .allowed("b/x", "a/y", .tcp(80), .udp(81)),
          .denied("client", "a/x", .tcp(81), .udp(80), .icmpEcho), .denied("b/x", "a/y", .tcp(81), .udp(80), .icmpEcho))
        try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: []}]}")
        try stage.expect(
          .allowed("a/x", "a/y", .tcp(80), .udp(81), .icmpEcho), .denied("b/x", "a/x"), .denied("client", "a/x"))
        try stage.policy(
          "a/np",
          "{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {ns: b}}}], ports: [{port: 81}]}]}"
        )
        try stage.expect(
          .allowed("a/x", "a/y", .tcp(81)), .allowed("b/x", "a/y", .tcp(81)), .denied("b/x", "a/y", .tcp(80)),
          .denied("client", "a/y", .tcp(81)))
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [], ports: [{port: 80}]}]}")
        try stage.expect(.allowed("a/x", "client", .tcp(80)), .denied("a/x", "client", .udp(80), .icmpEcho))
      }
    }

    @Test("policy.md 6: a podSelector alone is the own namespace, a namespaceSelector all its pods, both are both")
    func peers() throws {
      try PolicyStage.run("np-peers", expectedErrors: ["np_a_bad"]) { stage in
        try stage.fourPods()
        try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: x}}}]}]}")
        try stage.expect(.allowed("a/x", "a/y"), .denied("b/x", "a/y"), .denied("a/y", "a/x"))
        try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}")
        try stage.expect(.allowed("b/x", "a/y"), .allowed("b/y", "a/x"), .denied("a/x", "a/y"))
        try stage.policy(
          "a/np",
          "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}, podSelector: {matchLabels: {pod: y}}}]}]}"
        )
        try stage.expect(.allowed("b/y", "a/x"), .denied("b/x", "a/x"), .denied("a/y", "a/x"))
        // A peer that says nothing, and one that says two things, are no policy; the others stay in force.
        for bad in ["{}", "{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"] {
          try stage.policy("a/bad", "{podSelector: {}, ingress: [{from: [\(bad)]}]}")
          try LabHarness.eventually("the peer \(bad) is named") {
            try ["node1", "node2"].allSatisfy { node in
              try stage.problems(on: node).contains { $0.contains("NetworkPolicy a/bad") && $0.contains("from[0]") }
            }
          }
          try stage.expect(.allowed("b/y", "a/x"), .denied("b/x", "a/x"))
          try stage.removePolicy("a/bad")
          try LabHarness.eventually("nothing is wrong any more") { try stage.problems(on: "node1").isEmpty }
        }
      }
    }

    @Test("policy.md 7: NotIn and DoesNotExist match where the key is absent, an empty value only where it is present")
    func absentKeys() throws {
      try PolicyStage.run("np-absent") { stage in
        try stage.pod("a/x", on: "node1", labels: ["tier": ""])
        try stage.pod("a/y", on: "node2", labels: [:])
        try stage.pod("a/z", on: "node2", labels: ["tier": "front"])
        try stage.pod("b/x", on: "node1", labels: [:])
        func from(_ peer: String) throws { try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [\(peer)]}]}") }
        try from("{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}")
        try stage.expect(.allowed("a/x", "a/z"), .allowed("a/y", "a/x"), .denied("a/z", "a/x"))
        try from("{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}")
        try stage.expect(.denied("a/x", "a/z"), .allowed("a/y", "a/x"), .denied("a/z", "a/x"))
        try from("{podSelector: {matchLabels: {tier: ''}}}")
        try stage.expect(.allowed("a/x", "a/z"), .denied("a/y", "a/x"), .denied("a/z", "a/x"))
        try from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}")
        try stage.expect(.allowed("b/x", "a/x"), .denied("a/x", "a/y"))
      }
    }
  }
}
