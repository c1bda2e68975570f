import DataplaneModel
import NetworkTypes

/// Every element that the packet programs' maps should have; of services, those that no socket meets.
struct PacketTable {
  var endpoints: [UInt32: EndpointLayout] = [:]
  var podDevices: [AddressLayout: PodDeviceLayout] = [:]
  var addresses: [AddressLayout: UInt32] = [:]
  var ranges: [RangeKeyLayout: UInt32] = [:]
  var uplinks: [UInt32: UplinkLayout] = [:]
  var internalAddresses: [UInt32: AddressLayout] = [:]
  /// Of `state`, what follows from tables.
  var state: [UInt32: UInt32] = [:]
  var identities: [AddressLayout: UInt32] = [:]
  var blocks: [RangeKeyLayout: UInt32] = [:]
  var pairs: [PairKeyLayout: PairLayout] = [:]
  var ports: [PortKeyLayout: UInt32] = [:]
  var portRanges: [PortKeyLayout: UInt32] = [:]
  var clauses: [ClauseKeyLayout: UInt32] = [:]

  init() {}

  init(_ tables: Tables, devices: DeviceDirectory) {
    for endpoint in tables.node.endpoints.values {
      guard let device = devices[endpoint.interface] else { continue }
      endpoints[device.index] = EndpointLayout(endpoint)
      for address in endpoint.addresses {
        podDevices[AddressLayout(address)] = Self.podDevice(address, tables, devices)
      }
    }
    let named = tables.node.ownAddresses.union(tables.node.nodePortAddresses)
      .union(tables.node.internalAddresses.values)
      .union(tables.services.serviceAddresses).union(tables.services.otherAddresses)
    for address in named { addresses[AddressLayout(address)] = Self.flags(address, tables) }
    addRanges(RangeKeyLayout.cluster, tables.node.clusterRanges)
    addRanges(RangeKeyLayout.service, tables.services.serviceRanges)
    addRanges(RangeKeyLayout.pod, tables.identities.podRanges)
    for family in IPFamily.allCases {
      internalAddresses[Self.index(family)] = Self.internalAddress(family, tables)
      state[State.blocks(family)] = tables.identities.blocks[family]?.number ?? 0
      add(tables.identities.blocks[family])
    }
    state[State.masquerade] = Self.masqueradedFamilies(tables)
    for (address, identity) in tables.identities.addresses { identities[AddressLayout(address)] = identity.rawValue }
    for (key, value) in tables.policies.pairs { pairs[PairKeyLayout(key)] = PairLayout(value) }
    for (id, set) in tables.policies.portSets { add(id, set) }
    for (key, number) in tables.policies.clauses { clauses[ClauseKeyLayout(key)] = number }
  }

  /// Indexes of `state`.
  enum State {
    static let revision: UInt32 = 0
    static func blocks(_ family: IPFamily) -> UInt32 { family == .v4 ? 1 : 2 }
    static let masquerade: UInt32 = 3
    static let events: UInt32 = 4
    static let mode: UInt32 = 5
  }

  static func index(_ family: IPFamily) -> UInt32 { family == .v4 ? 0 : 1 }

  static func internalAddress(_ family: IPFamily, _ tables: Tables) -> AddressLayout {
    tables.node.internalAddresses[family].map { AddressLayout($0) } ?? AddressLayout()
  }

  static func masqueradedFamilies(_ tables: Tables) -> UInt32 {
    tables.node.clusterRanges.reduce(0) { $0 | ($1.family == .v4 ? 1 : 2) }
  }

  /// nil where no local pod that has a device has the address.
  static func podDevice(_ address: IPAddress, _ tables: Tables, _ devices: DeviceDirectory) -> PodDeviceLayout? {
    guard let endpoint = tables.node.endpoint(with: address), let device = devices[endpoint.interface]
    else { return nil }
    return PodDeviceLayout(endpoint, device)
  }

  /// nil where the address is nothing to this node.
  static func flags(_ address: IPAddress, _ tables: Tables) -> UInt32? {
    var flags: AddressFlags = []
    if tables.node.ownAddresses.contains(address) { flags.insert(.own) }
    if tables.services.serviceAddresses.contains(address) { flags.insert(.service) }
    if tables.services.otherAddresses.contains(address) { flags.insert(.anothers) }
    if tables.node.nodePortAddresses.contains(address) || tables.node.internalAddresses[address.family] == address {
      flags.insert(.nodes)
    }
    return flags.isEmpty ? nil : flags.rawValue
  }

  mutating func addRanges(_ table: UInt32, _ prefixes: some Sequence<CIDR>) {
    for prefix in prefixes { ranges[RangeKeyLayout(table: table, prefix)] = 1 }
  }

  mutating func add(_ table: BlockTable?) {
    guard let table else { return }
    for atom in table.atoms {
      for prefix in atom.range.prefixes {
        blocks[RangeKeyLayout(table: table.number, prefix)] = atom.identity.rawValue
      }
    }
  }

  mutating func add(_ id: PortSetID, _ set: PortSet) {
    for entry in set.singlePorts { ports[PortKeyLayout(id, entry.ports.lowerBound)] = entry.clause.rawValue }
    for prefix in set.prefixes {
      portRanges[PortKeyLayout(id, prefix.first, length: prefix.length)] = prefix.clause.rawValue
    }
  }
}

extension PacketTable {
  /// Pairs that only `found` has, of identities that addresses get which had another. Not those of identities whose addresses
  /// are the same: until pods' subjects change, what they are asked for by is these pairs.
  static func reusedPairs(_ found: PacketTable, _ wanted: PacketTable) -> [PairKeyLayout] {
    var joined: Set<UInt32> = []
    for (address, identity) in wanted.identities where found.identities[address] != identity { joined.insert(identity) }
    // Blocks are a table as a whole: the same range in another one is the same.
    func anywhere(_ key: RangeKeyLayout) -> RangeKeyLayout {
      var key = key
      key.table = 0
      return key
    }
    var known: [RangeKeyLayout: Set<UInt32>] = [:]
    for (key, identity) in found.blocks { known[anywhere(key), default: []].insert(identity) }
    for (key, identity) in wanted.blocks where known[anywhere(key)]?.contains(identity) != true {
      joined.insert(identity)
    }
    return found.pairs.keys.filter { wanted.pairs[$0] == nil && joined.contains($0.identity) }
  }
}

/// Removals that wait: of what other elements name.
extension PacketTable {
  var hasNamed: Bool {
    !pairs.isEmpty || !blocks.isEmpty || !ports.isEmpty || !portRanges.isEmpty || !clauses.isEmpty
  }

  mutating func take(goneFrom old: PacketTable, to new: PacketTable) {
    for (key, value) in old.pairs where new.pairs[key] == nil { pairs[key] = value }
    for (key, value) in old.blocks where new.blocks[key] == nil { blocks[key] = value }
    for (key, value) in old.ports where new.ports[key] == nil { ports[key] = value }
    for (key, value) in old.portRanges where new.portRanges[key] == nil { portRanges[key] = value }
    for (key, value) in old.clauses where new.clauses[key] == nil { clauses[key] = value }
  }

  /// What is wanted again stays.
  mutating func reclaim(_ new: PacketTable) {
    guard hasNamed else { return }
    for key in new.pairs.keys { pairs[key] = nil }
    for key in new.blocks.keys { blocks[key] = nil }
    for key in new.ports.keys { ports[key] = nil }
    for key in new.portRanges.keys { portRanges[key] = nil }
    for key in new.clauses.keys { clauses[key] = nil }
  }
}

/// What a delta does to the maps. `before` and `after` have the elements that the change is about and no others.
struct PacketChange {
  var before = PacketTable()
  var after = PacketTable()

  init(_ delta: TableDelta, after tables: Tables, from old: DeviceDirectory, to devices: DeviceDirectory) {
    for (name, change) in delta.endpoints {
      if let endpoint = change.old, let device = old[name] {
        before.endpoints[device.index] = EndpointLayout(endpoint)
        // Another device may have got the number of one that went.
        for other in devices.names(of: device.index) where other != name {
          guard let endpoint = tables.node.endpoints[other], let device = devices[other] else { continue }
          after.endpoints[device.index] = EndpointLayout(endpoint)
        }
      }
      if let endpoint = change.new, let device = devices[name] {
        after.endpoints[device.index] = EndpointLayout(endpoint)
      }
      for address in (change.old?.addresses ?? []) + (change.new?.addresses ?? []) {
        // Whatever stood there: the element is written or removed.
        before.podDevices[AddressLayout(address)] = PodDeviceLayout()
        after.podDevices[AddressLayout(address)] = PacketTable.podDevice(address, tables, devices)
      }
    }
    addAddresses(delta, tables)
    addRanges(RangeKeyLayout.cluster, delta.clusterRanges)
    addRanges(RangeKeyLayout.service, delta.serviceRanges)
    addRanges(RangeKeyLayout.pod, delta.podRanges)
    if !delta.clusterRanges.isEmpty {
      after.state[PacketTable.State.masquerade] = PacketTable.masqueradedFamilies(tables)
    }
    for (family, change) in delta.blocks {
      after.state[PacketTable.State.blocks(family)] = change.new?.number ?? 0
      before.add(change.old)
      after.add(change.new)
    }
    for (address, change) in delta.identities {
      before.identities[AddressLayout(address)] = change.old?.rawValue
      after.identities[AddressLayout(address)] = change.new?.rawValue
    }
    for (key, change) in delta.pairs {
      before.pairs[PairKeyLayout(key)] = change.old.map { PairLayout($0) }
      after.pairs[PairKeyLayout(key)] = change.new.map { PairLayout($0) }
    }
    for (id, change) in delta.portSets {
      if let old = change.old { before.add(id, old) }
      if let new = change.new { after.add(id, new) }
    }
    for (key, change) in delta.clauses {
      before.clauses[ClauseKeyLayout(key)] = change.old
      after.clauses[ClauseKeyLayout(key)] = change.new
    }
  }

  private mutating func addAddresses(_ delta: TableDelta, _ tables: Tables) {
    var affected: Set<IPAddress> = []
    for change in [delta.ownAddresses, delta.serviceAddresses, delta.otherAddresses, delta.nodePortAddresses] {
      affected.formUnion(change.added)
      affected.formUnion(change.removed)
    }
    for (family, change) in delta.internalAddresses {
      for address in [change.old, change.new] { if let address { affected.insert(address) } }
      after.internalAddresses[PacketTable.index(family)] = PacketTable.internalAddress(family, tables)
    }
    for address in affected {
      before.addresses[AddressLayout(address)] = 0
      after.addresses[AddressLayout(address)] = PacketTable.flags(address, tables)
    }
  }

  private mutating func addRanges(_ table: UInt32, _ change: SetChange<CIDR>) {
    before.addRanges(table, change.removed)
    after.addRanges(table, change.added)
  }
}
