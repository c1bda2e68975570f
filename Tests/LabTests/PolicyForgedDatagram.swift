import Glibc
import NetworkTypes

@testable import Lab

/// A UDP datagram with whatever source address, sent as it is: what a pod with CAP_NET_RAW or a machine on the wire can.
struct ForgedDatagram: Sendable {
  var source: IPAddress
  var destination: SocketAddress

  /// Sends it from the calling thread's network namespace.
  func send() throws(LabError) {
    let family = destination.address.family
    // IPPROTO_RAW: the packet brings its own header, in both families.
    let descriptor = socket(
      Int32(family.linuxFamily), Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_RAW))
    guard descriptor >= 0 else { throw .system(operation: "socket", object: "raw \(family)", errno: errno) }
    defer { close(descriptor) }
    let bytes = packet
    let sent = withSockaddr(destination.address, 0) { address, length in
      bytes.withUnsafeBytes { sendto(descriptor, $0.baseAddress, $0.count, 0, address, length) }
    }
    guard sent == bytes.count else { throw .system(operation: "send", object: "\(self)", errno: errno) }
  }

  /// The kernel fills in IPv4's checksum and identification.
  var packet: [UInt8] {
    let payload = Array("probe\n".utf8)
    let length = UInt16(8 + payload.count)
    var datagram = Self.bytes(40_000) + Self.bytes(destination.port.number) + Self.bytes(length) + [0, 0] + payload
    // Sum over the addresses, the length, the protocol and the datagram.
    let pseudo = source.bytes + destination.address.bytes + Self.bytes(length) + Self.bytes(17)
    let checksum = Self.checksum(pseudo + datagram)
    datagram.replaceSubrange(6..<8, with: Self.bytes(checksum == 0 ? 0xffff : checksum))
    let header: [UInt8]
    switch destination.address.family {
    case .v4: header = [0x45, 0] + Self.bytes(20 + length) + [0, 0, 0, 0, 64, 17, 0, 0]
    case .v6: header = [0x60, 0, 0, 0] + Self.bytes(length) + [17, 64]
    }
    return header + source.bytes + destination.address.bytes + datagram
  }

  private static func bytes(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 0xff)] }

  private static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 + (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
    }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }
}
