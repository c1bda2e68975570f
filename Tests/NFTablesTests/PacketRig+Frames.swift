import DataplaneModel
import NetworkTypes

@testable import Netlink

/// Packets written and errors read, byte by byte.
enum Frames {
  static func ethernet(
    from source: MACAddress, to destination: MACAddress, _ family: IPFamily, _ packet: [UInt8]
  ) -> [UInt8] {
    destination.bytes + source.bytes + (family == .v4 ? [0x08, 0x00] : [0x86, 0xdd]) + packet
  }

  /// An empty UDP datagram or a TCP SYN, with its IP header and right checksums.
  static func firstPacket(_ packet: Packet) -> [UInt8] {
    var transport = big(packet.sourcePort) + big(packet.destinationPort)
    switch packet.proto {
    case .udp: transport += big(8) + [0, 0]
    default:
      transport += [0, 0, 0, 1, 0, 0, 0, 0]  // sequence number 1
      transport += [0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]  // 20 bytes, SYN
    }
    let pseudoHeader =
      packet.source.bytes + packet.destination.bytes + big(UInt16(transport.count)) + [0, packet.proto.rawValue]
    let sum = checksum(pseudoHeader + transport)
    let offset = packet.proto == .udp ? 6 : 16
    // A UDP checksum of 0 would mean that there is none.
    transport.replaceSubrange(offset..<offset + 2, with: big(sum == 0 ? 0xffff : sum))
    return header(packet, length: transport.count) + transport
  }

  private static func header(_ packet: Packet, length: Int) -> [UInt8] {
    guard packet.source.family == .v4 else {
      return [0x60, 0, 0, 0] + big(UInt16(length)) + [packet.proto.rawValue, 64]
        + packet.source.bytes + packet.destination.bytes
    }
    var header: [UInt8] = [0x45, 0] + big(UInt16(20 + length)) + [0, 1, 0x40, 0, 64, packet.proto.rawValue, 0, 0]
    header += packet.source.bytes + packet.destination.bytes
    header.replaceSubrange(10..<12, with: big(checksum(header)))
    return header
  }

  private static func big(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 255)] }

  private static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | UInt32(index + 1 < bytes.count ? bytes[index + 1] : 0)
    }
    while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }

  // MARK: Errors

  /// Whose packet a "port unreachable" in an Ethernet frame is about; nil where it is something else.
  static func portUnreachable(frame: ArraySlice<UInt8>) -> ConntrackTuple? {
    guard frame.count > 14 else { return nil }
    let packet = frame.dropFirst(14)
    switch Array(frame.dropFirst(12).prefix(2)) {
    case [0x08, 0x00]: return portUnreachable(ipv4: packet)
    case [0x86, 0xdd]:
      guard packet.count > 40, packet[packet.startIndex + 6] == 58 else { return nil }
      return portUnreachable(icmpIPv6: packet.dropFirst(40))
    default: return nil
    }
  }

  static func portUnreachable(ipv4 packet: ArraySlice<UInt8>) -> ConntrackTuple? {
    guard packet.count > 20, packet[packet.startIndex + 9] == 1 else { return nil }
    let icmp = packet.dropFirst(Int(packet[packet.startIndex] & 15) * 4)
    guard icmp.starts(with: [3, 3]) else { return nil }
    return tuple(icmp.dropFirst(8), .v4)
  }

  static func portUnreachable(icmpIPv6 icmp: ArraySlice<UInt8>) -> ConntrackTuple? {
    icmp.starts(with: [1, 4]) ? tuple(icmp.dropFirst(8), .v6) : nil
  }

  // MARK: Resets

  /// Whose SYN a TCP reset in an Ethernet frame answers; nil where it is something else.
  static func reset(frame: ArraySlice<UInt8>) -> ConntrackTuple? {
    guard frame.count > 14 else { return nil }
    let packet = frame.dropFirst(14)
    switch Array(frame.dropFirst(12).prefix(2)) {
    case [0x08, 0x00]: return reset(ipv4: packet)
    case [0x86, 0xdd]:
      guard packet.count >= 60, packet[packet.startIndex + 6] == 6 else { return nil }
      let addresses = packet.dropFirst(8)
      guard let from = IPAddress(bytes: addresses.prefix(16)),
        let to = IPAddress(bytes: addresses.dropFirst(16).prefix(16))
      else { return nil }
      return reset(segment: packet.dropFirst(40), from: from, to: to)
    default: return nil
    }
  }

  static func reset(ipv4 packet: ArraySlice<UInt8>) -> ConntrackTuple? {
    guard packet.count >= 40, packet[packet.startIndex + 9] == 6,
      let from = IPAddress(bytes: packet.dropFirst(12).prefix(4)),
      let to = IPAddress(bytes: packet.dropFirst(16).prefix(4))
    else { return nil }
    return reset(segment: packet.dropFirst(Int(packet[packet.startIndex] & 15) * 4), from: from, to: to)
  }

  static func reset(segment: ArraySlice<UInt8>, from: IPAddress, to: IPAddress) -> ConntrackTuple? {
    let bytes = Array(segment)
    guard bytes.count >= 20, bytes[13] & 4 != 0 else { return nil }
    return ConntrackTuple(
      source: to, destination: from, protocolNumber: 6, sourcePort: UInt16(bytes[2]) << 8 | UInt16(bytes[3]),
      destinationPort: UInt16(bytes[0]) << 8 | UInt16(bytes[1]))
  }

  private static func tuple(_ packet: ArraySlice<UInt8>, _ family: IPFamily) -> ConntrackTuple? {
    let bytes = Array(packet)
    let length = family == .v4 ? 20 : 40
    let addresses = family == .v4 ? 12 : 8
    guard bytes.count >= length + 4, let source = IPAddress(bytes: bytes[addresses..<addresses + family.addressBytes]),
      let destination = IPAddress(bytes: bytes[addresses + family.addressBytes..<length])
    else { return nil }
    func port(_ offset: Int) -> UInt16 { UInt16(bytes[length + offset]) << 8 | UInt16(bytes[length + offset + 1]) }
    return ConntrackTuple(
      source: source, destination: destination, protocolNumber: bytes[family == .v4 ? 9 : 6], sourcePort: port(0),
      destinationPort: port(2))
  }
}
