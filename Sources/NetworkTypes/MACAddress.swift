/// An Ethernet address.
public struct MACAddress: Sendable, Hashable, CustomStringConvertible {
  /// The six bytes, first on the wire in the highest used bits.
  public let number: UInt64

  /// nil unless six bytes.
  public init?(bytes: some Collection<UInt8>) {
    guard bytes.count == 6 else { return nil }
    number = bytes.reduce(0) { $0 << 8 | UInt64($1) }
  }

  /// Parses `aa:bb:cc:dd:ee:ff`.
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    let bytes = parts.compactMap { $0.utf8.count == 2 ? UInt8($0, radix: 16) : nil }
    guard bytes.count == parts.count else { return nil }
    self.init(bytes: bytes)
  }

  public var bytes: [UInt8] { (0..<6).map { UInt8(truncatingIfNeeded: number >> UInt64((5 - $0) * 8)) } }

  public var description: String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
  }
}
