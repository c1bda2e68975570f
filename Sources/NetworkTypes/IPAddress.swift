/// The two IP families. Everything that exists for one exists for the other.
public enum IPFamily: UInt8, Sendable, Hashable, CaseIterable, Comparable, CustomStringConvertible {
  case v4 = 4
  case v6 = 6

  /// Address length in bytes: 4 or 16.
  public var addressBytes: Int { self == .v4 ? 4 : 16 }
  /// Address length in bits: 32 or 128.
  public var addressBits: Int { addressBytes * 8 }
  /// `AF_INET` or `AF_INET6` as Linux numbers them.
  public var linuxFamily: UInt8 { self == .v4 ? 2 : 10 }
  public var other: IPFamily { self == .v4 ? .v6 : .v4 }

  public init?(linuxFamily: UInt8) {
    switch linuxFamily {
    case 2: self = .v4
    case 10: self = .v6
    default: return nil
    }
  }

  public var description: String { self == .v4 ? "IPv4" : "IPv6" }

  public static func < (left: IPFamily, right: IPFamily) -> Bool { left.rawValue < right.rawValue }
}

/// One IP address of either family, 16 bytes in memory.
///
/// An IPv4 address is held in the IPv4-mapped form (`::ffff:a.b.c.d`). Text or bytes in that form are never accepted as
/// IPv6, so a value has exactly one family, and no code path can forget one.
public struct IPAddress: Sendable, Hashable, Comparable, CustomStringConvertible {
  /// The first and last eight bytes in network order, as numbers.
  public let high: UInt64
  public let low: UInt64

  private static let mappedPrefix: UInt64 = 0xffff

  @inlinable
  init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  /// An IPv4 address from its number: `10.0.0.1` is `0x0a000001`.
  public init(v4 number: UInt32) { self.init(high: 0, low: Self.mappedPrefix << 32 | UInt64(number)) }

  /// An IPv6 address from its halves; nil for the IPv4-mapped range.
  public init?(v6High: UInt64, low: UInt64) {
    if v6High == 0, low >> 32 == Self.mappedPrefix { return nil }
    self.init(high: v6High, low: low)
  }

  /// From 4 or 16 bytes in network order; nil for another length and for the IPv4-mapped range.
  public init?(bytes: some Collection<UInt8>) {
    switch bytes.count {
    case 4: self.init(v4: bytes.reduce(0) { $0 << 8 | UInt32($1) })
    case 16:
      self.init(
        v6High: bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) },
        low: bytes.dropFirst(8).reduce(0) { $0 << 8 | UInt64($1) })
    default: return nil
    }
  }

  public var family: IPFamily { high == 0 && low >> 32 == Self.mappedPrefix ? .v4 : .v6 }

  /// The address as a number of its family's width, in the low bits.
  public var number: UInt128 {
    family == .v4 ? UInt128(low & 0xffff_ffff) : UInt128(high) << 64 | UInt128(low)
  }

  /// From a number as `number` gives it; nil where it does not fit the family.
  public init?(family: IPFamily, number: UInt128) {
    switch family {
    case .v4:
      guard number <= 0xffff_ffff else { return nil }
      self.init(v4: UInt32(number))
    case .v6: self.init(v6High: UInt64(truncatingIfNeeded: number >> 64), low: UInt64(truncatingIfNeeded: number))
    }
  }

  /// Network order; 4 or 16 bytes.
  public var bytes: [UInt8] {
    let number = self.number
    let count = family.addressBytes
    return (0..<count).map { UInt8(truncatingIfNeeded: number >> UInt128((count - 1 - $0) * 8)) }
  }

  public static func unspecified(_ family: IPFamily) -> IPAddress {
    family == .v4 ? IPAddress(v4: 0) : IPAddress(high: 0, low: 0)
  }

  public var isUnspecified: Bool { number == 0 }
  /// 127.0.0.0/8 and ::1.
  public var isLoopback: Bool { family == .v4 ? number >> 24 == 127 : number == 1 }
  /// 169.254.0.0/16 and fe80::/10.
  public var isLinkLocal: Bool { family == .v4 ? number >> 16 == 0xa9fe : high >> 54 == 0x3fa }
  /// 224.0.0.0/4 and ff00::/8.
  public var isMulticast: Bool { family == .v4 ? number >> 28 == 0xe : high >> 56 == 0xff }

  /// IPv4 first, then by number.
  public static func < (left: IPAddress, right: IPAddress) -> Bool {
    left.family != right.family ? left.family < right.family : left.number < right.number
  }

  // MARK: Text

  /// Parses the textual forms of RFC 4291 and dotted-quad IPv4. IPv4 octets may have leading zeros, which are read as
  /// decimal, as the Kubernetes API means stored objects; `::ffff:a.b.c.d`, zones and anything else are refused.
  @specialized(where Text == String)
  @specialized(where Text == Substring)
  public init?<Text: StringProtocol>(_ text: Text) {
    if text.utf8.contains(UInt8(ascii: ":")) {
      guard let (high, low) = Self.parseV6(text) else { return nil }
      self.init(v6High: high, low: low)
    } else {
      guard let number = Self.parseV4(text.utf8) else { return nil }
      self.init(v4: number)
    }
  }

  private static func parseV4(_ text: some Collection<UInt8>) -> UInt32? {
    var number: UInt32 = 0
    var octet: UInt32 = 0
    var digits = 0
    var dots = 0
    for byte in text {
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"):
        octet = octet * 10 + UInt32(byte - UInt8(ascii: "0"))
        digits += 1
        guard digits <= 3, octet <= 255 else { return nil }
      case UInt8(ascii: "."):
        guard digits > 0, dots < 3 else { return nil }
        number = number << 8 | octet
        (octet, digits, dots) = (0, 0, dots + 1)
      default: return nil
      }
    }
    return dots == 3 && digits > 0 ? number << 8 | octet : nil
  }

  private static func parseV6(_ text: some StringProtocol) -> (UInt64, UInt64)? {
    var groups: [UInt16] = []
    var gap: Int?
    var rest = Substring(text).utf8
    guard rest.count <= 45 else { return nil }
    if rest.starts(with: "::".utf8) {
      gap = 0
      rest = rest.dropFirst(2)
    }
    while !rest.isEmpty {
      let part = rest.prefix { $0 != UInt8(ascii: ":") }
      if part.contains(UInt8(ascii: ".")) {
        guard part.endIndex == rest.endIndex, let quad = parseV4(part) else { return nil }
        groups += [UInt16(quad >> 16), UInt16(truncatingIfNeeded: quad)]
        rest = rest[part.endIndex...]
        break
      }
      guard (1...4).contains(part.count) else { return nil }
      var group: UInt16 = 0
      for byte in part {
        guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else { return nil }
        group = group << 4 | UInt16(digit)
      }
      groups.append(group)
      rest = rest[part.endIndex...]
      guard !rest.isEmpty else { break }
      rest = rest.dropFirst()
      if rest.first == UInt8(ascii: ":") {
        guard gap == nil else { return nil }
        gap = groups.count
        rest = rest.dropFirst()
      } else if rest.isEmpty {
        return nil
      }
    }
    if let gap {
      guard groups.count < 8 else { return nil }
      groups.insert(contentsOf: repeatElement(0, count: 8 - groups.count), at: gap)
    }
    guard groups.count == 8 else { return nil }
    return (
      groups[0..<4].reduce(0) { $0 << 16 | UInt64($1) }, groups[4..<8].reduce(0) { $0 << 16 | UInt64($1) }
    )
  }

  /// The canonical text: dotted quad, or RFC 5952.
  public var description: String {
    guard family == .v6 else {
      let number = UInt32(truncatingIfNeeded: low)
      return "\(number >> 24).\(number >> 16 & 255).\(number >> 8 & 255).\(number & 255)"
    }
    let groups = (0..<8).map { index -> UInt16 in
      let half = index < 4 ? high : low
      return UInt16(truncatingIfNeeded: half >> UInt64(48 - (index % 4) * 16))
    }
    var longest = 0..<0
    var start = 0
    while start < 8 {
      var end = start
      while end < 8, groups[end] == 0 { end += 1 }
      if end - start > longest.count, end - start > 1 { longest = start..<end }
      start = max(end, start + 1)
    }
    func text(_ range: Range<Int>) -> String {
      groups[range].map { String($0, radix: 16) }.joined(separator: ":")
    }
    guard !longest.isEmpty else { return text(0..<8) }
    return text(0..<longest.lowerBound) + "::" + text(longest.upperBound..<8)
  }
}
