import CLinux
import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import Logging
import NFTables
import Netlink
import NetworkTypes
import ServiceCompiler

/// What the tables and the plugin need to know of this node.
extension Reconciler {
  func updateRoutes() {
    for failure in routes.apply(NodeRoutes.wanted(state)) {
      logger.error("node routes", metadata: ["error": "\(failure)"])
    }
  }

  /// The node's part of the tables, from its Node object, its own addresses, the other nodes and the endpoint records.
  func nodeDelta() -> TableDelta {
    var delta = TableDelta()
    let own = state.ownNode
    if own == nil, !nodeWarned {
      nodeWarned = true
      logger.warning(
        "no Node object: NodePorts and masquerade towards local pods wait for it",
        metadata: ["node": "\(configuration.nodeName)"])
    }
    // The first of each family is the node's primary address.
    let internalIPs = IPFamily.allCases.compactMap { family in own?.internalIPs.first { $0.family == family } }
    let node = tables.node
    delta.nodePortAddresses = SetChange(from: node.nodePortAddresses, to: nodePortAddresses(internalIPs))
    for family in IPFamily.allCases {
      let address = internalIPs.first { $0.family == family }
      if node.internalAddresses[family] != address {
        delta.internalAddresses[family] = Change(old: node.internalAddresses[family], new: address)
      }
    }
    delta.clusterRanges = SetChange(from: node.clusterRanges, to: clusterRanges())
    delta.ownAddresses = SetChange(from: node.ownAddresses, to: ownAddresses)
    delta.serviceRanges = SetChange(
      from: tables.services.serviceRanges, to: Set(state.serviceCIDRs.values.flatMap(\.cidrs)))
    var wanted: [String: LocalEndpoint] = [:]
    for record in endpoints.values {
      wanted[record.hostInterface] = LocalEndpoint(
        interface: record.hostInterface, mac: record.mac, addresses: record.addresses,
        subjects: policies.subjects(of: record.hostInterface), netnsCookie: record.netnsCookie,
        isShaped: record.isShaped)
    }
    for name in Set(wanted.keys).union(node.endpoints.keys) where wanted[name] != node.endpoints[name] {
      delta.endpoints[name] = Change(old: node.endpoints[name], new: wanted[name])
    }
    return delta
  }

  func nodePortAddresses(_ internalIPs: [IPAddress]) -> Set<IPAddress> {
    guard case .within(let ranges) = configuration.nodePortAddresses else { return Set(internalIPs) }
    return ownAddresses.filter { address in ranges.contains { $0.contains(address) } }
  }

  /// Asks the kernel; where it cannot be asked, what was known stays. Whether something changed.
  func readOwnAddresses() -> Bool {
    guard let assigned = try? addresses.addresses() else { return false }
    let own = Set(assigned.map(\.address.address).filter { !$0.isLoopback && !$0.isLinkLocal })
    defer { ownAddresses = own }
    return own != ownAddresses
  }

  /// Everything pods reach under their own address. Empty where traffic that leaves is not masqueraded.
  func clusterRanges() -> Set<CIDR> {
    guard configuration.masqueradesEgress else { return [] }
    var ranges = Set(configuration.clusterCIDRs)
    for node in state.nodes.values {
      ranges.formUnion(node.podCIDRs)
      ranges.formUnion(node.internalIPs.map(CIDR.init(host:)))
    }
    for cidr in state.serviceCIDRs.values { ranges.formUnion(cidr.cidrs) }
    return ranges
  }
}

extension TableDelta {
  /// Joins what `Reconciler.nodeDelta` says to what the compiler says: they have no field in common.
  mutating func takeNode(from node: TableDelta) {
    endpoints = node.endpoints
    nodePortAddresses = node.nodePortAddresses
    internalAddresses = node.internalAddresses
    clusterRanges = node.clusterRanges
    ownAddresses = node.ownAddresses
    serviceRanges = node.serviceRanges
  }

  /// The same for what `PolicyCompiler` says.
  mutating func takePolicy(from policy: TableDelta) {
    identities = policy.identities
    blocks = policy.blocks
    podRanges = policy.podRanges
    pairs = policy.pairs
    portSets = policy.portSets
    attributions = policy.attributions
    clauses = policy.clauses
    rejudgesFlows = policy.rejudgesFlows
  }
}
