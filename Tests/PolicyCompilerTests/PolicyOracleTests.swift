import ClusterSource
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// What the oracle says, against what a reader of the specification works out by hand: a test for each of its numbered
/// lines that is about judging a packet, named after it. (19, 21 and 22 are about time and about what denying is.)
@Suite("The policy oracle: selection") struct PolicyOracleSelectionTests {
  @Test("policy.md 1: without policyTypes a policy isolates ingress, and egress only where it has an egress rule")
  func defaultedTypes() throws {
    for (egress, verdict) in [
      ("", "not isolated"), ("egress: []", "not isolated"), ("egress: [{}]", "allowed by shop/np rule 0"),
      ("egress: [{ports: [{port: 81}]}]", "denied, isolated by shop/np"),
    ] {
      let scene = try PolicyScene(["np": "{podSelector: {}, \(egress)}"])
      #expect(scene.egress("shop/web", "shop/db") == verdict, "\(egress)")
      #expect(scene.ingress("shop/db", "shop/web") == "denied, isolated by shop/np", "\(egress)")
    }
  }

  @Test("policy.md 1: rules of a direction that policyTypes does not list are inert")
  func givenTypes() throws {
    let egressOnly = try PolicyScene(["np": "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}"])
    #expect(egressOnly.egress("shop/web", "shop/db") == "denied, isolated by shop/np")
    #expect(egressOnly.ingress("shop/db", "shop/web") == "not isolated")
    let ingressOnly = try PolicyScene(["np": "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}"])
    #expect(ingressOnly.egress("shop/web", "shop/db") == "not isolated")
    #expect(ingressOnly.ingress("shop/db", "shop/web") == "denied, isolated by shop/np")
    // The inert `ingress: [{}]` of one policy allows nothing that another one isolates.
    let both = try PolicyScene([
      "a": "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", "b": "{podSelector: {}, policyTypes: [Ingress]}",
    ])
    #expect(both.ingress("shop/db", "shop/web") == "denied, isolated by shop/b")
    #expect(both.egress("shop/web", "shop/db") == "denied, isolated by shop/a")
  }

  @Test("policy.md 2: isolation is per pod and direction, and both ends must allow")
  func bothEnds() throws {
    let web = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}"
    let api = "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 81}]}]}"
    let scene = try PolicyScene(["web": web, "api": api])
    let half = scene.judge("shop/web", "shop/api", .tcp(80))
    #expect("\(half)" == "egress allowed by shop/web rule 0; ingress denied, isolated by shop/api")
    #expect(!half.isAllowed)
    let otherHalf = scene.judge("shop/web", "shop/api", .tcp(81))
    #expect("\(otherHalf)" == "egress denied, isolated by shop/web; ingress allowed by shop/api rule 0")
    #expect(!otherHalf.isAllowed)
    // The same two pods the other way round: neither policy speaks of that.
    let back = scene.judge("shop/api", "shop/web", .tcp(80))
    #expect("\(back)" == "egress not isolated; ingress not isolated")
    #expect(back.isAllowed)
    // An end on another node is that node's affair.
    #expect("\(scene.judge("shop/web", "shop/db"))" == "egress allowed by shop/web rule 0; ingress not applicable")
    #expect("\(scene.judge("shop/db", "shop/web"))" == "egress not applicable; ingress not isolated")
    #expect("\(scene.judge("shop/db", "bank/web"))" == "egress not applicable; ingress not applicable")
  }

  @Test(
    "policy.md 3: a podSelector that is missing, null or empty selects all pods of the policy's namespace, and no other",
    arguments: ["{}", "{podSelector: null}", "{podSelector: {}}"])
  func selectsAll(spec: String) throws {
    let scene = try PolicyScene(["np": spec])
    #expect(scene.ingress("lab/bare", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("lab/bare", "shop/api") == "denied, isolated by shop/np")
    #expect(scene.ingress("lab/bare", "bank/till") == "not isolated")
  }

  @Test("policy.md 4: no ingress rule allows nothing, an empty rule everything")
  func emptyRules() throws {
    for none in ["{podSelector: {}}", "{ingress: []}", "{ingress: null}"] {
      #expect(try PolicyScene(["np": none]).ingress("shop/db", "shop/web") == "denied, isolated by shop/np", "\(none)")
    }
    let all = try PolicyScene(["np": "{podSelector: {}, ingress: [{}]}"])
    for (from, proto) in [("shop/db", .tcp(1)), ("203.0.113.7", .icmpEcho), ("lab/bare", .other(47))]
      as [(String, FlowProtocol)]
    {
      #expect(all.ingress(from, "shop/web", proto) == "allowed by shop/np rule 0")
    }
  }

  @Test("policy.md 5: no peers are any peer, outside the cluster too; peers and ports must both match")
  func anyPeer() throws {
    let scene = try PolicyScene([
      "np": """
      {podSelector: {}, ingress: [{from: [], ports: [{port: 80}]},
        {from: [{podSelector: {matchLabels: {app: api}}}, {podSelector: {matchLabels: {app: db}}}],
         ports: [{port: 81}, {port: 82}]}]}
      """
    ])
    #expect(scene.ingress("203.0.113.7", "shop/web", .tcp(80)) == "allowed by shop/np rule 0")
    #expect(scene.ingress("lab/bare", "shop/web", .tcp(80)) == "allowed by shop/np rule 0")
    #expect(scene.ingress("shop/api", "shop/web", .tcp(81)) == "allowed by shop/np rule 1")
    #expect(scene.ingress("shop/db", "shop/web", .tcp(82)) == "allowed by shop/np rule 1")
    #expect(scene.ingress("bank/till", "shop/web", .tcp(82)) == "denied, isolated by shop/np")
    #expect(scene.ingress("shop/db", "shop/web", .tcp(83)) == "denied, isolated by shop/np")
  }

  @Test("policy.md 6: podSelector alone means the policy's namespace, namespaceSelector alone all pods, both mean both")
  func peers() throws {
    func allowing(_ peer: String) throws -> [String] {
      let scene = try PolicyScene(["np": "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{\(peer)}]}]}"])
      let peers = ["shop/web", "shop/db", "bank/web", "bank/till", "lab/bare", "203.0.113.7"]
      return peers.filter { scene.ingress($0, "shop/api") == "allowed by shop/np rule 0" }
    }
    #expect(try allowing("podSelector: {matchLabels: {app: web}}") == ["shop/web"])
    #expect(try allowing("podSelector: {}") == ["shop/web", "shop/db"])
    #expect(try allowing("namespaceSelector: {matchLabels: {team: blue}}") == ["bank/web", "bank/till"])
    #expect(
      try allowing("namespaceSelector: {}") == ["shop/web", "shop/db", "bank/web", "bank/till", "lab/bare"])
    #expect(
      try allowing("namespaceSelector: {}, podSelector: {matchLabels: {app: web}}") == ["shop/web", "bank/web"])
    #expect(
      try allowing("namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: web}}")
        == ["bank/web"])
    // Two items are "or", the same two in one item "and".
    #expect(
      try allowing("namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: web}}")
        == ["shop/web", "bank/web", "bank/till"])
  }

  @Test("policy.md 7: NotIn and DoesNotExist match where the key is absent, an empty value matches only itself")
  func absentKeys() throws {
    func allowing(_ requirement: String) throws -> [String] {
      let scene = try PolicyScene([
        "np": "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [{namespaceSelector: {}, podSelector: "
          + "{\(requirement)}}]}]}"
      ])
      return ["shop/web", "shop/db", "bank/till", "lab/bare"].filter {
        scene.ingress($0, "shop/api") == "allowed by shop/np rule 0"
      }
    }
    // tier: web has "front", db has "", till and bare have none.
    #expect(
      try allowing("matchExpressions: [{key: tier, operator: NotIn, values: [front]}]")
        == ["shop/db", "bank/till", "lab/bare"])
    #expect(try allowing("matchExpressions: [{key: tier, operator: DoesNotExist}]") == ["bank/till", "lab/bare"])
    #expect(try allowing("matchExpressions: [{key: tier, operator: Exists}]") == ["shop/web", "shop/db"])
    #expect(try allowing("matchExpressions: [{key: tier, operator: In, values: [front, back]}]") == ["shop/web"])
    #expect(try allowing("matchExpressions: [{key: tier, operator: In, values: ['']}]") == ["shop/db"])
    #expect(try allowing("matchLabels: {tier: ''}") == ["shop/db"])
    #expect(
      try allowing("matchLabels: {app: db}, matchExpressions: [{key: tier, operator: NotIn, values: [front]}]")
        == ["shop/db"])
    #expect(
      try allowing(
        "matchExpressions: [{key: tier, operator: Exists}, {key: tier, operator: NotIn, values: [front]}]")
        == ["shop/db"])
  }

  @Test("policy.md 7: a policy's own selector and namespace selectors treat absent keys the same way")
  func absentKeysElsewhere() throws {
    let own = try PolicyScene(
      ["np": "{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}"])
    #expect(own.ingress("lab/bare", "shop/web") == "not isolated")
    #expect(own.ingress("lab/bare", "shop/api") == "denied, isolated by shop/np")
    let byName = try PolicyScene([
      "np": "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: lab}}}]}, {from: "
        + "[{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}}]}]}"
    ])
    #expect(byName.ingress("lab/bare", "shop/web") == "allowed by shop/np rule 0")
    #expect(byName.ingress("bank/web", "shop/web") == "allowed by shop/np rule 1")
    #expect(byName.ingress("shop/db", "shop/web") == "denied, isolated by shop/np")
  }

  @Test("policy.md 8: policies add up, and their order does not matter")
  func union() throws {
    var scene = try PolicyScene([
      "deny": "{podSelector: {}}", "z": "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
      "m": "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 81}]}, {ports: [{port: 80}]}]}",
    ])
    for _ in 0..<2 {
      #expect(scene.ingress("lab/bare", "shop/web", .tcp(80)) == "allowed by shop/m rule 1")
      #expect(scene.ingress("lab/bare", "shop/api", .tcp(80)) == "allowed by shop/z rule 0")
      #expect(
        scene.ingress("lab/bare", "shop/web", .tcp(82)) == "denied, isolated by shop/deny, shop/m, shop/z")
      #expect(scene.ingress("lab/bare", "shop/api", .tcp(82)) == "denied, isolated by shop/deny, shop/z")
      scene.world.policies.reverse()
    }
  }

  @Test("policy.md 8: labels of pods and namespaces count as they are now")
  func relabelling() throws {
    var scene = try PolicyScene([
      "np":
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}},"
        + " podSelector: {matchLabels: {app: till}}}]}]}"
    ])
    #expect(scene.ingress("bank/till", "shop/web") == "allowed by shop/np rule 0")
    scene.change("bank/till") { $0.labels["app"] = "other" }
    #expect(scene.ingress("bank/till", "shop/web") == "denied, isolated by shop/np")
    scene.change("bank/till") { $0.labels["app"] = "till" }
    scene.change(namespace: "bank") { $0.labels["team"] = nil }
    #expect(scene.ingress("bank/till", "shop/web") == "denied, isolated by shop/np")
    scene.change("shop/web") { $0.labels["app"] = nil }
    #expect(scene.ingress("bank/till", "shop/web") == "not isolated")
  }

  @Test("a namespace of which nothing is known yet is matched by no selector, but is itself")
  func unknownNamespace() throws {
    var scene = try PolicyScene([
      "np": "{ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}, {from: [{namespaceSelector: {}}]}]}"
    ])
    #expect(scene.ingress("lab/bare", "shop/web") == "allowed by shop/np rule 1")
    scene.world.namespaces = []
    #expect(scene.ingress("lab/bare", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("shop/db", "shop/web") == "allowed by shop/np rule 0")
  }
}
