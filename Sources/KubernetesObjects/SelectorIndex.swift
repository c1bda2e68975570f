/// Which of many registered selectors match one pod, without trying them all.

/// The namespaces whose pods a selector is about.
public enum NamespaceScope: Hashable, Sendable {
  /// One namespace, whatever its labels.
  case own(String)
  /// Every namespace whose labels match.
  case selected(LabelSelector)
}

/// Registered selectors, found by a pod's labels and its namespace's.
///
/// A selector that needs some label to be there lies in a bucket of that label and is tried only for pods that have it.
/// Of several labels it needs, the one with the smallest bucket is taken: that a label is on every pod (such as
/// `app.kubernetes.io/managed-by`) shows in how many selectors already wait there. Namespace selectors likewise.
public struct SelectorIndex<ID: Hashable> {
  private var selectors = NumberedSelectors()
  private var numbers: [ID: Int] = [:]
  /// By number; nil where it is free.
  private var ids: [ID?] = []

  public init() {}

  public var count: Int { numbers.count }
  public var isEmpty: Bool { numbers.isEmpty }
  /// No trace is left of selectors that were removed, room for others apart.
  var holdsNothing: Bool { isEmpty && selectors.holdsNothing }

  /// Registers a selector, in place of the one the ID had. `pods`: nil for all pods of the namespaces in scope.
  public mutating func insert(_ id: ID, pods: LabelSelector?, scope: NamespaceScope) {
    remove(id)
    let number = selectors.insert(pods ?? LabelSelector(), scope)
    numbers[id] = number
    if number == ids.count { ids.append(id) } else { ids[number] = id }
  }

  /// No effect where the ID is not registered.
  public mutating func remove(_ id: ID) {
    guard let number = numbers.removeValue(forKey: id) else { return }
    selectors.remove(number)
    ids[number] = nil
  }

  /// Every registered selector that matches a pod with these labels in this namespace, each once, in no order.
  /// `namespaceLabels`: as `ClusterState.labels(ofNamespace:)` gives them.
  public func matching(namespace: String, namespaceLabels: Labels, labels: Labels) -> [ID] {
    var evaluations = 0
    return matching(
      namespace: namespace, namespaceLabels: namespaceLabels, labels: labels, evaluations: &evaluations)
  }

  /// `evaluations` counts the selectors that were tried.
  func matching(namespace: String, namespaceLabels: Labels, labels: Labels, evaluations: inout Int) -> [ID] {
    selectors.matching(namespace, namespaceLabels, labels, &evaluations).compactMap { ids[$0] }
  }
}

extension SelectorIndex: Sendable where ID: Sendable {}

/// The selectors under small numbers, and the buckets they lie in. Not generic, so that the work is compiled for what it
/// works on.
private struct NumberedSelectors {
  /// What a pod's namespace must be or have; nil: anything.
  enum Scope: Hashable {
    case own(String)
    case labelled(LabelAnchor?)
  }

  /// The buckets a selector lies in: each of `scopes` with each of `anchors` (what the pod must have; nil: nothing). A
  /// pod meets at most one of them.
  struct Place {
    var scopes: [Scope] = []
    var anchors: [LabelAnchor?] = []
  }

  /// Each has a number as long as a bucket needs it: a look-up hashes a label once, however many buckets there are.
  struct Bucket: Hashable {
    var scope: Int
    var anchor: Int
  }

  struct Selector {
    var pods = LabelSelector()
    /// nil: the bucket says it all.
    var namespaces: LabelSelector?
  }

  private var selectors: [Selector] = []
  /// By number, as `selectors`.
  private var places: [Place] = []
  private var freeNumbers: [Int] = []
  private var scopes = Numbering<Scope>()
  private var anchors = Numbering<LabelAnchor?>()
  private var buckets: [Bucket: [Int]] = [:]

  var holdsNothing: Bool { scopes.isEmpty && anchors.isEmpty && buckets.isEmpty }

  /// The selector's number: a free one, or the one after the last.
  mutating func insert(_ pods: LabelSelector, _ scope: NamespaceScope) -> Int {
    let place = bestPlace(for: pods, scope)
    var selector = Selector(pods: pods)
    if case .selected(let namespaces) = scope, !namespaces.isEmpty { selector.namespaces = namespaces }
    let number = freeNumbers.popLast() ?? selectors.count
    if number == selectors.count {
      selectors.append(selector)
      places.append(place)
    } else {
      selectors[number] = selector
      places[number] = place
    }
    for scope in place.scopes {
      for anchor in place.anchors {
        let bucket = Bucket(scope: scopes.retain(scope), anchor: anchors.retain(anchor))
        buckets[bucket, default: []].append(number)
      }
    }
    return number
  }

  mutating func remove(_ number: Int) {
    for scope in places[number].scopes {
      for anchor in places[number].anchors {
        guard let scope = scopes.release(scope), let anchor = anchors.release(anchor) else { continue }
        let bucket = Bucket(scope: scope, anchor: anchor)
        buckets[bucket]?.removeFirst(number)
        if buckets[bucket]?.isEmpty == true { buckets[bucket] = nil }
      }
    }
    selectors[number] = Selector()
    places[number] = Place()
    freeNumbers.append(number)
  }

  func matching(
    _ namespace: String, _ namespaceLabels: Labels, _ labels: Labels, _ evaluations: inout Int
  ) -> [Int] {
    var found: [Int] = []
    let anchors = numbers(of: labels)
    for scope in numbers(of: namespace, namespaceLabels) {
      for anchor in anchors {
        guard let bucket = buckets[Bucket(scope: scope, anchor: anchor)] else { continue }
        evaluations += bucket.count
        for number in bucket where selectors[number].matches(labels, namespaceLabels) { found.append(number) }
      }
    }
    return found
  }

  private func numbers(of labels: Labels) -> [Int] {
    var numbers: [Int] = []
    if let number = anchors[nil] { numbers.append(number) }
    for pair in labels.pairs {
      if let number = anchors[.pair(pair)] { numbers.append(number) }
      if let number = anchors[.key(pair.key)] { numbers.append(number) }
    }
    return numbers
  }

  private func numbers(of namespace: String, _ labels: Labels) -> [Int] {
    var numbers: [Int] = []
    if let number = scopes[.own(namespace)] { numbers.append(number) }
    if let number = scopes[.labelled(nil)] { numbers.append(number) }
    for pair in labels.pairs {
      if let number = scopes[.labelled(.pair(pair))] { numbers.append(number) }
      if let number = scopes[.labelled(.key(pair.key))] { numbers.append(number) }
    }
    return numbers
  }

  // MARK: Choosing a bucket

  private func bestPlace(for pods: LabelSelector, _ scope: NamespaceScope) -> Place {
    let scopes: [[Scope]] =
      switch scope {
      case .own(let name): [[.own(name)]]
      case .selected(let selector): Self.alternatives(selector).map { $0.map { .labelled($0) } }
      }
    let anchors = Self.alternatives(pods)
    let places = scopes.flatMap { scopes in anchors.map { Place(scopes: scopes, anchors: $0) } }
    if places.count == 1 { return places[0] }
    // There is always one: neither list of alternatives is empty.
    return places.map { (place: $0, load: load($0)) }.min { $0.load < $1.load }?.place ?? Place()
  }

  /// Each element would do: labels that match have exactly one of its anchors. `[nil]` where no label is needed.
  private static func alternatives(_ selector: LabelSelector) -> [[LabelAnchor?]] {
    var result: [[LabelAnchor?]] = []
    for anchors in selector.anchors {
      if anchors.count <= 64 { result.append(anchors) }
      // `In` with several values lies in as many buckets: instead, the key may do.
      if anchors.count > 1, case .pair(let pair)? = anchors.first { result.append([.key(pair.key)]) }
    }
    return result.isEmpty ? [[nil]] : result
  }

  /// How much a pod in the fullest bucket of the place has to try, and what the place itself costs.
  private func load(_ place: Place) -> Int {
    var fullest = 0
    let anchorNumbers = place.anchors.compactMap { anchors[$0] }
    for scope in place.scopes.compactMap({ scopes[$0] }) {
      for anchor in anchorNumbers {
        fullest = max(fullest, buckets[Bucket(scope: scope, anchor: anchor)]?.count ?? 0)
      }
    }
    // Whatever has the key, with any value, meets the bucket of a mere key: worth some company elsewhere.
    if place.anchors.contains(where: { $0?.isMereKey == true }) { fullest += 16 }
    if place.scopes.contains(where: \.isMereKey) { fullest += 16 }
    return fullest + place.scopes.count * place.anchors.count / 4
  }
}

extension NumberedSelectors.Scope {
  fileprivate var isMereKey: Bool { if case .labelled(let anchor?) = self { anchor.isMereKey } else { false } }
}

extension LabelAnchor {
  fileprivate var isMereKey: Bool { if case .key = self { true } else { false } }
}

extension NumberedSelectors.Selector {
  fileprivate func matches(_ labels: Labels, _ namespaceLabels: Labels) -> Bool {
    pods.matches(labels) && namespaces?.matches(namespaceLabels) ?? true
  }
}

/// Numbers for values in use; none is used again.
private struct Numbering<Value: Hashable & Sendable>: Sendable {
  private var entries: [Value: (number: Int, uses: Int)] = [:]
  private var next = 0

  var isEmpty: Bool { entries.isEmpty }

  subscript(value: Value) -> Int? { entries[value]?.number }

  mutating func retain(_ value: Value) -> Int {
    if let index = entries.index(forKey: value) {
      entries.values[index].uses += 1
      return entries.values[index].number
    }
    entries[value] = (next, 1)
    next += 1
    return next - 1
  }

  /// The number it has, perhaps for the last time.
  mutating func release(_ value: Value) -> Int? {
    guard let index = entries.index(forKey: value) else { return nil }
    entries.values[index].uses -= 1
    let entry = entries.values[index]
    if entry.uses == 0 { entries.remove(at: index) }
    return entry.number
  }
}

extension [Int] {
  fileprivate mutating func removeFirst(_ number: Int) {
    guard let index = firstIndex(of: number) else { return }
    swapAt(index, count - 1)
    removeLast()
  }
}
