import DataplaneModel
import Netlink

/// Exact counts, per processor in the kernel.
extension PacketEngine {
  public mutating func counters() throws(SystemError) -> PolicyCounters {
    var counters = PolicyCounters()
    counters.clauses = ended
    for key in try maps.clauses.keys() {
      guard let count = try maps.clauses[key], let clause = ClauseKey(key) else { continue }
      counters.clauses[clause, default: TrafficCount()] += TrafficCount(count)
    }
    let reasons = DropReason.allCases
    for (index, reason) in reasons.enumerated() where reason != .policyDenied {
      counters.drops[.init(reason)] = try drops(UInt32(index + 1))
    }
    // Behind all reasons, ingress first: `DROPS_SIZE`.
    counters.drops[.init(.policyDenied, .ingress)] = try drops(UInt32(reasons.count + 1))
    counters.drops[.init(.policyDenied, .egress)] = try drops(UInt32(reasons.count + 2))
    return counters
  }

  private func drops(_ index: UInt32) throws(SystemError) -> TrafficCount {
    try maps.drops[index].map { TrafficCount($0) } ?? TrafficCount()
  }

  /// Removes a clause; what it has counted is kept.
  mutating func endClause(_ key: ClauseKeyLayout) throws(SystemError) {
    let count = try maps.clauses[key]
    try maps.clauses.remove(key)
    guard let count, count.packets > 0, let clause = ClauseKey(key) else { return }
    ended[clause, default: TrafficCount()] += TrafficCount(count)
  }
}

extension TrafficCount {
  init(_ counter: CounterLayout) { self.init(packets: counter.packets, bytes: counter.bytes) }
}

extension ClauseKey {
  init?(_ key: ClauseKeyLayout) {
    guard let clause = Clause(rawValue: key.clause) else { return nil }
    self.init(AttributionID(rawValue: key.attribution), clause)
  }
}
