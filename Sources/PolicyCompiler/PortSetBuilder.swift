import DataplaneModel
import NetworkTypes

/// Turns the rules that match one peer into a total port set and its attribution.
struct PortSetBuilder {
  var direction: PolicyDirection
  var isolating: [PolicyReference]
  var auditing: [PolicyReference]

  /// One matching rule: what ports it allows, names resolved. nil: all.
  struct Rule {
    var reference: RuleReference
    var isAudit: Bool
    var ports: [ClosedRange<PortKey>]?
  }

  /// - Parameter rules: in the order in which they decide.
  func build(_ rules: [Rule]) -> (PortSet, Attribution) {
    var cuts: Set<UInt32> = [PortKey.first.rawValue]
    for rule in rules {
      for range in rule.ports ?? [] {
        cuts.insert(range.lowerBound.rawValue)
        if range.upperBound < .last { cuts.insert(range.upperBound.rawValue + 1) }
      }
    }
    let starts = cuts.sorted()
    /// What each stretch from one cut to the next says, with rules by their position in `rules`.
    var winners = [Int?](repeating: nil, count: starts.count)
    var audited = [Bool](repeating: false, count: starts.count)
    for (index, rule) in rules.enumerated() {
      func cover(_ range: Range<Int>) {
        for stretch in range {
          if rule.isAudit { audited[stretch] = true } else if winners[stretch] == nil { winners[stretch] = index }
        }
      }
      guard let ports = rule.ports else {
        cover(0..<starts.count)
        continue
      }
      for range in ports {
        let first = Self.index(of: range.lowerBound.rawValue, in: starts)
        let end = range.upperBound == .last ? starts.count : Self.index(of: range.upperBound.rawValue + 1, in: starts)
        cover(first..<end)
      }
    }
    // Only rules that decide something are named, so that pairs share attributions.
    let deciding = Set(winners.compactMap { $0 }).sorted()
    let position = Dictionary(uniqueKeysWithValues: deciding.enumerated().map { ($1, UInt16(clamping: $0)) })
    var entries: [PortSet.Entry] = []
    for (stretch, start) in starts.enumerated() {
      let end = stretch + 1 < starts.count ? starts[stretch + 1] - 1 : PortKey.last.rawValue
      guard let first = PortKey(rawValue: start), let last = PortKey(rawValue: end) else { continue }
      entries.append(
        PortSet.Entry(first...last, clause(winners[stretch].flatMap { position[$0] }, isAudited: audited[stretch])))
    }
    return (
      PortSet(entries),
      Attribution(
        direction: direction, rules: deciding.map { rules[$0].reference }, isolating: isolating, auditing: auditing)
    )
  }

  private func clause(_ rule: UInt16?, isAudited: Bool) -> Clause {
    if let rule { return Clause(.allow, rule) }
    if !isolating.isEmpty { return Clause(.defaultDeny) }
    return auditing.isEmpty || isAudited ? Clause(.notIsolated) : Clause(.auditDeny)
  }

  private static func index(of value: UInt32, in sorted: [UInt32]) -> Int {
    var (low, high) = (0, sorted.count)
    while low < high {
      let middle = (low + high) / 2
      if sorted[middle] < value { low = middle + 1 } else { high = middle }
    }
    return low
  }
}
