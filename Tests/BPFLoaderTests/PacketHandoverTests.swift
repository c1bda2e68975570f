import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// Flows on their way from one engine to another, and programs while engines change.
@Suite("Handing over from and to BPF") struct PacketHandoverTests {
  @Test(
    "flows that are told and told back go on as before: same backend, same masquerade, both directions",
    .enabled(if: PacketRunner.canForward, PacketRunner.forwardsNothing))
  func flows() throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("handover")
    let (failures, seen) = try network.namespace.run { try Self.checkFlows(pins) }
    #expect(failures == [])
    print("handed over: \(seen.sorted { $0.key < $1.key })")
    for kind in ["direct", "balanced", "masqueraded", "balanced and masqueraded"] {
      #expect(seen[kind, default: 0] > RandomAmount.of(50), "\(seen)")
    }
  }

  /// A flow's first packet as it was sent, and as it and its answer arrived.
  private struct Flow {
    var packet: Packet
    var place: PacketPlace
    var arrived: SeenPacket
    var end: PacketPlace
    var answer: SeenPacket
  }

  private static func checkFlows(_ pins: PinFolder) throws -> (failures: [String], seen: [String: Int]) {
    let services = RandomServices(seed: 20_261_122, podCookie: 7)
    let nodes = RandomServices.nodeAddresses
    let runner = try PacketRunner(
      services.tables, pins: pins, masquerade: Uplink(v4: nodes.of(.v4), v6: nodes.of(.v6)))
    defer { try? runner.engine.cleanUp() }
    var random = services
    var flows: [Flow] = []
    // Where a machine is emulated, datagram flows of so many would be over before the last is seen again.
    for index in 0..<RandomAmount.of(4000) {
      var packet = random.routedPacket()
      guard packet.proto != .sctp else { continue }
      packet.sourcePort = UInt16(1024 + index)
      let place: PacketPlace = packet.origin == .pod ? .pod("slc0") : .outside
      if let flow = try exchange(runner, packet, place, .synchronize, [.synchronize, .acknowledge]) {
        flows.append(flow)
      }
    }
    let handed = try runner.engine.flows.handed()
    try runner.forgetFlows()
    try runner.engine.flows.add(handed)
    var (failures, seen): ([String], [String: Int]) = ([], [:])
    // Nothing that was said of them is lost on the way.
    if Set(try runner.engine.flows.handed()) != Set(handed) { failures.append("told again, flows are others") }
    for flow in handed {
      let isBalanced = flow.judged != flow.original
      let isMasqueraded = flow.judged.reversed != flow.reply
      let kind = [isBalanced ? "balanced" : nil, isMasqueraded ? "masqueraded" : nil].compactMap { $0 }
      seen[kind.isEmpty ? "direct" : kind.joined(separator: " and "), default: 0] += 1
    }
    for flow in flows {
      let again = try exchange(runner, flow.packet, flow.place, .acknowledge, .acknowledge)
      guard
        again?.arrived.source != flow.arrived.source || again?.arrived.sourcePort != flow.arrived.sourcePort
          || again?.arrived.destination != flow.arrived.destination
          || again?.arrived.destinationPort != flow.arrived.destinationPort || again?.end != flow.end
          || again?.answer.source != flow.answer.source || again?.answer.sourcePort != flow.answer.sourcePort
      else { continue }
      failures.append("\(flow.packet): was \(flow.arrived), is \(again.map { "\($0.arrived)" } ?? "nothing")")
      if failures.count >= 5 { break }
    }
    return (failures, seen)
  }

  /// Sends one packet, and what answers it. nil where either does not arrive.
  private static func exchange(
    _ runner: PacketRunner, _ packet: Packet, _ place: PacketPlace, _ flags: ProbeContent.TCPFlags,
    _ answering: ProbeContent.TCPFlags
  ) throws -> Flow? {
    func content(_ source: UInt16, _ destination: UInt16, _ flags: ProbeContent.TCPFlags) -> ProbeContent {
      packet.proto == .tcp
        ? .tcp(source: source, destination: destination, flags) : .udp(source: source, destination: destination)
    }
    let probe = ProbePacket(
      source: packet.source, destination: packet.destination,
      content: content(packet.sourcePort, packet.destinationPort, flags))
    guard
      case .arrived(let end, let frame) = try runner.travel(
        PacketRunner.frame(probe.bytes(number: 1), from: podMAC), from: place),
      // What ends at the node itself, or comes from there, no program follows all the way.
      end != .node, let arrived = SeenPacket(frame)
    else { return nil }
    let reply = ProbePacket(
      source: arrived.destination, destination: arrived.source,
      content: content(arrived.destinationPort, arrived.sourcePort, answering))
    guard
      case .arrived(_, let back) = try runner.travel(
        PacketRunner.frame(reply.bytes(number: 2), from: podMAC), from: end), let answer = SeenPacket(back)
    else { return nil }
    return Flow(packet: packet, place: place, arrived: arrived, end: end, answer: answer)
  }

  @Test("programs that stand aside let all pass as it is; held packets are dropped by name until their time is over")
  func modes() throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("modes")
    try network.namespace.run {
      let services = RandomServices(seed: 5, podCookie: 7)
      let runner = try PacketRunner(services.tables, pins: pins)
      defer { try? runner.engine.cleanUp() }
      let flows = runner.engine.flows
      // Nobody's address: forged.
      let stranger = ProbePacket(
        source: IPAddress("203.0.113.9").unsafelyUnwrapped, destination: IPAddress("203.0.113.10").unsafelyUnwrapped,
        content: .udp(source: 1000, destination: 2000))
      let frame = PacketRunner.frame(stranger.bytes(number: 1), from: podMAC)
      #expect(try runner.run(.fromPod, at: "slc0", frame).verdict == .dropped(4))

      try flows.setMode(aside: true)
      #expect(try flows.standsAside)
      for (program, device) in [
        (PacketRunner.Program.fromPod, "slc0"), (.toPod, "slc0"), (.fromWire, PacketRunner.uplink),
        (.toWire, PacketRunner.uplink),
      ] {
        let result = try runner.run(program, at: device, frame)
        #expect(result.verdict == .passed && result.frame.dropFirst(6) == frame.dropFirst(6), "\(program)")
      }
      let drift = try runner.engine.verify(services.tables)
      #expect(drift.isEmpty, "\(drift)")

      // For a Service, from outside: what it begins now only one engine would know.
      let frontend = try #require(
        services.tables.services.frontends.keys.compactMap { key -> (address: IPAddress, port: UInt16)? in
          guard case .address(let address) = key.destination, address.family == .v4, key.proto == .udp else {
            return nil
          }
          return (address, key.port.number)
        }.first)
      let asking = ProbePacket(
        source: IPAddress("203.0.113.9").unsafelyUnwrapped, destination: frontend.address,
        content: .udp(source: 1000, destination: frontend.port))
      let asked = PacketRunner.frame(asking.bytes(number: 2), from: podMAC)
      let held = UInt8(1 + (DropReason.allCases.firstIndex(of: .engineSwitch) ?? 0))
      for aside in [true, false] {
        try flows.setMode(aside: aside, held: .milliseconds(400))
        #expect(try flows.standsAside == aside)
        for program in [PacketRunner.Program.fromPod, .toPod] {
          #expect(try runner.run(program, at: "slc0", frame).verdict == .dropped(held), "\(program), \(aside)")
        }
        let verdict = try runner.run(.fromWire, at: PacketRunner.uplink, asked).verdict
        #expect(verdict == .dropped(held), "\(aside): \(verdict)")
        // The node's own connections do not wait.
        #expect(try runner.run(.fromWire, at: PacketRunner.uplink, frame).verdict == .passed)
        let deadline = ContinuousClock.now + .seconds(2)
        while try runner.run(.fromPod, at: "slc0", frame).verdict == .dropped(held) {
          try #require(ContinuousClock.now < deadline, "held for ever")
          usleep(10_000)
        }
        #expect(try runner.run(.fromPod, at: "slc0", frame).verdict == (aside ? .passed : .dropped(4)))
      }
      #expect(try runner.engine.counters().drops[.init(.engineSwitch)].map { $0.packets > 0 } == true)
    }
  }

  @Test(
    "flows that are one between their translations are told apart, in whatever order they are told"
  )
  func separate() throws {
    func tuple(_ source: String, _ sourcePort: UInt16, _ destination: String, _ port: UInt16) throws -> ConntrackTuple {
      ConntrackTuple(
        source: try #require(IPAddress(source)), destination: try #require(IPAddress(destination)), protocolNumber: 6,
        sourcePort: sourcePort, destinationPort: port)
    }
    func flow(_ original: ConntrackTuple, _ reply: ConntrackTuple, _ state: FlowState = .open) -> HandedFlow {
      HandedFlow(original: original, reply: reply, state: state, isFromHost: false, set: nil)
    }
    let (client, backend, node) = ("10.244.1.1", "10.244.2.1", "192.168.100.11")
    let service = flow(try tuple(client, 2000, "10.96.0.1", 80), try tuple(backend, 8081, client, 2000))
    // Netfilter has given it another port for the backend.
    let direct = flow(try tuple(client, 2000, backend, 8081), try tuple(backend, 8081, client, 40_000))
    let nodePort = try tuple(client, 2000, node, 30080)
    let (early, late) = (
      flow(nodePort, try tuple(backend, 8081, node, 2000), .opening),
      flow(nodePort, try tuple(backend, 8081, node, 2000))
    )
    #expect(early.judged == service.judged, "or this proves nothing")
    var separate = SeparateFlows()
    let first = separate.separated([early, service, direct])
    #expect(Set(first.map(\.judged)).count == 3, "\(first.map(\.judged))")
    #expect(first.first { $0.original == service.original }?.judged == service.reply.reversed)
    #expect(first.first { $0.original == direct.original }?.judged == direct.reply.reversed)
    // It was answered meanwhile.
    let second = separate.separated([late])
    #expect(second.map(\.judged) == first.filter { $0.original == nodePort }.map(\.judged))
    #expect(second.first?.judged.sourcePort != 2000)
  }
}
