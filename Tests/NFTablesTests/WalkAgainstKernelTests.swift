import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import NFTables

/// `walk` is the tables' meaning; the kernel has to agree with it, packet by packet.
@Suite struct WalkAgainstKernelTests {
  static let fixedSeed: UInt64 = 0x51_1ce

  @Test("random tables and packets: the kernel does what walk permits", arguments: [true, false])
  func property(isFixed: Bool) throws {
    let seed = isFixed ? Self.fixedSeed : UInt64.random(in: 1 ... .max)
    print("walk against kernel: seed \(seed)")
    let seen = Mutex<[String: Int]>([:])
    for world in 0..<4 {
      try inRig { rig, findings in
        let kinds = try Self.checkWorld(seed: seed, number: world, rig, &findings)
        seen.withLock { $0.merge(kinds, uniquingKeysWith: +) }
      }
    }
    let counts = seen.withLock { $0 }
    print(counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    // Proof that the packets met something: every kind of outcome was seen.
    let missing = Set(ServiceOutcome.kinds).subtracting(counts.keys)
    #expect(!isFixed || missing.isEmpty, "never met: \(missing)")
  }

  private static func checkWorld(
    seed: UInt64, number: Int, _ rig: PacketRig, _ findings: inout Findings
  ) throws -> [String: Int] {
    var random = SeededGenerator(seed: seed &+ UInt64(number) &* 7919)
    var world = World(services: Int.random(in: 10...24, using: &random), hashedPercent: 20, using: &random)
    var tables = Tables()
    tables.apply(world.delta(from: tables))
    var engine = try NFTablesEngine()
    _ = try engine.resync(tables)
    var clients = KnownClients()
    var seen: [String: Int] = [:]
    for round in 0..<10 {
      if round > 0 {
        for _ in 0..<Int.random(in: 1...4, using: &random) { world.change(using: &random) }
        let delta = world.delta(from: tables)
        tables.apply(delta)
        _ = try engine.apply(delta, tables: tables)
        // Until then the slots of a set without affinity stand beside the sticky ones, and win: clients are not yet
        // remembered.
        let startsSticking = delta.sets.values.contains {
          $0.old?.affinityTimeout == nil && $0.new?.affinityTimeout != nil
        }
        if startsSticking || random.chance(50) { _ = try engine.finishRemovals() }
      }
      var sent: [PacketRig.Sent] = []
      for _ in 0..<60 {
        let (packet, pod) = world.packet(port: rig.nextPort(), tables, using: &random)
        sent.append(try rig.send(packet, pod: pod))
      }
      let outcomes = try rig.outcomes(of: sent)
      for (sent, first) in zip(sent, outcomes) {
        var (sent, outcome) = (sent, first)
        var permitted = clients.permitted(sent, tables)
        // A frame lost on its way is no answer: only a drop that is repeated counts.
        for _ in 0..<2 {
          guard case .dropped = outcome, !permitted.contains(where: { $0.agrees(with: outcome, sent.packet) }) else {
            break
          }
          sent.packet.sourcePort = rig.nextPort()
          sent = try rig.send(sent.packet, pod: sent.pod)
          outcome = try rig.outcomes(of: [sent])[0]
          permitted = clients.permitted(sent, tables)
        }
        clients.note(sent, outcome, tables)
        if let kind = permitted.first(where: { $0.agrees(with: outcome, sent.packet) })?.kind {
          seen[kind, default: 0] += 1
        }
        findings.expect(
          permitted.contains { $0.agrees(with: outcome, sent.packet) },
          Self.counterexample(seed, number, round, sent, outcome, permitted, tables))
      }
      if random.chance(30) || round == 9 {
        let drift = try engine.verify(tables)
        findings.expect(drift == [], "seed \(seed) world \(number) round \(round): \(drift)")
      }
      if !findings.isEmpty { return [:] }
    }
    return seen
  }

  private static func counterexample(
    _ seed: UInt64, _ world: Int, _ round: Int, _ sent: PacketRig.Sent, _ outcome: PacketRig.Outcome,
    _ permitted: Set<ServiceOutcome>, _ tables: Tables
  ) -> String {
    var planner = Planner()
    let plan = planner.plan(tables.asDelta, after: tables)
    let destination = "\(sent.packet.destination)"
    let services = tables.services.frontends.filter { key, _ in
      key.port.number == sent.packet.destinationPort && key.proto == sent.packet.proto
    }
    let sets = tables.services.sets.filter { id, _ in services.values.contains { $0.service == id.service } }
    let entries = (plan.before + plan.now).map(\.description).filter { $0.contains(" \(destination) ") }
    return """
      seed \(seed) world \(world) round \(round): \(sent.packet) \(sent.pod.map { "from pod \($0)" } ?? "")
        kernel: \(outcome)
        walk:   \(permitted.map(\.description).sorted().joined(separator: " | "))
        frontends: \(services.map { "\($0): \($1)" }.joined(separator: "\n           "))
        sets: \(sets.map { "\($0): \($1)" }.joined(separator: "\n      "))
        node: \(tables.node)
        entries: \(entries.sorted().joined(separator: "\n         "))
      """
  }
}

extension ServiceOutcome {
  /// Whether this is what the kernel did with `packet`.
  func agrees(with outcome: PacketRig.Outcome, _ packet: Packet) -> Bool {
    switch (self, outcome) {
    case (.rejected, .rejected), (.dropped, .dropped): true
    case (.translated(let backend, let source), .tracked(let entry)):
      entry.reply.source == backend.address && entry.reply.sourcePort == backend.port.number
        && source.agrees(with: entry)
    case (.untouched(let source), .tracked(let entry)):
      entry.reply.source == packet.destination && entry.reply.sourcePort == packet.destinationPort
        && source.agrees(with: entry)
    default: false
    }
  }
}

extension ServiceOutcome {
  static let kinds =
    ["kept", "masquerade", "to"].map { "translated/\($0)" } + ["untouched/kept", "untouched/masquerade"]
    + RejectReason.allCases.map(\.rawValue) + DropReason.ofServices.map(\.rawValue)

  var kind: String {
    switch self {
    case .translated(_, .kept): "translated/kept"
    case .translated(_, .masquerade): "translated/masquerade"
    case .translated(_, .to): "translated/to"
    case .untouched(.kept): "untouched/kept"
    case .untouched: "untouched/masquerade"
    case .rejected(let reason): reason.rawValue
    case .dropped(let reason): reason.rawValue
    }
  }
}

extension SourceTranslation {
  func agrees(with entry: ConntrackEntry) -> Bool {
    switch self {
    case .kept:
      entry.reply.destination == entry.original.source && entry.reply.destinationPort == entry.original.sourcePort
    case .masquerade:
      // Only the uplink has an address to take. A pod that the tables do not know, and the node itself, get any of the
      // node's.
      PacketRig.isPod(entry.reply.source) || World.nodeAddresses(entry.reply.source.family).contains(entry.reply.source)
        ? World.nodeAddresses(entry.original.source.family).contains(entry.reply.destination)
        : entry.reply.destination == PacketRig.uplink(entry.original.source.family)
    case .to(let address): entry.reply.destination == address
    }
  }
}

/// What the test knows of affinity: from outcomes alone.
struct KnownClients {
  private struct Entry {
    var backend: SocketAddress
    var expiry: UInt64
  }
  private var entries: [AffinityState.Key: Entry] = [:]
  /// The kernel counts in jiffies, and the packet was handled some time before or after we read the clock.
  private static let slack: UInt64 = 60_000_000

  /// What walk permits, with the client known, unknown or, close to the expiry, either.
  func permitted(_ sent: PacketRig.Sent, _ tables: Tables) -> Set<ServiceOutcome> {
    var state = AffinityState()
    var mayBeGone = true
    for (key, entry) in entries where key.client == sent.packet.source && sent.time < entry.expiry + Self.slack {
      state.entries[key] = entry.backend
      if sent.time + Self.slack < entry.expiry { mayBeGone = false }
    }
    let known = tables.walk(sent.packet, affinity: state)
    // Several services may know the client; only one can matter. Whether it is gone is asked of that one.
    guard let service = tables.service(of: sent.packet),
      let entry = entries[.init(client: sent.packet.source, service: service)]
    else { return known }
    mayBeGone = sent.time + Self.slack >= entry.expiry
    return mayBeGone ? known.union(tables.walk(sent.packet)) : known
  }

  mutating func note(_ sent: PacketRig.Sent, _ outcome: PacketRig.Outcome, _ tables: Tables) {
    guard case .tracked(let flow) = outcome, let service = tables.service(of: sent.packet),
      let timeout = tables.affinityTimeout(of: service), let port = Port(flow.reply.sourcePort)
    else { return }
    entries[.init(client: sent.packet.source, service: service)] = Entry(
      backend: SocketAddress(flow.reply.source, port), expiry: sent.time + UInt64(timeout) * 1_000_000_000)
  }
}

extension Tables {
  /// Who has the packet's destination, written anew from the order of claims.
  fileprivate func service(of packet: Packet) -> ServicePortID? {
    guard let port = Port(packet.destinationPort) else { return nil }
    var claims = [services.frontends[FrontendKey(.address(packet.destination), packet.proto, port)]]
    if node.nodePortAddresses.contains(packet.destination) {
      claims.append(services.frontends[FrontendKey(.node(packet.destination.family), packet.proto, port)])
    }
    return claims.compactMap { $0 }.min { $0.kind < $1.kind }?.service
  }

  fileprivate func affinityTimeout(of service: ServicePortID) -> UInt32? {
    services.sets.first { $0.key.service == service }?.value.affinityTimeout
  }
}
