import DataplaneModel
import KubernetesObjects
import NetworkTypes

@testable import PolicyWorlds

extension TableCheck {
  /// Everything that the policies in force can tell of an address: two of them share a class exactly where this is equal.
  struct Features: Hashable {
    var kind: IdentityKind
    /// "" for what is no pod.
    var namespace: String
    var family: IPFamily
    /// For each peer of each rule in force whether it matches.
    var matches: [Bool]
    /// For each port name that an egress rule in force asks for, the numbers it has there.
    var ports: [Set<UInt16>]
  }

  /// Classes that are too many or too few, in words. Right only where nothing lingers.
  ///
  /// Worked out slowly from the objects: every address and atom with every peer.
  func partitionProblems() -> [String] {
    var items: [(name: String, identity: IdentityID, features: Features)] = []
    let inForce = InForce(world)
    for (address, identity) in tables.identities.addresses {
      items.append(("\(address)", identity, inForce.features(of: address, isKnown: true)))
    }
    for atom in tables.identities.blocks.values.flatMap(\.atoms) {
      // An atom is one thing from end to end: both ends have the same features.
      items.append(("\(atom.range.first)", atom.identity, inForce.features(of: atom.range.first, isKnown: false)))
      items.append(("\(atom.range.last)", atom.identity, inForce.features(of: atom.range.last, isKnown: false)))
    }
    var found = Findings()
    var byIdentity: [IdentityID: (name: String, features: Features)] = [:]
    var byFeatures: [Features: (name: String, identity: IdentityID)] = [:]
    for item in items.sorted(by: { $0.name < $1.name }) {
      let (first, twin) = (byIdentity[item.identity], byFeatures[item.features])
      found.expect(
        first == nil || first?.features == item.features,
        "\(first?.name ?? "") and \(item.name) differ, but are both \(item.identity)")
      found.expect(
        twin == nil || twin?.identity == item.identity,
        "\(twin?.name ?? "") and \(item.name) are the same to all policies in force, but not one class")
      byIdentity[item.identity] = (item.name, item.features)
      byFeatures[item.features] = (item.name, item.identity)
    }
    return found.problems
  }

  /// The rules of policies that select a pod of the node under test, with what they can tell apart.
  private struct InForce {
    let world: PolicyWorld
    var peers: [(peer: NetworkPolicyPeer, namespace: String)] = []
    var ports: [NetworkPolicyPort] = []
    let nodes: Set<IPAddress>
    let podRanges: [CIDR]

    init(_ world: PolicyWorld) {
      self.world = world
      nodes = Set(world.nodes.flatMap(\.internalIPs))
      podRanges = world.nodes.flatMap(\.podCIDRs)
      let local = world.localPods.filter(\.isPolicyPod)
      for policy in world.policies {
        let selects = local.contains {
          $0.key.namespace == policy.key.namespace && policy.podSelector.matches($0.labels)
        }
        guard selects else { continue }
        let egress = policy.isolatesEgress ? policy.egress : []
        let rules = (policy.isolatesIngress ? policy.ingress : []) + egress
        peers += rules.flatMap(\.peers).map { ($0, policy.key.namespace) }
        for port in egress.flatMap(\.ports) { if case .named = port.port { ports.append(port) } }
      }
    }

    /// - Parameter isKnown: it stands in the table as a pod's or node's, which ends of atoms do not, whoever has them.
    func features(of address: IPAddress, isKnown: Bool) -> Features {
      let isNode = isKnown && nodes.contains(address)
      let pod = isKnown && !isNode ? world.pod(at: address) : nil
      let kind: IdentityKind =
        if isNode { .node } else if pod != nil { .pod } else {
          podRanges.contains { $0.contains(address) } ? .unknown : .world
        }
      return Features(
        kind: kind, namespace: pod?.key.namespace ?? "", family: address.family,
        matches: peers.map { matches($0.peer, of: $0.namespace, address, pod) },
        ports: ports.map { asked in
          guard case .named(let name) = asked.port else { return [] }
          let found = (pod?.containerPorts ?? []).filter { $0.name == name && $0.proto == asked.proto }
          return Set(found.map(\.port.number))
        })
    }

    private func matches(
      _ peer: NetworkPolicyPeer, of namespace: String, _ address: IPAddress, _ pod: Pod?
    ) -> Bool {
      switch peer {
      case .ipBlock(let block): return block.cidr.contains(address) && !block.except.contains { $0.contains(address) }
      case .pods(let pods, let namespaces):
        guard let pod, pods?.matches(pod.labels) != false else { return false }
        guard let namespaces else { return pod.key.namespace == namespace }
        let labels = world.namespaces.first { $0.name == pod.key.namespace }?.labels
        return labels.map { namespaces.matches($0) } ?? false
      }
    }
  }
}
