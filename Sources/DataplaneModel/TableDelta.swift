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

  public init() {}

  public var isEmpty: Bool {
    frontends.isEmpty && sets.isEmpty && serviceAddresses.isEmpty && otherAddresses.isEmpty && serviceRanges.isEmpty
      && endpoints.isEmpty
      && nodePortAddresses.isEmpty && internalAddresses.isEmpty && clusterRanges.isEmpty
  }
}

/// Everything an engine puts into the kernel.
public struct Tables: Sendable, Equatable {
  public private(set) var services = ServiceTable()
  public private(set) var node = NodeTable()

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
