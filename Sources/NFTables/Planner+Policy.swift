import DataplaneModel
import NetworkTypes

/// Policy's part of a plan. Port sets, attributions and pairs are made before what leads to them changes, and removed
/// after a grace period: identities and subjects flip, one element each, and each packet meets the old or the new.
extension Planner {
  func planPolicy(_ delta: TableDelta, _ tables: Tables, into changes: inout EntryChanges, _ plan: inout Plan) {
    for (id, change) in delta.portSets {
      for family in IPFamily.allCases {
        changes.replace(Self.portEntries(id, change.old, family), with: Self.portEntries(id, change.new, family))
      }
    }
    for (key, change) in delta.clauses {
      for family in IPFamily.allCases {
        changes.replace(
          Self.clauseEntries(key, change.old, family), with: Self.clauseEntries(key, change.new, family))
      }
    }
    // Straight into the plan, not through `changes`: nothing else has their keys, and a split has 100,000 of them.
    for (key, change) in delta.pairs {
      for family in IPFamily.allCases where Self.isOf(family, key) {
        plan.replace(change.old.map { .pair(family, key, $0) }, with: change.new.map { .pair(family, key, $0) })
      }
    }
    for (address, change) in delta.identities {
      plan.replace(
        change.old.map { .identity(address, $0.rawValue) }, with: change.new.map { .identity(address, $0.rawValue) })
    }
    for (family, change) in delta.blocks {
      changes.replace(Self.blockEntries(change.old, family), with: Self.blockEntries(change.new, family))
    }
    if !delta.podRanges.isEmpty {
      changes.replace(
        rangeEntries(.podRanges, tables.identities.podRanges.undoing(delta.podRanges)),
        with: rangeEntries(.podRanges, tables.identities.podRanges))
    }
    for address in delta.ownAddresses.removed { changes.remove(.address(.ownAddresses, address)) }
    for address in delta.ownAddresses.added { changes.add(.address(.ownAddresses, address)) }
  }

  static func portEntries(_ id: PortSetID, _ set: PortSet?, _ family: IPFamily) -> [MapEntry] {
    guard let set else { return [] }
    var entries: [MapEntry] = []
    var ranges: [PortSet.Entry] = []
    var isBridge = true
    for entry in set.entries {
      if entry.ports.lowerBound == entry.ports.upperBound {
        entries.append(.port(family, set: id.rawValue, entry.ports.lowerBound, clause: entry.clause.rawValue))
        if !entry.clause.isAllowed { isBridge = false }
      } else if let last = ranges.last, last.clause == entry.clause, isBridge || !entry.clause.isAllowed {
        // Only single ports lie between, and those are found first. Over a denied one nothing allowed is bridged: a lost
        // element must not open anything.
        ranges[ranges.count - 1].ports = last.ports.lowerBound...entry.ports.upperBound
      } else {
        ranges.append(entry)
        isBridge = true
      }
    }
    return entries
      + ranges.map { .portRange(family, set: id.rawValue, $0.ports, clause: $0.clause.rawValue) }
  }

  static func clauseEntries(_ key: ClauseKey, _ label: UInt32?, _ family: IPFamily) -> [MapEntry] {
    guard let label else { return [] }
    let (attribution, clause) = (key.attribution.rawValue, key.clause.rawValue)
    // No verdict leads to a chain: at each element that does, the kernel walks all rules and all elements of every verdict
    // map (nft_table_validate), so that a policy would cost what all others are.
    switch key.clause.kind {
    case .allow, .notIsolated: return [.clause(family, attribution: attribution, clause: clause, .return)]
    // Are told of: the rule goes on.
    case .defaultDeny, .overLimit, .auditDeny:
      return [
        .clause(family, attribution: attribution, clause: clause, .continue),
        .clauseLabel(family, attribution: attribution, clause: clause, label),
      ]
    }
  }

  /// Whether a family's table has the pair.
  private static func isOf(_ family: IPFamily, _ key: PairKey) -> Bool {
    key.identity.family.map { $0 == family } ?? true
  }

  static func blockEntries(_ table: BlockTable?, _ family: IPFamily) -> [MapEntry] {
    guard let table else { return [] }
    return [.blockTable(family, table.number)]
      + table.atoms.map { .block(table: table.number, $0.range, $0.identity.rawValue) }
  }

  static func subjectEntries(_ endpoint: LocalEndpoint) -> [MapEntry] {
    guard let subjects = endpoint.subjects else { return [] }
    return IPFamily.allCases.flatMap { family -> [MapEntry] in
      [
        .subject(family, .egressSubjects, endpoint.interface, subjects.egress.rawValue),
        .subject(family, .ingressSubjects, endpoint.interface, subjects.ingress.rawValue),
      ]
    }
  }

  // MARK: Whole tables

  func forEachPolicyEntry(_ map: MapName, _ family: IPFamily, of tables: Tables, _ body: (MapEntry) -> Void) {
    switch map {
    case .identities:
      for (address, identity) in tables.identities.addresses where address.family == family {
        body(.identity(address, identity.rawValue))
      }
    case .blocks, .blockTable:
      for entry in Self.blockEntries(tables.identities.blocks[family], family) where entry.map == map { body(entry) }
    case .revision:
      if let revision = revisions[family] { body(.revision(family, revision)) }
    case .podRanges:
      for entry in rangeEntries(map, tables.identities.podRanges) where entry.family == family { body(entry) }
    case .ownAddresses:
      for address in tables.node.ownAddresses where address.family == family { body(.address(map, address)) }
    case .egressSubjects, .ingressSubjects:
      for endpoint in tables.node.endpoints.values {
        for entry in Self.subjectEntries(endpoint) where entry.map == map && entry.family == family { body(entry) }
      }
    case .pairs:
      for (key, value) in tables.policies.pairs where Self.isOf(family, key) { body(.pair(family, key, value)) }
    case .ports, .portRanges:
      for (id, set) in tables.policies.portSets {
        for entry in Self.portEntries(id, set, family) where entry.map == map { body(entry) }
      }
    case .verdicts, .clauseLabels:
      for (key, label) in tables.policies.clauses {
        for entry in Self.clauseEntries(key, label, family) where entry.map == map { body(entry) }
      }
    default: break
    }
  }

  /// As `wanted(insteadOf:of:)`, of policy's maps that grow with the cluster.
  func wantedPolicy(insteadOf entry: MapEntry, of tables: Tables) -> MapEntry? {
    switch entry {
    case .identity(let address, _): return tables.identities.addresses[address].map { .identity(address, $0.rawValue) }
    case .pair(let family, let key, _):
      guard Self.isOf(family, key) else { return nil }
      return tables.policies.pairs[key].map { .pair(family, key, $0) }
    default: return nil
    }
  }
}
