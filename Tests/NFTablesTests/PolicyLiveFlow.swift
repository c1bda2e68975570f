import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// A TCP or UDP flow of which a test writes both ends.
struct PolicyLiveFlow {
  let name: String
  private let client: PolicyRig.Place
  private let server: PolicyRig.Place
  private let clientAddress: IPAddress
  private let serverAddress: IPAddress
  private let isTCP: Bool
  private let clientPort: UInt16
  private let serverPort: UInt16
  private var clientSequence: UInt32 = 1
  private var serverSequence: UInt32 = 10_000

  /// - Parameters:
  ///   - from: a pod, the node (`host`) or an address outside.
  ///   - proto: TCP or UDP.
  init(_ node: PolicyNode, _ from: String, _ to: String, _ proto: FlowProtocol, _ family: IPFamily) {
    let first = node.trial(from, to, proto, family, arrives: true)
    name = first.name
    client = first.from
    server = first.to ?? .outside
    clientAddress = first.packet.source
    serverAddress = first.packet.destination
    switch first.packet.content {
    case .tcp(let source, let destination, _): (isTCP, clientPort, serverPort) = (true, source, destination)
    case .udp(let source, let destination): (isTCP, clientPort, serverPort) = (false, source, destination)
    default: preconditionFailure("neither TCP nor UDP: \(proto)")
    }
  }

  /// The flow's next packet from one end.
  mutating func next(
    byClient: Bool, arrives: Bool, flags: ProbeContent.TCPFlags = .acknowledge, _ note: String
  ) -> PolicyTrial {
    let (from, to) = byClient ? (clientPort, serverPort) : (serverPort, clientPort)
    var packet = ProbePacket(
      source: byClient ? clientAddress : serverAddress, destination: byClient ? serverAddress : clientAddress,
      content: isTCP ? .tcp(source: from, destination: to, flags) : .udp(source: from, destination: to))
    packet.sequence = byClient ? clientSequence : serverSequence
    packet.acknowledgement = flags.contains(.acknowledge) ? (byClient ? serverSequence : clientSequence) : 0
    // A SYN has a number of its own.
    let length = UInt32(ProbePacket.numberBytes) + (flags.contains(.synchronize) ? 1 : 0)
    if byClient { clientSequence += length } else { serverSequence += length }
    return PolicyTrial(
      "\(note): \(name), by the \(byClient ? "client" : "server")", packet, from: byClient ? client : server,
      to: arrives ? (byClient ? server : client) : nil)
  }

  /// Request, answer and one more packet: to conntrack the flow is established then.
  mutating func open(_ node: PolicyNode, _ findings: inout Findings) throws {
    for (byClient, flags) in [
      (true, .synchronize), (false, [.synchronize, .acknowledge]), (true, .acknowledge),
    ] as [(Bool, ProbeContent.TCPFlags)] {
      try node.check([next(byClient: byClient, arrives: true, flags: flags, "opening")], &findings)
    }
  }

  /// What conntrack has marked the flow with; nil: it does not know it.
  func mark(_ node: PolicyNode) throws -> UInt32? {
    try node.rig.conntrack.entries().first {
      $0.original.source == clientAddress && $0.original.destination == serverAddress
        && $0.original.sourcePort == clientPort && $0.original.destinationPort == serverPort
        && $0.original.protocolNumber == (isTCP ? 6 : 17)
    }?.mark
  }
}

extension [PolicyLiveFlow] {
  /// One packet of each flow by each end.
  ///
  /// - Parameter clientFirst: who speaks first, and so whose packet is the next.
  mutating func speak(
    _ node: PolicyNode, clientFirst: Bool, arrives: Bool, _ note: String, _ findings: inout Findings,
    location: SourceLocation = #_sourceLocation
  ) throws {
    for byClient in [clientFirst, !clientFirst] {
      var trials: [PolicyTrial] = []
      for index in indices { trials.append(self[index].next(byClient: byClient, arrives: arrives, note)) }
      try node.check(trials, &findings, location: location)
    }
  }
}
