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
      let direction =
        (tables.policies.attributions[key.attribution] ?? delta.attributions[key.attribution]?.old)?.direction
        ?? .ingress
      for family in IPFamily.allCases {
        changes.replace(
          Self.clauseEntries(key, change.old, direction, family),
          with: Self.clauseEntries(key, change.new, direction, family))
      }
    }
    // Straight into the plan, not through `changes`: nothing else has their keys, and a split has 100,000 of them.
    for (key, change) in delta.pairs {
      // The same elements, in the same order, of both.
      let (old, new) = (Self.pairEntries(key, change.old), Self.pairEntries(key, change.new))
      for index in 0..<max(old.count, new.count) {
        plan.replace(index < old.count ? old[index] : nil, with: index < new.count ? new[index] : nil)
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

  static func clauseEntries(
    _ key: ClauseKey, _ label: UInt32?, _ direction: PolicyDirection, _ family: IPFamily
  ) -> [MapEntry] {
    guard let label else { return [] }
    let verdict: Verdict =
      switch key.clause.kind {
      case .allow, .notIsolated: .return
      // Not `goto`: at each element that leads to a chain, the kernel walks all rules and all elements of every verdict map
      // (nft_table_validate), so that a policy would cost what all others are.
      case .defaultDeny, .overLimit: .continue
      case .auditDeny: .goto("audit-\(direction)")
      }
    let (attribution, clause) = (key.attribution.rawValue, key.clause.rawValue)
    let entry = MapEntry.clause(family, attribution: attribution, clause: clause, verdict)
    if verdict == .return { return [entry] }
    return [entry, .pair(family, .clauseLabels, attribution, clause, value: label)]
  }

  static func pairEntries(_ key: PairKey, _ value: PairValue?) -> [MapEntry] {
    guard let value else { return [] }
    return (key.identity.family.map { [$0] } ?? IPFamily.allCases).flatMap { family -> [MapEntry] in
      let (subject, identity) = (key.subject.rawValue, key.identity.rawValue)
      return [
        .pair(family, .pairs, subject, identity, value: value.portSet.rawValue),
        .pair(family, .attributions, subject, identity, value: value.attribution.rawValue),
      ]
    }
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
    case .pairs, .attributions:
      for (key, value) in tables.policies.pairs {
        for entry in Self.pairEntries(key, value) where entry.map == map && entry.family == family { body(entry) }
      }
    case .ports, .portRanges:
      for (id, set) in tables.policies.portSets {
        for entry in Self.portEntries(id, set, family) where entry.map == map { body(entry) }
      }
    case .verdicts, .clauseLabels:
      for (key, label) in tables.policies.clauses {
        let direction = tables.policies.attributions[key.attribution]?.direction ?? .ingress
        for entry in Self.clauseEntries(key, label, direction, family) where entry.map == map { body(entry) }
      }
    default: break
    }
  }

  /// As `wanted(insteadOf:of:)`, of policy's maps that grow with the cluster.
  func wantedPolicy(insteadOf entry: MapEntry, of tables: Tables) -> MapEntry? {
    switch entry {
    case .identity(let address, _): return tables.identities.addresses[address].map { .identity(address, $0.rawValue) }
    case .pair(let family, let map, let subject, let identity, _) where map != .clauseLabels:
      let key = PairKey(SubjectID(rawValue: subject), IdentityID(rawValue: identity))
      guard key.identity.family ?? family == family, let value = tables.policies.pairs[key] else { return nil }
      return .pair(
        family, map, subject, identity,
        value: map == .pairs ? value.portSet.rawValue : value.attribution.rawValue)
    default: return nil
    }
  }
}
