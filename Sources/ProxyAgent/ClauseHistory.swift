import DataplaneModel

/// What the numbers in counters and events mean: clauses in force, and the newest that no longer are, so that an old event
/// still has its policy's name.
struct ClauseHistory: Sendable {
  struct Meaning: Sendable, Hashable {
    var attribution: Attribution
    var clause: Clause
  }
  private var meanings: [UInt32: Meaning] = [:]
  private var labels: [ClauseKey: UInt32] = [:]
  private var current: Set<UInt32> = []
  /// Out of force, oldest first.
  private var ended: [(label: UInt32, key: ClauseKey)] = []
  private static let limit = 50_000

  mutating func note(_ delta: TableDelta) {
    for (id, change) in delta.attributions {
      if let new = change.new { attributions[id] = new }
    }
    for (key, change) in delta.clauses {
      if let label = change.new {
        guard let attribution = attributions[key.attribution] else { continue }
        meanings[label] = Meaning(attribution: attribution, clause: key.clause)
        labels[key] = label
      } else if let label = change.old {
        ended.append((label, key))
        current.remove(label)
      }
      if let label = change.new { current.insert(label) }
    }
    for (id, change) in delta.attributions where change.new == nil { attributions[id] = nil }
    // In blocks: taking the first of an array costs its length.
    guard ended.count > Self.limit + Self.limit / 4 else { return }
    for (label, key) in ended.prefix(Self.limit / 4) where !current.contains(label) {
      meanings[label] = nil
      labels[key] = nil
    }
    ended.removeFirst(Self.limit / 4)
  }

  private var attributions: [AttributionID: Attribution] = [:]

  func meaning(of label: UInt32) -> Meaning? { meanings[label] }
  func meaning(of key: ClauseKey) -> Meaning? { labels[key].flatMap { meanings[$0] } }
}
