import DataplaneModel
import NetworkTypes

/// Turns table deltas into plans. Keeps only what must be counted: which chains are in use, and source range lists.
struct Planner: Sendable {
  var chainUses: [ChainUse: Int] = [:]
  var rangeLists = RangeLists()
  /// The engine's, not the tables'.
  var revisions: [IPFamily: UInt32] = [:]

  init() {}

  /// Chains that backend sets need.
  var chains: Set<ChainUse> { Set(chainUses.keys) }

  mutating func plan(_ delta: TableDelta, after tables: Tables) -> Plan {
    var plan = Plan()
    var changes = EntryChanges()
    planSets(delta, into: &changes, &plan)
    planFrontends(delta, tables, into: &changes)
    planNode(delta, tables, into: &changes)
    planPolicy(delta, tables, into: &changes, &plan)
    for (map, change) in [(MapName.serviceAddresses, delta.serviceAddresses), (.otherAddresses, delta.otherAddresses)] {
      for address in change.removed { changes.remove(.address(map, address)) }
      for address in change.added { changes.add(.address(map, address)) }
    }
    if !delta.serviceRanges.isEmpty {
      changes.replace(
        rangeEntries(.serviceRanges, tables.services.serviceRanges.undoing(delta.serviceRanges)),
        with: rangeEntries(.serviceRanges, tables.services.serviceRanges))
    }
    changes.emit(into: &plan)
    return plan
  }

  // MARK: Backend sets

  private mutating func planSets(_ delta: TableDelta, into changes: inout EntryChanges, _ plan: inout Plan) {
    var chainChanges: [ChainUse: Int] = [:]
    for (id, change) in delta.sets {
      for use in Self.chainUses(id, change.old) { chainChanges[use, default: 0] -= 1 }
      for use in Self.chainUses(id, change.new) { chainChanges[use, default: 0] += 1 }
      let before = Self.entries(id, change.old)
      let heirs = Self.heirsOfPlainSlots(id, change)
      changes.replace(before.filter { heirs[$0] == nil }, with: Self.entries(id, change.new))
      for entry in before {
        guard let heir = heirs[entry] else { continue }
        plan.now += [.delete(entry), .add(heir)]
        plan.later.append(.delete(heir))
      }
    }
    for (use, change) in chainChanges.sorted(by: { $0.key < $1.key }) where change != 0 {
      let before = chainUses[use, default: 0]
      let after = before + change
      chainUses[use] = after == 0 ? nil : after
      if before == 0 {
        // The chain may still be there, waiting for its grace period to end: adding it writes its rules anew.
        // In a transaction before: a packet under way goes on with the rules of the generation it began in, and a chain
        // made in the next has none there, while the maps already lead to it.
        plan.before.append(.addChain(use.family, Layout(family: use.family, internalAddress: nil).chain(for: use)))
        Self.verdicts(use).forEach { changes.add($0) }
      } else if after == 0 {
        Self.verdicts(use).forEach { changes.remove($0) }
        plan.later.append(.deleteChain(use.family, use.name))
      }
    }
  }

  /// Where affinity begins, the plain slots serve until they are removed, also frontends that are new to the set: those
  /// of backends that leave go to others until then.
  private static func heirsOfPlainSlots(_ id: BackendSetID, _ change: Change<BackendSet>) -> [MapEntry: MapEntry] {
    guard let old = change.old, let new = change.new, old.affinityTimeout == nil, new.affinityTimeout != nil,
      !new.backends.isEmpty
    else { return [:] }
    var heirs: [MapEntry: MapEntry] = [:]
    for (slot, backend) in old.slots.enumerated() where !new.backends.contains(backend) {
      heirs[.backend(slot: UInt32(slot), set: setKey(id), backend)] = .backend(
        slot: UInt32(slot), set: setKey(id), new.backends[slot % new.backends.count])
    }
    return heirs
  }

  static func chainUses(_ id: BackendSetID, _ set: BackendSet?) -> [ChainUse] {
    guard let set, !set.backends.isEmpty else { return [] }
    var uses: [ChainUse] = []
    for isRemote in id.scope == .local ? [false, true] : [false] {
      uses.append(
        ChainUse(
          family: id.family, kind: set.maglev == nil ? .balance : .hash, isRemote: isRemote,
          number: UInt32(set.slotCount)))
      if let timeout = set.affinityTimeout {
        uses.append(ChainUse(family: id.family, kind: .affinity, isRemote: isRemote, number: timeout))
      }
    }
    return uses
  }

  static func verdicts(_ use: ChainUse) -> [MapEntry] {
    let verdict = Verdict.jump(use.name)
    let dispatch = MapEntry.verdict(
      use.family, use.isRemote ? .remoteDispatch : .dispatch, code: use.dispatchCode, verdict)
    guard use.kind != .affinity else { return [dispatch] }
    return [
      dispatch,
      .verdict(use.family, use.isRemote ? .remoteBalancers : .balancers, code: use.dispatchCode, verdict),
    ]
  }

  /// Verdicts that exist whatever the tables say.
  static func constantEntries(_ family: IPFamily) -> [MapEntry] {
    [.interface(family, "")]
      + [MapName.dispatch, .remoteDispatch].flatMap { map in
        [
          MapEntry.verdict(family, map, code: DispatchCode.reject, .goto("reject-flow")),
          .verdict(family, map, code: DispatchCode.drop, .goto("drop-no-local-endpoint")),
        ]
      } + [
        .verdict(family, .outcomes, code: 0, .continue),
        .verdict(family, .outcomes, code: ClauseLabel.passes, .return),
      ]
  }

  static func setKey(_ id: BackendSetID) -> UInt32 {
    id.service.rawValue | (id.scope == .local ? FrontendFlag.local : 0)
  }

  static func entries(_ id: BackendSetID, _ set: BackendSet?) -> [MapEntry] {
    guard let set else { return [] }
    let key = setKey(id)
    let empty = set.emptyAction == .reject ? DispatchCode.reject : DispatchCode.drop
    let code =
      set.backends.isEmpty ? empty : (set.maglev == nil ? 0 : DispatchCode.hash) | UInt32(set.slotCount)
    var entries: [MapEntry] = [.set(id.family, key: key, code: code)]
    guard let timeout = set.affinityTimeout else {
      for (slot, backend) in set.slots.enumerated() {
        entries.append(.backend(slot: UInt32(slot), set: key, backend))
      }
      return entries
    }
    entries.append(
      .set(
        id.family, key: key | FrontendFlag.sticky,
        code: set.backends.isEmpty ? empty : DispatchCode.affinity | timeout))
    var numbers: [UInt32: SocketAddress] = [:]
    for (slot, backend) in set.slots.enumerated() {
      let number = backendNumber(backend)
      entries.append(.stickySlot(id.family, slot: UInt32(slot), set: key, backend: number))
      // Two backends of one set with one number: both slots lead to the lower address. Fair it is not, wrong neither.
      numbers[number] = min(numbers[number] ?? backend, backend)
    }
    for (number, backend) in numbers { entries.append(.stickyBackend(backend: number, set: key, backend)) }
    return entries
  }

  /// A number for a backend that depends on nothing but its address and port (FNV-1a), never 0.
  static func backendNumber(_ backend: SocketAddress) -> UInt32 {
    var hash: UInt32 = 2_166_136_261
    for byte in backend.address.bytes + [UInt8(backend.port.number >> 8), UInt8(backend.port.number & 255)] {
      hash = (hash ^ UInt32(byte)) &* 16_777_619
    }
    return max(hash, 1)
  }

  // MARK: Frontends

  private mutating func planFrontends(_ delta: TableDelta, _ tables: Tables, into changes: inout EntryChanges) {
    let addresses = tables.node.nodePortAddresses
    let addressesBefore = addresses.undoing(delta.nodePortAddresses)
    func before(_ key: FrontendKey) -> Frontend? {
      delta.frontends[key].map(\.old) ?? tables.services.frontends[key]
    }
    func after(_ key: FrontendKey) -> Frontend? { tables.services.frontends[key] }

    var affected: Set<FrontendKey> = []
    for key in delta.frontends.keys {
      switch key.destination {
      case .address: affected.insert(key)
      case .node(let family):
        for address in addresses.union(addressesBefore) where address.family == family {
          affected.insert(FrontendKey(.address(address), key.proto, key.port))
        }
      }
    }
    // A change of this node's addresses: the one case in which the table is walked. It is rare.
    let changedAddresses = delta.nodePortAddresses.added.union(delta.nodePortAddresses.removed)
    if !changedAddresses.isEmpty {
      for key in tables.services.frontends.keys {
        guard case .node(let family) = key.destination else { continue }
        for address in changedAddresses where address.family == family {
          affected.insert(FrontendKey(.address(address), key.proto, key.port))
        }
      }
    }
    for key in affected {
      let old = Self.winner(key, nodePorts: addressesBefore, before)
      let new = Self.winner(key, nodePorts: addresses, after)
      changes.replace(
        old.map { frontendEntries(key, $0, rangeList: $0.sourceRanges.map { rangeLists.number(of: $0) }) } ?? [],
        with: new.map { frontend in
          frontendEntries(key, frontend, rangeList: frontend.sourceRanges.map { rangeLists.retain($0) })
        } ?? [])
      if let ranges = new?.sourceRanges, rangeLists.uses(of: ranges) == 1 {
        changes.replace([], with: rangeLists.entries(ranges, key.destination.family))
      }
      if let ranges = old?.sourceRanges, let gone = rangeLists.release(ranges) {
        changes.replace(gone.entries(key.destination.family), with: [])
      }
    }
  }

  /// Who has an address and port: `walk` says the same.
  static func winner(
    _ key: FrontendKey, nodePorts: Set<IPAddress>, _ lookup: (FrontendKey) -> Frontend?
  ) -> Frontend? {
    guard case .address(let address) = key.destination else { return nil }
    let byAddress = lookup(key)
    guard nodePorts.contains(address),
      let nodePort = lookup(FrontendKey(.node(address.family), key.proto, key.port))
    else { return byAddress }
    guard let byAddress, byAddress.kind < nodePort.kind else { return nodePort }
    return byAddress
  }

  func frontendEntries(_ key: FrontendKey, _ frontend: Frontend, rangeList: UInt32?) -> [MapEntry] {
    guard case .address(let address) = key.destination else { return [] }
    let port = TransportPort(key.proto, key.port)
    func value(_ scope: BackendScope) -> UInt32 {
      frontend.service.rawValue | (scope == .local ? FrontendFlag.local : 0)
        | (frontend.hasAffinity ? FrontendFlag.sticky : 0)
        | (frontend.masquerade == .always ? FrontendFlag.masquerade : 0)
    }
    var entries: [MapEntry] = [.frontend(.frontends, address, port, value: value(frontend.nodeScope))]
    if frontend.masquerade == .hostOnly {
      entries.append(.frontend(.remoteFrontends, address, port, value: value(frontend.outsideScope)))
    }
    if let rangeList { entries.append(.frontend(.guarded, address, port, value: rangeList)) }
    return entries
  }

  // MARK: Node

  func planNode(_ delta: TableDelta, _ tables: Tables, into changes: inout EntryChanges) {
    for (_, change) in delta.endpoints {
      changes.replace(endpointEntries(change.old), with: endpointEntries(change.new))
    }
    // Of two endpoints with one address (a finished pod's sandbox outlives it) one goes: the other keeps what they share.
    for change in delta.endpoints.values {
      for address in change.old?.addresses ?? [] where tables.node.isLocalPod(address) {
        changes.add(.address(.hairpin, address))
      }
    }
    if !delta.clusterRanges.isEmpty {
      changes.replace(
        clusterRangeEntries(tables.node.clusterRanges.undoing(delta.clusterRanges)),
        with: clusterRangeEntries(tables.node.clusterRanges))
    }
  }

  func endpointEntries(_ endpoint: LocalEndpoint?) -> [MapEntry] {
    guard let endpoint else { return [] }
    return IPFamily.allCases.map { .interface($0, endpoint.interface) } + Self.subjectEntries(endpoint)
      + endpoint.addresses.flatMap { address in
        [.podSource(endpoint.interface, endpoint.mac, address), .address(.hairpin, address)]
      }
  }

  /// Ranges of a family without any are "everything": nothing leaves the cluster then.
  func clusterRangeEntries(_ ranges: Set<CIDR>) -> [MapEntry] {
    let neverRouted = ["224.0.0.0/4", "169.254.0.0/16", "ff00::/8", "fe80::/10"].compactMap { CIDR($0) }
    return IPFamily.allCases.flatMap { family -> [MapEntry] in
      let own = ranges.filter { $0.family == family }
      let all =
        own.isEmpty
        ? [CIDR(.unspecified(family), prefixLength: 0)].compactMap { $0 }
        : Array(own) + neverRouted.filter { $0.family == family }
      return AddressRange.merging(all.map(AddressRange.init)).map { .range(.clusterRanges, $0) }
    }
  }

  func rangeEntries(_ map: MapName, _ ranges: Set<CIDR>) -> [MapEntry] {
    IPFamily.allCases.flatMap { family in
      AddressRange.merging(ranges.filter { $0.family == family }.map(AddressRange.init)).map { .range(map, $0) }
    }
  }
}

extension Set where Element: Sendable {
  func undoing(_ change: SetChange<Element>) -> Set {
    change.isEmpty ? self : subtracting(change.added).union(change.removed)
  }
}
