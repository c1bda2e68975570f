/// Things found by their labels.

/// A label that must be there for a selector to match: the key with one value, or with any.
enum LabelAnchor: Hashable, Sendable {
  case pair(Labels.Pair)
  case key(String)
}

extension Labels {
  var anchors: [LabelAnchor] { pairs.map { .pair($0) } + pairs.map { .key($0.key) } }
}

extension LabelSelector {
  /// For each requirement that only a present label meets: anchors of which all labels that meet it have exactly one.
  var anchors: [[LabelAnchor]] {
    var result: [[LabelAnchor]] = matchLabels.pairs.map { [.pair($0)] }
    for requirement in matchExpressions {
      switch requirement.comparison {
      case .isIn: result.append(Set(requirement.values).map { .pair(Labels.Pair(key: requirement.key, value: $0)) })
      case .exists: result.append([.key(requirement.key)])
      case .isNotIn, .doesNotExist: break
      }
    }
    return result
  }

  /// Labels that match have none of them.
  fileprivate var forbiddenAnchors: [LabelAnchor] {
    matchExpressions.flatMap { requirement -> [LabelAnchor] in
      switch requirement.comparison {
      case .isNotIn: requirement.values.map { .pair(Labels.Pair(key: requirement.key, value: $0)) }
      case .doesNotExist: [.key(requirement.key)]
      case .isIn, .exists: []
      }
    }
  }
}

/// Things that have labels, found by selectors. Every list is sorted, so that a selector is a few intersections and
/// differences of lists and looks at no labels; a new thing with a higher number than all others is appended.
struct LabelIndex<Thing: Comparable & Sendable>: Sendable {
  private var all: [Thing] = []
  private var holders: [LabelAnchor: [Thing]] = [:]

  var holdsNothing: Bool { all.isEmpty && holders.isEmpty }

  mutating func insert(_ thing: Thing, _ labels: Labels) {
    all.insertSorted(thing)
    for anchor in labels.anchors { holders[anchor, default: []].insertSorted(thing) }
  }

  mutating func remove(_ thing: Thing, _ labels: Labels) {
    all.removeSorted(thing)
    for anchor in labels.anchors {
      guard let index = holders.index(forKey: anchor) else { continue }
      holders.values[index].removeSorted(thing)
      if holders.values[index].isEmpty { holders.remove(at: index) }
    }
  }

  /// No more things than this match.
  func bound(for selector: LabelSelector) -> Int {
    selector.anchors.map { $0.reduce(0) { $0 + (holders[$1]?.count ?? 0) } }.min() ?? all.count
  }

  /// The things that match, among those given (sorted), in ascending order.
  func matching(_ selector: LabelSelector, among others: [Thing]? = nil, visits: inout Int) -> [Thing] {
    // What a requirement for a present label leaves: of `In` one list for each value, which have no thing in common.
    var required = selector.anchors.map { $0.compactMap { holders[$0] } }
    if others != nil || required.isEmpty { required.append([others ?? all]) }
    let sizes = required.map { $0.reduce(0) { $0 + $1.count } }
    let order = required.indices.sorted { sizes[$0] < sizes[$1] }

    var result = Self.union(required[order[0]])
    visits += result.count
    for index in order.dropFirst() { result = Self.union(required[index].map { result.intersection($0) }) }
    for anchor in selector.forbiddenAnchors {
      if let holders = holders[anchor] { result = result.subtracting(holders) }
    }
    return result
  }

  /// Of sorted lists that have no thing in common.
  private static func union(_ lists: [[Thing]]) -> [Thing] {
    lists.count == 1 ? lists[0] : lists.flatMap { $0 }.sorted()
  }
}

extension Array where Element: Comparable {
  /// The first index in `range` whose element is not less, or the range's end.
  private func lowerBound(of element: Element, in range: Range<Int>) -> Int {
    var (low, high) = (range.lowerBound, range.upperBound)
    while low < high {
      let middle = low + (high - low) / 2
      if self[middle] < element { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Sorted arrays only; no effect where the element is there.
  mutating func insertSorted(_ element: Element) {
    guard let last, last >= element else { return append(element) }
    let index = lowerBound(of: element, in: indices)
    if self[index] != element { insert(element, at: index) }
  }

  mutating func removeSorted(_ element: Element) {
    let index = lowerBound(of: element, in: indices)
    if index < count, self[index] == element { remove(at: index) }
  }

  /// Of two sorted arrays; quick also where the other one is much longer.
  fileprivate func intersection(_ other: [Element]) -> [Element] { filter(isIn: other, true) }

  fileprivate func subtracting(_ other: [Element]) -> [Element] { filter(isIn: other, false) }

  private func filter(isIn other: [Element], _ wanted: Bool) -> [Element] {
    var result: [Element] = []
    var position = 0
    for element in self {
      // Steps that double, then a search within the last.
      var (end, step) = (position, 1)
      while end < other.count, other[end] < element {
        position = end + 1
        end += step
        step *= 2
      }
      position = other.lowerBound(of: element, in: position..<Swift.min(end, other.count))
      if wanted, position == other.count { break }
      let isIn = position < other.count && other[position] == element
      if isIn == wanted { result.append(element) }
    }
    return result
  }
}
