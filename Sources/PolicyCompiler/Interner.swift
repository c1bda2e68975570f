import DataplaneModel

/// Counted values with a number derived from their content. Where two contents have one number, the second in gets the
/// next free one: it keeps it while it is in use.
struct Interner<Value: Hashable & Sendable> {
  private var entries: [Value: (number: UInt32, uses: Int)] = [:]
  private var taken: Set<UInt32> = []

  var count: Int { entries.count }

  func number(of value: Value) -> UInt32? { entries[value]?.number }

  /// - Parameter lowestBit: what the number's lowest bit is to be; nil: it is as any other.
  /// - Returns: the value's number, and whether this is its first use.
  mutating func retain(
    _ value: Value, lowestBit: UInt32? = nil, hash: (Value, inout ContentHash) -> Void
  ) -> (number: UInt32, isNew: Bool) {
    if let known = entries[value] {
      entries[value] = (known.number, known.uses + 1)
      return (known.number, false)
    }
    var content = ContentHash()
    hash(value, &content)
    var number = content.number
    if let lowestBit { number = number & ~1 | lowestBit }
    while number <= 1 || taken.contains(number) { number &+= lowestBit == nil ? 1 : 2 }
    taken.insert(number)
    entries[value] = (number, 1)
    return (number, true)
  }

  /// Whether that was the last use.
  mutating func release(_ value: Value) -> Bool {
    guard let known = entries[value] else { return false }
    guard known.uses <= 1 else {
      entries[value] = (known.number, known.uses - 1)
      return false
    }
    entries[value] = nil
    taken.remove(known.number)
    return true
  }
}
