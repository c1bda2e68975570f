import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// `walk` is the tables' meaning for Services; what the compiled programs make of a flow's first packet has to be one of
/// its outcomes, and the answer has to come back as from whom was asked.
@Suite("Services in BPF") struct PacketServiceTests {
  static let seeds: [UInt64] = [
    20_261_121, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]

  private static let rounds = RandomAmount.of(200)

  @Test(
    "20,000 flows of pods and from outside end as walk says, and their answers find back",
    .enabled(if: PacketRunner.canForward, PacketRunner.forwardsNothing), arguments: seeds)
  func flows(seed: UInt64) throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("services-\(seed)")
    let start = ContinuousClock.now
    let (failures, seen) = try network.namespace.run { try Self.check(seed: seed, pins) }
    #expect(failures == [], "seed \(seed)")
    let answers = seen.filter { $0.key.hasPrefix("translated") || $0.key.hasPrefix("untouched") }.values.reduce(0, +)
    print(
      "services in BPF: seed \(seed), \(Self.rounds * 100) flows and \(answers) answers in \(PacketPolicyTests.seconds(since: start)): "
        + seen.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    guard seed == Self.seeds[0] else { return }
    for kind in [
      "translated, source kept", "translated, masqueraded", "translated, source of the node", "untouched, source kept",
      "untouched, masqueraded", "rejected noEndpoint", "rejected undefinedPort", "dropped sourceRange",
      "dropped noLocalEndpoint", "dropped unallocatedServiceAddress", "dropped forgedSource", "hairpin",
    ] {
      #expect(seen[kind, default: 0] >= RandomAmount.of(50), "\(kind): \(seen)")
    }
  }

  private static func check(seed: UInt64, _ pins: PinFolder) throws -> (failures: [String], seen: [String: Int]) {
    var services = RandomServices(seed: seed, podCookie: 7)
    let nodes = RandomServices.nodeAddresses
    let runner = try PacketRunner(
      services.tables, pins: pins, masquerade: Uplink(v4: nodes.of(.v4), v6: nodes.of(.v6)))
    defer { try? runner.engine.cleanUp() }
    var affinity = AffinityState()
    var (failures, seen): ([String], [String: Int]) = ([], [:])
    for round in 0..<rounds {
      for index in 0..<100 {
        var packet = services.routedPacket()
        packet.sourcePort = UInt16(1024 + (round * 100 + index) % 60000)
        let trial = Trial(packet, services, affinity)
        if let failure = try trial.run(runner, &seen, &affinity) { failures.append("\(packet): \(failure)") }
        if failures.count >= 5 { return (failures, seen) }
      }
      try runner.apply(services.mutate())
      try runner.forgetFlows()
    }
    let drift = try runner.engine.verify(services.tables)
    if !drift.isEmpty { failures.append("drift: \(drift.prefix(5))") }
    return (failures, seen)
  }

  private struct Trial {
    let packet: Packet
    let services: RandomServices
    let outcomes: Set<ServiceOutcome>
    var tables: Tables { services.tables }

    init(_ packet: Packet, _ services: RandomServices, _ affinity: AffinityState) {
      (self.packet, self.services) = (packet, services)
      outcomes = services.tables.walk(packet, affinity: affinity)
    }

    /// What is wrong; nil: nothing.
    func run(
      _ runner: PacketRunner, _ seen: inout [String: Int], _ affinity: inout AffinityState
    ) throws -> String? {
      let probe = ProbePacket(
        source: packet.source, destination: packet.destination,
        content: content(packet.sourcePort, packet.destinationPort, .synchronize))
      let place: PacketPlace = packet.origin == .pod ? .pod("slc0") : .outside
      let journey = try runner.travel(PacketRunner.frame(probe.bytes(number: 1), from: podMAC), from: place)
      guard let outcome = outcome(of: journey, &seen) else { return "\(Self.words(journey)), not \(outcomes)" }
      guard case .arrived(let end, let frame) = journey, let arrived = SeenPacket(frame) else { return nil }
      if case .translated(let backend, _) = outcome, let service = services.service(of: packet) {
        affinity.entries[.init(client: packet.source, service: service)] = backend
        if backend.address == packet.source { seen["hairpin", default: 0] += 1 }
      }
      return try checkAnswer(runner, arrived, at: end)
    }

    private func content(_ source: UInt16, _ destination: UInt16, _ flags: ProbeContent.TCPFlags) -> ProbeContent {
      packet.proto == .tcp
        ? .tcp(source: source, destination: destination, flags) : .udp(source: source, destination: destination)
    }

    private func outcome(of journey: PacketRunner.Journey, _ seen: inout [String: Int]) -> ServiceOutcome? {
      outcomes.first { outcome in
        switch (outcome, journey) {
        case (.dropped(let reason), .dropped(let number)):
          guard number == Self.numbers[reason] else { return false }
          seen["dropped \(reason)", default: 0] += 1
          return true
        case (.rejected(let reason), .answered(let frame)):
          guard let answer = SeenPacket(frame), isRefusal(answer) else { return false }
          seen["rejected \(reason)", default: 0] += 1
          return true
        case (.translated(let backend, let source), .arrived(let place, let frame)):
          guard let arrived = SeenPacket(frame), arrived.checksumsAreRight, arrived.destination == backend.address,
            arrived.destinationPort == backend.port.number, place == Trial.place(of: backend.address, tables),
            isTranslated(source, arrived)
          else { return false }
          seen["translated, \(Self.words(source))", default: 0] += 1
          return true
        case (.untouched(let source), .arrived(let place, let frame)):
          guard let arrived = SeenPacket(frame), arrived.checksumsAreRight, arrived.destination == packet.destination,
            arrived.destinationPort == packet.destinationPort,
            place == Trial.place(of: packet.destination, tables), isTranslated(source, arrived)
          else { return false }
          seen["untouched, \(Self.words(source))", default: 0] += 1
          return true
        default: return false
        }
      }
    }

    private static func place(of address: IPAddress, _ tables: Tables) -> PacketPlace {
      if let endpoint = tables.node.endpoint(with: address) { return .pod(endpoint.interface) }
      return tables.node.ownAddresses.contains(address) ? .node : .outside
    }

    private func isTranslated(_ source: SourceTranslation, _ arrived: SeenPacket) -> Bool {
      let wanted: IPAddress? =
        switch source {
        case .kept: nil
        case .masquerade: RandomServices.nodeAddresses.of(packet.source.family)
        case .to(let address): address
        }
      guard let wanted else { return arrived.source == packet.source && arrived.sourcePort == packet.sourcePort }
      return arrived.source == wanted && (61000...65535).contains(arrived.sourcePort)
    }

    private func isRefusal(_ answer: SeenPacket) -> Bool {
      guard answer.source == packet.destination, answer.destination == packet.source, answer.checksumsAreRight else {
        return false
      }
      guard packet.proto == .tcp else { return answer.icmpType == (packet.source.family == .v4 ? 3 : 1) }
      return answer.tcpFlags == 0x14 && answer.sourcePort == packet.destinationPort
        && answer.destinationPort == packet.sourcePort
    }

    /// Who answers, answers what has arrived; the client has to be told whom it asked.
    private func checkAnswer(_ runner: PacketRunner, _ arrived: SeenPacket, at end: PacketPlace) throws -> String? {
      let answer = ProbePacket(
        source: arrived.destination, destination: arrived.source,
        content: content(arrived.destinationPort, arrived.sourcePort, [.synchronize, .acknowledge]))
      let frame = PacketRunner.frame(answer.bytes(number: 2), from: podMAC)
      let journey = end == .node ? try runner.travelFromNode(frame) : try runner.travel(frame, from: end)
      guard case .arrived(let place, let back) = journey, let seen = SeenPacket(back) else {
        return "the answer \(answer) ended as \(Self.words(journey))"
      }
      let client: PacketPlace = packet.origin == .pod ? .pod("slc0") : .outside
      guard place == client, seen.checksumsAreRight, seen.source == packet.destination,
        seen.sourcePort == packet.destinationPort, seen.destination == packet.source,
        seen.destinationPort == packet.sourcePort
      else { return "the answer arrived at \(place) as \(seen)" }
      return nil
    }

    private static func words(_ journey: PacketRunner.Journey) -> String {
      switch journey {
      case .arrived(let place, let frame): "at \(place) as \(SeenPacket(frame).map { "\($0)" } ?? "?")"
      case .dropped(let reason): "dropped \(reason)"
      case .answered(let frame): "answered \(SeenPacket(frame).map { "\($0)" } ?? "?")"
      }
    }

    private static func words(_ source: SourceTranslation) -> String {
      switch source {
      case .kept: "source kept"
      case .masquerade: "masqueraded"
      case .to: "source of the node"
      }
    }

    private static let numbers: [DropReason: UInt8] = [
      .sourceRange: 1, .noLocalEndpoint: 2, .unallocatedServiceAddress: 3, .forgedSource: 4,
    ]
  }
}
