import LocalAPI
import Netlink
import NetworkTypes

/// A pod sends with its own hardware and IP addresses only, and claims no other by ARP or neighbour discovery: the rules of a
/// chain at the node's end of the pod's pair, before a bridge or anybody else sees the frame.
public struct SenderCheck: Sendable, Hashable {
  /// The pod's device on the node, and the chain's name.
  public let device: String
  let mac: MACAddress
  let addresses: [IPAddress]
  /// VLANs whose frames are not looked into: what addresses the pod has there, nobody tells.
  let trunk: [ClosedRange<UInt16>]
  /// The agent's engine asks for the source of each IP packet, names and counts what it drops: that is then left to it.
  let leavesPacketsToEngine: Bool

  public init(
    device: String, mac: MACAddress, addresses: [IPAddress], trunk: [ClosedRange<UInt16>] = [],
    leavesPacketsToEngine: Bool
  ) {
    (self.device, self.mac, self.addresses, self.trunk) = (device, mac, addresses, trunk)
    self.leavesPacketsToEngine = leavesPacketsToEngine
  }

  // MARK: Rules

  private static let drop: [FilterExpression] = [.counter, .verdict(.drop)]
  private static let accept: [FilterExpression] = [.verdict(.accept)]

  /// Who gets to the end is dropped.
  var rules: [[FilterExpression]] {
    addresses.filter { $0.family == .v4 }.flatMap(rulesV4) + rulesV6 + trunk.map(rule) + [Self.drop]
  }

  /// Frames of these VLANs, from our hardware address. A second tag behind the first might count where the first is taken off.
  private func rule(for ids: ClosedRange<UInt16>) -> [FilterExpression] {
    // Besides the VLAN's number it has a priority.
    func tag(_ comparison: FilterExpression.Comparison, _ id: UInt16) -> FilterExpression {
      .masked(.link, offset: 14, mask: [0x0f, 0xff], comparison, Self.bytes(id))
    }
    let inner = [EtherType.vlan, EtherType.providerVLAN].map {
      FilterExpression.payload(.link, offset: 16, .unequal, Self.bytes($0))
    }
    return [frame(EtherType.vlan), tag(.atLeast, ids.lowerBound), tag(.atMost, ids.upperBound)] + inner + Self.accept
  }

  /// From our hardware address, with this payload.
  private func frame(_ type: UInt16) -> FilterExpression {
    .payload(.link, offset: 6, .equal, mac.bytes + Self.bytes(type))
  }

  /// From whatever hardware address.
  private static func anyFrame(_ type: UInt16) -> FilterExpression { .payload(.link, offset: 12, .equal, bytes(type)) }

  private static func bytes(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(truncatingIfNeeded: number)] }

  private func rulesV4(_ address: IPAddress) -> [[FilterExpression]] {
    let packet = leavesPacketsToEngine ? [Self.anyFrame(EtherType.ipv4)] : [frame(EtherType.ipv4), source(address)]
    // Ethernet and IPv4, from our hardware address.
    let arp: [FilterExpression] = [
      frame(EtherType.arp), .payload(.network, offset: 0, .equal, [0, 1, 8, 0, 6, 4]),
      .payload(.network, offset: 8, .equal, mac.bytes),
    ]
    return [
      packet + Self.accept,
      arp + [.payload(.network, offset: 14, .equal, address.bytes)] + Self.accept,
      // Who asks whether an address is free, claims it when nobody has answered: only its own.
      arp + [
        .payload(.network, offset: 14, .equal, [0, 0, 0, 0]), .payload(.network, offset: 24, .equal, address.bytes),
      ]
        + Self.accept,
    ]
  }

  private var rulesV6: [[FilterExpression]] {
    let own = addresses.filter { $0.family == .v6 }
    guard !own.isEmpty else { return [] }
    let packet = Self.anyFrame(EtherType.ipv6)
    let all = own + [Self.linkLocal(mac)]
    let fromNobody = source(.unspecified(.v6))
    var rules = claimRules.map { [packet] + $0 + Self.drop }
    // Only an advertisement's target is a claim, and that of a solicitation without a source.
    let foreign = all.map { FilterExpression.payload(.transport, offset: 8, .unequal, $0.bytes) }
    rules.append([packet] + icmp(ICMPv6.neighbourAdvertisement) + foreign + Self.drop)
    rules.append([packet, fromNobody] + icmp(ICMPv6.neighbourSolicitation) + foreign + Self.drop)
    if leavesPacketsToEngine { return rules + [[packet] + Self.accept] }
    // Router advertisements and redirects are no pod's.
    for type in [ICMPv6.routerAdvertisement, ICMPv6.redirect] { rules.append([packet] + icmp(type) + Self.drop) }
    let ownFrame = frame(EtherType.ipv6)
    rules += all.map { [ownFrame, source($0)] + Self.accept }
    for type in [ICMPv6.neighbourSolicitation, ICMPv6.listenerReport, ICMPv6.listenerReport2] {
      rules.append([ownFrame, fromNobody] + icmp(type) + Self.accept)
    }
    return rules
  }

  /// What is wrong with neighbour discovery that names a hardware address, or may hide one.
  private var claimRules: [[FilterExpression]] {
    let discovery: [FilterExpression] = [
      .transport(ICMPv6.number), .payload(.transport, offset: 0, .atLeast, [ICMPv6.routerSolicitation]),
      .payload(.transport, offset: 0, .atMost, [ICMPv6.redirect]),
    ]
    func message(_ type: UInt8, _ comparison: FilterExpression.Comparison, _ length: UInt16) -> [FilterExpression] {
      icmp(type) + [.payload(.network, offset: 4, comparison, Self.bytes(length))]
    }
    func option(at offset: UInt32, isNot type: UInt8) -> FilterExpression {
      .payload(.transport, offset: offset, .unequal, [type, 1] + mac.bytes)
    }
    return [
      discovery + [.payload(.link, offset: 6, .unequal, mac.bytes)],
      // Extension headers, which no system sends here, would move what is looked at.
      discovery + [.payload(.network, offset: 6, .unequal, [ICMPv6.number])],
      // At most one option, of eight bytes.
      message(ICMPv6.routerSolicitation, .more, 16), message(ICMPv6.neighbourSolicitation, .more, 32),
      message(ICMPv6.neighbourAdvertisement, .more, 32),
      message(ICMPv6.routerSolicitation, .equal, 16) + [option(at: 8, isNot: 1)],
      // Who looks for a duplicate of its address sends a number in place of its hardware address.
      message(ICMPv6.neighbourSolicitation, .equal, 32) + [
        option(at: 24, isNot: 1), .payload(.transport, offset: 24, .unequal, [ICMPv6.nonce, 1]),
      ],
      message(ICMPv6.neighbourAdvertisement, .equal, 32) + [option(at: 24, isNot: 2)],
    ]
  }

  private func icmp(_ type: UInt8) -> [FilterExpression] {
    [.transport(ICMPv6.number), .payload(.transport, offset: 0, .equal, [type])]
  }

  private func source(_ address: IPAddress) -> FilterExpression {
    .payload(.network, offset: address.family == .v4 ? 12 : 8, .equal, address.bytes)
  }

  /// As the kernel derives it from a hardware address (RFC 4291, appendix A).
  static func linkLocal(_ mac: MACAddress) -> IPAddress {
    let bytes = mac.bytes
    let identifier = [bytes[0] ^ 0x02, bytes[1], bytes[2], 0xff, 0xfe, bytes[3], bytes[4], bytes[5]]
    let low = identifier.reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    return IPAddress(v6High: 0xfe80 << 48, low: low) ?? .unspecified(.v6)
  }
}

private enum EtherType {
  static let ipv4: UInt16 = 0x0800
  static let arp: UInt16 = 0x0806
  static let ipv6: UInt16 = 0x86dd
  static let vlan: UInt16 = 0x8100
  static let providerVLAN: UInt16 = 0x88a8
}

private enum ICMPv6 {
  static let number: UInt8 = 58
  static let listenerReport: UInt8 = 131
  static let routerSolicitation: UInt8 = 133
  static let routerAdvertisement: UInt8 = 134
  static let neighbourSolicitation: UInt8 = 135
  static let neighbourAdvertisement: UInt8 = 136
  static let redirect: UInt8 = 137
  static let listenerReport2: UInt8 = 143
  /// An option of neighbour discovery.
  static let nonce: UInt8 = 14
}
