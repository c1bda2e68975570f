import DataplaneModel
import Glibc
import NetworkTypes
import Testing

@testable import BPFLoader

/// Real sockets of real processes, in a cgroup of their own; where they arrive is what the server at the other end sees.
@Suite("Services at the socket") struct SocketBalancerTests {
  static let seeds: [UInt64] = [
    20_261_121, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]

  private enum Call: String { case connect, send }

  /// What `walk` permits, as the program at the socket sees it: what is left to packets arrives where it was sent. That
  /// nobody is there only connect(2) can say at once.
  private static func permitted(
    _ outcome: ServiceOutcome, _ packet: Packet, _ call: Call, _ features: KernelFeatures
  ) -> Arrival? {
    switch outcome {
    case .translated(let backend, _): .at(backend)
    case .rejected(.noEndpoint) where call == .connect && features.socketErrors: .refused(ECONNREFUSED)
    case .rejected, .dropped, .untouched:
      Port(packet.destinationPort).map { .at(SocketAddress(packet.destination, $0)) }
    }
  }

  @Test(
    "6,000 connect and sendto calls of pods and of the node arrive where walk says, while Services change",
    arguments: seeds)
  func connections(seed: UInt64) throws {
    let (pod, host) = (try Everywhere(), try Everywhere())
    var services = RandomServices(seed: seed, podCookie: pod.cookie)
    var balancer = try SocketBalancer(
      pins: try Surroundings.pins("walk-\(seed)"), cgroup: try Surroundings.cgroup, hostCookie: host.cookie)
    _ = try balancer.resync(services.tables)
    let features = balancer.features
    var affinity = AffinityState()
    var (seen, calls): ([String: Int], [String: Int]) = ([:], [:])
    let start = ContinuousClock.now
    let rounds = RandomAmount.of(100)
    for _ in 0..<rounds {
      for number in 0..<60 {
        let packet = services.packet()
        let destination = SocketAddress(packet.destination, try #require(Port(packet.destinationPort)))
        let outcomes = services.tables.walk(packet, affinity: affinity)
        let place = packet.origin == .pod ? pod : host
        let call = packet.proto == .udp && number % 2 == 0 ? Call.send : .connect
        let arrival =
          call == .send ? try place.send(to: destination) : try place.connect(to: destination, packet.proto)
        calls["\(call.rawValue) \(packet.proto) \(destination.address.family)", default: 0] += 1
        let permitted = Set(outcomes.compactMap { Self.permitted($0, packet, call, features) })
        #expect(permitted.contains(arrival), "seed \(seed): \(call) \(packet): \(arrival), not \(permitted)")
        seen[outcomes.first.map(Self.kind) ?? "", default: 0] += 1
        if case .at(let backend) = arrival, let service = services.service(of: packet) {
          let key = AffinityState.Key(client: packet.source, service: service)
          if outcomes.contains(where: { if case .translated(backend, _) = $0 { true } else { false } }) {
            affinity.entries[key] = backend
          }
        }
      }
      let delta = services.mutate()
      _ = try balancer.apply(delta, tables: services.tables)
    }
    let drift = try balancer.verify(services.tables)
    #expect(drift == [])
    try balancer.cleanUp()
    print(
      "sockets in BPF: seed \(seed), \(rounds * 60) calls in \(PacketPolicyTests.seconds(since: start)): \(calls) \(seen)"
    )
    guard seed == Self.seeds[0] else { return }
    for kind in ["translated", "untouched", "rejected", "dropped"] {
      #expect(seen[kind] ?? 0 > RandomAmount.of(50), "\(seen)")
    }
    #expect(calls.count == 6 && calls.values.allSatisfy { $0 > RandomAmount.of(300) }, "\(calls)")
  }

  private static func kind(_ outcome: ServiceOutcome) -> String {
    switch outcome {
    case .translated: "translated"
    case .untouched: "untouched"
    case .rejected: "rejected"
    case .dropped: "dropped"
    }
  }
}

extension RandomServices {
  func service(of packet: Packet) -> ServicePortID? {
    guard let port = Port(packet.destinationPort) else { return nil }
    let (byAddress, nodePort) = (
      tables.services.frontends[FrontendKey(.address(packet.destination), packet.proto, port)],
      tables.node.nodePortAddresses.contains(packet.destination)
        ? tables.services.frontends[FrontendKey(.node(packet.destination.family), packet.proto, port)] : nil
    )
    guard let byAddress else { return nodePort?.service }
    return nodePort.map { byAddress.kind < $0.kind ? byAddress : $0 }?.service ?? byAddress.service
  }
}
