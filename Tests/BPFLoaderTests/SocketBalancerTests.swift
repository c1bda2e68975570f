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

  /// What `walk` permits, as the program at the socket sees it: what is left to packets arrives where it was sent.
  private static func permitted(_ outcome: ServiceOutcome, _ packet: Packet) -> Arrival? {
    switch outcome {
    case .translated(let backend, _): .at(backend)
    case .rejected(.noEndpoint): .refused(ECONNREFUSED)
    case .rejected, .dropped, .untouched:
      Port(packet.destinationPort).map { .at(SocketAddress(packet.destination, $0)) }
    }
  }

  @Test("5,000 connections of pods and of the node arrive where walk says, while Services change", arguments: seeds)
  func connections(seed: UInt64) throws {
    let (pod, host) = (try Everywhere(), try Everywhere())
    var services = RandomServices(seed: seed, podCookie: pod.cookie)
    var balancer = try SocketBalancer(
      pins: try Surroundings.pins("walk-\(seed)"), cgroup: try Surroundings.cgroup, hostCookie: host.cookie)
    _ = try balancer.resync(services.tables)
    var affinity = AffinityState()
    var seen: [String: Int] = [:]
    for _ in 0..<100 {
      for _ in 0..<50 {
        let packet = services.packet()
        let destination = SocketAddress(packet.destination, try #require(Port(packet.destinationPort)))
        let outcomes = services.tables.walk(packet, affinity: affinity)
        let arrival = try (packet.origin == .pod ? pod : host).connect(to: destination, packet.proto)
        let permitted = Set(outcomes.compactMap { Self.permitted($0, packet) })
        #expect(permitted.contains(arrival), "seed \(seed): \(packet): \(arrival), not \(permitted)")
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
    print("connections: seed \(seed): \(seen)")
    guard seed == Self.seeds[0] else { return }
    for kind in ["translated", "untouched", "rejected", "dropped"] { #expect(seen[kind] ?? 0 > 50, "\(seen)") }
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
