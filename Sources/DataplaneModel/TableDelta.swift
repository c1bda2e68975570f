import NetworkTypes

/// One entry's change: nil `old` adds, nil `new` removes.
public struct Change<Value: Sendable & Equatable>: Sendable, Equatable {
  public var old: Value?
  public var new: Value?

  public init(old: Value?, new: Value?) {
    self.old = old
    self.new = new
  }
}

extension Change: Hashable where Value: Hashable {}

public struct SetChange<Element: Hashable & Sendable>: Sendable, Equatable {
  public var added: Set<Element> = []
  public var removed: Set<Element> = []

  public init(added: Set<Element> = [], removed: Set<Element> = []) {
    self.added = added
    self.removed = removed
  }

  public init(from old: Set<Element>, to new: Set<Element>) {
    added = new.subtracting(old)
    removed = old.subtracting(new)
  }

  public var isEmpty: Bool { added.isEmpty && removed.isEmpty }
}

/// What changed between two states of the tables. Its size is the size of the change, never of the tables.
public struct TableDelta: Sendable, Equatable {
  public var frontends: [FrontendKey: Change<Frontend>] = [:]
  public var sets: [BackendSetID: Change<BackendSet>] = [:]
  public var serviceAddresses = SetChange<IPAddress>()
  public var otherAddresses = SetChange<IPAddress>()
  public var serviceRanges = SetChange<CIDR>()
  public var endpoints: [String: Change<LocalEndpoint>] = [:]
  public var nodePortAddresses = SetChange<IPAddress>()
  public var internalAddresses: [IPFamily: Change<IPAddress>] = [:]
  public var clusterRanges = SetChange<CIDR>()
  public var ownAddresses = SetChange<IPAddress>()
  public var identities: [IPAddress: Change<IdentityID>] = [:]
  public var blocks: [IPFamily: Change<BlockTable>] = [:]
  public var podRanges = SetChange<CIDR>()
  public var pairs: [PairKey: Change<PairValue>] = [:]
  public var portSets: [PortSetID: Change<PortSet>] = [:]
  public var attributions: [AttributionID: Change<Attribution>] = [:]
  public var clauses: [ClauseKey: Change<UInt32>] = [:]
  /// Live flows may be denied now, or allowed by another rule: engines judge each again at its next packet.
  public var rejudgesFlows = false

  public init() {}

  public var isEmpty: Bool {
    frontends.isEmpty && sets.isEmpty && serviceAddresses.isEmpty && otherAddresses.isEmpty && serviceRanges.isEmpty
      && endpoints.isEmpty
      && nodePortAddresses.isEmpty && internalAddresses.isEmpty && clusterRanges.isEmpty && ownAddresses.isEmpty
      && identities.isEmpty && blocks.isEmpty && podRanges.isEmpty && pairs.isEmpty && portSets.isEmpty
      && attributions.isEmpty && clauses.isEmpty && !rejudgesFlows
  }
}

/// Everything an engine puts into the kernel.
public struct Tables: Sendable, Equatable {
  public private(set) var services = ServiceTable()
  public private(set) var node = NodeTable()
  public private(set) var identities = IdentityTable()
  public private(set) var policies = PolicyTable()

  public init() {}

  /// Applies a delta that was made against this state.
  public mutating func apply(_ delta: TableDelta) {
    for (key, change) in delta.frontends { services.frontends[key] = change.new }
    for (key, change) in delta.sets { services.sets[key] = change.new }
    for (key, change) in delta.endpoints { node.endpoints[key] = change.new }
    for (key, change) in delta.internalAddresses { node.internalAddresses[key] = change.new }
    services.serviceAddresses.apply(delta.serviceAddresses)
    services.otherAddresses.apply(delta.otherAddresses)
    services.serviceRanges.apply(delta.serviceRanges)
    node.nodePortAddresses.apply(delta.nodePortAddresses)
    node.clusterRanges.apply(delta.clusterRanges)
    node.ownAddresses.apply(delta.ownAddresses)
    for (key, change) in delta.identities { identities.addresses[key] = change.new }
    for (key, change) in delta.blocks { identities.blocks[key] = change.new }
    identities.podRanges.apply(delta.podRanges)
    for (key, change) in delta.pairs { policies.pairs[key] = change.new }
    for (key, change) in delta.portSets { policies.portSets[key] = change.new }
    for (key, change) in delta.attributions { policies.attributions[key] = change.new }
    for (key, change) in delta.clauses { policies.clauses[key] = change.new }
  }

  /// The delta from nothing to this state.
  public var asDelta: TableDelta {
    var delta = TableDelta()
    delta.frontends = services.frontends.mapValues { Change(old: nil, new: $0) }
    delta.sets = services.sets.mapValues { Change(old: nil, new: $0) }
    delta.endpoints = node.endpoints.mapValues { Change(old: nil, new: $0) }
    delta.internalAddresses = node.internalAddresses.mapValues { Change(old: nil, new: $0) }
    delta.serviceAddresses.added = services.serviceAddresses
    delta.otherAddresses.added = services.otherAddresses
    delta.serviceRanges.added = services.serviceRanges
    delta.nodePortAddresses.added = node.nodePortAddresses
    delta.clusterRanges.added = node.clusterRanges
    delta.ownAddresses.added = node.ownAddresses
    delta.identities = identities.addresses.mapValues { Change(old: nil, new: $0) }
    delta.blocks = identities.blocks.mapValues { Change(old: nil, new: $0) }
    delta.podRanges.added = identities.podRanges
    delta.pairs = policies.pairs.mapValues { Change(old: nil, new: $0) }
    delta.portSets = policies.portSets.mapValues { Change(old: nil, new: $0) }
    delta.attributions = policies.attributions.mapValues { Change(old: nil, new: $0) }
    delta.clauses = policies.clauses.mapValues { Change(old: nil, new: $0) }
    return delta
  }
}

extension Set where Element: Sendable {
  fileprivate mutating func apply(_ change: SetChange<Element>) {
    // Not subtract and formUnion: those walk, or copy, more than the change.
    for element in change.removed { remove(element) }
    for element in change.added { insert(element) }
  }
}
