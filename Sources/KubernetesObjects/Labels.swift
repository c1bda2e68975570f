/// Labels and the selectors over them.

/// Labels of an object, or an equality selector: few pairs, sorted by key, looked up linearly.
public struct Labels: Hashable, Sendable, ExpressibleByDictionaryLiteral, CustomStringConvertible {
  public struct Pair: Hashable, Sendable {
    public var key: String
    public var value: String
  }

  /// Sorted by key; no key twice.
  public private(set) var pairs: [Pair]

  public init() { pairs = [] }

  /// The last of several values of one key wins.
  public init(_ pairs: some Sequence<(String, String)>) {
    self.pairs = []
    for (key, value) in pairs { self[key] = value }
  }

  public init(dictionaryLiteral elements: (String, String)...) { self.init(elements) }

  public var isEmpty: Bool { pairs.isEmpty }
  public var count: Int { pairs.count }

  public subscript(key: String) -> String? {
    get { pairs.first { $0.key == key }?.value }
    set {
      let index = pairs.firstIndex { $0.key >= key } ?? pairs.count
      let exists = index < pairs.count && pairs[index].key == key
      switch (newValue, exists) {
      case (let value?, true): pairs[index].value = value
      case (let value?, false): pairs.insert(Pair(key: key, value: value), at: index)
      case (nil, true): pairs.remove(at: index)
      case (nil, false): break
      }
    }
  }

  /// `app=api,tier=back`.
  public var description: String { pairs.map { "\($0.key)=\($0.value)" }.joined(separator: ",") }
}

/// `metav1.LabelSelector`: every entry of both lists must hold; the empty selector matches everything.
public struct LabelSelector: Hashable, Sendable {
  public enum Operator: String, Sendable, Hashable, CaseIterable {
    case isIn = "In"
    case isNotIn = "NotIn"
    case exists = "Exists"
    case doesNotExist = "DoesNotExist"
  }

  public struct Requirement: Hashable, Sendable {
    public var key: String
    public var comparison: Operator
    /// Not empty for `In` and `NotIn`, empty for the others.
    public var values: [String]

    public init(key: String, comparison: Operator, values: [String] = []) {
      self.key = key
      self.comparison = comparison
      self.values = values
    }

    /// `NotIn` and `DoesNotExist` match where the key is absent.
    public func matches(_ labels: Labels) -> Bool {
      let value = labels[key]
      return switch comparison {
      case .isIn: value.map(values.contains) ?? false
      case .isNotIn: value.map { !values.contains($0) } ?? true
      case .exists: value != nil
      case .doesNotExist: value == nil
      }
    }
  }

  public var matchLabels: Labels
  public var matchExpressions: [Requirement]

  public init(matchLabels: Labels = Labels(), matchExpressions: [Requirement] = []) {
    self.matchLabels = matchLabels
    self.matchExpressions = matchExpressions
  }

  public var isEmpty: Bool { matchLabels.isEmpty && matchExpressions.isEmpty }

  public func matches(_ labels: Labels) -> Bool {
    matchLabels.pairs.allSatisfy { labels[$0.key] == $0.value } && matchExpressions.allSatisfy { $0.matches(labels) }
  }
}
