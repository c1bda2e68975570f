import CLinux
import DataplaneModel
import Glibc
import NetworkTypes

/// The tables in nftables: one table `sluice` per family, a constant number of chains and rules, everything else in maps.
///
/// One instance writes; it belongs to the network namespace it was made in. Nothing is cached of the kernel's state but
/// what waits for removal, so that whatever went wrong is mended by `resync`.
public struct NFTablesEngine: NodeEngine {
  let connection: Connection
  private var planner = Planner()
  /// Removals that wait for packets which may still look them up.
  private var deferred = DeferredRemovals()
  private var internalAddresses: [IPFamily: IPAddress] = [:]
  let ownership: TableOwnership
  /// What tables get that we make; nil until the kernel was asked what it can.
  var newTableFlags: TableFlags?
  /// Tables are made so that no packet meets them, until `wake`.
  var sleeps: Bool
  private let markMask: UInt32
  private let keepsEstablished: Bool
  /// What flows judged by the tables as they are carry in their mark; as found in the kernel, by family.
  private var policies: [IPFamily: PolicyLayout] = [:]
  /// What counters said that are gone.
  var ledger = CounterLedger()
  /// The generation after our last commit: another number means that somebody wrote to nf_tables.
  private var lastGeneration: UInt32?
  /// The generation in which `hasLostStructure` found nothing missing.
  private var lastLook: UInt32?

  /// Large first programmings are sent in pieces: a batch is one datagram in one kernel buffer.
  private static let pieceSize = 20_000

  public static let defaultMarkMask: UInt32 = 0xffff_f000
  /// Where rules tell of packets: a group of nfnetlink_log.
  public static let logGroup = Layout.logGroup
  /// Of lines about clauses, whose packet mark is the clause's label. Every other prefix is a `DropReason`.
  public static func policyDirection(ofLogPrefix prefix: String) -> PolicyDirection? {
    PolicyDirection.allCases.first { prefix == Layout.logPrefix($0) }
  }

  /// - Parameters:
  ///   - markMask: bits of conntrack marks that nobody else uses, at least 8 of them, adjacent. A flow that was silent
  ///     while policies changed as often as they have values is not judged again.
  ///   - keepsEstablished: a flow that was allowed once goes on whatever policies say later.
  ///   - ownership: who else may change the tables. Owned ones are this engine's for as long as it lives.
  ///   - sleeps: packets meet the tables only after `wake`: another engine has the packet path until then. Not where there
  ///     are tables already that packets meet.
  public init(
    markMask: UInt32 = NFTablesEngine.defaultMarkMask, keepsEstablished: Bool = false,
    ownership: TableOwnership = .owned, sleeps: Bool = false
  ) throws(NFTablesError) {
    connection = try Connection()
    self.sleeps = sleeps
    self.ownership = ownership
    self.markMask = markMask
    self.keepsEstablished = keepsEstablished
  }

  // MARK: DataplaneEngine

  public mutating func apply(_ delta: TableDelta, tables: Tables) throws(NFTablesError) -> ApplyReport {
    // A subject that comes back must not find pairs of its past: numbers may stand for other addresses by now.
    if !deferred.isEmpty, delta.pairs.contains(where: { $0.key.identity == .any && $0.value.old == nil }) {
      waitForPackets()
      try commit(deferred.take())
    }
    var plan = planner.plan(delta, after: tables)
    for (family, change) in delta.internalAddresses {
      internalAddresses[family] = change.new
      plan.now += layout(family).chains.filter { $0.name == "masquerade-flow" }.map { .replaceRules(family, $0) }
    }
    if delta.rejudgesFlows { plan.after += judgeAnew() }
    try execute(plan)
    return takeReport()
  }

  /// True while removals wait; `finishRemovals` ends that.
  public var hasDeferredRemovals: Bool { !deferred.isEmpty }

  /// Removes what no packet can want any more: call it some time after the change that left it.
  public mutating func finishRemovals() throws(NFTablesError) -> ApplyReport {
    guard !deferred.isEmpty else { return takeReport() }
    waitForPackets()
    try commit(deferred.take())
    return takeReport()
  }

  /// Whether somebody else has written to nf_tables since our last commit. One small request, no dump.
  public func wasChangedByOthers() throws(NFTablesError) -> Bool {
    try connection.generation() != lastGeneration
  }

  public mutating func noteOwnTransactions(_ count: Int) {
    if let last = lastGeneration { lastGeneration = last &+ UInt32(clamping: count) }
  }

  /// Whether rules, maps or whole tables of ours are missing or others: then packets pass that should not. Looks only where
  /// somebody else has written since the last look; elements are not read.
  public mutating func hasLostStructure(_ tables: Tables) throws(NFTablesError) -> Bool {
    let generation = try connection.generation()
    guard generation != lastGeneration, generation != lastLook else { return false }
    var drift = DriftList()
    for family in IPFamily.allCases {
      var (structure, leftOver): ([Operation], [Operation]) = ([], [])
      _ = compareStructure(
        try connection.readTable(family), family, tables, &structure, &leftOver, &drift)
    }
    lastLook = generation
    // What is too much opens nothing: chains of ours that wait for their removal, for one.
    return drift.list.contains { $0.kind != .extra }
  }

  public mutating func resync(_ tables: Tables) throws(NFTablesError) -> (report: ApplyReport, drift: [Drift]) {
    try takeOwnership()
    keepCounts()
    // Whatever somebody else writes from now on is seen: what was read before that may be gone.
    lastGeneration = try connection.generation()
    deferred = DeferredRemovals()
    planner = Planner(tables)
    internalAddresses = tables.node.internalAddresses
    var drift = DriftList()
    for family in IPFamily.allCases {
      let kernel = try connection.readTable(family)
      adoptRevision(kernel, family)
      planner.revisions[family] = layout(family).policy.revision
      var (structure, leftOver): ([Operation], [Operation]) = ([], [])
      let adopted = compareStructure(kernel, family, tables, &structure, &leftOver, &drift)
      deferred.add(leftOver)
      var plan = Plan()
      if adopted.isEmpty {
        try commit(structure)
      } else {
        // An earlier build's table: its rules look maps up that are full, and go on doing so until the new ones are.
        try commit(structure.filter { if case .addMap = $0 { true } else { false } })
      }
      for map in MapName.inDependencyOrder where !adopted.contains(map) {
        try mend(map, family, tables, adopted: adopted, &plan, &drift)
      }
      // One transaction, as of any delta: between two of them packets would meet a world that is neither the old nor the
      // new one, for ever if the agent is killed there.
      for operation in structure where !adopted.isEmpty {
        switch operation {
        case .addMap: break
        // Before what leads to them (see Planner.planSets).
        case .addChain: plan.before.append(operation)
        default: plan.now.append(operation)
        }
      }
      for map in MapName.inDependencyOrder where adopted.contains(map) {
        try mend(map, family, tables, adopted: adopted, &plan, &drift)
        // Not so many at once that memory would not do: much is wrong anyway.
        if plan.now.count > Self.pieceSize { try execute(plan.take()) }
      }
      // Whatever was wrong, or changed while nobody looked: flows it let through are judged by what is right now. In the
      // transaction that mends it: an agent that is killed before the next would leave the next one nothing to see.
      if !drift.list.isEmpty { plan.after += judgeAnew([family]) }
      try execute(plan)
    }
    if !deferred.isEmpty {
      waitForPackets()
      try commit(deferred.take())
    }
    // Once more: until now a flow may have met what was still to be removed.
    if !drift.list.isEmpty { try commit(judgeAnew()) }
    return (takeReport(), drift.list)
  }

  /// Plans what makes one map's elements equal to the tables'. A map of which the kernel has nothing is filled at once, in
  /// pieces that need little memory.
  private mutating func mend(
    _ map: MapName, _ family: IPFamily, _ tables: Tables, adopted: Set<MapName>, _ plan: inout Plan,
    _ drift: inout DriftList
  ) throws(NFTablesError) {
    let differences = try differences(map, family, tables, isAdopted: adopted.contains(map))
    for (entry, want) in differences.wrong {
      drift.add(.different, "\(entry), should be \(want)")
      plan.now += [.delete(entry), .add(want)]
    }
    let isOfPairs = map == .pairs && !differences.extra.isEmpty
    let used = isOfPairs ? tables.identities.numbers : []
    let regained = isOfPairs ? try regainedIdentities(family, tables, adopted) : []
    for entry in differences.extra {
      drift.add(.extra, "\(entry)")
      // A pair of another time, of a subject that is in force or under a number that other addresses get now: no packet may
      // meet both. Else it is one of a subject that no pod has any more, which a packet under way may have met.
      if case .pair(_, let key, _) = entry,
        regained.contains(key.identity)
          || used.contains(key.identity) && tables.policies.pairs[PairKey(key.subject, .any)] != nil
      {
        plan.now.append(.delete(entry))
      } else {
        plan.remove(entry)
      }
    }
    if let missing = differences.missing {
      for entry in missing.values {
        drift.add(.missing, "\(entry)")
        plan.add(entry)
      }
      return
    }
    // Nothing of this map is in the kernel: straight from the tables into batches, behind what it may lead to.
    try execute(plan.take())
    var piece: [Operation] = []
    var failure: NFTablesError?
    let connection = connection
    var commits: UInt32 = 0
    planner.forEachEntry(map, family, of: tables) { entry in
      piece.append(.add(entry))
      guard piece.count >= Self.pieceSize, failure == nil else { return }
      do throws(NFTablesError) { try connection.commit(piece) } catch { failure = error }
      commits += 1
      piece.removeAll(keepingCapacity: true)
    }
    if let failure { throw failure }
    if let last = lastGeneration { lastGeneration = last &+ commits }
    try commit(piece)
  }

  /// Numbers that the tables give to addresses which the kernel knows by another number, or by none.
  private func regainedIdentities(
    _ family: IPFamily, _ tables: Tables, _ adopted: Set<MapName>
  ) throws(NFTablesError) -> Set<IdentityID> {
    // Nothing tells who had which number.
    guard adopted.isSuperset(of: [.identities, .blocks, .blockTable]) else { return tables.identities.numbers }
    var numbers: Set<IdentityID> = []
    let addresses = try differences(.identities, family, tables, isAdopted: true)
    for case .identity(_, let number) in addresses.wrong.map(\.want) + (addresses.missing ?? [:]).values {
      numbers.insert(IdentityID(rawValue: number))
    }
    // Whose pod or node is gone is found among blocks.
    for case .identity(let address, _) in addresses.extra {
      if let number = tables.identities.identity(of: address) { numbers.insert(number) }
    }
    guard let wanted = tables.identities.blocks[family] else { return numbers }
    var inForce: Set<UInt32> = []
    try connection.readElements(family, .blockTable) { entry in
      if case .blockTable(_, let table) = entry { inForce.insert(table) }
    }
    var known: Set<BlockTable.Atom> = []
    try connection.readElements(family, .blocks) { entry in
      guard case .block(let table, let range, let number) = entry, inForce.contains(table) else { return }
      known.insert(.init(range, IdentityID(rawValue: number)))
    }
    // A part of a range that had the number already is taken for a stranger, to be safe.
    for atom in wanted.atoms where !known.contains(atom) { numbers.insert(atom.identity) }
    return numbers
  }

  private struct Differences {
    var wrong: [(have: MapEntry, want: MapEntry)] = []
    var extra: [MapEntry] = []
    /// nil: the whole map.
    var missing: [MapEntry.Key: MapEntry]?
  }

  private func differences(
    _ map: MapName, _ family: IPFamily, _ tables: Tables, isAdopted: Bool
  ) throws(NFTablesError) -> Differences {
    var result = Differences()
    guard isAdopted else { return result }
    if Planner.mapsThatGrow.contains(map) {
      // Without gathering 100,000 elements: each is asked for in the tables, and a count tells whether any is missing.
      var (found, total) = (0, 0)
      try connection.readElements(family, map) { entry in
        let want = planner.wanted(insteadOf: entry, of: tables)
        if want == nil { result.extra.append(entry) } else { found += 1 }
        if let want, want != entry { result.wrong.append((entry, want)) }
      }
      planner.forEachEntry(map, family, of: tables) { _ in total += 1 }
      if found == total {
        result.missing = [:]
        return result
      }
      result = Differences()
    }
    var wanted: [MapEntry.Key: MapEntry] = [:]
    planner.forEachEntry(map, family, of: tables) { wanted[$0.key] = $0 }
    try connection.readElements(family, map) { entry in
      let want = wanted.removeValue(forKey: entry.key)
      if let want, want != entry {
        result.wrong.append((entry, want))
      } else if want == nil {
        result.extra.append(entry)
      }
    }
    result.missing = wanted
    return result
  }

  public mutating func verify(_ tables: Tables) throws(NFTablesError) -> [Drift] {
    if !deferred.isEmpty { _ = try finishRemovals() }
    for _ in 0..<5 {
      let before = try connection.generation()
      var drift = DriftList()
      for family in IPFamily.allCases {
        var (structure, leftOver): ([Operation], [Operation]) = ([], [])
        let kernel = try connection.readTable(family)
        if policies[family] == nil { adoptRevision(kernel, family) }
        planner.revisions[family] = layout(family).policy.revision
        let adopted = compareStructure(kernel, family, tables, &structure, &leftOver, &drift)
        for map in MapName.inDependencyOrder where adopted.contains(map) {
          let differences = try differences(map, family, tables, isAdopted: true)
          for (entry, want) in differences.wrong { drift.add(.different, "\(entry), should be \(want)") }
          for entry in differences.extra { drift.add(.extra, "\(entry)") }
          for entry in (differences.missing ?? [:]).values { drift.add(.missing, "\(entry)") }
        }
      }
      // A commit during the dump: the picture may be torn.
      if try connection.generation() == before {
        if drift.list.isEmpty { lastGeneration = before }
        return drift.list
      }
    }
    throw NFTablesError(operation: "verify", object: "the tables kept changing", errno: EAGAIN)
  }

  public mutating func cleanUp() throws(NFTablesError) {
    deferred = DeferredRemovals()
    for family in IPFamily.allCases where try connection.tableNames(family).contains(Layout.tableName) {
      try commit([.deleteTable(family)])
    }
  }

  // MARK: Comparing

  /// Compares tables, maps and rules; returns the maps whose elements can be kept.
  private func compareStructure(
    _ kernel: KernelTable, _ family: IPFamily, _ tables: Tables, _ structure: inout [Operation],
    _ leftOver: inout [Operation], _ drift: inout DriftList
  ) -> Set<MapName> {
    var layout = layout(family)
    layout.internalAddress = tables.node.internalAddresses[family]
    let name = family == .v4 ? "ip" : "ip6"
    let wanted = layout.chains + planner.chains.filter { $0.family == family }.sorted().map(layout.chain(for:))
    let strangeMap = layout.maps.first { map in
      kernel.maps[map.name.rawValue].map { $0 != KernelMap(map) } ?? false
    }
    let strangeChain = wanted.first { chain in kernel.chains[chain.name].map { $0.hook != chain.hook } ?? false }
    let flags = newTableFlags.map { sleeps ? $0.asleep : $0 } ?? []
    // What was made without flags can never be owned. Where there is nothing to lose, another takes its place.
    let canPersist = kernel.flags.contains(.persist) || !flags.contains(.persist)
    let isBare = !canPersist && !layout.maps.contains { kernel.maps[$0.name.rawValue] != nil }
    let isLost = kernel.flags.contains(.dormant) && !sleeps
    if !kernel.exists || isLost || strangeMap != nil || strangeChain != nil || isBare {
      let strange =
        isLost
        ? "dormant"
        : strangeMap.map { "map \($0.name.rawValue)" } ?? strangeChain.map { "chain \($0.name)" }
          ?? (isBare ? "without maps" : nil)
      drift.add(
        kernel.exists ? .different : .missing, "table \(name) \(Layout.tableName)\(strange.map { ": \($0)" } ?? "")")
      // A map of another key, or a chain on another hook, cannot be changed in place: one transaction makes all anew.
      if kernel.exists { structure.append(.deleteTable(family)) }
      structure.append(.addTable(family, flags))
      structure += layout.maps.map { .addMap(family, $0.name) } + wanted.map { .addChain(family, $0) }
      return []
    }
    var adopted: Set<MapName> = []
    for map in layout.maps {
      if kernel.maps[map.name.rawValue] == nil {
        drift.add(.missing, "map \(name) \(map.name.rawValue)")
        structure.append(.addMap(family, map.name))
      } else {
        adopted.insert(map.name)
      }
    }
    for chain in wanted {
      let rules = chain.rules.map { $0.text(chain: chain.name, family: family) }
      let found = kernel.chains[chain.name]
      guard found?.rules != rules else { continue }
      drift.add(found == nil ? .missing : .different, "chain \(name) \(chain.name)")
      structure.append(found == nil ? .addChain(family, chain) : .replaceRules(family, chain))
    }
    let known = Set(wanted.map(\.name))
    for chain in kernel.chains.keys.sorted() where !known.contains(chain) {
      drift.add(.extra, "chain \(name) \(chain)")
      leftOver.append(.deleteChain(family, chain))
    }
    let ours = Set(layout.maps.map(\.name.rawValue))
    for map in kernel.maps.keys.sorted() where !ours.contains(map) {
      drift.add(.extra, "map \(name) \(map)")
      leftOver.append(.deleteMap(family, map))
    }
    return adopted
  }

  // MARK: Executing

  private func layout(_ family: IPFamily) -> Layout {
    Layout(
      family: family, internalAddress: internalAddresses[family],
      policy: policies[family] ?? PolicyLayout(markMask: markMask, keepsEstablished: keepsEstablished))
  }

  /// Goes on with the revision that flows in the kernel carry: it stands in a rule.
  private mutating func adoptRevision(_ kernel: KernelTable, _ family: IPFamily) {
    let found = kernel.chains["stamp-flow"]?.rules.first.flatMap(PolicyLayout.revision(inRule:))
    let revision =
      found.flatMap { $0 != 0 && $0 & ~markMask == 0 ? $0 : nil } ?? policies[family]?.revision
      // Nothing tells where an earlier table was: its flows may still be there, with its marks.
      ?? PolicyLayout.anyRevision(markMask)
    policies[family] = PolicyLayout(markMask: markMask, revision: revision, keepsEstablished: keepsEstablished)
  }

  /// Every flow is judged again at its next packet.
  private mutating func judgeAnew(_ families: [IPFamily] = IPFamily.allCases) -> [Operation] {
    var operations: [Operation] = []
    for family in families {
      policies[family] = layout(family).policy.next
      let revision = layout(family).policy.revision
      if let old = planner.revisions.updateValue(revision, forKey: family) {
        operations.append(.delete(.revision(family, old)))
      }
      operations += [.add(.revision(family, revision)), .replaceRules(family, layout(family).stampChain)]
    }
    return operations
  }

  private mutating func execute(_ plan: Plan) throws(NFTablesError) {
    let before = deferred.reclaiming(plan.before)
    let now = deferred.reclaiming(plan.now)
    try commit(before)
    if now.count <= Self.pieceSize {
      try commit(now + plan.after)
    } else {
      // In an order in which every piece leaves only what nothing names yet: packets meet a frontend last.
      let pieces = now.inDependencyOrder().pieces(of: Self.pieceSize)
      for piece in pieces.dropLast() { try commit(Array(piece)) }
      try commit(Array(pieces.last ?? []) + plan.after)
    }
    deferred.add(plan.later)
  }

  mutating func commit(_ operations: [Operation]) throws(NFTablesError) {
    guard !operations.isEmpty else { return }
    let ending = countsEnded(by: operations)
    try connection.commit(operations)
    ledger.end(ending)
    // Ours is the next generation. Where somebody wrote in between, the numbers stay apart and `resync` looks.
    if let last = lastGeneration { lastGeneration = last &+ 1 }
  }

  /// What was sent and not yet reported: after `verify`, whose answer has no room for it.
  public func takeReport() -> ApplyReport {
    let report = connection.takeReport()
    var result = ApplyReport()
    (result.messages, result.batches, result.dumps) = (report.messages, report.batches, report.dumps)
    return result
  }

  /// Waits until no packet is under way that began before this call: membarrier's global form is an RCU grace period,
  /// and netfilter hooks run inside one.
  private func waitForPackets() {
    // Where the kernel refuses (nohz_full), the caller's own delay has to do.
    _ = clinux_membarrier_global()
  }
}

/// Differences found, the first thousand by name: where everything is missing nobody reads a list of it.
private struct DriftList {
  private(set) var list: [Drift] = []
  private var left = 1000

  mutating func add(_ kind: Drift.Kind, _ object: @autoclosure () -> String) {
    guard left > 0 else { return }
    left -= 1
    list.append(Drift(kind, object()))
  }
}
