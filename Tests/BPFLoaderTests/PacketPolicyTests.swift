import DataplaneModel
import Glibc
import KubernetesObjects
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// `judge` is the tables' meaning for policy; the compiled programs have to agree with it, and so with the oracle.
@Suite("Policy in BPF") struct PacketPolicyTests {
  /// The fixed seed finds what it found before, the fresh one what nobody has seen.
  static let seeds: [UInt64] = [
    20_261_121, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]
  /// Of few worlds that change often: loading the programs for one takes as long as 2,000 packets.
  private static let (worlds, rounds, packets) = (RandomAmount.of(10), 25, 200)

  @Test("50,000 packets in random worlds that change: oracle = judge = BPF", arguments: seeds)
  func random(seed: UInt64) throws {
    let seen = Mutex<[String: Int]>([:])
    let start = ContinuousClock.now
    for number in 0..<Self.worlds {
      let network = try AnonymousNetworkNamespace()
      let pins = try Surroundings.pins("policy-\(seed)-\(number)")
      let failures = try network.namespace.run { () throws -> [String] in
        let (failures, kinds) = try Self.checkWorld(seed: seed, number: number, pins)
        seen.withLock { $0.merge(kinds, uniquingKeysWith: +) }
        return failures
      }
      #expect(failures == [], "seed \(seed) world \(number)")
      if !failures.isEmpty { return }
    }
    let counts = seen.withLock { $0 }
    print(
      "policy in BPF: seed \(seed), \(Self.worlds * Self.rounds * Self.packets) packets in \(Self.seconds(since: start)): "
        + counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    guard seed == Self.seeds[0] else { return }
    let forwarded = PacketRunner.canForward ? ["sent from outside", "forged"] : []
    if forwarded.isEmpty { print("policy in BPF: none from outside: \(PacketRunner.forwardsNothing)") }
    // Of few worlds none may have a policy that audits.
    let rare = RandomAmount.divisor == 1 ? ["audited"] : []
    for kind in ["sent by a pod", "sent by the node", "allowed", "denied", "redirected"] + rare + forwarded {
      #expect(counts[kind, default: 0] >= RandomAmount.of(100), "\(kind): \(counts)")
    }
  }

  /// As tests print it.
  static func seconds(since start: ContinuousClock.Instant) -> String {
    "\((ContinuousClock.now - start).components.seconds) s"
  }

  private static func checkWorld(
    seed: UInt64, number: Int, _ pins: PinFolder
  ) throws -> (failures: [String], seen: [String: Int]) {
    var random = WorldRandom(seed: seed &+ UInt64(number) &* 7919)
    var compiled = CompiledWorld(RandomWorld.make(using: &random))
    let own = compiled.world.nodes.first { $0.name == compiled.world.ownNode }
    var delta = compiled.tables.asDelta
    delta.ownAddresses.added = Set(own?.internalIPs ?? [])
    var tables = Tables()
    tables.apply(delta)
    let runner = try PacketRunner(tables, pins: pins)
    defer { try? runner.engine.cleanUp() }
    var (failures, seen): ([String], [String: Int]) = ([], [:])
    for round in 0..<rounds {
      if round > 0 {
        var next = compiled.world
        compiled.apply(next.mutate(using: &random))
        try runner.apply(compiled.lastDelta)
        try runner.forgetFlows()
      }
      let oracle = PolicyOracle(compiled.world)
      var portless: Set<[String]> = []
      for index in 0..<packets {
        let flow = compiled.world.flow(using: &random)
        // Without ports two packets between the same ends are one flow.
        if case .other(let proto) = flow.proto,
          !portless.insert([flow.source, flow.destination].sorted().map(\.description) + ["\(proto)"]).inserted
        {
          continue
        }
        let result = try send(flow, number: UInt64(round * packets + index), runner)
        if let failure = check(flow, result, oracle.judge(flow), runner, &seen) {
          failures.append("round \(round): \(flow): \(failure)")
        }
      }
      let drift = try runner.engine.verify(runner.tables)
      if !drift.isEmpty { failures.append("round \(round): drift \(drift.prefix(5))") }
      if !failures.isEmpty { return (Array(failures.prefix(5)), seen) }
    }
    return ([], seen)
  }

  private static func send(_ flow: PolicyFlow, number: UInt64, _ runner: PacketRunner) throws -> PacketRunner.Result? {
    // No two are one flow.
    let port = UInt16(1024 + number)
    let content: ProbeContent =
      switch flow.proto {
      case .tcp(let destination): .tcp(source: port, destination: destination, .synchronize)
      case .udp(let destination): .udp(source: port, destination: destination)
      case .sctp(let destination): .sctp(source: port, destination: destination)
      case .icmpEcho: .echo(port)
      case .other(let number): .other(number)
      }
    let packet = ProbePacket(source: flow.source, destination: flow.destination, content: content)
    let frame = PacketRunner.frame(packet.bytes(number: number))
    switch flow.origin {
    case .localPod(let key): return try runner.run(.fromPod, at: CompiledWorld.interface(key), frame)
    case .host, .wire:
      guard flow.origin != .wire || PacketRunner.canForward else { return nil }
      guard let receiver = runner.tables.node.endpoint(with: flow.destination) else { return nil }
      return try runner.run(
        .toPod, at: receiver.interface, arrivedBy: flow.origin == .wire ? PacketRunner.uplink : nil, frame)
    }
  }

  private static func check(
    _ flow: PolicyFlow, _ result: PacketRunner.Result?, _ oracle: OracleVerdict, _ runner: PacketRunner,
    _ seen: inout [String: Int]
  ) -> String? {
    guard let result else { return nil }
    let judgement = runner.tables.judge(flow.packet)
    let isForged =
      flow.origin == .wire
      && (runner.tables.node.ownAddresses.contains(flow.source) || runner.tables.node.isLocalPod(flow.source))
    switch flow.origin {
    case .localPod: seen["sent by a pod", default: 0] += 1
    case .host: seen["sent by the node", default: 0] += 1
    case .wire: seen["sent from outside", default: 0] += 1
    }
    if isForged {
      seen["forged", default: 0] += 1
      return result.verdict == .dropped(4) ? nil : "forged, but \(result.verdict)"
    }
    let isLocal = runner.tables.node.endpoint(with: flow.destination) != nil
    let reason: UInt8? =
      PolicyDirection.allCases.reversed().compactMap { direction -> UInt8? in
        switch judgement[direction] {
        case .dropped(.unknownEndpoint): 7
        case .dropped: 8
        case .decided(let key, _): key.clause.isAllowed ? nil : 6
        default: nil
        }
      }.first
    let expected: PacketRunner.Verdict =
      if let reason {
        .dropped(reason)
      } else if isLocal, case .localPod = flow.origin {
        .redirected
      } else {
        .passed
      }
    if reason == nil || reason == 6, oracle.isAllowed != (reason == nil) {
      return "judge says \(judgement), the oracle \(oracle)"
    }
    seen[reason == nil ? "allowed" : "denied", default: 0] += 1
    if result.verdict == .redirected { seen["redirected", default: 0] += 1 }
    if result.verdict != expected { return "\(result.verdict), not \(expected): \(judgement); \(result.events)" }
    // Each decision was told, with what decided.
    for (number, direction) in [(UInt8(0), PolicyDirection.ingress), (1, .egress)] {
      guard case .decided(let key, _) = judgement[direction] else { continue }
      // Who is denied on its way out is not asked about its way in.
      if direction == .ingress, !judgement.egress.isAllowed { continue }
      if key.clause.kind == .auditDeny { seen["audited", default: 0] += 1 }
      let told = result.events.contains {
        $0.direction == number && $0.attribution == key.attribution.rawValue && $0.clause == key.clause.rawValue
      }
      if !told { return "no event says \(direction) \(key): \(result.events)" }
    }
    return nil
  }
}
