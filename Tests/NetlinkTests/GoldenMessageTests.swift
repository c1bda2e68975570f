import CLinux
import Glibc
import NetworkTypes
import Testing

@testable import Netlink

/// The bytes that go to the kernel, on a little-endian machine.
@Suite("Netlink messages, byte by byte")
struct GoldenMessageTests {
  @Test("a veth pair with its peer in another namespace")
  func vethPair() throws {
    let message = RouteSocket.vethMessage(
      name: "sl0", mac: MACAddress("0a:01:02:03:04:05"), mtu: 1450, alias: nil,
      peer: VethPeer(name: "eth0", namespaceDescriptor: 7))
    let expected: [UInt8] =
      [
        0x74, 0, 0, 0,  // length 116
        0x10, 0,  // RTM_NEWLINK
        0x01, 0x06,  // NLM_F_REQUEST, EXCL | CREATE
        0x2a, 0, 0, 0,  // sequence 42
        0x39, 0x30, 0, 0,  // port id 12345
      ] + [UInt8](repeating: 0, count: 16)  // ifinfomsg
      + [
        0x08, 0, 0x03, 0, 0x73, 0x6c, 0x30, 0,  // IFLA_IFNAME "sl0"
        0x0a, 0, 0x01, 0, 0x0a, 1, 2, 3, 4, 5, 0, 0,  // IFLA_ADDRESS, padded
        0x08, 0, 0x04, 0, 0xaa, 0x05, 0, 0,  // IFLA_MTU 1450
        0x38, 0, 0x12, 0x80,  // IFLA_LINKINFO, nested, 56
        0x08, 0, 0x01, 0, 0x76, 0x65, 0x74, 0x68,  // IFLA_INFO_KIND "veth"
        0x2c, 0, 0x02, 0x80,  // IFLA_INFO_DATA, nested, 44
        0x28, 0, 0x01, 0x80,  // VETH_INFO_PEER, nested, 40
      ] + [UInt8](repeating: 0, count: 16)  // the peer's ifinfomsg
      + [
        0x09, 0, 0x03, 0, 0x65, 0x74, 0x68, 0x30, 0, 0, 0, 0,  // IFLA_IFNAME "eth0", padded
        0x08, 0, 0x1c, 0, 7, 0, 0, 0,  // IFLA_NET_NS_FD 7
      ]
    let bytes = message.finished(sequence: 42, portID: 12345)
    #expect(bytes == expected)
  }

  @Test("an IPv4 default route through an IPv6 next hop, in a table beyond 255, with an MTU")
  func route() throws {
    let route = Route(
      destination: Route.defaultDestination(.v4), gateway: IPAddress("fe80::1"), interfaceIndex: 5,
      table: 1000, isOnLink: true, mtu: 1400)
    let expected: [UInt8] = [
      0x50, 0, 0, 0, 0x18, 0, 0x01, 0x05,  // length 80, RTM_NEWROUTE, REQUEST | REPLACE | CREATE
      0, 0, 0, 0, 0, 0, 0, 0,  // sequence, port id
      2, 0, 0, 0,  // AF_INET, no destination bits, no source bits, TOS
      0, 160, 0, 1,  // table: see RTA_TABLE; protocol; scope universe; unicast
      4, 0, 0, 0,  // RTNH_F_ONLINK
      0x16, 0, 0x12, 0, 10, 0,  // RTA_VIA, AF_INET6
      0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0,  // fe80::1, padded
      0x08, 0, 0x04, 0, 5, 0, 0, 0,  // RTA_OIF
      0x08, 0, 0x0f, 0, 0xe8, 0x03, 0, 0,  // RTA_TABLE 1000
      0x0c, 0, 0x08, 0x80, 0x08, 0, 0x02, 0, 0x78, 0x05, 0, 0,  // RTA_METRICS { RTAX_MTU 1400 }
    ]
    let message = RouteSocket.message(for: route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
    #expect(message.finished(sequence: 0, portID: 0) == expected)
  }

  @Test("a conntrack dump that the kernel filters by protocol, original port and reply source")
  func conntrackFilter() throws {
    let filter = ConntrackFilter(
      protocolNumber: 17, originalDestinationPort: 53, replySource: IPAddress("10.0.0.9"))
    let expected: [UInt8] = [
      0x50, 0, 0, 0, 0x01, 0x01, 0x01, 0,  // length 80, ctnetlink GET, REQUEST
      0, 0, 0, 0, 0, 0, 0, 0,  // sequence, port id
      2, 0, 0, 0,  // nfgenmsg: AF_INET
      0x18, 0, 0x01, 0x80,  // CTA_TUPLE_ORIG, nested
      0x14, 0, 0x02, 0x80,  // CTA_TUPLE_PROTO, nested
      0x05, 0, 0x01, 0, 17, 0, 0, 0,  // CTA_PROTO_NUM, padded
      0x06, 0, 0x03, 0, 0, 53, 0, 0,  // CTA_PROTO_DST_PORT, big endian, padded
      0x10, 0, 0x02, 0x80,  // CTA_TUPLE_REPLY, nested
      0x0c, 0, 0x01, 0x80,  // CTA_TUPLE_IP, nested
      0x08, 0, 0x01, 0, 10, 0, 0, 9,  // CTA_IP_V4_SRC
      0x14, 0, 0x19, 0x80,  // CTA_FILTER, nested
      0x08, 0, 0x01, 0, 0x28, 0, 0, 0,  // CTA_FILTER_ORIG_FLAGS: protocol, destination port
      0x08, 0, 0x02, 0, 0x01, 0, 0, 0,  // CTA_FILTER_REPLY_FLAGS: source address
    ]
    let message = ConntrackSocket.dumpMessage(filter, .v4)
    #expect(message.finished(sequence: 0, portID: 0) == expected)
  }

  @Test("an attribute too long for its length field is never sent")
  func tooLong() throws {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    message.attribute(1, [UInt8](repeating: 0, count: 65_532))
    #expect(message.isTooLong)
    let socket = try NetlinkSocket(protocol: NETLINK_ROUTE)
    #expect {
      try socket.acknowledge(message, operation: "send", object: "")
    } throws: {
      ($0 as? NetlinkError)?.errno == EMSGSIZE
    }
    var nested = NetlinkMessageBuilder(type: RTM_GETLINK)
    nested.nest(1) { for _ in 0..<2 { $0.attribute(2, [UInt8](repeating: 0, count: 40_000)) } }
    #expect(nested.isTooLong)
  }
}
