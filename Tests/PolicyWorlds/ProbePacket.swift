import NetworkTypes

/// What a test packet carries behind its IP header.
enum ProbeContent: Hashable, Sendable {
  case tcp(source: UInt16, destination: UInt16, TCPFlags)
  case udp(source: UInt16, destination: UInt16)
  /// An INIT, the first chunk of an association.
  case sctp(source: UInt16, destination: UInt16)
  case echo(UInt16)
  case echoReply(UInt16)
  /// Any other ICMP message: type, code and the four bytes behind the checksum, then `body`.
  case icmp(type: UInt8, code: UInt8, rest: [UInt8] = [0, 0, 0, 0], body: [UInt8] = [])
  /// A protocol number of which the kernel knows nothing.
  case other(UInt8)

  struct TCPFlags: OptionSet, Hashable, Sendable {
    let rawValue: UInt8
    static let finish = TCPFlags(rawValue: 1)
    static let synchronize = TCPFlags(rawValue: 2)
    static let reset = TCPFlags(rawValue: 4)
    static let acknowledge = TCPFlags(rawValue: 16)
  }
}

/// A packet as a test sends it, and knows it again: its last eight bytes are its number.
struct ProbePacket: Hashable, Sendable {
  var source: IPAddress
  var destination: IPAddress
  var content: ProbeContent
  var hopLimit: UInt8 = 64
  /// TCP's own, where a flow is continued.
  var sequence: UInt32 = 1
  var acknowledgement: UInt32 = 0

  static let numberBytes = 8

  /// As it stands in the IP header.
  var proto: UInt8 {
    switch content {
    case .tcp: 6
    case .udp: 17
    case .sctp: 132
    case .echo, .echoReply, .icmp: source.family == .v4 ? 1 : 58
    case .other(let number): number
    }
  }

  /// The IP packet, all checksums right.
  func bytes(number: UInt64) -> [UInt8] {
    let transport = transport(number: Self.big(number))
    guard source.family == .v4 else {
      return [0x60, 0, 0, 0] + Self.big(UInt16(transport.count)) + [proto, hopLimit] + source.bytes
        + destination.bytes + transport
    }
    var header: [UInt8] = [0x45, 0] + Self.big(UInt16(20 + transport.count)) + [0, 1, 0x40, 0, hopLimit, proto, 0, 0]
    header += source.bytes + destination.bytes
    header.replaceSubrange(10..<12, with: Self.big(Self.checksum(header)))
    return header + transport
  }

  private func transport(number: [UInt8]) -> [UInt8] {
    switch content {
    case .tcp(let source, let destination, let flags):
      let ports = Self.big(source) + Self.big(destination)
      let start = ports + Self.big(sequence) + Self.big(acknowledgement)
      return summed(start + [0x50, flags.rawValue, 0xff, 0xff, 0, 0, 0, 0] + number, at: 16, isPseudo: true)
    case .udp(let source, let destination):
      let header = Self.big(source) + Self.big(destination) + Self.big(UInt16(8 + number.count)) + [0, 0]
      return summed(header + number, at: 6, isPseudo: true)
    case .sctp(let source, let destination):
      // INIT: tag, window, streams out and in, first TSN; then a parameter that receivers skip.
      let chunk: [UInt8] = [1, 0, 0, 32, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0x80, 0x99, 0, 12] + number
      var packet = Self.big(source) + Self.big(destination) + [0, 0, 0, 0, 0, 0, 0, 0] + chunk
      let sum = Self.crc32c(packet)
      packet.replaceSubrange(8..<12, with: (0..<4).map { UInt8(truncatingIfNeeded: sum >> UInt32($0 * 8)) })
      return packet
    case .echo(let id): return echo(type: self.source.family == .v4 ? 8 : 128, id, number)
    case .echoReply(let id): return echo(type: self.source.family == .v4 ? 0 : 129, id, number)
    case .icmp(let type, let code, let rest, let body):
      return summed([type, code, 0, 0] + rest + body + number, at: 2, isPseudo: source.family == .v6)
    case .other(51) where source.family == .v6:
      // The authentication header is one of IPv6's own: what it is about follows, here nothing that has a name.
      return [59, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1] + number
    case .other: return [UInt8](repeating: 0, count: 12) + number
    }
  }

  private func echo(type: UInt8, _ id: UInt16, _ number: [UInt8]) -> [UInt8] {
    summed([type, 0, 0, 0] + Self.big(id) + [0, 1] + number, at: 2, isPseudo: source.family == .v6)
  }

  /// - Parameter isPseudo: addresses and protocol are part of the sum.
  private func summed(_ bytes: [UInt8], at offset: Int, isPseudo: Bool) -> [UInt8] {
    var bytes = bytes
    let pseudoHeader = source.bytes + destination.bytes + Self.big(UInt16(bytes.count)) + [0, proto]
    let sum = Self.checksum(isPseudo ? pseudoHeader + bytes : bytes)
    // A UDP checksum of 0 would mean that there is none.
    bytes.replaceSubrange(offset..<offset + 2, with: Self.big(sum == 0 && proto == 17 ? 0xffff : sum))
    return bytes
  }

  private static func big(_ number: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: number.bigEndian) { Array($0) }
  }

  static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | UInt32(index + 1 < bytes.count ? bytes[index + 1] : 0)
    }
    while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }

  /// SCTP's checksum (RFC 9260, appendix A), the polynomial reflected.
  private static func crc32c(_ bytes: [UInt8]) -> UInt32 {
    var sum = UInt32.max
    for byte in bytes {
      sum ^= UInt32(byte)
      for _ in 0..<8 { sum = sum >> 1 ^ (sum & 1 == 0 ? 0 : 0x82f6_3b78) }
    }
    return ~sum
  }

  // MARK: Reading

  /// What address translation leaves as it is.
  struct Shape: Hashable, Sendable {
    var length: Int
    var proto: UInt8
    /// 0 for other protocols.
    var icmpType: UInt8
  }

  struct Identified {
    var source: IPAddress
    var destination: IPAddress
    var shape: Shape
    var number: UInt64
  }

  /// What a test packet shows of itself; nil where the bytes, from the IP header on, cannot be one.
  static func identify(_ packet: ArraySlice<UInt8>) -> Identified? {
    guard let version = packet.first.map({ $0 >> 4 }), let family = IPFamily(rawValue: version) else { return nil }
    let start = packet.startIndex
    let (headerBytes, addresses, protoOffset) = family == .v4 ? (20, 12, 9) : (40, 8, 6)
    guard packet.count >= headerBytes + numberBytes else { return nil }
    // What follows the packet in its frame is padding.
    let length =
      family == .v4
      ? Int(packet[start + 2]) << 8 | Int(packet[start + 3])
      : 40 + (Int(packet[start + 4]) << 8 | Int(packet[start + 5]))
    let from = packet.dropFirst(addresses).prefix(family.addressBytes)
    let to = packet.dropFirst(addresses + family.addressBytes).prefix(family.addressBytes)
    guard length >= headerBytes + numberBytes, packet.count >= length, let source = IPAddress(bytes: from),
      let destination = IPAddress(bytes: to)
    else { return nil }
    let number = packet.prefix(length).suffix(numberBytes).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    let proto = packet[start + protoOffset]
    let isICMP = proto == (family == .v4 ? 1 : 58)
    let shape = Shape(length: length, proto: proto, icmpType: isICMP ? packet[start + headerBytes] : 0)
    return Identified(source: source, destination: destination, shape: shape, number: number)
  }
}
