/// An address prefix, host bits always zero.
public struct CIDR: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let address: IPAddress
  /// 0...32 or 0...128.
  public let prefixLength: Int

  /// Masks the host bits away; nil where the length does not fit the family.
  public init?(_ address: IPAddress, prefixLength: Int) {
    let bits = address.family.addressBits
    guard (0...bits).contains(prefixLength) else { return nil }
    let mask = Self.mask(bits: bits, prefixLength: prefixLength)
    guard let masked = IPAddress(family: address.family, number: address.number & mask) else { return nil }
    self.address = masked
    self.prefixLength = prefixLength
  }

  /// The prefix that holds this one address.
  public init(host address: IPAddress) {
    self.address = address
    self.prefixLength = address.family.addressBits
  }

  /// Parses `address/length`. Host bits are ignored (`10.0.0.1/24` is `10.0.0.0/24`), leading zeros are decimal.
  @specialized(where Text == String)
  @specialized(where Text == Substring)
  public init?<Text: StringProtocol>(_ text: Text) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 2, (1...3).contains(parts[1].utf8.count),
      parts[1].utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
      let address = IPAddress(parts[0]), let length = Int(parts[1])
    else { return nil }
    self.init(address, prefixLength: length)
  }

  public var family: IPFamily { address.family }
  public var first: IPAddress { address }
  public var last: IPAddress {
    let bits = family.addressBits
    let hostMask = ~Self.mask(bits: bits, prefixLength: prefixLength) & Self.mask(bits: bits, prefixLength: bits)
    // Only where it would lie in the IPv4-mapped range, which is no IPv6 address: the last one before that.
    return IPAddress(family: family, number: address.number | hostMask) ?? Self.lastBeforeMapped
  }

  public func contains(_ other: IPAddress) -> Bool {
    other.family == family
      && other.number & Self.mask(bits: family.addressBits, prefixLength: prefixLength) == address.number
  }

  public func contains(_ other: CIDR) -> Bool { other.prefixLength >= prefixLength && contains(other.address) }

  private static let lastBeforeMapped = IPAddress(high: 0, low: 0xfffe_ffff_ffff)

  private static func mask(bits: Int, prefixLength: Int) -> UInt128 {
    let all: UInt128 = bits == 128 ? .max : (1 << UInt128(bits)) - 1
    return prefixLength == 0 ? 0 : all & ~(prefixLength == bits ? 0 : (1 << UInt128(bits - prefixLength)) - 1)
  }

  public static func < (left: CIDR, right: CIDR) -> Bool {
    left.address != right.address ? left.address < right.address : left.prefixLength < right.prefixLength
  }

  public var description: String { "\(address)/\(prefixLength)" }
}

/// An inclusive range of addresses of one family.
public struct AddressRange: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let first: IPAddress
  public let last: IPAddress

  public init(_ cidr: CIDR) {
    first = cidr.first
    last = cidr.last
  }

  /// nil where the families differ or `first` lies behind `last`.
  public init?(first: IPAddress, last: IPAddress) {
    guard first.family == last.family, first <= last else { return nil }
    self.first = first
    self.last = last
  }

  public func contains(_ address: IPAddress) -> Bool {
    address.family == first.family && first <= address && address <= last
  }

  /// The fewest prefixes that have the same addresses, in order: what a kernel prefix trie wants.
  public var prefixes: [CIDR] {
    var prefixes: [CIDR] = []
    var next = first.number
    while true {
      // As large as its start is aligned to, and as fits.
      let rest = last.number - next
      var bits = min(next == 0 ? first.family.addressBits : next.trailingZeroBitCount, first.family.addressBits)
      while bits > 0, bits < 128 ? rest < (UInt128(1) << bits) - 1 : rest < .max { bits -= 1 }
      guard let address = IPAddress(family: first.family, number: next),
        let prefix = CIDR(address, prefixLength: first.family.addressBits - bits)
      else { return prefixes }
      prefixes.append(prefix)
      let end = bits < 128 ? next + ((UInt128(1) << bits) - 1) : .max
      guard end < last.number else { return prefixes }
      // No address is IPv4-mapped: what begins below goes on above.
      next = IPAddress(family: first.family, number: end + 1)?.number ?? Self.firstAboveMapped
    }
  }

  private static let firstAboveMapped: UInt128 = 0x1_0000_0000_0000

  /// The same addresses as disjoint, sorted, non-adjacent ranges: what a kernel interval set wants.
  public static func merging(_ ranges: [AddressRange]) -> [AddressRange] {
    var merged: [AddressRange] = []
    for range in ranges.sorted() {
      if let previous = merged.last, previous.first.family == range.first.family,
        range.first.number <= previous.last.number
          || range.first.number - previous.last.number == 1
      {
        if range.last > previous.last {
          merged[merged.count - 1] = AddressRange(first: previous.first, last: range.last) ?? previous
        }
      } else {
        merged.append(range)
      }
    }
    return merged
  }

  public static func < (left: AddressRange, right: AddressRange) -> Bool {
    left.first != right.first ? left.first < right.first : left.last < right.last
  }

  public var description: String { "\(first)-\(last)" }
}
