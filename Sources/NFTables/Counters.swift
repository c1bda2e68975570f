import CLibMNL
import CLibNFTNL
import DataplaneModel
import NetworkTypes

/// Adds up counters over their ends. A counter ends with its element or its rule; a new one begins at 0.
struct CounterLedger {
  /// What has one counter.
  enum Source: Hashable {
    /// An element of `verdicts`, with the direction if it denies.
    case clause(IPFamily, ClauseKey, denies: PolicyDirection?)
    /// A chain that drops for one reason.
    case chain(IPFamily, DropReason)
  }

  /// As read last.
  private(set) var seen: [Source: TrafficCount] = [:]
  /// The sums of what has ended.
  private var ended = PolicyCounters()
  /// Clauses in `ended`, the oldest first.
  private var order: [ClauseKey] = []
  /// Clauses that may have ended and still be known: a cluster's policies come and go for ever. Drops are not limited.
  let limit: Int

  init(limit: Int = 50_000) { self.limit = limit }

  var totals: PolicyCounters {
    var totals = ended
    for (source, count) in seen { Self.add(count, of: source, to: &totals) }
    return totals
  }

  /// Takes a reading of everything there is.
  ///
  /// - Parameter reread: asks for one counter. A listing can miss an element while others come (nf_tables' hash tables
  ///   grow in the background), and one counted twice would be wrong for ever.
  mutating func observe(_ reading: [Source: TrafficCount], reread: (Source) -> TrafficCount?) {
    var reading = reading
    for (source, old) in seen {
      if let new = reading[source] ?? reread(source) {
        reading[source] = new
        if new.packets >= old.packets { continue }
      }
      keep(old, of: source)
    }
    seen = reading
  }

  /// Takes the last readings of counters that have ended.
  mutating func end(_ last: [Source: TrafficCount]) {
    for (source, count) in last {
      if let old = seen.removeValue(forKey: source), old.packets > count.packets { keep(old, of: source) }
      keep(count, of: source)
    }
  }

  private mutating func keep(_ count: TrafficCount, of source: Source) {
    guard count.packets > 0 else { return }
    if case .clause(_, let key, _) = source, ended.clauses[key] == nil {
      order.append(key)
      if order.count > limit {
        for key in order.prefix(max(1, limit / 8)) { ended.clauses[key] = nil }
        order.removeFirst(max(1, limit / 8))
      }
    }
    Self.add(count, of: source, to: &ended)
  }

  private static func add(_ count: TrafficCount, of source: Source, to totals: inout PolicyCounters) {
    switch source {
    case .clause(_, let key, let denied):
      totals.clauses[key, default: TrafficCount()] += count
      if let denied { totals.drops[.init(.policyDenied, denied), default: TrafficCount()] += count }
    case .chain(_, let reason): totals.drops[.init(reason), default: TrafficCount()] += count
    }
  }
}

extension NFTablesEngine {
  /// Reads every counter: a few listings.
  public mutating func counters() throws(NFTablesError) -> PolicyCounters {
    let connection = connection
    ledger.observe(try connection.readCounters()) { try? connection.readCounter(of: $0) }
    return ledger.totals
  }

  /// Before rules and elements are compared and made anew. Where they cannot be read, the last reading has to do.
  mutating func keepCounts() { _ = try? counters() }

  /// What the counters say that end with these operations: read before they are sent, and, for what packets could still
  /// meet, after they no longer do.
  func countsEnded(by operations: [Operation]) -> [CounterLedger.Source: TrafficCount] {
    var leaving: [CounterLedger.Source] = []
    var counts: [CounterLedger.Source: TrafficCount] = [:]
    for operation in operations {
      switch operation {
      case .delete(let entry):
        if let source = CounterLedger.Source(entry) { leaving.append(source) }
      case .replaceRules(let family, let chain):
        if let reason = Layout.dropChains[chain.name] { leaving.append(.chain(family, reason)) }
      case .deleteChain(let family, let name):
        if let reason = Layout.dropChains[name] { leaving.append(.chain(family, reason)) }
      case .deleteTable(let family):
        counts.merge((try? connection.readCounters(family)) ?? [:]) { $1 }
      default: break
      }
    }
    // A request costs some microseconds; a listing of everything, what there is.
    if leaving.count > 2000 {
      let all = (try? connection.readCounters()) ?? [:]
      for source in leaving { counts[source] = all[source] ?? (try? connection.readCounter(of: source)) }
    } else {
      for source in leaving { counts[source] = try? connection.readCounter(of: source) }
    }
    return counts
  }
}

extension CounterLedger.Source {
  /// nil for an element without counter.
  init?(_ entry: MapEntry) {
    guard case .clause(let family, let attribution, let clause, let verdict) = entry,
      let clause = Clause(rawValue: clause)
    else { return nil }
    let key = ClauseKey(AttributionID(rawValue: attribution), clause)
    self = .clause(
      family, key, denies: clause.isAllowed ? nil : Self.direction(of: verdict) ?? key.attribution.direction)
  }

  /// Which chain an element of earlier builds led to: their attributions' numbers did not tell.
  private static func direction(of verdict: Verdict) -> PolicyDirection? {
    PolicyDirection.allCases.first { verdict == .goto("deny-\($0)") }
  }
}

extension Layout {
  /// The chains that drop for one reason each, by name; policy's denials are counted by clause.
  static let dropChains: [String: DropReason] = {
    let layout = Layout(family: .v4, internalAddress: nil)
    var chains: [String: DropReason] = [:]
    for chain in layout.chains {
      if let reason = DropReason.allCases.first(where: { chain.rules == [layout.dropRule($0)] }) {
        chains[chain.name] = reason
      }
    }
    return chains
  }()
}

extension Connection {
  func readCounters() throws(NFTablesError) -> [CounterLedger.Source: TrafficCount] {
    var counts: [CounterLedger.Source: TrafficCount] = [:]
    for family in IPFamily.allCases { counts.merge(try readCounters(family)) { $1 } }
    return counts
  }

  /// Empty where there is no table.
  func readCounters(_ family: IPFamily) throws(NFTablesError) -> [CounterLedger.Source: TrafficCount] {
    var counts: [CounterLedger.Source: TrafficCount] = [:]
    try request(
      Int(NFT_MSG_GETSETELEM.rawValue), family: family.nfproto, dump: true,
      attributes: [
        (Int(NFTA_SET_ELEM_LIST_TABLE.rawValue), Layout.tableName),
        (Int(NFTA_SET_ELEM_LIST_SET.rawValue), MapName.verdicts.rawValue),
      ]
    ) { message in
      message.forEachElement { element in
        let entry = MapEntry(family: family, map: .verdicts, element)
        if let source = CounterLedger.Source(entry), let count = element.count { counts[source] = count }
      }
    }
    for (chain, reason) in Layout.dropChains {
      if let count = try readCounter(family, chain: chain) { counts[.chain(family, reason)] = count }
    }
    return counts
  }

  /// nil where there is no such counter.
  func readCounter(of source: CounterLedger.Source) throws(NFTablesError) -> TrafficCount? {
    switch source {
    case .chain(let family, let reason):
      guard let chain = Layout.dropChains.first(where: { $0.value == reason })?.key else { return nil }
      return try readCounter(family, chain: chain)
    case .clause(let family, let key, _):
      var bytes = ElementBytes()
      bytes.append(key.attribution.rawValue)
      bytes.append(key.clause.rawValue)
      return try element(family, .verdicts, key: bytes.bytes)?.count
    }
  }

  /// The sum over a chain's rules; nil where there is no such chain, or no counter in it.
  private func readCounter(_ family: IPFamily, chain: String) throws(NFTablesError) -> TrafficCount? {
    var sum: TrafficCount?
    try request(
      Int(NFT_MSG_GETRULE.rawValue), family: family.nfproto, dump: true,
      attributes: [(Int(NFTA_RULE_TABLE.rawValue), Layout.tableName), (Int(NFTA_RULE_CHAIN.rawValue), chain)]
    ) { message in
      message.forEachAttribute(skipping: 4) { type, value in
        guard type == NFTA_RULE_EXPRESSIONS.rawValue else { return }
        attributes(in: value) { _, expression in
          guard let count = TrafficCount(expression: expression) else { return }
          sum = sum ?? TrafficCount()
          sum? += count
        }
      }
    }
    return sum
  }
}

extension TrafficCount {
  /// From an `NFTA_LIST_ELEM` of a rule or the `NFTA_SET_ELEM_EXPR` of an element; nil for what is no counter.
  init?(expression: UnsafeRawBufferPointer) {
    var count = TrafficCount()
    var isCounter = false
    attributes(in: expression) { type, value in
      if type == NFTA_EXPR_NAME.rawValue {
        isCounter = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self) == "counter"
      } else if type == NFTA_EXPR_DATA.rawValue, isCounter {
        attributes(in: value) { type, value in
          guard value.count >= 8 else { return }
          let number = UInt64(bigEndian: value.loadUnaligned(as: UInt64.self))
          if type == NFTA_COUNTER_PACKETS.rawValue { count.packets = number }
          if type == NFTA_COUNTER_BYTES.rawValue { count.bytes = number }
        }
      }
    }
    guard isCounter else { return nil }
    self = count
  }
}
