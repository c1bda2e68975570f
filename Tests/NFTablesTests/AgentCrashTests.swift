import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import NFTables

/// The built agent, killed while it handles an edit: the kernel shows the old or the new objects to every packet, and the
/// next agent makes it the new ones. Real packets, and `walk` over tables that this test compiles itself.
@Suite("A killed agent, packet by packet", .enabled(if: CrashAgent.canRun))
struct AgentCrashTests {
  /// Per point: so many while the agent is dead, and as many after the next one's start.
  private static let packets = 1000

  @Test("at 200 random points leaves the kernel as walk says, and its successor finds no difference")
  func killed() throws {
    let seed = getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 1 ... .max)
    print("agent crash: seed \(seed)")
    let places = Mutex<[String: Int]>([:])
    try inRig { rig, findings in
      var run = try CrashRun(rig: rig, seed: seed, packets: Self.packets)
      let started = PacketRig.now()
      for (number, point) in run.points().enumerated() {
        let place = try run.point(number, point, &findings)
        places.withLock { $0[place, default: 0] += 1 }
        guard findings.isEmpty else { break }
      }
      try run.expectQuietLog(&findings)
      let seconds = Double(PacketRig.now() - started) / 1e9
      print("agent crash: \(run.sentCount) packets, \(Int(seconds)) s; \(run.timing)")
      print("agent crash: in force at death: \(text(run.inForce))")
      print("agent crash: outcomes: \(text(run.seen))")
      guard findings.isEmpty else { return }
      // Proof that the packets met something, and told the worlds apart.
      let missing = Set(ServiceOutcome.kinds).subtracting(run.seen.keys)
      findings.expect(missing.isEmpty, "seed \(seed): never met: \(missing)")
      for world in ["old", "new"] {
        findings.expect(run.inForce[world] ?? 0 >= 20, "seed \(seed): in force at death: \(run.inForce)")
      }
    }
    let counts = places.withLock { $0 }
    for (place, count) in counts.sorted(by: { $0.key < $1.key }) { print("agent crash: \(place): \(count)") }
    #expect(counts[CrashAgent.betweenSendAndAnswer] ?? 0 >= 40, "seed \(seed): \(counts)")
  }
}

private func text(_ counts: [String: Int]) -> String {
  counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
}

/// One rig, one cluster, one agent after the other.
private struct CrashRun {
  private let rig: PacketRig
  private let seed: UInt64
  private let packets: Int
  private let agent: CrashAgent
  private var random: SeededGenerator
  private var cluster: CrashCluster
  private var compiler = ManifestCompiler()
  private var tables: Tables
  private var clients = StickyClients()
  /// Outcomes by kind, of both phases.
  private(set) var seen: [String: Int] = [:]
  /// Points by which objects' packets the kernel let through while no agent ran.
  private(set) var inForce: [String: Int] = [:]
  private(set) var sentCount = 0
  private var times: [String: UInt64] = [:]

  var timing: String {
    times.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value / 1_000_000) ms" }.joined(separator: ", ")
  }

  init(rig: PacketRig, seed: UInt64, packets: Int) throws {
    self.rig = rig
    self.seed = seed
    self.packets = packets
    random = SeededGenerator(seed: seed)
    cluster = CrashCluster(using: &random)
    tables = try compiler.tables(cluster.files)
    agent = try CrashAgent()
    try agent.write(cluster.files)
    try agent.start()
  }

  mutating func points() -> [KillPoint] { KillPoint.all(using: &random) }

  private mutating func timed<Result>(_ name: String, _ body: (inout Self) throws -> Result) rethrows -> Result {
    let start = PacketRig.now()
    defer { times[name, default: 0] += PacketRig.now() - start }
    return try body(&self)
  }

  /// One death and what follows. Returns where the agent was.
  mutating func point(_ number: Int, _ point: KillPoint, _ findings: inout Findings) throws -> String {
    let old = tables
    let edit = try timed("compile") { try $0.edit(for: point) }
    let files = cluster.files
    let place = try timed("kill") { try $0.agent.edit(files, dyingAt: point) }
    let name = "seed \(seed) point \(number) (\(point): \(place); edit: \(edit.what) \(edit.service ?? 0))"

    clients.forgetChanged(from: old, to: tables)
    try timed("packets") { try $0.check("\(name), dead", [old, $0.tables], edit.service, &findings) }
    clients.isUncertain = []
    if findings.isEmpty {
      try timed("start") { try $0.agent.start() }
      try timed("packets") { try $0.check("\(name), restarted", [$0.tables], edit.service, &findings) }
      let differences = try timed("diff") { try $0.agent.differences() }
      findings.expect(differences.isEmpty, "\(name): diff \(differences)")
    }
    if !findings.isEmpty {
      findings.expect(false, "edit: \(cluster.manifest(of: edit.service))\nthe agent's log: \(agent.tail())")
    }
    return place
  }

  /// An edit that changes what some packet meets.
  private mutating func edit(for point: KillPoint) throws -> (what: String, service: Int?) {
    let (before, numbered) = (cluster, compiler.numbered)
    let old = tables
    for attempt in 0... {
      cluster = before
      let edit = cluster.edit(using: &random)
      tables = try compiler.tables(cluster.files)
      // The journal is written to for new Service ports only; after a while there may be none left.
      if tables != old, point.kind != .journalWrite || compiler.numbered > numbered || attempt > 50 { return edit }
    }
    return ("", nil)
  }

  /// No agent has failed at anything, but for being killed.
  func expectQuietLog(_ findings: inout Findings) throws {
    let errors = try agent.errors()
    findings.expect(errors.isEmpty, "seed \(seed): the agents logged: \(errors)")
  }

  /// Sends packets and compares what became of each with what one of `worlds` permits.
  private mutating func check(
    _ name: String, _ worlds: [Tables], _ service: Int?, _ findings: inout Findings
  ) throws {
    let source = PacketSource(worlds, favourite: service)
    var sent: [PacketRig.Sent] = []
    for _ in 0..<packets {
      let (packet, pod) = source.packet(port: rig.nextPort(), using: &random)
      sent.append(try rig.send(packet, pod: pod))
    }
    sentCount += sent.count
    /// Packets that only one of the two worlds explains, by family.
    var (onlyOld, onlyNew): ([IPFamily: Packet], [IPFamily: Packet]) = ([:], [:])
    for (sent, first) in zip(sent, try rig.outcomes(of: sent)) {
      var (sent, outcome) = (sent, first)
      var permitted = clients.permitted(sent.packet, worlds)
      // A frame lost on its way is no answer: only a drop that is repeated counts.
      for _ in 0..<2 {
        guard case .dropped = outcome, !permitted.contains(where: { $0.agrees(with: outcome, sent.packet) }) else {
          break
        }
        sent.packet.sourcePort = rig.nextPort()
        sent = try rig.send(sent.packet, pod: sent.pod)
        outcome = try rig.outcomes(of: [sent])[0]
        permitted = clients.permitted(sent.packet, worlds)
      }
      if let match = permitted.first(where: { $0.agrees(with: outcome, sent.packet) }) {
        seen[match.kind, default: 0] += 1
        if worlds.count == 2 {
          let agrees = worlds.map { world in
            clients.permitted(sent.packet, [world]).contains { $0.agrees(with: outcome, sent.packet) }
          }
          if !agrees[1] { onlyOld[sent.packet.destination.family] = sent.packet }
          if !agrees[0] { onlyNew[sent.packet.destination.family] = sent.packet }
        }
      } else {
        findings.expect(
          false,
          """
          \(name): \(sent.packet)\(sent.pod.map { " from pod \($0)" } ?? "")
            kernel: \(outcome)
            walk:   \(permitted.map(\.description).sorted().joined(separator: " | "))
          """)
        return
      }
      clients.note(sent.packet, outcome, worlds)
    }
    guard worlds.count == 2 else { return }
    for (family, before) in onlyOld {
      guard let after = onlyNew[family] else { continue }
      print("agent crash: \(name): old for \(before), new for \(after)")
      inForce["some of both", default: 0] += 1
      return
    }
    let world =
      switch (onlyOld.isEmpty, onlyNew.isEmpty) {
      case (false, true): "old"
      case (true, false): "new"
      // An agent that starts adopts one family after the other.
      case (false, false): "one for each family"
      case (true, true): "not to be told"
      }
    inForce[world, default: 0] += 1
  }
}

/// Packets that have something to meet in any of some tables.
private struct PacketSource {
  private let keys: [IPFamily: [FrontendKey]]
  /// Those of the Service that an edit was about, by its own addresses and ports.
  private let favourites: [IPFamily: [FrontendKey]]

  init(_ worlds: [Tables], favourite service: Int?) {
    var (keys, favourites): ([IPFamily: [FrontendKey]], [IPFamily: [FrontendKey]]) = ([:], [:])
    for family in IPFamily.allCases {
      let address = service.map { World.clusterIP(family, $0) }
      var all: [String: FrontendKey] = [:]
      var chosen: [String: FrontendKey] = [:]
      for tables in worlds {
        let own = tables.services.frontends.filter { $0.key.destination == address.map(FrontendAddress.address) }
        let ids = Set(own.values.map(\.service))
        for (key, frontend) in tables.services.frontends where key.destination.family == family {
          all["\(key)"] = key
          if ids.contains(frontend.service) { chosen["\(key)"] = key }
        }
      }
      // Sorted: the same seed must send the same packets, and a dictionary's order is another in every process.
      keys[family] = all.sorted { $0.key < $1.key }.map(\.value)
      favourites[family] = chosen.sorted { $0.key < $1.key }.map(\.value)
    }
    (self.keys, self.favourites) = (keys, favourites)
  }

  func packet(port: UInt16, using random: inout SeededGenerator) -> (packet: Packet, pod: Int?) {
    let family = random.pick(IPFamily.allCases)
    let all = keys[family] ?? []
    let chosen = favourites[family] ?? []
    var proto: L4Protocol = random.chance(50) ? .tcp : .udp
    var destination: IPAddress
    var destinationPort: Int
    func meet(_ key: FrontendKey) {
      proto = key.proto
      destinationPort = Int(key.port.number)
      switch key.destination {
      case .address(let address): destination = address
      case .node: destination = random.pick(World.nodeAddresses(family))
      }
    }
    (destination, destinationPort) = (PacketRig.remotePod(family, 1), 8080)
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<35 where !chosen.isEmpty: meet(random.pick(chosen))
    case 0..<78 where !all.isEmpty: meet(random.pick(all))
    case 78..<84:
      // An address that some Service may have, on a port that none has.
      (destination, destinationPort) = (World.clusterIP(family, Int.random(in: 1...24, using: &random)), 4711)
    case 84..<89:
      let unused = family == .v4 ? ["10.96.0.200", "10.97.0.9"] : ["fd00:10:96::200", "fd00:10:97::9"]
      (destination, destinationPort) = (ip(random.pick(unused)), 80)
    case 89..<92: (destination, destinationPort) = (random.pick(World.nodeAddresses(family)), random.pick([30001, 5]))
    default:
      destination = random.pick([
        PacketRig.pod(family, 1), PacketRig.remotePod(family, 2), PacketRig.external(family),
        World.virtualIP(family, 3), ip(family == .v4 ? "10.244.3.4" : "fd00:10:244:3::4"),
      ])
    }
    let origin = random.pick(Origin.allCases)
    var pod: Int?
    let source: IPAddress
    switch origin {
    case .pod:
      let sender = Int.random(in: 0..<PacketRig.podCount, using: &random)
      pod = sender
      source =
        random.chance(5)
        ? random.pick([PacketRig.external(family), PacketRig.remotePod(family, 1)]) : PacketRig.pod(family, sender)
    case .host: source = random.pick(World.nodeAddresses(family))
    case .outside:
      source = random.pick([
        PacketRig.gateway(family), PacketRig.external(family, 1), PacketRig.external(family, 200),
        PacketRig.remotePod(family, 3),
      ])
    }
    return (
      Packet(
        origin: origin, source: source, destination: destination, proto: proto, sourcePort: port,
        destinationPort: UInt16(destinationPort)), pod
    )
  }
}

/// Who sticks to what, as far as outcomes tell. Timeouts are longer than the test.
private struct StickyClients {
  private var state = AffinityState()
  /// Services that began, or ceased, to be sticky with the edit at hand: nobody knows whom the kernel remembers.
  var isUncertain: Set<ServicePortID> = []

  /// Forgets the clients of Services whose affinity an edit changed, Services that come and go among them.
  mutating func forgetChanged(from old: Tables, to new: Tables) {
    let (before, after) = (Self.timeouts(old), Self.timeouts(new))
    isUncertain = Set(before.keys).union(after.keys).filter { before[$0] != after[$0] }
    state.entries = state.entries.filter { !isUncertain.contains($0.key.service) }
  }

  private static func timeouts(_ tables: Tables) -> [ServicePortID: UInt32?] {
    Dictionary(tables.services.sets.map { ($0.key.service, $0.value.affinityTimeout) }) { first, _ in first }
  }

  func permitted(_ packet: Packet, _ worlds: [Tables]) -> Set<ServiceOutcome> {
    worlds.reduce(into: []) { $0.formUnion($1.walk(packet, affinity: state)) }
  }

  mutating func note(_ packet: Packet, _ outcome: PacketRig.Outcome, _ worlds: [Tables]) {
    guard case .tracked(let flow) = outcome, let port = Port(flow.reply.sourcePort) else { return }
    let services = Set(worlds.map { $0.owner(of: packet) })
    for case .some(let service) in services where !isUncertain.contains(service) {
      guard worlds.contains(where: { $0.isSticky(service) }) else { continue }
      // Where an edit hands the address on, the flow may have been any owner's.
      state.entries[.init(client: packet.source, service: service)] =
        services.count == 1 ? SocketAddress(flow.reply.source, port) : nil
    }
  }
}

extension Tables {
  /// Which Service port has the packet's destination, written anew from the order of claims.
  fileprivate func owner(of packet: Packet) -> ServicePortID? {
    guard let port = Port(packet.destinationPort) else { return nil }
    var claims = [services.frontends[FrontendKey(.address(packet.destination), packet.proto, port)]]
    if node.nodePortAddresses.contains(packet.destination) {
      claims.append(services.frontends[FrontendKey(.node(packet.destination.family), packet.proto, port)])
    }
    return claims.compactMap { $0 }.min { $0.kind < $1.kind }?.service
  }

  fileprivate func isSticky(_ service: ServicePortID) -> Bool {
    IPFamily.allCases.contains { family in
      BackendScope.allCases.contains { scope in
        services.sets[BackendSetID(service: service, scope: scope, family: family)]?.affinityTimeout != nil
      }
    }
  }
}
