import DataplaneModel
import Glibc
import KubernetesObjects
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// While tables change, and while they are mended: packets allowed in the old world and in the new all arrive, packets
/// denied in both never do.
@Suite(.serialized) struct PolicyMakeBeforeBreakTests {
  static let policies = [
    "api": """
    {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [
      {from: [{podSelector: {matchLabels: {app: web}}}],
       ports: [{port: http}, {protocol: UDP, port: dns}, {protocol: UDP, port: 1000, endPort: 1999}]},
      {from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{protocol: UDP, port: 443}]},
      {from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}],
       ports: [{protocol: UDP, port: 1, endPort: 79}, {protocol: UDP, port: 81, endPort: 9000}]}]}
    """,
    "web": """
    {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], egress: [
      {to: [{podSelector: {matchLabels: {app: api}}}]},
      {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{protocol: UDP, port: 9}]}]}
    """,
  ]
  private static let outsider: [IPFamily: String] = [.v4: "203.0.113.7", .v6: "2001:db8::7"]
  private static let stranger: [IPFamily: String] = [.v4: "198.51.100.9", .v6: "2001:db8:9::9"]
  /// The only policy that allows the flow that is to end before the stream begins.
  private static let passing = "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 5432}]}]}"

  struct Stage {
    var node: PolicyNode
    var stream: PolicyStream
  }

  /// The scene with its lanes: first packets of every kind, a live flow that is allowed, one that is denied by now.
  static func stage(_ findings: inout Findings, ownership: TableOwnership = .owned) throws -> Stage {
    var policies = Self.policies
    policies["passing"] = passing
    let scene = try PolicyScene(policies)
    var node = try PolicyNode(scene.world, ownership: ownership)
    var stream = PolicyStream(node.rig)
    for family in IPFamily.allCases {
      let (outsider, stranger) = (Self.outsider[family] ?? "", Self.stranger[family] ?? "")
      let allowed: [(String, String, FlowProtocol)] = [
        ("shop/web", "shop/api", .udp(53)), ("shop/web", "shop/api", .udp(1500)), ("bank/web", "shop/api", .udp(443)),
        ("bank/till", "shop/api", .udp(443)), (outsider, "shop/api", .udp(79)), (outsider, "shop/api", .udp(81)),
        ("shop/web", "shop/db", .udp(9)), ("bank/till", stranger, .udp(53)), ("shop/web", "shop/web", .udp(1)),
      ]
      let denied: [(String, String, FlowProtocol)] = [
        ("shop/web", "shop/api", .udp(2000)), ("bank/till", "shop/api", .udp(53)), ("bank/web", "shop/api", .udp(53)),
        (outsider, "shop/api", .udp(80)), (stranger, "shop/api", .udp(53)), ("lab/bare", "shop/api", .udp(443)),
        ("shop/web", "shop/db", .udp(10)), ("shop/web", stranger, .udp(53)), ("shop/web", "bank/till", .udp(53)),
        ("shop/api", "shop/web", .udp(53)), (outsider, "shop/web", .icmpEcho),
      ]
      for (from, to, proto) in allowed { try stream.add(node.trial(from, to, proto, family, arrives: true)) }
      for (from, to, proto) in denied { try stream.add(node.trial(from, to, proto, family, arrives: false)) }
      var live = PolicyLiveFlow(node, "shop/web", "shop/api", .tcp(80), family)
      try live.open(node, &findings)
      var ended = PolicyLiveFlow(node, "bank/web", "shop/api", .tcp(5432), family)
      try ended.open(node, &findings)
      for byClient in [true, false] {
        // Copies: neither end has heard of what the other one says from now on.
        var (live, ended) = (live, ended)
        try stream.add(live.next(byClient: byClient, arrives: true, "live"))
        try stream.add(ended.next(byClient: byClient, arrives: false, "ended"))
      }
    }
    try node.apply([.delete(.networkPolicy, PolicyScene.key("shop/passing"))])
    // The lanes' first meeting with the kernel, one by one, has to be as they say.
    let counts = try stream.during {}
    findings.expect(counts.failures == [], "before anything changes: \(counts.failures)")
    return Stage(node: node, stream: stream)
  }

  // MARK: Changes that change nothing for the stream

  static func policy(
    _ name: String, _ spec: String, mode: NetworkPolicy.Mode = .enforce
  ) throws -> ObjectChange {
    var policy = try PolicyScene([name: spec]).world.policies[0]
    policy.mode = mode
    return .upsert(.networkPolicy(policy))
  }

  static func relabelled(_ world: PolicyWorld, _ name: String, _ key: String, _ value: String) -> [ObjectChange] {
    world.pods.filter { $0.key == PolicyScene.key(name) }.map { pod in
      var pod = pod
      pod.labels[key] = value
      return .upsert(.pod(pod))
    }
  }

  /// A random change of policies, labels, ports, blocks or pods that splits or joins classes or gives pods other
  /// subjects.
  private static func change(_ world: PolicyWorld, using random: inout WorldRandom) throws -> [ObjectChange] {
    let number = Int.random(in: 1...6, using: &random)
    switch Int.random(in: 0..<9, using: &random) {
    case 0:
      // Other rules for the same pod, and classes split by a label that the client has.
      let spec = """
        {podSelector: {matchLabels: {app: api}}, ingress: [
          {from: [{podSelector: {matchLabels: {tier: front, colour: c\(number)}}}], ports: [{port: \(7000 + number)}]}]}
        """
      return [try policy("split-\(number)", spec)]
    case 1:
      return world.policies.map(\.key).filter { $0.name.hasPrefix("split-") }.prefix(1).map {
        .delete(.networkPolicy, $0)
      }
    case 2: return relabelled(world, random.pick(["shop/web", "shop/db", "bank/till"]), "colour", "c\(number)")
    case 3: return relabelled(world, random.pick(["shop/api", "lab/bare"]), "colour", "c\(number)")
    case 4:
      // Blocks cut around the addresses that the stream uses.
      let spec = """
        {podSelector: {matchLabels: {app: \(random.pick(["api", "web"]))}}, policyTypes: [Ingress], ingress: [
          {from: [{ipBlock: {cidr: 203.0.113.0/\(23 + number), except: [203.0.113.\(number)/32]}},
                  {ipBlock: {cidr: '2001:db8::/\(60 + number)', except: ['2001:db8::\(number)/128']}},
                  {ipBlock: {cidr: 10.244.2.0/\(24 + number)}}], ports: [{port: \(6000 + number)}]}]}
        """
      return [try policy("block", spec)]
    case 5:
      return world.pods.filter { $0.key == PolicyScene.key("shop/api") }.map { pod in
        var pod = pod
        pod.containerPorts.removeAll { $0.port.number >= 8100 }
        pod.containerPorts.append(
          NamedContainerPort(name: "http", proto: .tcp, port: at("::", 8100 + number).port))
        return .upsert(.pod(pod))
      }
    case 6:
      let labels: Labels = ["team": number % 2 == 0 ? "green" : "grey"]
      return [
        .upsert(.namespace(Namespace(name: "lab", labels: labels))),
        try policy(
          "teams",
          """
          {podSelector: {matchLabels: {app: \(random.pick(["api", "web"]))}}, ingress: [
            {from: [{namespaceSelector: {matchLabels: {team: green}}}], ports: [{port: \(5000 + number)}]}]}
          """),
      ]
    case 7:
      return [try policy("audit", "{podSelector: {matchLabels: {app: c\(number % 2)}}}", mode: .audit)]
    default:
      var pod = Pod(key: PolicyScene.key("bank/extra-\(number)"))
      if world.pods.contains(where: { $0.key == pod.key }) { return [.delete(.pod, pod.key)] }
      pod.nodeName = "there"
      pod.phase = .running
      pod.labels = ["colour": "c\(number)", "app": "web"]
      pod.podIPs = [ip("10.244.2.\(100 + number)"), ip("fd00:10:244:2::\(100 + number)")]
      return [.upsert(.pod(pod))]
    }
  }

  static func denials(_ node: PolicyNode) throws -> String {
    try ["deny-egress", "deny-ingress", "drop-no-verdict", "drop-unknown-endpoint", "drop-forged"].map {
      "\($0) \(try node.counted(chain: $0))"
    }.joined(separator: ", ")
  }

  // MARK: Tests

  @Test("1,000 splits and changes of subjects: nothing allowed is lost, nothing denied passes")
  func changes() throws {
    let seed = PolicyAgainstKernelTests.seeds[1]
    try inNode { findings in
      var random = WorldRandom(seed: seed)
      var stage = try Self.stage(&findings)
      var (moves, subjects, blocks, deltas) = (0, 0, 0, 0)
      var lastNoVerdict = 0
      let counts = try stage.stream.during {
        while deltas < 1000 || moves + subjects + blocks < 1000 {
          let delta = try stage.node.apply(try Self.change(stage.node.world, using: &random))
          deltas += 1
          if !delta.identities.isEmpty { moves += 1 }
          if !delta.endpoints.isEmpty { subjects += 1 }
          if !delta.blocks.isEmpty { blocks += 1 }
          if random.chance(40) { _ = try stage.node.engine.finishRemovals() }
        }
        lastNoVerdict = try stage.node.counted(chain: "drop-no-verdict")
      }
      print(
        "make before break: seed \(seed): \(deltas) changes (\(moves) moved addresses, \(subjects) subjects, \(blocks) "
          + "block tables), \(counts.summary)")
      let denials = try Self.denials(stage.node)
      findings.expect(counts.failures == [], "seed \(seed): \(counts.failures)\n  \(denials)")
      findings.expect(lastNoVerdict == 0, "seed \(seed): \(lastNoVerdict) packets met no verdict")
      let drift = try stage.node.engine.verify(stage.node.tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("an agent that starts over the tables of another, older or not: nothing allowed is lost, nothing denied passes")
  func adoption() throws {
    let seed = PolicyAgainstKernelTests.seeds[1]
    try inNode { findings in
      var random = WorldRandom(seed: seed)
      var stage = try Self.stage(&findings)
      let counts = try stage.stream.during {
        for round in 0..<20 {
          // What an agent did not live to put into the kernel, or to remove from it.
          let changes = round % 3
          for _ in 0..<changes { stage.node.advance(try Self.change(stage.node.world, using: &random)) }
          let (report, drift) = try stage.node.restart()
          if changes == 0, round > 0 {
            findings.expect(drift.allSatisfy { $0.kind == .extra }, "round \(round): \(drift)")
          }
          findings.expect(changes == 0 || report.batches > 0 || drift == [], "round \(round): \(drift)")
          for _ in 0..<2 { try stage.node.apply(try Self.change(stage.node.world, using: &random)) }
        }
      }
      print("make before break: seed \(seed): 20 adoptions: \(counts.summary)")
      let denials = try Self.denials(stage.node)
      findings.expect(counts.failures == [], "seed \(seed): \(counts.failures)\n  \(denials)")
      let drift = try stage.node.engine.verify(stage.node.tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("transactions that the kernel refuses, and the mending: nothing allowed is lost, nothing denied passes")
  func refusals() throws {
    try inNode { findings in
      var stage = try Self.stage(&findings, ownership: .shared)
      // Classes that differ by the labels of a pod that no lane uses.
      let spec = """
        {podSelector: {matchLabels: {app: api}}, ingress: [
          {from: [{podSelector: {matchLabels: {colour: c0}}, namespaceSelector: {}}], ports: [{port: 7000}]},
          {from: [{podSelector: {matchLabels: {colour: c1}}, namespaceSelector: {}}], ports: [{port: 7001}]}]}
        """
      try stage.node.apply([try Self.policy("colours", spec)])
      var refused = 0
      let counts = try stage.stream.during {
        for round in 0..<20 {
          try stage.node.apply(Self.relabelled(stage.node.world, "lab/bare", "colour", "c\(round % 2)"))
          // Behind the engine's back somebody takes the element that the next change replaces.
          let taken = try run("nft delete element ip sluice identities '{ 10.244.2.4 }'")
          findings.expect(taken.status == 0, taken.output)
          let changes =
            Self.relabelled(stage.node.world, "lab/bare", "colour", "c\((round + 1) % 2)")
            + [try Self.policy("more", spec.replacing("7000", with: "\(8000 + round)"))]
          do throws(NFTablesError) {
            try stage.node.attempt(changes)
          } catch {
            refused += 1
            findings.expect(error.object.contains("identities"), "\(error)")
          }
          _ = try stage.node.engine.resync(stage.node.tables)
        }
      }
      findings.expect(refused == 20, "\(refused) of 20 transactions were refused")
      print("make before break: 20 refused transactions: \(counts.summary)")
      let denials = try Self.denials(stage.node)
      findings.expect(counts.failures == [], "\(counts.failures)\n  \(denials)")
      let drift = try stage.node.engine.verify(stage.node.tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  /// What others can do to our tables, in both families.
  private struct Damage {
    var command: String
    /// Whether what is left still denies what is denied.
    var staysClosed = true
  }

  /// Maps: what is not found is denied, and what is found less exactly is allowed less.
  private static let emptiedMaps: [Damage] =
    [
      "identities", "pair-values", "verdicts", "clause-labels", "outcomes", "port-ranges", "blocks", "block-table",
      "egress-subjects", "ingress-subjects",
    ].map { Damage(command: "flush map TABLE \($0)") }
    + ["local-interfaces", "pod-sources", "hairpin", "own-addresses", "pod-ranges"].map {
      Damage(command: "flush set TABLE \($0)")
    } + [
      // A denied port between two allowed ranges is found here, and the ranges around it are one behind it.
      Damage(command: "flush map TABLE ports", staysClosed: false)
    ]

  /// Chains: whatever is not dropped passes, so only some can be without their rules.
  private static let emptiedChains: [Damage] =
    ["current-flows", "stamp-flow"].map { Damage(command: "flush chain TABLE \($0)") }
    + ["policy-forward", "judge", "judge-answer", "egress", "ingress", "deny-egress", "deny-ingress"].map {
      Damage(command: "flush chain TABLE \($0)", staysClosed: false)
    } + [Damage(command: "delete table TABLE", staysClosed: false)]

  @Test("what others take out of maps is mended: from then on, and where possible all the time, nothing denied passes")
  func emptiedMaps() throws { try Self.mend(Self.emptiedMaps) }

  @Test("what others take out of chains is mended: from then on nothing denied passes")
  func emptiedChains() throws { try Self.mend(Self.emptiedChains) }

  private static func mend(_ damages: [Damage]) throws {
    try inNode { findings in
      var stage = try stage(&findings, ownership: .shared)
      for damage in damages {
        for family in ["ip", "ip6"] {
          let command = damage.command.replacing("TABLE", with: "\(family) sluice")
          let result = try run("nft '\(command)'")
          findings.expect(result.status == 0, "\(command): \(result.output)")
        }
        let name = damage.command.replacing(" TABLE", with: "")
        let broken = try stage.stream.during(losesSome: true) {}
        let mending = try stage.stream.during(losesSome: true) {
          let (_, drift) = try stage.node.engine.resync(stage.node.tables)
          findings.expect(!drift.isEmpty, "\(name): not noticed")
        }
        let mended = try stage.stream.during {}
        print("make before break: \(name): broken: \(broken.summary); mending: \(mending.summary)")
        findings.expect(mended.failures == [], "\(name), mended: \(mended.failures)")
        if damage.staysClosed {
          let leaks = (broken + mending).filter { $0.leaked > 0 }.failures
          findings.expect(leaks == [], "\(name): \(leaks)")
        }
        let drift = try stage.node.engine.verify(stage.node.tables)
        findings.expect(drift == [], "\(name): \(drift)")
      }
    }
  }
}
