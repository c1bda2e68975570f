import CLinux
import Glibc
import Netlink
import NetworkTypes

/// Tells a link who has an address now: gratuitous ARP (RFC 5227, section 2.3), an unsolicited neighbour advertisement (RFC
/// 4861, section 7.2.6). Nobody answers, and whoever does not hear it asks by itself a little later.
struct Announcement {
  let frame: [UInt8]

  init(_ address: IPAddress, of mac: MACAddress) {
    let nobody: [UInt8] = [0, 0, 0, 0, 0, 0]
    switch address.family {
    case .v4:
      let everybody: [UInt8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
      let request: [UInt8] = [0, 1, 8, 0, 6, 4, 0, 1]
      frame = everybody + mac.bytes + [8, 6] + request + mac.bytes + address.bytes + nobody + address.bytes
    case .v6:
      let allNodes: [UInt8] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
      // Override, and our hardware address as an option.
      var message: [UInt8] = [136, 0, 0, 0, 0x20, 0, 0, 0] + address.bytes + [2, 1] + mac.bytes
      let length = UInt8(message.count)
      let sum = Self.checksum(address.bytes + allNodes + [0, 0, 0, length, 0, 0, 0, 58] + message)
      message.replaceSubrange(2..<4, with: [UInt8(sum >> 8), UInt8(truncatingIfNeeded: sum)])
      let header: [UInt8] = [0x60, 0, 0, 0, 0, length, 58, 255]
      frame = [0x33, 0x33, 0, 0, 0, 1] + mac.bytes + [0x86, 0xdd] + header + address.bytes + allNodes + message
    }
  }

  private static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) { sum += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1]) }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }

  /// Out of an interface of the calling thread's namespace.
  func send(by interface: String) {
    let descriptor = socket(AF_PACKET, CInt(SOCK_RAW.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return Command.note("announcement: \(String(cString: strerror(errno)))") }
    defer { close(descriptor) }
    var address = sockaddr_ll()
    address.sll_family = sa_family_t(AF_PACKET)
    address.sll_ifindex = CInt(bitPattern: if_nametoindex(interface))
    address.sll_halen = 6
    let count = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        sendto(descriptor, frame, frame.count, 0, $0, socklen_t(MemoryLayout<sockaddr_ll>.size))
      }
    }
    if count != frame.count { Command.note("announcement: \(String(cString: strerror(errno)))") }
  }
}
