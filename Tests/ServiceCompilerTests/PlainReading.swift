import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// services.md read aloud, one packet at a time: no tables, no memory, every question asked of all Services. Slow, and
/// written without the compiler's types, so that both can only agree where both are right.
struct PlainReading {
  let state: ClusterState
  let node: NodeTable

  private struct Candidate {
    var service: Service
    var port: ServicePort
    /// 0 ClusterIP, 1 NodePort, 2 LoadBalancer, 3 externalIP.
    var rank: Int
  }

  func outcomes(_ packet: Packet) -> Set<ServiceOutcome> {
    if packet.origin == .pod, !isLocalPod(packet.source) { return [.dropped(.forgedSource)] }
    if packet.origin == .outside, isLocalPod(packet.source) { return [.dropped(.forgedSource)] }
    let ours = state.services.values.filter {
      $0.proxyName == nil && !$0.isHeadless && $0.type != .externalName && !$0.clusterIPs.isEmpty
    }
    guard let winner = ours.flatMap({ candidates($0, packet) }).min(by: precedes) else {
      if ours.contains(where: { $0.clusterIPs.contains(packet.destination) }) { return [.rejected(.undefinedPort)] }
      // Whoever serves it: an address that a Service has is allocated.
      let isAllocated = state.services.values.contains { $0.clusterIPs.contains(packet.destination) }
      if !isAllocated,
        state.serviceCIDRs.values.contains(where: { $0.cidrs.contains { $0.contains(packet.destination) } })
      {
        return [.dropped(.unallocatedServiceAddress)]
      }
      return [.untouched(source: leaves(packet, packet.destination) ? .masquerade : .kept)]
    }
    return outcomes(packet, winner)
  }

  private func candidates(_ service: Service, _ packet: Packet) -> [Candidate] {
    let destination = packet.destination
    guard service.clusterIPs.contains(where: { $0.family == destination.family }) else { return [] }
    var found: [Candidate] = []
    for port in service.ports where port.proto == packet.proto {
      if port.port.number == packet.destinationPort {
        if service.clusterIPs.contains(destination) { found.append(Candidate(service: service, port: port, rank: 0)) }
        if service.loadBalancerIPs.contains(destination) {
          found.append(Candidate(service: service, port: port, rank: 2))
        }
        if service.externalIPs.contains(destination) { found.append(Candidate(service: service, port: port, rank: 3)) }
      }
      if port.nodePort?.number == packet.destinationPort, node.nodePortAddresses.contains(destination) {
        found.append(Candidate(service: service, port: port, rank: 1))
      }
    }
    return found
  }

  private func precedes(_ left: Candidate, _ right: Candidate) -> Bool {
    func age(_ service: Service) -> Int64 { service.creationTimestamp == 0 ? .max : service.creationTimestamp }
    if left.rank != right.rank { return left.rank < right.rank }
    if age(left.service) != age(right.service) { return age(left.service) < age(right.service) }
    return left.service.key < right.service.key
  }

  private func outcomes(_ packet: Packet, _ winner: Candidate) -> Set<ServiceOutcome> {
    let (service, family) = (winner.service, packet.destination.family)
    let ranges = service.loadBalancerSourceRanges.filter { $0.family == family }
    if winner.rank == 2, !ranges.isEmpty, !ranges.contains(where: { $0.contains(packet.source) }) {
      let nodeMay = (state.ownNode?.internalIPs ?? []).contains { own in ranges.contains { $0.contains(own) } }
      if !(nodeMay && packet.source == packet.destination) { return [.dropped(.sourceRange)] }
    }
    let policy = winner.rank == 0 ? service.internalTrafficPolicy : service.externalTrafficPolicy
    let localOnly = policy == .local && (winner.rank == 0 || packet.origin == .outside)
    let all = endpoints(service, winner.port, family)
    let cluster = clusterSet(all)
    let chosen = localOnly ? localSet(all) : cluster
    if chosen.isEmpty { return cluster.isEmpty ? [.rejected(.noEndpoint)] : [.dropped(.noLocalEndpoint)] }
    return Set(
      chosen.map { backend in
        let hairpin = packet.origin == .pod && packet.source == backend.address
        let byRule =
          switch (winner.rank, policy) {
          case (0, _): packet.origin != .pod
          case (_, .cluster): true
          case (_, .local): packet.origin == .host
          }
        guard hairpin || byRule || leaves(packet, backend.address) else {
          return .translated(to: backend, source: .kept)
        }
        let own = node.internalAddresses[family]
        return .translated(
          to: backend, source: isLocalPod(backend.address) ? own.map { .to($0) } ?? .masquerade : .masquerade)
      })
  }

  // MARK: Endpoints

  private func endpoints(_ service: Service, _ port: ServicePort, _ family: IPFamily) -> [SocketAddress: Endpoint] {
    var all: [SocketAddress: Endpoint] = [:]
    for slice in state.slices(ofService: service.key) where slice.family == family && !slice.isHeadless {
      for slicePort in slice.ports where slicePort.name == port.name && slicePort.proto == port.proto {
        for endpoint in slice.endpoints {
          let address = SocketAddress(endpoint.address, slicePort.port)
          if let known = all[address] {
            if known.terminating, !endpoint.terminating { all[address] = endpoint }
          } else {
            all[address] = endpoint
          }
        }
      }
    }
    return all
  }

  private func clusterSet(_ all: [SocketAddress: Endpoint]) -> Set<SocketAddress> {
    let ready = all.filter { $0.value.ready }
    if ready.isEmpty { return Set(all.filter { $0.value.serving && $0.value.terminating }.keys) }
    let forNode = ready.filter { $0.value.nodeHints.contains(state.ownNodeName) }
    if ready.values.allSatisfy({ $0.nodeHints != [] }), !forNode.isEmpty { return Set(forNode.keys) }
    let zone = state.ownNode?.zone
    let forZone = ready.filter { endpoint in zone.map { endpoint.value.zoneHints.contains($0) } ?? false }
    if ready.values.allSatisfy({ $0.zoneHints != [] }), !forZone.isEmpty { return Set(forZone.keys) }
    return Set(ready.keys)
  }

  private func localSet(_ all: [SocketAddress: Endpoint]) -> Set<SocketAddress> {
    let local = all.filter { $0.value.nodeName == state.ownNodeName }
    let ready = local.filter { $0.value.ready }
    return Set((ready.isEmpty ? local.filter { $0.value.serving && $0.value.terminating } : ready).keys)
  }

  // MARK: The node

  private func isLocalPod(_ address: IPAddress) -> Bool {
    node.endpoints.values.contains { $0.addresses.contains(address) }
  }

  private func leaves(_ packet: Packet, _ destination: IPAddress) -> Bool {
    let ranges = node.clusterRanges.filter { $0.family == destination.family }
    return packet.origin == .pod && !ranges.isEmpty && !ranges.contains { $0.contains(destination) }
      && !destination.isLinkLocal && !destination.isMulticast
  }
}
