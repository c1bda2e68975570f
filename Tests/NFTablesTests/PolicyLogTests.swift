import DataplaneModel
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// What the packet path says of its own decisions: one line for each denied or audited packet, and exact counters.
@Suite struct PolicyLogTests {
  private struct Line: Hashable, Comparable, CustomStringConvertible {
    var prefix: String
    /// 0 for reasons without a clause.
    var label: UInt32
    static func < (left: Self, right: Self) -> Bool { (left.prefix, left.label) < (right.prefix, right.label) }
    var description: String { "\(prefix) #\(label)" }
  }

  /// What was met, over all worlds.
  private struct Totals {
    var denied = 0
    var audited = 0
    var other = 0
    var counted = 0
  }

  @Test(
    "each denied packet has one line with its clause's label, each audited one too and passes, and every clause counts",
    arguments: PolicyAgainstKernelTests.seeds)
  func linesAndCounters(seed: UInt64) throws {
    let totals = Mutex(Totals())
    var number: UInt64 = 0
    while totals.withLock({ $0.denied < 500 || $0.audited < 60 }), number < 40 {
      let world = number
      try inNode { findings in
        var sum = totals.withLock { $0 }
        try Self.checkWorld(seed: seed &+ world &* 104_729, &sum, &findings)
        let result = sum
        totals.withLock { $0 = result }
      }
      number += 1
    }
    let sum = totals.withLock { $0 }
    print(
      "policy log: seed \(seed): \(sum.denied) denied, \(sum.audited) audited, \(sum.other) dropped for other reasons, "
        + "\(sum.counted) decisions counted")
    #expect(sum.denied >= 500 && sum.audited >= 60)
  }

  @Test(
    "both ends' packets of a live flow that ends are logged by the clause that ends it", arguments: IPFamily.allCases)
  func endedFlows(family: IPFamily) throws {
    try inNode { findings in
      var node = try PolicyNode(try PolicyScene([:]).world)
      let log = try PacketLogSocket(group: Layout.logGroup)
      let ends: [(String, String, FlowProtocol)] = [
        ("shop/web", "shop/db", .tcp(80)), ("shop/db", "shop/api", .tcp(80)), ("shop/web", "host", .tcp(80)),
        ("shop/db", "shop/web", .udp(53)),
      ]
      var flows = try ends.map { from, to, proto in
        var flow = PolicyLiveFlow(node, from, to, proto, family)
        try flow.open(node, &findings)
        return flow
      }
      let deny = try PolicyScene(["deny": "{podSelector: {}, policyTypes: [Ingress, Egress]}"])
      try node.apply(deny.world.policies.map { .upsert(.networkPolicy($0)) })
      for byClient in [true, false] {
        for index in flows.indices {
          let trial = flows[index].next(byClient: byClient, arrives: false, "ended")
          let (from, to, proto) = ends[index]
          let first = node.trial(from, to, proto, family, arrives: false)
          let isEgress = first.from != .outside
          let origin: Origin = isEgress ? .pod : .outside
          let judgement = node.tables.judge(
            PolicyPacket(
              origin: origin, source: first.packet.source, destination: first.packet.destination,
              proto: first.packet.proto, destinationPort: proto == .udp(53) ? 53 : 80))
          guard case .decided(let key, _) = isEgress ? judgement.egress : judgement.ingress else {
            findings.expect(false, "\(trial.name): \(judgement)")
            continue
          }
          let line = Line(
            prefix: "policy \(isEgress ? "egress" : "ingress")", label: node.tables.policies.clauses[key] ?? 0)
          try node.check([trial], &findings)
          let found = try Self.read(log, atLeast: 1, &findings)
          findings.expect(Array(found.values) == [[line]], "\(trial.name): lines \(found), not \(line)")
        }
      }
    }
  }

  private static func checkWorld(seed: UInt64, _ totals: inout Totals, _ findings: inout Findings) throws {
    var random = WorldRandom(seed: seed)
    var node = try PolicyNode(RandomWorld.make(using: &random))
    let log = try PacketLogSocket(group: Layout.logGroup)
    for round in 0..<3 {
      if round > 0 {
        var next = node.world
        try node.apply(next.mutate(using: &random))
        _ = try node.engine.finishRemovals()
      }
      let before = try counters()
      var expected: [UInt64: [Line]] = [:]
      var steps: [ClauseKey: Int] = [:]
      var arriving: Set<UInt64> = []
      var descriptions: [UInt64: String] = [:]
      for flow in flows(node.world, using: &random) {
        let (packet, from) = node.packet(flow)
        let id = try node.rig.send(packet, from: from)
        expected[id] = lines(flow, node, &steps, &totals)
        descriptions[id] = "\(flow)"
        if node.destination(flow) != nil { arriving.insert(id) }
      }
      let arrived = try Set(node.rig.arrivals(expecting: arriving).map(\.number))
      findings.expect(arrived == arriving, "seed \(seed), round \(round): arrived otherwise than judged")
      let found = try read(log, atLeast: expected.values.reduce(0) { $0 + $1.count }, &findings)
      for (id, lines) in expected {
        findings.expect(
          (found[id] ?? []).sorted() == lines.sorted(),
          "seed \(seed), round \(round): \(descriptions[id] ?? ""): lines \(found[id] ?? []), not \(lines)")
      }
      let after = try counters()
      for key in Set(after.keys).union(steps.keys) {
        let step = after[key, default: 0] - before[key, default: 0]
        findings.expect(
          step == steps[key, default: 0],
          "seed \(seed), round \(round): \(key) counted \(step), not \(steps[key, default: 0])")
      }
      totals.counted += steps.values.reduce(0, +)
      try node.rig.forgetFlows()
      if !findings.isEmpty { return }
    }
    findings.expect(try node.rig.packetsWithStrangeMark() == 0, "a packet left with another mark than it came with")
  }

  private static func flows(_ world: PolicyWorld, using random: inout WorldRandom) -> [PolicyFlow] {
    var portless: Set<[String]> = []
    return (0..<60).compactMap { _ in
      let flow = world.flow(using: &random)
      guard case .other(let proto) = flow.proto else { return flow }
      let ends = [flow.source, flow.destination].sorted().map(\.description)
      return portless.insert(ends + ["\(proto)"]).inserted ? flow : nil
    }
  }

  /// The lines that a flow's first packet has to cause, and the clauses that it is counted at.
  private static func lines(
    _ flow: PolicyFlow, _ node: PolicyNode, _ steps: inout [ClauseKey: Int], _ totals: inout Totals
  ) -> [Line] {
    if node.isForged(flow) {
      totals.other += 1
      return [Line(prefix: DropReason.forgedSource.rawValue, label: 0)]
    }
    let judgement = node.tables.judge(flow.packet)
    var lines: [Line] = []
    for direction in [PolicyDirection.egress, .ingress] {
      switch judgement[direction] {
      case .dropped(let reason):
        totals.other += 1
        return lines + [Line(prefix: reason.rawValue, label: 0)]
      case .decided(let key, _):
        steps[key, default: 0] += 1
        let label = node.tables.policies.clauses[key] ?? 0
        if key.clause.kind == .auditDeny {
          totals.audited += 1
          lines.append(Line(prefix: "policy \(direction)", label: label | ClauseLabel.passes))
        }
        guard !key.clause.isAllowed else { continue }
        totals.denied += 1
        return lines + [Line(prefix: "policy \(direction)", label: label & ~ClauseLabel.passes)]
      case .notLocal, .exempt, .unrestricted: continue
      }
    }
    return lines
  }

  /// By packet. Waits for as many lines as there should be, at most two seconds, and takes what else is there.
  private static func read(
    _ log: PacketLogSocket, atLeast count: Int, _ findings: inout Findings
  ) throws -> [UInt64: [Line]] {
    var found: [UInt64: [Line]] = [:]
    var total = 0
    let deadline = PacketRig.now() + 2_000_000_000
    while true {
      // One more time after the last: for lines that should not be. The kernel holds lines back for 10 ms.
      let events = try log.next(timeoutMilliseconds: total < count ? 100 : 30)
      findings.expect(events.lost == 0 && !events.hasUncountedLoss, "lines were lost")
      for message in events.messages {
        guard let packet = ProbePacket.identify(message.payload[...]) else {
          findings.expect(false, "a line about no test packet: \(message)")
          continue
        }
        // Without a clause the mark is the packet's own.
        let hasLabel = NFTablesEngine.policyDirection(ofLogPrefix: message.prefix) != nil
        found[packet.number, default: []].append(
          Line(prefix: message.prefix, label: hasLabel ? message.mark : 0))
        total += 1
      }
      if events.messages.isEmpty, total >= count || PacketRig.now() > deadline { return found }
    }
  }

  /// What `nft` shows of the counters of `verdicts`, both families together.
  private static func counters() throws -> [ClauseKey: Int] {
    var counts: [ClauseKey: Int] = [:]
    for family in ["ip", "ip6"] {
      // `0x2b33c9ca . 0x00020000 counter packets 16 bytes 800 : continue`
      let words = try run("nft list map \(family) sluice verdicts").output.split(whereSeparator: \.isWhitespace)
      for index in words.indices where words[index] == "counter" && index >= 3 && index + 2 < words.count {
        guard let attribution = UInt32(words[index - 3].dropFirst(2), radix: 16),
          let number = UInt32(words[index - 1].dropFirst(2), radix: 16), let clause = Clause(rawValue: number),
          let packets = Int(words[index + 2])
        else { continue }
        counts[ClauseKey(AttributionID(rawValue: attribution), clause), default: 0] += packets
      }
    }
    return counts
  }
}
