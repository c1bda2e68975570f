/// What the beginning of a captured IPv4 or IPv6 packet says: who talks to whom, and how.
///
/// Nothing is verified (no checksums) and nothing is trusted: the bytes may come from a hostile sender and may be cut off
/// anywhere. What lies behind the cut is nil; cutting off more never changes what is still said, except that an IPv6
/// fragment is only known by its fragment header.
public struct PacketHeaders: Sendable, Hashable {
  public var source: IPAddress
  public var destination: IPAddress
  /// Bytes from the IP header to the packet's end, as the header says. A segment that the kernel has not cut up yet
  /// (BIG TCP, over 64 KiB) cannot say it: 0 for IPv4, 40 for IPv6.
  public var totalLength: Int
  /// What nftables calls `meta l4proto`. For IPv6 the first header that is not an extension header; nil where that lies
  /// behind the cut, or behind more than `maximumExtensionHeaders`.
  public var protocolNumber: UInt8?
  /// A fragment other than the first: it has no ports, flags or ICMP type.
  public var isFragment = false
  /// TCP, UDP and SCTP. A plain number, as port 0 can be sent.
  public var sourcePort: UInt16?
  public var destinationPort: UInt16?
  public var tcpFlags: TCPFlags?
  /// ICMP in IPv4 packets, ICMPv6 in IPv6 packets; the meaning of the numbers is the family's.
  public var icmpType: UInt8?
  public var icmpCode: UInt8?

  /// RFC 8200 knows six, each once; a chain that is longer is nothing to spend time on.
  public static let maximumExtensionHeaders = 16

  public var family: IPFamily { source.family }
  /// nil for protocols without ports, ICMP too.
  public var l4Protocol: L4Protocol? { protocolNumber.flatMap(L4Protocol.init(rawValue:)) }

  /// Reads a packet from its IP header on. nil where there is no whole IPv4 or IPv6 header at the start, and for IPv6
  /// packets with an IPv4-mapped address, which must not be on any wire.
  public init?(_ bytes: [UInt8]) {
    switch bytes.first.map({ $0 >> 4 }) {
    case 4: self.init(v4: bytes)
    case 6: self.init(v6: bytes)
    default: return nil
    }
  }

  private init?(v4 bytes: [UInt8]) {
    guard bytes.count >= 20, let source = IPAddress(bytes: bytes[12..<16]),
      let destination = IPAddress(bytes: bytes[16..<20])
    else { return nil }
    let headerLength = Int(bytes[0] & 0xf) * 4
    guard headerLength >= 20 else { return nil }
    (self.source, self.destination) = (source, destination)
    totalLength = Int(bytes[2]) << 8 | Int(bytes[3])
    protocolNumber = bytes[9]
    isFragment = (UInt16(bytes[6]) << 8 | UInt16(bytes[7])) & 0x1fff != 0
    let reader = Reader(bytes: bytes, declaredLength: totalLength == 0 ? nil : totalLength)
    if !isFragment { readTransport(reader, at: headerLength) }
  }

  private init?(v6 bytes: [UInt8]) {
    guard bytes.count >= 40, let source = IPAddress(bytes: bytes[8..<24]),
      let destination = IPAddress(bytes: bytes[24..<40])
    else { return nil }
    (self.source, self.destination) = (source, destination)
    totalLength = 40 + (Int(bytes[4]) << 8 | Int(bytes[5]))
    readChain(Reader(bytes: bytes, declaredLength: totalLength == 40 ? nil : totalLength), first: bytes[6])
  }

  /// Follows the IPv6 extension headers, the same as the kernel's `ipv6_find_hdr`.
  private mutating func readChain(_ reader: Reader, first: UInt8) {
    var (header, offset) = (first, 40)
    for _ in 0...Self.maximumExtensionHeaders {
      guard let kind = ExtensionHeader(rawValue: header) else {
        protocolNumber = header
        readTransport(reader, at: offset)
        return
      }
      guard let next = reader.byte(at: offset), let length = reader.byte(at: offset + 1) else { return }
      header = next
      switch kind {
      case .hopByHop, .routing, .destinationOptions: offset += (Int(length) + 1) * 8
      case .authentication: offset += (Int(length) + 2) * 4
      case .fragment:
        guard let place = reader.number(at: offset + 2) else { return }
        if place & 0xfff8 != 0 {
          isFragment = true
          if ExtensionHeader(rawValue: next) == nil { protocolNumber = next }
          return
        }
        offset += 8
      }
    }
  }

  private mutating func readTransport(_ reader: Reader, at offset: Int) {
    switch (protocolNumber, family) {
    case (L4Protocol.tcp.rawValue, _), (L4Protocol.udp.rawValue, _), (L4Protocol.sctp.rawValue, _):
      sourcePort = reader.number(at: offset)
      destinationPort = reader.number(at: offset + 2)
      if l4Protocol == .tcp { tcpFlags = reader.byte(at: offset + 13).map(TCPFlags.init(rawValue:)) }
    case (Self.icmp, .v4), (Self.icmpV6, .v6):
      icmpType = reader.byte(at: offset)
      icmpCode = reader.byte(at: offset + 1)
    default: break
    }
  }

  private static let icmp: UInt8 = 1
  private static let icmpV6: UInt8 = 58

  /// The IPv6 headers that name another one. ESP is none: what it carries is a secret.
  private enum ExtensionHeader: UInt8 {
    case hopByHop = 0
    case routing = 43
    case fragment = 44
    case authentication = 51
    case destinationOptions = 60
  }

  /// The captured bytes that belong to the packet: padding behind its declared length is not read as one.
  private struct Reader {
    let bytes: [UInt8]
    let end: Int

    init(bytes: [UInt8], declaredLength: Int?) {
      self.bytes = bytes
      end = min(bytes.count, declaredLength ?? bytes.count)
    }

    func byte(at offset: Int) -> UInt8? { offset < end ? bytes[offset] : nil }

    /// Two bytes in network order.
    func number(at offset: Int) -> UInt16? {
      offset + 1 < end ? UInt16(bytes[offset]) << 8 | UInt16(bytes[offset + 1]) : nil
    }
  }
}

extension PacketHeaders: CustomStringConvertible {
  /// `10.0.0.5:40000 -> 10.0.0.9:80 tcp SYN`, `fd00::1 -> fd00::2 icmpv6 type 128 code 0`, `… udp fragment`.
  public var description: String {
    func side(_ address: IPAddress, _ port: UInt16?) -> String {
      guard let port else { return "\(address)" }
      return address.family == .v4 ? "\(address):\(port)" : "[\(address)]:\(port)"
    }
    var words = [side(source, sourcePort), "->", side(destination, destinationPort)]
    switch (protocolNumber, family) {
    case (nil, _): words.append("unknown protocol")
    case (Self.icmp, .v4): words.append("icmp")
    case (Self.icmpV6, .v6): words.append("icmpv6")
    case (let number?, _): words.append(l4Protocol?.description ?? "proto \(number)")
    }
    if let tcpFlags { words.append(tcpFlags.description) }
    if let icmpType { words.append("type \(icmpType)") }
    if let icmpCode { words.append("code \(icmpCode)") }
    if isFragment { words.append("fragment") }
    return words.joined(separator: " ")
  }
}

/// The flag bits of a TCP header (byte 13).
public struct TCPFlags: OptionSet, Sendable, Hashable, CustomStringConvertible {
  public let rawValue: UInt8

  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let fin = TCPFlags(rawValue: 1 << 0)
  public static let syn = TCPFlags(rawValue: 1 << 1)
  public static let rst = TCPFlags(rawValue: 1 << 2)
  public static let psh = TCPFlags(rawValue: 1 << 3)
  public static let ack = TCPFlags(rawValue: 1 << 4)
  public static let urg = TCPFlags(rawValue: 1 << 5)
  public static let ece = TCPFlags(rawValue: 1 << 6)
  public static let cwr = TCPFlags(rawValue: 1 << 7)

  private static let names: [(TCPFlags, String)] = [
    (.syn, "SYN"), (.fin, "FIN"), (.rst, "RST"), (.psh, "PSH"), (.ack, "ACK"), (.urg, "URG"), (.ece, "ECE"),
    (.cwr, "CWR"),
  ]

  /// `SYN`, `SYN,ACK`; `none` for a packet without any.
  public var description: String {
    isEmpty ? "none" : Self.names.filter { contains($0.0) }.map(\.1).joined(separator: ",")
  }
}
