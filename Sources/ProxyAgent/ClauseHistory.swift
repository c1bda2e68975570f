import DataplaneModel

/// What the numbers in counters and events mean: the newest few thousand clauses, whether still in force or not, so that
/// an old event still has its policy's name.
struct ClauseHistory: Sendable {
  struct Meaning: Sendable, Hashable {
    var attribution: Attribution
    var clause: Clause
  }
  private var meanings: [UInt32: Meaning] = [:]
  private var labels: [ClauseKey: UInt32] = [:]
  private var order: [(label: UInt32, key: ClauseKey)] = []
  private static let limit = 50_000

  mutating func note(_ delta: TableDelta) {
    for (key, change) in delta.clauses {
      guard let label = change.new, meanings[label] == nil else { continue }
      attributions[key.attribution] = delta.attributions[key.attribution]?.new ?? attributions[key.attribution]
      guard let attribution = attributions[key.attribution] else { continue }
      meanings[label] = Meaning(attribution: attribution, clause: key.clause)
      labels[key] = label
      order.append((label, key))
    }
    for (id, change) in delta.attributions {
      if let new = change.new { attributions[id] = new }
    }
    while order.count > Self.limit {
      let oldest = order.removeFirst()
      meanings[oldest.label] = nil
      labels[oldest.key] = nil
    }
  }
  private var attributions: [AttributionID: Attribution] = [:]

  func meaning(of label: UInt32) -> Meaning? { meanings[label] }
  func meaning(of key: ClauseKey) -> Meaning? { labels[key].flatMap { meanings[$0] } }
}
