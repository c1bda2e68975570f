import LocalAPI
import Netlink
import NetworkTypes

/// A pod sends with its own hardware and IP addresses only, and claims no other by ARP or neighbour discovery. Asked at the
/// node's end of the pod's pair, before a bridge or anybody else sees the frame, by a program that ends with that device.
struct SenderCheck {
  let mac: MACAddress
  let addresses: [IPAddress]
  /// An agent asks for the source of each IP packet, names and counts what it drops: that is then left to it.
  let leavesPacketsToAgent: Bool

  func install(at interfaceIndex: Int, _ node: RouteSocket) throws(NetlinkError) {
    try node.checkIngress(of: interfaceIndex, by: program)
  }

  var program: ClassicProgram {
    var writer = SenderCheckWriter(self)
    writer.write()
    return writer.program
  }

  var ownIPv4: [IPAddress] { addresses.filter { $0.family == .v4 } }

  /// With the link-local address; none for a pod without IPv6.
  var ownIPv6: [IPAddress] {
    let own = addresses.filter { $0.family == .v6 }
    return own.isEmpty ? [] : own + [Self.linkLocal(mac)]
  }

  /// As the kernel derives it from a hardware address (RFC 4291, appendix A).
  static func linkLocal(_ mac: MACAddress) -> IPAddress {
    let bytes = mac.bytes
    let identifier = [bytes[0] ^ 0x02, bytes[1], bytes[2], 0xff, 0xfe, bytes[3], bytes[4], bytes[5]]
    let low = identifier.reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    return IPAddress(v6High: 0xfe80 << 48, low: low) ?? .unspecified(.v6)
  }
}
