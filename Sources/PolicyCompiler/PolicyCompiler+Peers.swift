import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The classes follow the peers in force.
extension PolicyCompiler {
  /// Peers and port names that came into force or went out of it.
  struct RegistryWork {
    var added: Set<PeerID> = []
    var removed: [PeerID: Peer] = [:]
    var namedPorts: Set<NamedPort> = []
  }

  mutating func follow(_ work: RegistryWork, _ state: ClusterState, _ delta: inout TableDelta) {
    var changes = ClassTable.PeerChanges()
    for id in work.added {
      switch registry.peers[id] {
      case .pods(let pods, let scope): changes.added[id] = groups(matching: pods, scope, state)
      case .block(let block): changes.addedBlocks[id] = block
      case nil: break
      }
    }
    for (id, peer) in work.removed {
      switch peer {
      case .pods: changes.removed.insert(id)
      case .block(let block): changes.removedBlocks[id] = block
      }
    }
    for port in work.namedPorts.sorted() where namedPortsInForce.contains(port) != (registry.namedPorts[port] != nil) {
      if namedPortsInForce.remove(port) != nil {
        changes.removedPorts.insert(port)
        continue
      }
      namedPortsInForce.insert(port)
      for id in state.groups(withPortNamed: port.name, port.proto) where classes.knows(id) {
        let numbers = state.group(id)?.containerPorts.numbers(of: port) ?? []
        changes.addedPorts[id, default: []].append(.init(port: port, numbers: numbers))
      }
    }
    classes.follow(changes)
    if !changes.addedBlocks.isEmpty || !changes.removedBlocks.isEmpty || blockTables.isEmpty { updateBlocks(&delta) }
  }

  mutating func updateBlocks(_ delta: inout TableDelta) {
    for family in IPFamily.allCases {
      let table = classes.blockTable(family)
      guard table != blockTables[family] else { continue }
      delta.blocks[family] = Change(old: delta.blocks[family].map(\.old) ?? blockTables[family], new: table)
      blockTables[family] = table
    }
  }

  /// The other way round than `peers(of:)`: groups that a selector matches.
  private func groups(
    matching pods: LabelSelector?, _ scope: NamespaceScope, _ state: ClusterState
  ) -> [PodGroupID] {
    let groups = state.groups(matching: pods, inNamespaces: scope)
    guard case .selected = scope else { return groups }
    return groups.filter { state.group($0).flatMap { state.namespace(named: $0.namespace) } != nil }
  }

  func profile(of group: PodGroup, _ state: ClusterState) -> Profile {
    Profile(
      kind: .pod, namespace: group.namespace, peers: peers(of: group, state),
      namedPorts: Self.values(group.containerPorts.numbers(of: namedPortsInForce)))
  }

  private func peers(of group: PodGroup, _ state: ClusterState) -> [PeerID] {
    let matching = registry.selectors.matching(
      namespace: group.namespace, namespaceLabels: state.labels(ofNamespace: group.namespace), labels: group.labels
    ).sorted()
    guard state.namespace(named: group.namespace) == nil else { return matching }
    // Of a namespace that nobody has told us of yet nothing is known: no selector of namespaces matches it, so that
    // nothing is allowed that its labels may forbid.
    return matching.filter { id in
      if case .pods(_, scope: .own) = registry.peers[id] { true } else { false }
    }
  }

  static func values(_ numbers: NamedPortNumbers) -> [ClassKey.NamedPortValue] {
    numbers.sorted { $0.key < $1.key }.map { .init(port: $0.key, numbers: $0.value) }
  }

  mutating func relabel(namespace: String, _ state: ClusterState) {
    for id in state.groups(matching: nil, inNamespaces: .own(namespace)) where classes.knows(id) {
      guard let group = state.group(id) else { continue }
      classes.setPeers(peers(of: group, state), of: id)
    }
  }
}
