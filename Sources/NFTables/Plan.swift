import DataplaneModel
import NetworkTypes

/// What one netlink message, or a few, will do. Printable: plan tests compare text.
enum Operation: Sendable, Hashable, CustomStringConvertible {
  /// Makes a table; where there is one, gives it these flags.
  case addTable(IPFamily, TableFlags)
  case deleteTable(IPFamily)
  case addMap(IPFamily, MapName)
  /// By name: of what somebody else put into our table.
  case deleteMap(IPFamily, String)
  case addChain(IPFamily, ChainSpec)
  /// Empties the chain and writes its rules anew; packets meet the old rules or the new ones.
  case replaceRules(IPFamily, ChainSpec)
  case deleteChain(IPFamily, String)
  case add(MapEntry)
  case delete(MapEntry)

  var description: String {
    func table(_ family: IPFamily) -> String { family == .v4 ? "ip" : "ip6" }
    return switch self {
    case .addTable(let family, _): "add table \(table(family))"
    case .deleteTable(let family): "delete table \(table(family))"
    case .addMap(let family, let map): "add map \(table(family)) \(map.rawValue)"
    case .deleteMap(let family, let map): "delete map \(table(family)) \(map)"
    case .addChain(let family, let chain): "add chain \(table(family)) \(chain.name)"
    case .replaceRules(let family, let chain): "replace rules \(table(family)) \(chain.name)"
    case .deleteChain(let family, let name): "delete chain \(table(family)) \(name)"
    case .add(let entry): "add \(entry)"
    case .delete(let entry): "delete \(entry)"
    }
  }
}

/// A delta in the kernel's terms.
///
/// `now` is one transaction. A packet may meet the old elements in one look-up and the new in the next, never the other
/// way round, and every chain of look-ups goes frontend, set, slot: so additions and flips may stand in one transaction
/// (docs/decisions.md). What a packet that met an old element may still want is removed by `later`, after a grace period.
/// Interval sets show a change later than hash maps do: what only they hold comes `before`. What must not be seen before
/// all of that comes `after`, at the end of the last of these transactions.
struct Plan: Sendable, Equatable {
  var before: [Operation] = []
  var now: [Operation] = []
  var after: [Operation] = []
  var later: [Operation] = []

  var isEmpty: Bool { before.isEmpty && now.isEmpty && after.isEmpty && later.isEmpty }

  /// The plan so far; an empty one stays.
  mutating func take() -> Plan {
    defer { self = Plan() }
    return self
  }

  /// Adds an element with a key that is not there.
  mutating func add(_ entry: MapEntry) {
    switch entry {
    case .sourceRange, .block, .portRange: before.append(.add(entry))
    default: now.append(.add(entry))
    }
  }

  /// Changes what stands under one key.
  mutating func replace(_ old: MapEntry?, with new: MapEntry?) {
    guard old != new else { return }
    switch (old, new) {
    case (let old?, let new?):
      now.append(.delete(old))
      now.append(.add(new))
    case (let old?, nil): remove(old)
    case (nil, let new?): add(new)
    case (nil, nil): break
    }
  }

  /// Removes an element whose key does not come back.
  mutating func remove(_ entry: MapEntry) {
    switch entry.map {
    case .sets, .backends, .stickySlots, .sourceRanges, .dispatch, .remoteDispatch, .balancers, .remoteBalancers,
      .blocks, .pairs, .ports, .portRanges, .verdicts, .clauseLabels:
      later.append(.delete(entry))
    default: now.append(.delete(entry))
    }
  }
}

extension MapName {
  /// All maps, each behind those it leads to: filled in this order, a packet meets a frontend last.
  static let inDependencyOrder: [MapName] = [
    .podSources, .hairpin, .clusterRanges, .ownAddresses, .outcomes, .clauseLabels, .verdicts, .portRanges,
    .ports, .pairs, .blocks, .podRanges, .blockTable, .identities, .revision, .egressSubjects, .ingressSubjects,
    .localInterfaces, .sourceRanges, .dispatch, .remoteDispatch, .balancers,
    .remoteBalancers, .backends, .stickySlots, .stickyBackends, .sets, .guarded, .remoteFrontends, .frontends,
    .serviceAddresses, .otherAddresses, .serviceRanges,
  ]
}

extension [Operation] {
  /// The same operations in an order that may be cut anywhere: what names something comes behind what it names.
  func inDependencyOrder() -> [Operation] {
    let last = MapName.inDependencyOrder.count + 1
    func rank(_ operation: Operation) -> Int {
      switch operation {
      case .addTable, .addMap, .addChain, .replaceRules, .deleteTable: 0
      case .delete(let entry), .add(let entry): 1 + (MapName.inDependencyOrder.firstIndex(of: entry.map) ?? 0)
      case .deleteChain, .deleteMap: last
      }
    }
    var ranked = [[Operation]](repeating: [], count: last + 1)
    for operation in self { ranked[rank(operation)].append(operation) }
    return ranked.flatMap { $0 }
  }

  /// Cuts into pieces of about `size`; an element's deletion and addition stay together.
  func pieces(of size: Int) -> [ArraySlice<Operation>] {
    var pieces: [ArraySlice<Operation>] = []
    var start = 0
    while start < count {
      var end = Swift.min(start + size, count)
      while end < count, case .delete = self[end - 1] { end += 1 }
      pieces.append(self[start..<end])
      start = end
    }
    return pieces
  }
}

/// Gathers elements that come and go, and says in which transaction each belongs.
struct EntryChanges {
  private var removed: [MapEntry.Key: MapEntry] = [:]
  private var added: [MapEntry.Key: MapEntry] = [:]

  mutating func add(_ entry: MapEntry) { added[entry.key] = entry }
  mutating func remove(_ entry: MapEntry) { removed[entry.key] = entry }
  mutating func replace(_ old: [MapEntry], with new: [MapEntry]) {
    old.forEach { remove($0) }
    new.forEach { add($0) }
  }

  consuming func emit(into plan: inout Plan) {
    for (key, entry) in added {
      let old = removed.removeValue(forKey: key)
      guard old != entry else { continue }
      plan.replace(old, with: entry)
    }
    for entry in removed.values { plan.remove(entry) }
  }
}
