import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Whose each address is.
extension PolicyCompiler {
  mutating func place(_ key: ObjectKey, _ state: ClusterState) {
    guard hasStarted else { return }
    let old = placed[key]
    var new: Placement?
    if let pod = state.pod(key), let group = state.groupID(ofPod: key) {
      var addresses = pod.podIPs
      for interface in interfacesOfPod[key] ?? [] {
        guard let local = locals[interface], object(of: local, state) != nil else { continue }
        for address in local.addresses where !addresses.contains(address) { addresses.append(address) }
      }
      if !addresses.isEmpty { new = Placement(group: group, owner: Self.number(of: pod), addresses: addresses) }
    }
    placed[key] = new
    for address in old?.addresses ?? [] where new?.addresses.contains(address) != true {
      claims[address]?.removeAll { $0 == key }
      if claims[address]?.isEmpty == true { claims[address] = nil }
      settle(address, state)
    }
    for address in new?.addresses ?? [] {
      if claims[address]?.contains(key) != true { claims[address, default: []].append(key) }
      settle(address, state)
    }
  }

  /// Decides whose an address is: the node's, the local pod's, else the first by name.
  mutating func settle(_ address: IPAddress, _ state: ClusterState) {
    guard hasStarted, !isGathering else { return }
    if nodeAddresses.contains(address) { return classes.place(address, .node) }
    guard let claimant = claimant(of: address), let placement = placed[claimant] else {
      return classes.place(address, nil)
    }
    let group = placement.group
    if !classes.knows(group) {
      guard let group = state.group(group) else { return classes.place(address, nil) }
      classes.addGroup(group.id, profile(of: group, state))
    }
    // Whoever comes back may have come back as somebody else: live flows are judged again.
    if lastOwners[address] != nil, classes.identity(of: address) == nil { hasNewReuse = true }
    note(placement.owner, of: address)
    classes.place(address, .group(group))
  }

  private static func number(of pod: Pod) -> Int {
    var hasher = Hasher()
    hasher.combine(pod.key)
    hasher.combine(pod.uid)
    return hasher.finalize()
  }

  private mutating func note(_ owner: Int, of address: IPAddress) {
    if let last = lastOwners.updateValue(owner, forKey: address), last != owner {
      reused.insert(address)
      hasNewReuse = true
    }
    // Of addresses that nobody has any more only so many are remembered.
    guard lastOwners.count > 2 * claims.count + 100_000 else { return }
    lastOwners = lastOwners.filter { claims[$0.key] != nil }
  }

  /// Addresses that went from one pod to another since the last call: flows of the first one must end.
  public mutating func takeReusedAddresses() -> Set<IPAddress> {
    defer { reused = [] }
    return reused
  }

  mutating func updateNodes(_ state: ClusterState, _ delta: inout TableDelta) {
    let addresses = Set(state.nodes.values.flatMap(\.internalIPs))
    for address in addresses.symmetricDifference(nodeAddresses) {
      if addresses.contains(address) { nodeAddresses.insert(address) } else { nodeAddresses.remove(address) }
      settle(address, state)
    }
    let ranges = Set(state.nodes.values.flatMap(\.podCIDRs))
    guard ranges != podRanges else { return }
    delta.podRanges = SetChange(from: podRanges, to: ranges)
    podRanges = ranges
    classes.setPodRanges(ranges)
    if hasStarted { updateBlocks(&delta) }
  }
}
