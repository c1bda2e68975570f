import NetworkTypes

/// Source range lists by number, as engines know them. A number follows from the list's content, so that it survives a
/// restart.
public struct RangeLists: Sendable {
  public struct Gone: Sendable {
    public var number: UInt32
    public var ranges: [AddressRange]
  }
  private var numbers: [[AddressRange]: (number: UInt32, uses: Int)] = [:]
  private var taken: Set<UInt32> = []

  public init() {}

  /// 0 where nobody uses the list.
  public func number(of ranges: [AddressRange]) -> UInt32 { numbers[ranges]?.number ?? 0 }
  public func uses(of ranges: [AddressRange]) -> Int { numbers[ranges]?.uses ?? 0 }

  @discardableResult
  public mutating func retain(_ ranges: [AddressRange]) -> UInt32 {
    if let known = numbers[ranges] {
      numbers[ranges] = (known.number, known.uses + 1)
      return known.number
    }
    var hash: UInt32 = 2_166_136_261
    for range in ranges {
      for byte in range.first.bytes + range.last.bytes { hash = (hash ^ UInt32(byte)) &* 16_777_619 }
    }
    // Another list with this number: the next free one. After a restart the order may differ; resync then rewrites.
    while hash == 0 || taken.contains(hash) { hash &+= 1 }
    taken.insert(hash)
    numbers[ranges] = (hash, 1)
    return hash
  }

  /// The list, if this was its last use.
  public mutating func release(_ ranges: [AddressRange]) -> Gone? {
    guard let known = numbers[ranges] else { return nil }
    guard known.uses <= 1 else {
      numbers[ranges] = (known.number, known.uses - 1)
      return nil
    }
    numbers[ranges] = nil
    taken.remove(known.number)
    return Gone(number: known.number, ranges: ranges)
  }

  public func forEach(_ body: (_ number: UInt32, _ ranges: [AddressRange]) -> Void) {
    for (ranges, list) in numbers { body(list.number, ranges) }
  }
}
