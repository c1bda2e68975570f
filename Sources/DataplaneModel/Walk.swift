import NetworkTypes

/// Where a packet comes from. An origin, never an address: what was generated on this node is `host`.
public enum Origin: Sendable, Hashable, CaseIterable {
  case pod
  case host
  case outside
}

/// The first packet of a flow, as it meets this node.
public struct Packet: Sendable, Hashable, CustomStringConvertible {
  public var origin: Origin
  public var source: IPAddress
  public var destination: IPAddress
  public var proto: L4Protocol
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  /// The local pod's device it came in by; nil: that of whichever pod has the source address.
  public var interface: String?

  public init(
    origin: Origin, source: IPAddress, destination: IPAddress, proto: L4Protocol, sourcePort: UInt16,
    destinationPort: UInt16, interface: String? = nil
  ) {
    self.interface = interface
    self.origin = origin
    self.source = source
    self.destination = destination
    self.proto = proto
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
  }

  public var description: String {
    "\(origin) \(source):\(sourcePort) -> \(destination):\(destinationPort)/\(proto)"
  }
}

/// What becomes of a flow's source address.
public enum SourceTranslation: Sendable, Hashable, CustomStringConvertible {
  case kept
  /// The address of the device the flow leaves by.
  case masquerade
  /// This address: towards a local pod, whose device has none to take.
  case to(IPAddress)

  public var description: String {
    switch self {
    case .kept: "source kept"
    case .masquerade: "masqueraded"
    case .to(let address): "source \(address)"
    }
  }
}

/// One permitted outcome of a flow's first packet.
public enum ServiceOutcome: Sendable, Hashable, CustomStringConvertible {
  case translated(to: SocketAddress, source: SourceTranslation)
  /// No Service: routed on as it is.
  case untouched(source: SourceTranslation)
  case rejected(RejectReason)
  case dropped(DropReason)

  public var description: String {
    switch self {
    case .translated(let backend, let source): "to \(backend), \(source)"
    case .untouched(let source): "untouched, \(source)"
    case .rejected(let reason): "rejected: \(reason.rawValue)"
    case .dropped(let reason): "dropped: \(reason.rawValue)"
    }
  }
}

/// Who sticks to what: the affinity entries in force at the moment of the walk.
public struct AffinityState: Sendable, Equatable {
  public struct Key: Sendable, Hashable {
    public var client: IPAddress
    public var service: ServicePortID
    public init(client: IPAddress, service: ServicePortID) {
      self.client = client
      self.service = service
    }
  }
  public var entries: [Key: SocketAddress]
  public init(entries: [Key: SocketAddress] = [:]) { self.entries = entries }
}

extension Tables {
  /// The meaning of the tables for the first packet of a flow: every outcome that an engine may show, and no other.
  ///
  /// Packets of flows that exist already follow what their first packet met.
  public func walk(_ packet: Packet, affinity: AffinityState = AffinityState()) -> Set<ServiceOutcome> {
    if packet.origin == .pod, isForged(packet) { return [.dropped(.forgedSource)] }
    // Only this node sends from its own addresses, and only its pods from theirs.
    if packet.origin == .outside, node.ownAddresses.contains(packet.source) || node.isLocalPod(packet.source) {
      return [.dropped(.forgedSource)]
    }
    guard let frontend = frontend(for: packet) else {
      let destination = CIDR(host: packet.destination)
      if services.serviceAddresses.contains(packet.destination) { return [.rejected(.undefinedPort)] }
      let isAnothers = services.otherAddresses.contains(packet.destination)
      if !isAnothers, services.serviceRanges.contains(where: { $0.contains(destination) }) {
        return [.dropped(.unallocatedServiceAddress)]
      }
      return [.untouched(source: leavesCluster(packet, to: packet.destination) ? .masquerade : .kept)]
    }
    if let ranges = frontend.sourceRanges, !ranges.contains(where: { $0.contains(packet.source) }) {
      return [.dropped(.sourceRange)]
    }
    let scope = packet.origin == .outside ? frontend.outsideScope : frontend.nodeScope
    let id = BackendSetID(service: frontend.service, scope: scope, family: packet.destination.family)
    guard let set = services.sets[id], !set.backends.isEmpty else {
      return services.sets[id]?.emptyAction == .drop ? [.dropped(.noLocalEndpoint)] : [.rejected(.noEndpoint)]
    }
    var candidates = set.backends
    // A socket that connects has no port yet, and is balanced at random.
    if set.maglev != nil, packet.sourcePort != 0 {
      candidates = [set.backend(ofSlot: MaglevTable.slot(client: packet.source, port: packet.sourcePort))]
    }
    if set.affinityTimeout != nil,
      let stuck = affinity.entries[.init(client: packet.source, service: frontend.service)],
      set.backends.contains(stuck)
    {
      candidates = [stuck]
    }
    return Set(
      candidates.map { .translated(to: $0, source: sourceTranslation(of: packet, via: frontend, to: $0)) })
  }

  private func frontend(for packet: Packet) -> Frontend? {
    let (proto, port) = (packet.proto, Port(packet.destinationPort))
    guard let port else { return nil }
    let byAddress = services.frontends[FrontendKey(.address(packet.destination), proto, port)]
    guard node.nodePortAddresses.contains(packet.destination),
      let nodePort = services.frontends[FrontendKey(.node(packet.destination.family), proto, port)]
    else { return byAddress }
    // An address of this node that some Service also claims: the same order as between any two claims.
    guard let byAddress, byAddress.kind < nodePort.kind else { return nodePort }
    return byAddress
  }

  private func sourceTranslation(of packet: Packet, via frontend: Frontend, to backend: SocketAddress)
    -> SourceTranslation
  {
    // A pod in this node's network: the flow ends here, and what only passes through is translated.
    if packet.origin != .host, isOwn(backend.address) { return .kept }
    let isHairpin = packet.origin == .pod && packet.source == backend.address
    let masquerades =
      switch (packet.origin, frontend.masquerade) {
      case (_, .always), (.host, _), (.outside, .exceptPods): true
      case (.pod, .exceptPods), (.pod, .hostOnly), (.outside, .hostOnly): false
      }
    guard isHairpin || masquerades || leavesCluster(packet, to: backend.address) else { return .kept }
    if node.isLocalPod(backend.address), let address = node.internalAddresses[backend.address.family] {
      return .to(address)
    }
    return .masquerade
  }

  /// Pod traffic that leaves the cluster takes the node's address: nobody outside has a route back to a pod.
  private func leavesCluster(_ packet: Packet, to destination: IPAddress) -> Bool {
    guard packet.origin == .pod, !isOwn(destination), !destination.isMulticast, !destination.isLinkLocal else {
      return false
    }
    let ranges = node.clusterRanges.filter { $0.family == destination.family }
    return !ranges.isEmpty && !ranges.contains { $0.contains(destination) }
  }

  private func isOwn(_ address: IPAddress) -> Bool {
    node.internalAddresses[address.family] == address || node.nodePortAddresses.contains(address)
  }

  private func isForged(_ packet: Packet) -> Bool {
    guard let interface = packet.interface else { return !node.isLocalPod(packet.source) }
    return node.endpoints[interface]?.addresses.contains(packet.source) != true
  }
}
