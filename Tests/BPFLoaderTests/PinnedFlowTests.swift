import BPFPrograms
import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// Flows read from pins, against what the frames of these flows became.
@Suite("Flows from pins") struct PinnedFlowTests {
  /// What a flow's first frame became on its way.
  private struct Sent: Hashable {
    var proto: UInt8
    var source: TrackedFlow.End
    var destination: TrackedFlow.End
    var backend: TrackedFlow.End?
    var masqueradedAs: TrackedFlow.End?
    var state: FlowState

    var words: String {
      "\(proto) \(source) \(destination) \(backend?.description ?? "-") \(masqueradedAs?.description ?? "-") \(state)"
    }

    init(_ flow: TrackedFlow) {
      (proto, source, destination) = (flow.proto, flow.source, flow.destination)
      // A Service may lead to just what was asked for: frames do not tell that it was balanced.
      backend = flow.backend == flow.destination ? nil : flow.backend
      (masqueradedAs, state) = (flow.masqueradedAs, flow.state)
    }
    init(_ packet: Packet, arrived: SeenPacket, isAnswered: Bool) {
      proto = packet.proto.rawValue
      (source, destination) = (
        .init(packet.source, packet.sourcePort), .init(packet.destination, packet.destinationPort)
      )
      let (from, to) = (
        TrackedFlow.End(arrived.source, arrived.sourcePort),
        TrackedFlow.End(arrived.destination, arrived.destinationPort)
      )
      backend = to == destination ? nil : to
      masqueradedAs = from == source ? nil : from
      state = isAnswered ? .open : .opening
    }
  }

  /// What goes through the node, neither translated nor a pod's, need not be tracked.
  private static func isTracked(_ sent: Sent, _ node: NodeTable) -> Bool {
    sent.backend != nil || sent.masqueradedAs != nil || node.isLocalPod(sent.source.address)
      || node.isLocalPod(sent.destination.address)
  }

  @Test(
    "each flow is told as it was asked for, with its backend and its masquerade, and no other",
    .enabled(if: PacketRunner.canForward, PacketRunner.forwardsNothing))
  func flows() throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("flows")
    let (told, sent) = try network.namespace.run { try Self.sendAndRead(pins) }
    #expect(told.count == Set(told).count)
    let strange = Set(told).subtracting(sent.map(\.flow))
    let missing = Set(sent.filter(\.isTracked).map(\.flow)).subtracting(told)
    #expect(strange.isEmpty, "told, but never sent: \(strange.prefix(3).map(\.words))")
    #expect(missing.isEmpty, "sent, but not told: \(missing.prefix(3).map(\.words))")
    let tracked = sent.filter(\.isTracked).map(\.flow)
    let few = RandomAmount.of(50)
    #expect(tracked.count > RandomAmount.of(300))
    #expect(tracked.count { $0.backend != nil } > few && tracked.count { $0.masqueradedAs != nil } > few)
    for state in [FlowState.open, .opening] { #expect(tracked.count { $0.state == state } > few) }
  }

  private static func sendAndRead(_ pins: PinFolder) throws -> (told: [Sent], sent: [(flow: Sent, isTracked: Bool)]) {
    var services = RandomServices(seed: 20_261_121, podCookie: 7)
    let nodes = RandomServices.nodeAddresses
    let runner = try PacketRunner(
      services.tables, pins: pins, masquerade: Uplink(v4: nodes.of(.v4), v6: nodes.of(.v6)))
    defer { try? runner.engine.cleanUp() }
    var sent: [(flow: Sent, isTracked: Bool)] = []
    // Where a machine is emulated, the first of so many would be over before they are read.
    for index in 0..<RandomAmount.of(1000) {
      var packet = services.routedPacket()
      packet.sourcePort = UInt16(2000 + index)
      let probe = ProbePacket(
        source: packet.source, destination: packet.destination,
        content: content(packet.proto, packet.sourcePort, packet.destinationPort, .synchronize))
      let place: PacketPlace = packet.origin == .pod ? .pod("slc0") : .outside
      let journey = try runner.travel(PacketRunner.frame(probe.bytes(number: 1), from: podMAC), from: place)
      guard case .arrived(let end, let frame) = journey, let arrived = SeenPacket(frame) else { continue }
      let isAnswered = index % 2 == 0
      if isAnswered {
        let answer = ProbePacket(
          source: arrived.destination, destination: arrived.source,
          content: content(packet.proto, arrived.destinationPort, arrived.sourcePort, [.synchronize, .acknowledge]))
        let back = PacketRunner.frame(answer.bytes(number: 2), from: podMAC)
        _ = end == .node ? try runner.travelFromNode(back) : try runner.travel(back, from: end)
      }
      let flow = Sent(packet, arrived: arrived, isAnswered: isAnswered)
      sent.append((flow, isTracked(flow, services.tables.node)))
    }
    var told: [Sent] = []
    try TrackedFlows(pins: pins).forEach { flow in
      told.append(Sent(flow))
      let lifetime: UInt64 = flow.proto == 6 ? (flow.state == .open ? 86400 : 60) : (flow.state == .open ? 120 : 30)
      #expect(flow.silentSeconds < 60 && flow.secondsLeft + flow.silentSeconds == lifetime)
    }
    // What is over is told only to those who ask.
    let maps = runner.engine.maps
    var old = FlowLayout()
    (old.seen, old.state) = (1, FlowState.opening.rawValue)
    for key in try maps.tracking.attempts.keys() { try maps.tracking.attempts.set(key, old) }
    let flows = try TrackedFlows(pins: pins)
    let open = told.count { $0.state == .open }
    if MonotonicClock.now > 200_000_000_000 {
      #expect(try flows.count() == open)
      var all = 0
      try flows.forEach(includingOver: true) { _ in all += 1 }
      #expect(all == told.count)
      let fill = try #require(try MapFill.all(in: pins).first { $0.map == "attempts" })
      #expect(fill.entries == told.count - open && fill.live == 0 && fill.percent == 0)
    }
    return (told, sent)
  }

  private static func content(
    _ proto: L4Protocol, _ source: UInt16, _ destination: UInt16, _ flags: ProbeContent.TCPFlags
  ) -> ProbeContent {
    proto == .tcp
      ? .tcp(source: source, destination: destination, flags) : .udp(source: source, destination: destination)
  }

  @Test("a flow lives as long as the programs say")
  func lifetimes() throws {
    let object = try BPFObject(.endpoint)
    for (name, seconds) in FlowLifetime.seconds {
      #expect(object.constant(name, as: UInt32.self) == seconds, "\(name)")
    }
  }
}
