import NetworkTypes

@testable import PolicyWorlds

/// A packet put together by hand: any part of it can be wrong.
struct RawPacket {
  var source: IPAddress
  var destination: IPAddress
  /// Of `transport`.
  var proto: UInt8
  var transport: [UInt8]
  var hops: UInt8 = 64
  /// Of IPv4, a multiple of four bytes.
  var options: [UInt8] = []
  /// IPv4's identification, and its flags with the offset in units of eight bytes.
  var identification: UInt16 = 1
  var fragment: UInt16 = 0
  var extensions: [Extension] = []

  /// An IPv6 extension header: all of it but its first byte, which names the next one.
  struct Extension {
    var number: UInt8
    var rest: [UInt8]

    static func options(_ number: UInt8, units: UInt8 = 0) -> Extension {
      Extension(number: number, rest: [units, 1, 4 + units * 8] + [UInt8](repeating: 0, count: 4 + Int(units) * 8))
    }
    static let hopByHop = options(0)
    static let destination = options(60)
    static func routing(left: UInt8) -> Extension { Extension(number: 43, rest: [0, 4, left, 0, 0, 0, 0]) }
    /// - Parameter offset: in units of eight bytes.
    static func fragment(_ id: UInt8, offset: UInt16 = 0, more: Bool = false) -> Extension {
      let place = offset << 3 | (more ? 1 : 0)
      return Extension(number: 44, rest: [0, UInt8(place >> 8), UInt8(place & 255), 0, 0, 0, id])
    }
    /// With a check value of `words` times four bytes.
    static func authentication(words: UInt8 = 3) -> Extension {
      Extension(number: 51, rest: [words + 1] + [UInt8](repeating: 0, count: 10 + Int(words) * 4))
    }
  }

  init(_ packet: ProbePacket, number: UInt64 = 1) {
    (source, destination, proto, hops) = (packet.source, packet.destination, packet.proto, packet.hopLimit)
    transport = Array(packet.bytes(number: number).dropFirst(packet.source.family == .v4 ? 20 : 40))
  }

  /// From the IP header on, its length and checksum right.
  var bytes: [UInt8] {
    guard source.family == .v4 else {
      var (next, chain) = (proto, [UInt8]())
      for header in extensions.reversed() {
        chain = [next] + header.rest + chain
        next = header.number
      }
      let length = chain.count + transport.count
      return [0x60, 0, 0, 0, UInt8(length >> 8), UInt8(length & 255), next, hops] + source.bytes + destination.bytes
        + chain + transport
    }
    let length = 20 + options.count + transport.count
    var header: [UInt8] = [0x45 + UInt8(options.count / 4), 0, UInt8(length >> 8), UInt8(length & 255)]
    header += [UInt8(identification >> 8), UInt8(identification & 255), UInt8(fragment >> 8), UInt8(fragment & 255)]
    header += [hops, proto, 0, 0] + source.bytes + destination.bytes + options
    let sum = ProbePacket.checksum(header)
    header.replaceSubrange(10..<12, with: [UInt8(sum >> 8), UInt8(sum & 255)])
    return header + transport
  }

  /// With another length in its header.
  static func with(length: Int, _ packet: [UInt8]) -> [UInt8] {
    var packet = packet
    let at = packet[0] >> 4 == 4 ? 2 : 4
    packet.replaceSubrange(at..<at + 2, with: [UInt8(length >> 8), UInt8(length & 255)])
    return packet
  }
}

/// Internet checksums of a packet, as its receiver computes them.
enum Checksums {
  /// Names of those that are wrong, of the packet and of one that an ICMP error carries.
  static func wrong(in packet: [UInt8]) -> [String] {
    guard let layout = Layout(packet) else { return ["no IP packet"] }
    var wrong: [String] = []
    if layout.family == .v4, ProbePacket.checksum(Array(packet.prefix(layout.transport))) != 0 {
      wrong.append("IPv4 header")
    }
    guard !layout.isFragment else { return wrong }
    let transport = Array(packet[layout.transport..<layout.end])
    if !isRight(transport, layout, packet) { wrong.append("protocol \(layout.proto)") }
    let isError =
      layout.family == .v4
      ? layout.proto == 1 && [3, 11, 12].contains(transport[0])
      : layout.proto == 58 && transport[0] < 128
    guard isError, let inner = Layout(Array(transport.dropFirst(8))), inner.family == .v4 else { return wrong }
    if ProbePacket.checksum(Array(transport.dropFirst(8).prefix(inner.transport))) != 0 {
      wrong.append("IPv4 header inside")
    }
    return wrong
  }

  private static func isRight(_ transport: [UInt8], _ layout: Layout, _ packet: [UInt8]) -> Bool {
    let isUDP = layout.proto == 17
    switch layout.proto {
    case 6, 17, 58:
      // None at all, which IPv4 permits; and what adds up to 0 has to be written as 0xffff.
      if isUDP, transport.count > 7, transport[6] == 0, transport[7] == 0 { return layout.family == .v4 }
      let count = transport.count
      let addresses = packet[layout.addresses..<layout.addresses + 2 * layout.family.addressBytes]
      return ProbePacket.checksum(addresses + [0, layout.proto, UInt8(count >> 8), UInt8(count & 255)] + transport) == 0
    case 1: return ProbePacket.checksum(transport) == 0
    default: return true
    }
  }

  private struct Layout {
    var family: IPFamily
    var proto: UInt8
    var addresses: Int
    var transport: Int
    var end: Int
    var isFragment = false

    init?(_ packet: [UInt8]) {
      guard packet.count >= 20 else { return nil }
      if packet[0] >> 4 == 4 {
        (family, proto, addresses) = (.v4, packet[9], 12)
        (transport, end) = (Int(packet[0] & 15) * 4, Int(packet[2]) << 8 | Int(packet[3]))
        isFragment = packet[6] & 0x3f != 0 || packet[7] != 0
      } else {
        guard packet.count >= 40 else { return nil }
        (family, proto, addresses, transport) = (.v6, packet[6], 8, 40)
        end = 40 + (Int(packet[4]) << 8 | Int(packet[5]))
        while [0, 43, 44, 51, 60].contains(proto), transport + 8 <= packet.count {
          if proto == 44 { isFragment = packet[transport + 3] & 1 != 0 || packet[transport + 2] != 0 }
          let size = proto == 51 ? (Int(packet[transport + 1]) + 2) * 4 : (Int(packet[transport + 1]) + 1) * 8
          (proto, transport) = (packet[transport], transport + (proto == 44 ? 8 : size))
        }
      }
      end = min(end, packet.count)
      if transport > end { return nil }
    }
  }
}
