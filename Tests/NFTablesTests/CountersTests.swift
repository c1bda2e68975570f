import DataplaneModel
import KubernetesObjects
import NetworkTypes
import PolicyCompiler
import Testing

@testable import NFTables

@Suite("Counters of policies and drops") struct CountersTests {
  // MARK: The ledger

  private static let source = CounterLedger.Source.clause(
    .v4, ClauseKey(AttributionID(rawValue: 7), Clause(.defaultDeny)), denies: .ingress)
  private static let key = ClauseKey(AttributionID(rawValue: 7), Clause(.defaultDeny))

  private func reading(_ packets: UInt64) -> [CounterLedger.Source: TrafficCount] {
    [Self.source: TrafficCount(packets: packets, bytes: packets * 60)]
  }

  @Test("both families of a clause are one number, and a denial is a drop")
  func families() {
    var ledger = CounterLedger()
    let other = CounterLedger.Source.clause(.v6, Self.key, denies: .ingress)
    ledger.observe([Self.source: TrafficCount(packets: 3, bytes: 180), other: TrafficCount(packets: 2, bytes: 160)]) {
      _ in nil
    }
    #expect(ledger.totals.clauses == [Self.key: TrafficCount(packets: 5, bytes: 340)])
    #expect(ledger.totals.drops[.init(.policyDenied, .ingress)] == TrafficCount(packets: 5, bytes: 340))
    #expect(ledger.totals.drops[.init(.policyDenied, .egress)] == TrafficCount())
  }

  @Test("a counter that begins anew adds to what the old one said")
  func reset() {
    var ledger = CounterLedger()
    ledger.observe(reading(10)) { _ in nil }
    ledger.observe(reading(4)) { _ in nil }
    #expect(ledger.totals.clauses[Self.key]?.packets == 14)
    ledger.observe(reading(6)) { _ in nil }
    #expect(ledger.totals.clauses[Self.key]?.packets == 16)
    #expect(ledger.totals.clauses[Self.key]?.bytes == 16 * 60)
  }

  @Test("a counter that is gone is kept, one that a listing missed is not counted twice")
  func gone() {
    var ledger = CounterLedger()
    ledger.observe(reading(10)) { _ in nil }
    ledger.observe([:]) { _ in TrafficCount(packets: 12, bytes: 720) }
    #expect(ledger.totals.clauses[Self.key]?.packets == 12)
    ledger.observe([:]) { _ in nil }
    ledger.observe([:]) { _ in nil }
    #expect(ledger.totals.clauses[Self.key]?.packets == 12)
    ledger.observe(reading(1)) { _ in nil }
    #expect(ledger.totals.clauses[Self.key]?.packets == 13)
  }

  @Test("the last reading of an element that is removed counts, and nothing of it twice")
  func end() {
    var ledger = CounterLedger()
    ledger.observe(reading(10)) { _ in nil }
    ledger.end(reading(11))
    #expect(ledger.totals.clauses[Self.key]?.packets == 11)
    ledger.observe(reading(2)) { _ in nil }
    #expect(ledger.totals.clauses[Self.key]?.packets == 13)
    // It began anew unseen, then ended.
    ledger.end(reading(1))
    #expect(ledger.totals.clauses[Self.key]?.packets == 14)
    #expect(ledger.totals.drops[.init(.policyDenied, .ingress)]?.packets == 14)
  }

  @Test("clauses that ended long ago are forgotten, drops never are")
  func limit() {
    var ledger = CounterLedger(limit: 8)
    for number in 1...100 {
      let key = ClauseKey(AttributionID(rawValue: UInt32(number)), Clause(.defaultDeny))
      ledger.end([.clause(.v4, key, denies: .egress): TrafficCount(packets: 1, bytes: 40)])
    }
    #expect((1...8).contains(ledger.totals.clauses.count))
    #expect(ledger.totals.clauses.keys.contains { $0.attribution.rawValue == 100 })
    #expect(ledger.totals.drops[.init(.policyDenied, .egress)] == TrafficCount(packets: 100, bytes: 4000))
  }

  @Test("every reason to drop but policy's has a chain whose rule counts it")
  func chains() {
    #expect(
      Set(Layout.dropChains.values)
        == Set(DropReason.allCases).subtracting(DropReason.ofPacketPrograms + [.policyDenied]),
      "\(Layout.dropChains)")
  }

  // MARK: The kernel

  @Test("each packet is counted once by the clause that decides it, in both directions and families")
  func exactlyOnce() throws {
    try inRig { rig, findings in
      let scene = CountingScene()
      var engine = try NFTablesEngine()
      _ = try engine.resync(scene.tables)
      var expected: [ClauseKey: TrafficCount] = [:]
      var kinds: Set<Clause.Kind> = []
      for family in IPFamily.allCases {
        for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
          for (proto, port) in [(L4Protocol.tcp, UInt16(80)), (.tcp, 81), (.udp, 53), (.udp, 80)] {
            for _ in 0..<3 {
              let packet = scene.packet(family, from, to, proto, port, rig)
              _ = try rig.send(packet, pod: from)
              for (key, _) in scene.decisions(packet) {
                expected[key, default: TrafficCount()] += TrafficCount(packets: 1, bytes: CountingScene.length(packet))
                kinds.insert(key.clause.kind)
              }
            }
          }
        }
      }
      let counted = try engine.counters()
      findings.expect(counted.clauses.filter { $0.value.packets > 0 } == expected, "\(counted.clauses) != \(expected)")
      findings.expect(kinds.isSuperset(of: [.allow, .defaultDeny, .auditDeny]), "\(kinds)")
      for direction in PolicyDirection.allCases {
        let denied = expected.filter {
          $0.key.clause.kind == .defaultDeny
            && scene.tables.policies.attributions[$0.key.attribution]?.direction == direction
        }
        let sum = denied.values.reduce(into: TrafficCount()) { $0 += $1 }
        findings.expect(sum.packets > 0, "no denial of \(direction)")
        findings.expect(counted.drops[.init(.policyDenied, direction)] == sum, "\(direction): \(counted.drops)")
      }
    }
  }

  @Test("totals do not step back when policies go, change and come back")
  func removal() throws {
    try inRig { rig, findings in
      var scene = CountingScene()
      var engine = try NFTablesEngine()
      _ = try engine.resync(scene.tables)
      var sent: [ClauseKey: UInt64] = [:]
      func send(_ count: Int, _ scene: CountingScene) throws {
        for number in 0..<count {
          let packet = scene.packet(IPFamily.allCases[number % 2], 2, 1, .tcp, 81, rig)
          _ = try rig.send(packet, pod: 2)
          for (key, _) in scene.decisions(packet) { sent[key, default: 0] += 1 }
        }
      }
      for round in 0..<5 {
        try send(7, scene)
        // Read in some rounds only: what ends must be read even if nobody asked before.
        if round % 2 == 0 { try Self.check(&engine, sent, &findings) }
        let removed = scene.remove("ingress")
        let gone = try #require(removed)
        _ = try engine.apply(gone, tables: scene.tables)
        // What nothing uses any more goes with the next turn.
        let expired = scene.expire()
        _ = try engine.apply(try #require(expired), tables: scene.tables)
        findings.expect(engine.hasDeferredRemovals, "nothing was removed")
        // What a packet under way might still look up counts until it goes.
        _ = try engine.finishRemovals()
        try send(3, scene)
        try Self.check(&engine, sent, &findings)
        let back = scene.add(scene.ingress)
        _ = try engine.apply(back, tables: scene.tables)
      }
      try send(1, scene)
      try Self.check(&engine, sent, &findings)
      let denial = sent.filter { $0.key.clause.kind == .defaultDeny }
      findings.expect(denial.values.contains(36), "\(sent)")
    }
  }

  @Test("nor when somebody deletes what counts, and the kernel is repaired")
  func repair() throws {
    try inRig { rig, findings in
      let scene = CountingScene()
      var engine = try NFTablesEngine(ownership: .shared)
      _ = try engine.resync(scene.tables)
      var sent: [ClauseKey: UInt64] = [:]
      var forged: UInt64 = 0
      var count = 1
      for command in [
        "true", "nft flush map ip sluice verdicts", "nft delete table ip6 sluice",
        "nft flush chain ip sluice drop-forged", "nft flush ruleset ip",
      ] {
        // More each time than ever before: a counter that began anew does not show by being lower.
        for _ in 0..<count {
          for family in IPFamily.allCases {
            let packet = scene.packet(family, 2, 1, .tcp, 81, rig)
            _ = try rig.send(packet, pod: 2)
            for (key, _) in scene.decisions(packet) { sent[key, default: 0] += 1 }
            var lie = packet
            lie.source = PacketRig.external(family)
            _ = try rig.send(lie, pod: 2)
            forged += 1
          }
        }
        count = count * 2 + 1
        try Self.check(&engine, sent, &findings)
        let drops = try engine.counters().drops
        findings.expect(drops[.init(.forgedSource)]?.packets == forged, "\(command): \(drops) != \(forged)")
        findings.expect(try run(command).status == 0, command)
        let drift = try engine.resync(scene.tables).drift
        findings.expect(command == "true" || !drift.isEmpty, command)
      }
      try Self.check(&engine, sent, &findings)
    }
  }

  private static func check(
    _ engine: inout NFTablesEngine, _ sent: [ClauseKey: UInt64], _ findings: inout Findings,
    location: SourceLocation = #_sourceLocation
  ) throws {
    let counted = try engine.counters().clauses.filter { $0.value.packets > 0 }.mapValues(\.packets)
    findings.expect(counted == sent, "\(counted) != \(sent)", location: location)
  }

  @Test("each reason to drop is counted as itself")
  func reasons() throws {
    try inRig { rig, findings in
      var scene = CountingScene()
      // The third pod is not known.
      var delta = TableDelta()
      var unknown = try #require(scene.tables.node.endpoints[PacketRig.interface(2)])
      unknown.subjects = nil
      delta.endpoints[unknown.interface] = Change(old: nil, new: unknown)
      delta.serviceRanges.added = [cidr("10.96.0.0/16"), cidr("fd00:10:96::/112")]
      for family in IPFamily.allCases {
        delta.clusterIP(1, family == .v4 ? "10.96.0.1" : "fd00:10:96::1")
        delta.set(1, family, backends: [], empty: .drop)
      }
      scene.tables.apply(delta)
      var engine = try NFTablesEngine()
      _ = try engine.resync(scene.tables)
      for family in IPFamily.allCases {
        var packet = scene.packet(family, 0, 2, .tcp, 80, rig)
        _ = try rig.send(scene.packet(family, 2, 0, .tcp, 80, rig), pod: 2)
        packet.source = PacketRig.external(family)
        _ = try rig.send(packet, pod: 0)
        packet.source = PacketRig.pod(family, 0)
        for host in [1, 9] {
          packet.destination = ip(family == .v4 ? "10.96.0.\(host)" : "fd00:10:96::\(host)")
          packet.sourcePort = rig.nextPort()
          _ = try rig.send(packet, pod: 0)
        }
      }
      let drops = try engine.counters().drops.filter { $0.value.packets > 0 }.mapValues(\.packets)
      findings.expect(
        drops == [
          .init(.unknownEndpoint): 2, .init(.forgedSource): 2, .init(.noLocalEndpoint): 2,
          .init(.unallocatedServiceAddress): 2,
        ], "\(drops)")
    }
  }
}

/// The rig's three pods with policies between them: the first is audited as it sends, the second isolated as it receives,
/// the third as it sends.
struct CountingScene {
  let state = ClusterState(ownNodeName: "node")
  var compiler = PolicyCompiler(linger: .zero)
  var tables = Tables()

  let ingress = policy("ingress", selecting: 1) {
    $0.isolatesIngress = true
    $0.ingress = [
      NetworkPolicyRule(
        peers: [.pods(selector(0), namespaces: nil)], ports: [NetworkPolicyPort(proto: .tcp, port: .range(eighty))])
    ]
  }

  init() {
    var effect = ChangeEffect()
    var locals: [String: LocalPod?] = [:]
    for number in 0..<PacketRig.podCount {
      var pod = Pod(key: Self.key("p\(number)"))
      pod.labels = ["pod": "\(number)"]
      pod.podIPs = IPFamily.allCases.map { PacketRig.pod($0, number) }
      pod.phase = .running
      effect.formUnion(state.apply(.upsert(.pod(pod))))
      locals[PacketRig.interface(number)] = LocalPod(
        interface: PacketRig.interface(number), pod: pod.key, uid: nil, addresses: pod.podIPs)
    }
    let audit = Self.policy("audit", selecting: 0) {
      $0.isolatesEgress = true
      $0.mode = .audit
      $0.egress = [NetworkPolicyRule(ports: [NetworkPolicyPort(proto: .udp)])]
    }
    let egress = Self.policy("egress", selecting: 2) {
      $0.isolatesEgress = true
      $0.egress = [NetworkPolicyRule(ports: [NetworkPolicyPort(proto: .tcp)])]
    }
    for policy in [audit, ingress, egress] { effect.formUnion(state.apply(.upsert(.networkPolicy(policy)))) }
    compile(effect, locals)
  }

  /// Any peer of the pods, by label.
  static func selector(_ pod: Int) -> LabelSelector { LabelSelector(matchLabels: ["pod": "\(pod)"]) }
  private static let eighty: ClosedRange<Port> = at("0.0.0.0", 80).port...at("0.0.0.0", 80).port
  private static func key(_ name: String) -> ObjectKey { ObjectKey(namespace: "test", name: name) }

  static func policy(_ name: String, selecting pod: Int, _ body: (inout NetworkPolicy) -> Void) -> NetworkPolicy {
    var policy = NetworkPolicy(key: key(name))
    policy.podSelector = selector(pod)
    body(&policy)
    return policy
  }

  @discardableResult
  private mutating func compile(_ effect: ChangeEffect, _ locals: [String: LocalPod?] = [:]) -> TableDelta {
    var delta = compiler.compile(effect, endpoints: locals, in: state, tables: tables)
    for number in 0..<PacketRig.podCount {
      var endpoint = PacketRig.endpoint(number)
      endpoint.subjects = compiler.subjects(of: endpoint.interface)
      let old = tables.node.endpoints[endpoint.interface]
      if old != endpoint { delta.endpoints[endpoint.interface] = Change(old: old, new: endpoint) }
    }
    tables.apply(delta)
    return delta
  }

  mutating func add(_ policy: NetworkPolicy) -> TableDelta {
    compile(state.apply(.upsert(.networkPolicy(policy))))
  }

  /// nil where nothing waits to go out of force.
  mutating func expire() -> TableDelta? {
    let delta = compiler.expire(in: state, tables: tables)
    if let delta { tables.apply(delta) }
    return delta
  }

  /// nil where there is none of that name.
  mutating func remove(_ name: String) -> TableDelta? {
    let effect = state.apply(.delete(.networkPolicy, Self.key(name)))
    return effect.isEmpty ? nil : compile(effect)
  }

  func packet(
    _ family: IPFamily, _ from: Int, _ to: Int, _ proto: L4Protocol, _ port: UInt16, _ rig: PacketRig
  ) -> Packet {
    Packet(
      origin: .pod, source: PacketRig.pod(family, from), destination: PacketRig.pod(family, to), proto: proto,
      sourcePort: rig.nextPort(), destinationPort: port)
  }

  /// What the packet meets: where egress denies it, nothing else.
  func decisions(_ packet: Packet) -> [(ClauseKey, PolicyDirection)] {
    let judgement = tables.judge(
      PolicyPacket(
        origin: packet.origin, source: packet.source, destination: packet.destination, proto: packet.proto.rawValue,
        destinationPort: packet.destinationPort))
    var result: [(ClauseKey, PolicyDirection)] = []
    for direction in [PolicyDirection.egress, .ingress] {
      if case .decided(let key, _) = judgement[direction] { result.append((key, direction)) }
      if !judgement[direction].isAllowed { break }
    }
    return result
  }

  static func length(_ packet: Packet) -> UInt64 {
    (packet.source.family == .v4 ? 20 : 40) + (packet.proto == .udp ? 8 : 20)
  }
}
