import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// Policy that changes while connections live (policy.md, line 19).
@Suite struct PolicyLiveFlowTests {
  private static let policies = [
    "api": """
    {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [
      {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}, {protocol: UDP, port: dns}]},
      {from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 443}, {protocol: UDP, port: 443}]},
      {from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}]}]}
    """,
    "web": """
    {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
      {to: [{podSelector: {matchLabels: {app: api}}}]},
      {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}, {protocol: UDP, port: 9}]},
      {to: [{ipBlock: {cidr: 172.18.0.0/16}}, {ipBlock: {cidr: 'fd00:172:18::/48'}}], ports: [{port: 10250}]}]}
    """,
  ]
  private static let outsider: [IPFamily: String] = [.v4: "203.0.113.7", .v6: "2001:db8::7"]

  /// What of a world changes, and which flows that ends.
  private struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var ends: [(String, String, FlowProtocol)]
    var change: @Sendable (PolicyWorld) throws -> [ObjectChange]
    var testDescription: String { name }
  }

  private static func pod(
    _ world: PolicyWorld, _ name: String, _ body: (inout Pod) -> Void
  ) -> [ObjectChange] {
    world.pods.filter { $0.key == PolicyScene.key(name) }.map { pod in
      var pod = pod
      body(&pod)
      return .upsert(.pod(pod))
    }
  }

  private static func policy(_ name: String, _ spec: String) throws -> [ObjectChange] {
    try PolicyScene([name: spec]).world.policies.map { .upsert(.networkPolicy($0)) }
  }

  private static func namespace(_ name: String, _ labels: Labels) -> [ObjectChange] {
    [.upsert(.namespace(Namespace(name: name, labels: labels)))]
  }

  private static let webToAPI: [(String, String, FlowProtocol)] = [
    ("shop/web", "shop/api", .tcp(80)), ("shop/web", "shop/api", .udp(53)),
  ]
  private static let bankToAPI: [(String, String, FlowProtocol)] = [
    ("bank/web", "shop/api", .tcp(443)), ("bank/web", "shop/api", .udp(443)), ("bank/till", "shop/api", .tcp(443)),
  ]
  private static let webToDB: [(String, String, FlowProtocol)] = [
    ("shop/web", "shop/db", .tcp(9090)), ("shop/web", "shop/db", .udp(9)),
  ]
  private static let webToNode: [(String, String, FlowProtocol)] = [("shop/web", "host", .tcp(10250))]
  /// From outside by an ipBlock, between pods of which no policy knows, and the node to an isolated pod.
  private static func bystanders(_ family: IPFamily) -> [(String, String, FlowProtocol)] {
    let outsider = outsider[family] ?? ""
    return [
      (outsider, "shop/api", .tcp(80)), (outsider, "shop/api", .udp(53)), ("bank/till", "bank/web", .tcp(80)),
      ("bank/till", outsider, .udp(53)), ("host", "shop/api", .tcp(80)), ("host", "shop/web", .udp(53)),
    ]
  }

  private static let cases: [Case] = [
    Case(name: "a rule of an ingress policy goes", ends: webToAPI) { _ in
      try policy(
        "api",
        """
        {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [
          {from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 443}, {protocol: UDP, port: 443}]},
          {from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}]}]}
        """)
    },
    Case(name: "an egress policy comes to deny", ends: webToAPI + webToDB + webToNode) { _ in
      try policy("web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}")
    },
    Case(name: "a policy comes for a pod that had none", ends: [("bank/till", "shop/api", .tcp(443))]) { world in
      var scene = try PolicyScene(["till": "{podSelector: {matchLabels: {app: till}}, policyTypes: [Egress]}"])
      scene.world.policies[0].key.namespace = "bank"
      // The bystanders of that pod have to be allowed still.
      scene.world.policies[0].egress = [
        NetworkPolicyRule(peers: [.pods(LabelSelector(), namespaces: nil)]),
        NetworkPolicyRule(peers: [
          .ipBlock(IPBlock(cidr: cidr("203.0.113.0/24"))), .ipBlock(IPBlock(cidr: cidr("2001:db8::/64"))),
        ]),
      ]
      return scene.world.policies.map { .upsert(.networkPolicy($0)) }
    },
    Case(name: "the client's labels change", ends: webToAPI) { world in
      // Nor does the policy of its egress select it any more: its other flows go on.
      pod(world, "shop/web") { $0.labels = ["app": "other"] }
    },
    Case(name: "the server's labels change", ends: webToDB) { world in
      pod(world, "shop/db") { $0.labels = ["app": "other"] }
    },
    Case(name: "the client's namespace changes its labels", ends: bankToAPI) { _ in
      namespace("bank", ["team": "red"])
    },
    Case(name: "a named port of the isolated server means another number", ends: webToAPI) { world in
      pod(world, "shop/api") { pod in
        pod.containerPorts = [
          NamedContainerPort(name: "http", proto: .tcp, port: at("::", 8081).port),
          NamedContainerPort(name: "dns", proto: .udp, port: at("::", 5353).port),
        ]
      }
    },
    Case(name: "a named port of the destination means another number", ends: [webToDB[0]]) { world in
      pod(world, "shop/db") { pod in
        pod.containerPorts = [NamedContainerPort(name: "http", proto: .tcp, port: at("::", 9091).port)]
      }
    },
    Case(name: "an ipBlock excepts the node", ends: webToNode) { _ in
      try policy(
        "web",
        """
        {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
          {to: [{podSelector: {matchLabels: {app: api}}}]},
          {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}, {protocol: UDP, port: 9}]},
          {to: [{ipBlock: {cidr: 172.18.0.0/16, except: [172.18.0.1/32]}},
                {ipBlock: {cidr: 'fd00:172:18::/48', except: ['fd00:172:18::1/128']}}], ports: [{port: 10250}]}]}
        """)
    },
  ]

  private static func open(
    _ ends: [(String, String, FlowProtocol)], _ family: IPFamily, _ node: PolicyNode, _ findings: inout Findings
  ) throws -> [PolicyLiveFlow] {
    try ends.map { from, to, proto in
      var flow = PolicyLiveFlow(node, from, to, proto, family)
      try flow.open(node, &findings)
      return flow
    }
  }

  @Test(
    "a flow that is denied now stops in both directions at its next packet, every other goes on",
    arguments: cases.indices, IPFamily.allCases)
  func deniedNow(index: Int, family: IPFamily) throws {
    let change = Self.cases[index]
    // Each direction's packet is once the first after the change.
    for clientFirst in [true, false] {
      try inNode { findings in
        let scene = try PolicyScene(Self.policies)
        var node = try PolicyNode(scene.world)
        let all = Self.webToAPI + Self.bankToAPI + Self.webToDB + Self.webToNode + Self.bystanders(family)
        func isEnding(_ flow: (String, String, FlowProtocol)) -> Bool {
          change.ends.contains { $0.0 == flow.0 && $0.1 == flow.1 && $0.2 == flow.2 }
        }
        var ending = try Self.open(all.filter(isEnding), family, node, &findings)
        var others = try Self.open(all.filter { !isEnding($0) }, family, node, &findings)
        findings.expect(ending.count == change.ends.count && !others.isEmpty, "\(change.name): not all flows opened")
        try ending.speak(node, clientFirst: clientFirst, arrives: true, "\(change.name), before", &findings)
        try node.apply(try change.change(node.world))
        try ending.speak(node, clientFirst: clientFirst, arrives: false, "\(change.name), after", &findings)
        try others.speak(node, clientFirst: clientFirst, arrives: true, "\(change.name), bystander", &findings)
        // Nor later.
        try ending.speak(node, clientFirst: clientFirst, arrives: false, "\(change.name), later", &findings)
        try node.apply(node.changes(to: scene.world))
        try others.speak(node, clientFirst: clientFirst, arrives: true, "\(change.name), taken back", &findings)
        try ending.speak(node, clientFirst: clientFirst, arrives: true, "\(change.name), taken back", &findings)
        let drift = try node.engine.verify(node.tables)
        findings.expect(drift == [], "\(change.name): \(drift)")
      }
    }
  }

  @Test("what changes nothing for a flow keeps it, though all are judged again", arguments: IPFamily.allCases)
  func unchanged(family: IPFamily) throws {
    try inNode { findings in
      let scene = try PolicyScene(Self.policies)
      var node = try PolicyNode(scene.world)
      let all = Self.webToAPI + Self.bankToAPI + Self.webToDB + Self.webToNode + Self.bystanders(family)
      var flows = try Self.open(all, family, node, &findings)
      let changes: [(String, [ObjectChange])] = [
        ("another policy of the server", try Self.policy("more", "{podSelector: {}, ingress: [{ports: [{port: 1}]}]}")),
        ("another label of the client", Self.pod(node.world, "shop/web") { $0.labels["colour"] = "green" }),
        ("another namespace's label", Self.namespace("lab", ["team": "green"])),
        (
          "another port of the server",
          Self.pod(node.world, "shop/api") { pod in
            pod.containerPorts.append(NamedContainerPort(name: "http", proto: .tcp, port: at("::", 8888).port))
          }
        ),
        (
          "an audit policy that would deny",
          try Self.policy("audit", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
            .map { change in
              guard case .upsert(.networkPolicy(var policy)) = change else { return change }
              policy.mode = .audit
              return .upsert(.networkPolicy(policy))
            }
        ),
      ]
      var rejudging = 0
      for (name, change) in changes {
        if try node.apply(change).rejudgesFlows { rejudging += 1 }
        for clientFirst in [true, false] {
          try flows.speak(node, clientFirst: clientFirst, arrives: true, name, &findings)
        }
        for flow in flows { findings.expect(try flow.mark(node) != nil, "\(name): \(flow.name): a new flow") }
      }
      findings.expect(rejudging >= 2, "flows were judged again \(rejudging) times")
    }
  }

  @Test("a peer that goes ends no flow; whoever has its address next is judged", arguments: IPFamily.allCases)
  func peerGone(family: IPFamily) throws {
    try inNode { findings in
      let scene = try PolicyScene(Self.policies)
      var node = try PolicyNode(scene.world)
      var flows = try Self.open([Self.bankToAPI[0], Self.bankToAPI[1]] + Self.webToDB, family, node, &findings)
      let gone: [(String, [ObjectChange])] = [
        ("deleted", [.delete(.pod, PolicyScene.key("bank/web"))]),
        ("finished", Self.pod(node.world, "shop/db") { $0.phase = .succeeded }),
      ]
      for (name, change) in gone {
        try node.apply(change)
        for clientFirst in [true, false] {
          try flows.speak(node, clientFirst: clientFirst, arrives: true, "peer \(name)", &findings)
        }
      }
      // Something else that has everything judged again.
      let delta = try node.apply(
        try Self.policy("more", "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 1}]}]}"))
      findings.expect(delta.rejudgesFlows, "nothing is judged again")
      try flows.speak(node, clientFirst: true, arrives: true, "judged again without a peer", &findings)
      // A new flow from there is nobody's.
      var stranger = PolicyLiveFlow(
        node, "\(PolicyScene.address(family == .v4 ? "10.244.2.3" : "fd00:10:244:2::3"))", "shop/api", .tcp(443), family
      )
      try node.check(
        [stranger.next(byClient: true, arrives: false, flags: .synchronize, "nobody's address")], &findings)
      var heir = Pod(key: PolicyScene.key("lab/heir"))
      heir.nodeName = "there"
      heir.phase = .running
      heir.podIPs = [PolicyScene.address("10.244.2.3"), PolicyScene.address("fd00:10:244:2::3")]
      // Whoever removes the old flows of a re-used address may be late: they are judged as the new pod's then.
      try node.apply([.upsert(.pod(heir))])
      try node.apply(
        try Self.policy("more", "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 2}]}]}"))
      var ended = [flows[0], flows[1]]
      try ended.speak(node, clientFirst: true, arrives: false, "another pod's address", &findings)
    }
  }

  @Test("a flow that was stopped stays stopped when its peer goes", arguments: IPFamily.allCases)
  func stoppedPeerGone(family: IPFamily) throws {
    try inNode { findings in
      let scene = try PolicyScene(Self.policies)
      var node = try PolicyNode(scene.world)
      var flows = try Self.open([Self.bankToAPI[0], Self.bankToAPI[1]] + Self.webToDB, family, node, &findings)
      try node.apply(Self.namespace("bank", ["team": "red"]))
      try node.apply(try Self.policy("web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"))
      try flows.speak(node, clientFirst: true, arrives: false, "denied", &findings)
      try node.apply([.delete(.pod, PolicyScene.key("bank/web"))])
      try node.apply(Self.pod(node.world, "shop/db") { $0.phase = .failed })
      for clientFirst in [true, false] {
        try flows.speak(node, clientFirst: clientFirst, arrives: false, "denied, then its peer gone", &findings)
      }
    }
  }

  @Test(
    "with keep-established a flow outlives every change, and a new one does not begin", arguments: IPFamily.allCases)
  func keepsEstablished(family: IPFamily) throws {
    try inNode { findings in
      let scene = try PolicyScene(Self.policies)
      var node = try PolicyNode(scene.world, keepsEstablished: true)
      let all = Self.webToAPI + Self.bankToAPI + Self.webToDB + Self.webToNode
      var flows = try Self.open(all, family, node, &findings)
      for change in Self.cases {
        try node.apply(try change.change(node.world))
        for clientFirst in [true, false] {
          try flows.speak(node, clientFirst: clientFirst, arrives: true, change.name, &findings)
        }
      }
      try node.apply(try Self.policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
      try flows.speak(node, clientFirst: true, arrives: true, "all denied", &findings)
      var trials: [PolicyTrial] = []
      for (from, to, proto) in [Self.webToAPI[0], Self.webToDB[0], Self.webToNode[0]] {
        var flow = PolicyLiveFlow(node, from, to, proto, family)
        trials.append(flow.next(byClient: true, arrives: false, flags: .synchronize, "new"))
      }
      try node.check(trials, &findings)
      let drift = try node.engine.verify(node.tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("conntrack marks: our bits say when a flow was judged, everybody else's stay", arguments: IPFamily.allCases)
  func marks(family: IPFamily) throws {
    try inNode { findings in
      let scene = try PolicyScene(Self.policies)
      var node = try PolicyNode(scene.world)
      // Another program's bits: set with a flow's first packet, and added to behind our chains.
      let mask = NFTablesEngine.defaultMarkMask
      let (first, last) = (0x5555_5555 & ~mask, 0xaaaa_aaaa & ~mask)
      findings.expect(first != 0 && last != 0, "no bits left for others")
      let script = """
        table inet other {
          chain first { type filter hook prerouting priority -150; ct state new ct mark set ct mark or \(first); }
          chain sent { type filter hook output priority -150; ct state new ct mark set ct mark or \(first); }
          chain last { type filter hook postrouting priority 50; ct mark set ct mark or \(last); }
        }
        """
      let result = try run("echo '\(script)' | nft -f -")
      findings.expect(result.status == 0, result.output)
      let all = Self.webToAPI + Self.bankToAPI + Self.webToDB + Self.bystanders(family).filter { $0.0 != "host" }
      var flows = try Self.open(all, family, node, &findings)
      var revisions: Set<UInt32> = []
      for round in 0..<4 {
        try flows.speak(node, clientFirst: round % 2 == 0, arrives: true, "round \(round)", &findings)
        var ours: Set<UInt32> = []
        for flow in flows {
          guard let mark = try flow.mark(node) else {
            findings.expect(false, "\(flow.name): not tracked")
            continue
          }
          findings.expect(mark & ~mask == first | last, "\(flow.name), round \(round): mark \(String(mark, radix: 16))")
          findings.expect(mark & mask != 0, "\(flow.name), round \(round): never judged")
          ours.insert(mark & mask)
        }
        findings.expect(ours.count == 1, "round \(round): revisions \(ours)")
        findings.expect(revisions.isDisjoint(with: ours), "round \(round): again \(ours)")
        revisions.formUnion(ours)
        let delta = try node.apply(
          try Self.policy(
            "more", "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: \(round + 1)}]}]}"))
        findings.expect(delta.rejudgesFlows, "round \(round): nothing is judged again")
      }
      findings.expect(try node.rig.packetsWithStrangeMark() == 0, "a packet left with another mark than it came with")
    }
  }
}
