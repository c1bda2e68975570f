import NetworkTypes

/// Whose frames they are, and whose they claim to be.
public struct Claimant: Sendable {
  public let mac: MACAddress
  public let v4: IPAddress
  public let v6: IPAddress
  public let linkLocal: IPAddress
  public let otherMAC: MACAddress
  public let otherV4: IPAddress
  public let otherV6: IPAddress

  public init(
    mac: MACAddress, v4: IPAddress, v6: IPAddress, linkLocal: IPAddress, otherMAC: MACAddress, otherV4: IPAddress,
    otherV6: IPAddress
  ) {
    (self.mac, self.v4, self.v6, self.linkLocal) = (mac, v4, v6, linkLocal)
    (self.otherMAC, self.otherV4, self.otherV6) = (otherMAC, otherV4, otherV6)
  }

  private var nobody: IPAddress { .unspecified(.v6) }
  private var allNodes: IPAddress { IPAddress(v6High: 0xff02 << 48, low: 1) ?? nobody }

  private func frame(_ name: String, from sender: MACAddress? = nil, _ type: UInt16, _ payload: [UInt8]) -> Frame {
    Frame(name, from: sender ?? mac, type: type, payload)
  }

  public var honestPackets: [Frame] {
    [
      frame("IPv4", 0x0800, Frame.datagram(from: v4, to: otherV4)),
      frame("IPv6", 0x86dd, Frame.datagram(from: v6, to: otherV6)),
      frame("IPv6 on the link", 0x86dd, Frame.datagram(from: linkLocal, to: allNodes)),
    ]
  }

  /// What a pod may say of itself.
  public var honestClaims: [Frame] {
    [
      frame("ARP request", 0x0806, Frame.arp(.request, mac, v4, for: otherV4)),
      frame("ARP reply", 0x0806, Frame.arp(.reply, mac, v4, for: otherV4)),
      frame("gratuitous ARP", 0x0806, Frame.arp(.request, mac, v4, for: v4)),
      frame("ARP probe", 0x0806, Frame.arp(.request, mac, .unspecified(.v4), for: v4)),
      frame(
        "solicitation", 0x86dd,
        Frame.discovery(135, from: v6, to: allNodes, target: otherV6, option: 1, mac)),
      frame(
        "solicitation without option", 0x86dd, Frame.discovery(135, from: v6, to: allNodes, target: otherV6)),
      frame(
        "solicitation of who looks for duplicates", 0x86dd,
        Frame.discovery(135, from: nobody, to: allNodes, target: v6, option: 14)),
      frame(
        "advertisement", 0x86dd, Frame.discovery(136, from: v6, to: allNodes, target: v6, option: 2, mac)),
      frame(
        "advertisement of the link's address", 0x86dd,
        Frame.discovery(136, from: linkLocal, to: allNodes, target: linkLocal, option: 2, mac)),
      frame(
        "router solicitation", 0x86dd,
        Frame.discovery(133, from: linkLocal, to: allNodes, target: nil, option: 1, mac)),
    ]
  }

  /// What ARP and neighbour discovery let nobody claim.
  public var claims: [Frame] {
    [
      frame("ARP reply for another's address", 0x0806, Frame.arp(.reply, mac, otherV4, for: v4)),
      frame("ARP request by another's address", 0x0806, Frame.arp(.request, mac, otherV4, for: v4)),
      frame("ARP for another's hardware address", 0x0806, Frame.arp(.reply, otherMAC, v4, for: otherV4)),
      frame(
        "ARP from another's hardware address", from: otherMAC, 0x0806, Frame.arp(.reply, mac, v4, for: v4)),
      frame("ARP of another network", 0x0806, [0, 6] + Frame.arp(.reply, mac, v4, for: v4).dropFirst(2)),
      frame("ARP cut short", 0x0806, Array(Frame.arp(.reply, mac, v4, for: v4).prefix(12))),
      frame(
        "advertisement of another's address", 0x86dd,
        Frame.discovery(136, from: v6, to: allNodes, target: otherV6, option: 2, mac)),
      frame(
        "advertisement of another's address without option", 0x86dd,
        Frame.discovery(136, from: v6, to: allNodes, target: otherV6)),
      frame(
        "advertisement with another's hardware address", 0x86dd,
        Frame.discovery(136, from: v6, to: allNodes, target: v6, option: 2, otherMAC)),
      frame(
        "advertisement behind another header", 0x86dd,
        Frame.discovery(
          136, from: v6, to: allNodes, target: otherV6, option: 2, mac, before: [58, 0, 1, 4, 0, 0, 0, 0])),
      frame(
        "solicitation with another's hardware address", 0x86dd,
        Frame.discovery(135, from: v6, to: allNodes, target: otherV6, option: 1, otherMAC)),
      frame(
        "router solicitation with another's hardware address", 0x86dd,
        Frame.discovery(133, from: linkLocal, to: allNodes, target: nil, option: 1, otherMAC)),
      frame(
        "advertisement from another's hardware address", from: otherMAC, 0x86dd,
        Frame.discovery(136, from: linkLocal, to: allNodes, target: linkLocal, option: 2, mac)),
      Frame("another protocol", from: mac, type: 0x88cc, [UInt8](repeating: 0, count: 50)),
      Frame(
        "in a VLAN", from: mac, type: 0x8100,
        [0, 5, 8, 6] + Frame.arp(.reply, mac, otherV4, for: v4)),
    ]
  }

  /// Sources that are another'
  public var packets: [Frame] {
    [
      frame("another's IPv4 address", 0x0800, Frame.datagram(from: otherV4, to: otherV4)),
      frame("another's IPv6 address", 0x86dd, Frame.datagram(from: otherV6, to: otherV6)),
      frame("no IPv4 address", 0x0800, Frame.datagram(from: .unspecified(.v4), to: otherV4)),
      frame("no IPv6 address", 0x86dd, Frame.datagram(from: nobody, to: otherV6)),
      frame(
        "another's address of the link", 0x86dd,
        Frame.datagram(from: IPAddress(v6High: 0xfe80 << 48, low: 1) ?? nobody, to: allNodes)),
      frame(
        "IPv4 from another's hardware address", from: otherMAC, 0x0800, Frame.datagram(from: v4, to: otherV4)),
      frame(
        "IPv6 from another's hardware address", from: otherMAC, 0x86dd, Frame.datagram(from: v6, to: otherV6)),
      frame("router advertisement", 0x86dd, Frame.discovery(134, from: linkLocal, to: allNodes, target: nil)),
      frame("redirect", 0x86dd, Frame.discovery(137, from: linkLocal, to: allNodes, target: otherV6)),
    ]
  }

  /// What looks whether an address of another is free: who hears it may think that it is taken.
  public var probes: [Frame] {
    [
      frame("ARP probe of another's address", 0x0806, Frame.arp(.request, mac, .unspecified(.v4), for: otherV4)),
      frame(
        "duplicate detection of another's address", 0x86dd,
        Frame.discovery(135, from: nobody, to: allNodes, target: otherV6)),
    ]
  }
}
