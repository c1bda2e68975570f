import DataplaneModel
import NetworkTypes

/// Whole tables, element by element: for adoption, comparison and repair.
extension Planner {
  /// Counts what whole tables need, without planning anything: the state from which deltas go on.
  init(_ tables: Tables) {
    for (id, set) in tables.services.sets {
      for use in Self.chainUses(id, set) { chainUses[use, default: 0] += 1 }
    }
    Self.forEachFrontend(tables) { _, frontend in
      if let ranges = frontend.sourceRanges { _ = rangeLists.retain(ranges) }
    }
  }

  /// Every element of one map that the tables ask for. Each once; nothing is gathered, so that 100,000 cost no memory.
  func forEachEntry(_ map: MapName, _ family: IPFamily, of tables: Tables, _ body: (MapEntry) -> Void) {
    switch map {
    case .frontends, .remoteFrontends, .guarded:
      Self.forEachFrontend(tables) { key, frontend in
        guard key.destination.family == family else { return }
        let list = frontend.sourceRanges.map { rangeLists.number(of: $0) }
        for entry in frontendEntries(key, frontend, rangeList: list) where entry.map == map { body(entry) }
      }
    case .sets, .backends, .stickySlots, .stickyBackends:
      for (id, set) in tables.services.sets where id.family == family {
        for entry in Self.entries(id, set) where entry.map == map { body(entry) }
      }
    case .affinity: break
    case .dispatch, .remoteDispatch, .balancers, .remoteBalancers, .outcomes:
      for use in chainUses.keys where use.family == family {
        for entry in Self.verdicts(use) where entry.map == map { body(entry) }
      }
      for entry in Self.constantEntries(family) where entry.map == map { body(entry) }
    case .serviceAddresses:
      for address in tables.services.serviceAddresses where address.family == family { body(.address(map, address)) }
    case .otherAddresses:
      for address in tables.services.otherAddresses where address.family == family { body(.address(map, address)) }
    case .serviceRanges:
      for entry in rangeEntries(map, tables.services.serviceRanges) where entry.family == family { body(entry) }
    case .clusterRanges:
      for entry in clusterRangeEntries(tables.node.clusterRanges) where entry.family == family { body(entry) }
    case .sourceRanges: rangeLists.forEachEntry(family, body)
    case .ownAddresses, .egressSubjects, .ingressSubjects, .identities, .blocks, .blockTable, .podRanges, .pairs,
      .ports, .portRanges, .verdicts, .clauseLabels, .revision:
      forEachPolicyEntry(map, family, of: tables, body)
    case .localInterfaces, .podSources, .hairpin:
      for entry in Self.constantEntries(family) where entry.map == map { body(entry) }
      for endpoint in tables.node.endpoints.values {
        for entry in endpointEntries(endpoint) where entry.map == map && entry.family == family { body(entry) }
      }
    }
  }

  /// The element with this one's key that the tables ask for, found by asking them; nil where they ask for none. Only for
  /// maps that grow with Services: the others are small, and `forEachEntry` does for them.
  func wanted(insteadOf entry: MapEntry, of tables: Tables) -> MapEntry? {
    switch entry {
    case .frontend(let map, let address, let transport, _):
      guard let proto = L4Protocol(rawValue: transport.proto), let port = Port(transport.port) else { return nil }
      let key = FrontendKey(.address(address), proto, port)
      let frontends = tables.services.frontends
      guard let frontend = Self.winner(key, nodePorts: tables.node.nodePortAddresses, { frontends[$0] }) else {
        return nil
      }
      let list = frontend.sourceRanges.map { rangeLists.number(of: $0) }
      return frontendEntries(key, frontend, rangeList: list).first { $0.map == map }
    case .set(let family, let key, _):
      guard let (id, set) = Self.backendSet(key & ~FrontendFlag.sticky, family, tables) else { return nil }
      return Self.entries(id, set).first { $0.key == entry.key }
    case .backend(let slot, let key, let backend):
      guard let (_, set) = Self.backendSet(key, backend.address.family, tables), set.affinityTimeout == nil,
        slot < UInt32(set.slotCount)
      else { return nil }
      return .backend(slot: slot, set: key, set.backend(ofSlot: Int(slot)))
    case .address(.serviceAddresses, let address):
      return tables.services.serviceAddresses.contains(address) ? entry : nil
    default: return wantedPolicy(insteadOf: entry, of: tables)
    }
  }

  static let mapsThatGrow: Set<MapName> = [
    .frontends, .remoteFrontends, .guarded, .sets, .backends, .serviceAddresses, .identities, .pairs,
  ]

  static func backendSet(
    _ key: UInt32, _ family: IPFamily, _ tables: Tables
  ) -> (BackendSetID, BackendSet)? {
    guard let service = ServicePortID(key & FrontendFlag.serviceMask) else { return nil }
    let scope: BackendScope = key & FrontendFlag.local != 0 ? .local : .cluster
    let id = BackendSetID(service: service, scope: scope, family: family)
    guard setKey(id) == key, let set = tables.services.sets[id] else { return nil }
    return (id, set)
  }

  /// Who has each concrete address and port, NodePorts spread over the node's addresses.
  static func forEachFrontend(_ tables: Tables, _ body: (FrontendKey, Frontend) -> Void) {
    let frontends = tables.services.frontends
    let addresses = tables.node.nodePortAddresses
    for (key, frontend) in frontends {
      switch key.destination {
      case .address: if let winner = winner(key, nodePorts: addresses, { frontends[$0] }) { body(key, winner) }
      case .node(let family):
        for address in addresses where address.family == family {
          let concrete = FrontendKey(.address(address), key.proto, key.port)
          // Where a Service claims that very address, the case above has spoken.
          if frontends[concrete] == nil { body(concrete, frontend) }
        }
      }
    }
  }
}
