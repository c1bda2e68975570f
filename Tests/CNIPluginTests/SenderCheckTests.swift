import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

/// Frames that a pod really sends, and what of them is still there behind the plugin's program.
@Suite("What a pod can send")
struct SenderCheckTests {
  private let node: Node

  init() throws { node = try Node() }

  /// Whose frames they are, and whose they claim to be.
  private struct Stage {
    let pod: Pod
    let device: String
    let mac: MACAddress
    let v4: IPAddress
    let v6: IPAddress
    let linkLocal: IPAddress
    let otherMAC: MACAddress
    let otherV4: IPAddress
    let otherV6: IPAddress
    let nobody: IPAddress
    let allNodes: IPAddress

    func frame(_ name: String, from sender: MACAddress? = nil, _ type: UInt16, _ payload: [UInt8]) -> Frame {
      Frame(name, from: sender ?? mac, type: type, payload)
    }
  }

  private func stage(_ config: JSONValue? = nil) throws -> Stage {
    let (pod, other) = (try Pod(), try Pod())
    let (ours, theirs) = (try node.add("c1", pod, config), try node.add("c2", other, config))
    func mac(_ result: JSONValue, _ index: Int) throws -> MACAddress {
      try #require((result["interfaces"]?.arrayValue?[index])?["mac"]?.stringValue.flatMap { MACAddress($0) })
    }
    func address(_ result: JSONValue, _ index: Int) throws -> IPAddress {
      let text = try #require((result["ips"]?.arrayValue?[index])?["address"]?.stringValue)
      return try #require(IPAddress(text.prefix { $0 != "/" }))
    }
    // Their links are up.
    #expect(try pod.reaches(try address(theirs, 0)) && other.reaches(try address(ours, 1)))
    let links = try pod.network.namespace.run { try RouteSocket().addresses(family: .v6) }
    let linkLocal = try #require(links.first { $0.scope == 253 })
    return Stage(
      pod: pod, device: try #require((ours["interfaces"]?.arrayValue?[0])?["name"]?.stringValue),
      mac: try mac(ours, 1), v4: try address(ours, 0), v6: try address(ours, 1),
      linkLocal: linkLocal.address.address, otherMAC: try mac(theirs, 1), otherV4: try address(theirs, 0),
      otherV6: try address(theirs, 1), nobody: .unspecified(.v6),
      allNodes: try #require(IPAddress("ff02::1")))
  }

  /// What a pod may say of itself.
  private func honest(_ s: Stage) -> [Frame] {
    [
      s.frame("IPv4", 0x0800, Frame.datagram(from: s.v4, to: s.otherV4)),
      s.frame("IPv6", 0x86dd, Frame.datagram(from: s.v6, to: s.otherV6)),
      s.frame("IPv6 on the link", 0x86dd, Frame.datagram(from: s.linkLocal, to: s.allNodes)),
      s.frame("ARP request", 0x0806, Frame.arp(.request, s.mac, s.v4, for: s.otherV4)),
      s.frame("ARP reply", 0x0806, Frame.arp(.reply, s.mac, s.v4, for: s.otherV4)),
      s.frame("gratuitous ARP", 0x0806, Frame.arp(.request, s.mac, s.v4, for: s.v4)),
      s.frame("ARP probe", 0x0806, Frame.arp(.request, s.mac, .unspecified(.v4), for: s.v4)),
      s.frame(
        "solicitation", 0x86dd,
        Frame.discovery(135, from: s.v6, to: s.allNodes, target: s.otherV6, option: 1, s.mac)),
      s.frame(
        "solicitation without option", 0x86dd, Frame.discovery(135, from: s.v6, to: s.allNodes, target: s.otherV6)),
      s.frame(
        "solicitation of who looks for duplicates", 0x86dd,
        Frame.discovery(135, from: s.nobody, to: s.allNodes, target: s.v6, option: 14)),
      s.frame(
        "advertisement", 0x86dd, Frame.discovery(136, from: s.v6, to: s.allNodes, target: s.v6, option: 2, s.mac)),
      s.frame(
        "advertisement of the link's address", 0x86dd,
        Frame.discovery(136, from: s.linkLocal, to: s.allNodes, target: s.linkLocal, option: 2, s.mac)),
      s.frame(
        "router solicitation", 0x86dd,
        Frame.discovery(133, from: s.linkLocal, to: s.allNodes, target: nil, option: 1, s.mac)),
    ]
  }

  /// What ARP and neighbour discovery let nobody claim.
  private func claims(_ s: Stage) -> [Frame] {
    [
      s.frame("ARP reply for another's address", 0x0806, Frame.arp(.reply, s.mac, s.otherV4, for: s.v4)),
      s.frame("ARP request by another's address", 0x0806, Frame.arp(.request, s.mac, s.otherV4, for: s.v4)),
      s.frame("ARP for another's hardware address", 0x0806, Frame.arp(.reply, s.otherMAC, s.v4, for: s.otherV4)),
      s.frame(
        "ARP from another's hardware address", from: s.otherMAC, 0x0806, Frame.arp(.reply, s.mac, s.v4, for: s.v4)),
      s.frame("ARP probe of another's address", 0x0806, Frame.arp(.request, s.mac, .unspecified(.v4), for: s.otherV4)),
      s.frame("ARP of another network", 0x0806, [0, 6] + Frame.arp(.reply, s.mac, s.v4, for: s.v4).dropFirst(2)),
      s.frame("ARP cut short", 0x0806, Array(Frame.arp(.reply, s.mac, s.v4, for: s.v4).prefix(12))),
      s.frame(
        "advertisement of another's address", 0x86dd,
        Frame.discovery(136, from: s.v6, to: s.allNodes, target: s.otherV6, option: 2, s.mac)),
      s.frame(
        "advertisement of another's address without option", 0x86dd,
        Frame.discovery(136, from: s.v6, to: s.allNodes, target: s.otherV6)),
      s.frame(
        "advertisement with another's hardware address", 0x86dd,
        Frame.discovery(136, from: s.v6, to: s.allNodes, target: s.v6, option: 2, s.otherMAC)),
      s.frame(
        "advertisement behind another header", 0x86dd,
        Frame.discovery(
          136, from: s.v6, to: s.allNodes, target: s.otherV6, option: 2, s.mac, before: [58, 0, 1, 4, 0, 0, 0, 0])),
      s.frame(
        "solicitation with another's hardware address", 0x86dd,
        Frame.discovery(135, from: s.v6, to: s.allNodes, target: s.otherV6, option: 1, s.otherMAC)),
      s.frame(
        "duplicate detection of another's address", 0x86dd,
        Frame.discovery(135, from: s.nobody, to: s.allNodes, target: s.otherV6)),
      s.frame(
        "router solicitation with another's hardware address", 0x86dd,
        Frame.discovery(133, from: s.linkLocal, to: s.allNodes, target: nil, option: 1, s.otherMAC)),
      s.frame(
        "advertisement from another's hardware address", from: s.otherMAC, 0x86dd,
        Frame.discovery(136, from: s.linkLocal, to: s.allNodes, target: s.linkLocal, option: 2, s.mac)),
      Frame("another protocol", from: s.mac, type: 0x88cc, [UInt8](repeating: 0, count: 50)),
      Frame(
        "in a VLAN", from: s.mac, type: 0x8100,
        [0, 5, 8, 6] + Frame.arp(.reply, s.mac, s.otherV4, for: s.v4)),
    ]
  }

  /// Sources that are another's.
  private func packets(_ s: Stage) -> [Frame] {
    [
      s.frame("another's IPv4 address", 0x0800, Frame.datagram(from: s.otherV4, to: s.otherV4)),
      s.frame("another's IPv6 address", 0x86dd, Frame.datagram(from: s.otherV6, to: s.otherV6)),
      s.frame("no IPv4 address", 0x0800, Frame.datagram(from: .unspecified(.v4), to: s.otherV4)),
      s.frame("no IPv6 address", 0x86dd, Frame.datagram(from: s.nobody, to: s.otherV6)),
      s.frame(
        "another's address of the link", 0x86dd, Frame.datagram(from: RoutedGateway.address(.v6), to: s.allNodes)),
      s.frame(
        "IPv4 from another's hardware address", from: s.otherMAC, 0x0800, Frame.datagram(from: s.v4, to: s.otherV4)),
      s.frame(
        "IPv6 from another's hardware address", from: s.otherMAC, 0x86dd, Frame.datagram(from: s.v6, to: s.otherV6)),
      s.frame("router advertisement", 0x86dd, Frame.discovery(134, from: s.linkLocal, to: s.allNodes, target: nil)),
      s.frame("redirect", 0x86dd, Frame.discovery(137, from: s.linkLocal, to: s.allNodes, target: s.otherV6)),
    ]
  }

  private func expect(_ frames: [Frame], pass: Bool, _ stage: Stage, _ counter: FrameCounter, _ when: String) throws {
    for frame in frames {
      let before = try counter.count
      let isSent = try stage.pod.network.namespace.run { frame.send(by: "eth0") }
      try #require(isSent, "\(frame)")
      #expect(try counter.count == before + (pass ? 1 : 0), "\(frame) \(when)")
    }
  }

  @Test(
    "without an agent: its own frames pass, no forged one does, and all do where the plugin's program is taken away")
  func alone() throws {
    let stage = try stage()
    let counter = try FrameCounter(node, stage.device)
    try expect(honest(stage), pass: true, stage, counter, "of its own")
    try expect(claims(stage) + packets(stage), pass: false, stage, counter, "forged")
    #expect(try node.run("CHECK", "c1", in: stage.pod, checked(stage)).exitCode == 0)
    // What was dropped was dropped by this.
    try node.removeIngressFilters(of: stage.device)
    try expect(claims(stage) + packets(stage), pass: true, stage, counter, "without the program")
    let outcome = try node.run("CHECK", "c1", in: stage.pod, checked(stage))
    #expect(outcome.errorCode == 103 && outcome.message.contains("who sends"), "\(outcome)")
    for container in ["c1", "c2"] { #expect(try node.run("DEL", container).exitCode == 0) }
    #expect(try node.leftovers() == [])
  }

  /// What CHECK needs of the ADD's result.
  private func checked(_ stage: Stage) -> JSONValue {
    node.config([
      "prevResult": [
        "interfaces": [["name": .string(stage.device)], ["name": "eth0", "sandbox": .string(stage.pod.path)]],
        "ips": [
          ["address": .string("\(stage.v4)/32"), "interface": 1],
          ["address": .string("\(stage.v6)/128"), "interface": 1],
        ],
      ]
    ])
  }

  @Test(
    "with an agent, which judges packets itself: no claim passes, and forged packets get as far as the agent's rules")
  func withAgent() throws {
    let agent = try node.startAgent()
    let stage = try stage(node.config(["requireAgent": true]))
    let counter = try FrameCounter(node, stage.device)
    try expect(honest(stage), pass: true, stage, counter, "of its own")
    try expect(claims(stage), pass: false, stage, counter, "forged")
    try expect(packets(stage), pass: true, stage, counter, "the agent's to drop")
    withExtendedLifetime(agent) {}
  }
}

private enum RoutedGateway {
  static func address(_ family: IPFamily) -> IPAddress {
    switch family {
    case .v4: IPAddress(v4: 0xa9fe_0101)
    case .v6: IPAddress(v6High: 0xfe80 << 48, low: 1) ?? .unspecified(.v6)
    }
  }
}
