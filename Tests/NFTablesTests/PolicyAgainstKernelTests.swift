import DataplaneModel
import Glibc
import NetworkTypes
import Synchronization
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// `judge` is the tables' meaning for policy; the kernel has to agree with it, packet by packet, and so with the
/// oracle.
@Suite struct PolicyAgainstKernelTests {
  /// The fixed seed finds what it found before, the fresh one what nobody has seen.
  static let seeds: [UInt64] = [
    20_261_121, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]
  private static let worlds = 10
  private static let rounds = 6
  private static let packetsPerRound = 50

  @Test("random worlds that change: a packet arrives exactly where judge and oracle allow it", arguments: seeds)
  func random(seed: UInt64) throws {
    let seen = Mutex<[String: Int]>([:])
    for number in 0..<Self.worlds {
      try inNode { findings in
        let kinds = try Self.checkWorld(seed: seed, number: number, &findings)
        seen.withLock { $0.merge(kinds, uniquingKeysWith: +) }
      }
    }
    let counts = seen.withLock { $0 }
    print(
      "policy against kernel: seed \(seed): "
        + counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    let sent = counts.filter { $0.key.hasPrefix("sent ") }.values.reduce(0, +)
    #expect(sent >= 2000)
    // Proof that the packets met something. A fresh seed may miss one.
    guard seed == Self.seeds[0] else { return }
    for kind in Self.kinds { #expect(counts[kind, default: 0] >= 20, "\(kind): \(counts)") }
  }

  /// Each kind of sender, receiver, verdict and protocol.
  private static let kinds = [
    "sent by a pod", "sent by the node", "sent from outside", "arrived at a pod", "arrived outside",
    "arrived at the node", "egress exempt", "egress open", "egress allowed", "egress denied", "ingress exempt",
    "ingress open", "ingress allowed", "ingress denied", "icmp", "sctp", "tcp", "udp", "other protocol", "IPv4", "IPv6",
  ]

  private struct Sent {
    var flow: PolicyFlow
    var packet: ProbePacket
    var place: PolicyRig.Place?
    var explanation: String
  }

  private static func checkWorld(
    seed: UInt64, number: Int, _ findings: inout Findings
  ) throws -> [String: Int] {
    var random = WorldRandom(seed: seed &+ UInt64(number) &* 7919)
    var node = try PolicyNode(RandomWorld.make(using: &random))
    var seen: [String: Int] = [:]
    // Of the whole world: what comes too late is noticed too.
    var sent: [UInt64: Sent] = [:]
    for round in 0..<Self.rounds {
      let place = "seed \(seed) world \(number) round \(round)"
      if round > 0 {
        var next = node.world
        try node.apply(next.mutate(using: &random))
      }
      let oracle = PolicyOracle(node.world)
      var expected: Set<UInt64> = []
      for flow in flows(node.world, using: &random) {
        let (packet, from) = node.packet(flow)
        let destination = node.destination(flow)
        let judgement = node.tables.judge(flow.packet)
        let verdict = oracle.judge(flow)
        findings.expect(
          node.isForged(flow) || isUnknown(judgement) || judgement.isAllowed == verdict.isAllowed,
          "\(place): \(flow): judge says \(judgement), the oracle \(verdict)")
        let id = try node.rig.send(packet, from: from)
        sent[id] = Sent(
          flow: flow, packet: packet, place: destination,
          explanation: "\(place): \(flow) (\(packet.content)): egress \(judgement.egress), ingress \(judgement.ingress)"
        )
        if destination != nil { expected.insert(id) }
        count(flow, verdict, from, destination, in: &seen)
      }
      let arrivals = try node.rig.arrivals(expecting: expected)
      check(arrivals, sent, missing: expected, node, &findings)
      try node.rig.forgetFlows()
      let drift = try node.engine.verify(node.tables)
      findings.expect(drift == [], "\(place): \(drift)")
      if !findings.isEmpty { return [:] }
    }
    let listing = try run("nft list ruleset")
    findings.expect(
      listing.status == 0 && listing.output.contains("@pair-values"), "nft lists: \(listing.output.prefix(500))")
    findings.expect(try node.rig.packetsWithStrangeMark() == 0, "a packet left with another mark than it came with")
    return seen
  }

  /// Flows of which no two are one flow to conntrack, or each other's answers.
  private static func flows(_ world: PolicyWorld, using random: inout WorldRandom) -> [PolicyFlow] {
    var portless: Set<[String]> = []
    return (0..<packetsPerRound).compactMap { _ in
      let flow = world.flow(using: &random)
      guard case .other(let proto) = flow.proto else { return flow }
      let ends = [flow.source, flow.destination].sorted().map(\.description)
      return portless.insert(ends + ["\(proto)"]).inserted ? flow : nil
    }
  }

  private static func isUnknown(_ judgement: PolicyJudgement) -> Bool {
    PolicyDirection.allCases.contains { judgement[$0] == .dropped(.unknownEndpoint) }
  }

  private static func check(
    _ arrivals: [PolicyRig.Arrival], _ sent: [UInt64: Sent], missing: Set<UInt64>, _ node: PolicyNode,
    _ findings: inout Findings
  ) {
    var missing = missing
    for arrival in arrivals {
      guard let one = sent[arrival.number] else { continue }
      missing.remove(arrival.number)
      findings.expect(
        arrival.place == one.place,
        "arrived at \(arrival.place), not \(one.place.map { "\($0)" } ?? "anywhere")\n  \(one.explanation)\n"
          + WorldYAML.documents(node.world))
    }
    for number in missing {
      findings.expect(
        false,
        "did not arrive at \(sent[number]?.place.map { "\($0)" } ?? "?")\n  \(sent[number]?.explanation ?? "")\n"
          + WorldYAML.documents(node.world))
    }
  }

  private static func count(
    _ flow: PolicyFlow, _ verdict: OracleVerdict, _ from: PolicyRig.Place, _ to: PolicyRig.Place?,
    in seen: inout [String: Int]
  ) {
    let proto =
      switch flow.proto {
      case .tcp: "tcp"
      case .udp: "udp"
      case .sctp: "sctp"
      case .icmpEcho: "icmp"
      case .other: "other protocol"
      }
    let sender =
      switch from {
      case .pod: "sent by a pod"
      case .node: "sent by the node"
      case .outside: "sent from outside"
      }
    let receiver =
      switch to {
      case .pod: "arrived at a pod"
      case .node: "arrived at the node"
      case .outside: "arrived outside"
      case nil: "dropped"
      }
    for kind in [
      proto, sender, receiver, "\(flow.source.family)", "egress \(verdict.egress.verdict.kind)",
      "ingress \(verdict.ingress.verdict.kind)",
    ] {
      seen[kind, default: 0] += 1
    }
  }
}
