import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// Packets that try to get by: each was found by somebody who looked for a way.
@Suite("Evasion in BPF") struct PacketEvasionTests {
  private static let denyEgressOfA = "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress]}"
  private static let allowEgressOfA = "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{}]}"

  @Test("a live flow that is denied does not come back by the other end's next packet")
  func reversed() throws {
    try PacketScene.run("reversed", ["p": Self.allowEgressOfA]) { scene, findings in
      for family in IPFamily.allCases {
        try scene.change(["p": Self.allowEgressOfA])
        for (server, back) in [("b", PacketRunner.Verdict.redirected), ("node", .passed)] {
          let (port, service): (UInt16, UInt16) = (family == .v4 ? 4000 : 4001, 80)
          _ = try scene.send(
            "a", scene.packet("a", server, family, .tcp(source: port, destination: service, .synchronize)))
          let answer = scene.packet(
            server, "a", family, .tcp(source: service, destination: port, [.synchronize, .acknowledge]))
          let first = try scene.send(server, answer, to: "a")
          findings.expect("\(family): before, \(server) answers", first, back)
        }
        try scene.change(["p": Self.denyEgressOfA])
        for server in ["b", "node"] {
          let (port, service): (UInt16, UInt16) = (family == .v4 ? 4000 : 4001, 80)
          let data = scene.packet("a", server, family, .tcp(source: port, destination: service, .acknowledge))
          let answer = scene.packet(server, "a", family, .tcp(source: service, destination: port, .acknowledge))
          for (from, packet) in [("a", data), (server, answer), ("a", data), (server, answer), ("a", data)] {
            let verdict = try scene.send(from, packet, to: "a")
            findings.expect("\(family): \(from) to \(server)", verdict, .dropped(6))
          }
          try scene.runner.forgetFlows()
          // Nor where nobody remembers the flow.
          let verdict = try scene.send(server, answer, to: "a")
          if server == "b" { findings.expect("\(family): forgotten", verdict, .dropped(6)) }
        }
      }
    }
  }

  @Test("an ICMP error takes the verdict of its own flow only")
  func errors() throws {
    let policy =
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress],"
      + " egress: [{to: [{podSelector: {matchLabels: {name: b}}}]}]}"
    try PacketScene.run("errors", ["p": policy]) { scene, findings in
      for family in IPFamily.allCases {
        let (type, code): (UInt8, UInt8) = family == .v4 ? (3, 3) : (1, 4)
        func error(_ from: String, _ to: String, about: [UInt8]) -> [UInt8] {
          scene.packet(from, to, family, .icmp(type: type, code: code, body: Array(about.prefix(68))))
        }
        func expect(_ what: String, _ verdict: PacketRunner.Verdict, _ wanted: PacketRunner.Verdict) {
          findings.expect("\(family): \(what)", verdict, wanted)
        }
        let question = scene.packet("a", "b", family, .udp(source: 4000, destination: 53))
        expect("a asks b", try scene.send("a", question), .redirected)
        expect("b's error", try scene.send("b", error("b", "a", about: question)), .redirected)
        let answer = scene.packet("b", "a", family, .udp(source: 53, destination: 4000))
        expect("a's error to b", try scene.send("a", error("a", "b", about: answer)), .redirected)
        // The same words to somebody else.
        expect("a's error to outside", try scene.send("a", error("a", "world", about: answer)), .dropped(6))
        // About a flow that nobody has.
        let stranger = scene.packet("world", "a", family, .udp(source: 9, destination: 9))
        expect("about nothing", try scene.send("a", error("a", "world", about: stranger)), .dropped(6))
      }
    }
  }

  @Test("neighbour discovery, reports and link-local sources stay on the link")
  func link() throws {
    try PacketScene.run("link", ["p": Self.denyEgressOfA]) { scene, findings in
      func expect(_ what: String, _ verdict: PacketRunner.Verdict, _ wanted: PacketRunner.Verdict) {
        findings.expect(what, verdict, wanted)
      }
      func from(
        _ source: String, _ destination: String, _ content: ProbeContent, hops: UInt8
      ) throws -> PacketRunner.Verdict {
        let packet = ProbePacket(source: ip(source), destination: ip(destination), content: content, hopLimit: hops)
        // The number that ends it is an option: a nonce.
        return try scene.send("a", packet.bytes(number: 0x0e01_0000_0000_0001))
      }
      let target = ip("fe80::1").bytes
      let solicitation = ProbeContent.icmp(type: 135, code: 0, body: target + [1, 1, 2, 0, 0, 0, 0, 1])
      expect("to the link", try from("fd00:10:244:1::12", "ff02::1:ff00:1", solicitation, hops: 255), .passed)
      expect("beyond it", try from("fd00:10:244:1::12", "2001:db8::9", solicitation, hops: 255), .dropped(6))
      expect("from further away", try from("fd00:10:244:1::12", "ff02::1:ff00:1", solicitation, hops: 64), .dropped(4))
      let forged = ProbeContent.icmp(type: 135, code: 0, body: target + [1, 1, 2, 0, 0, 0, 0, 9])
      expect(
        "another's hardware address", try from("fd00:10:244:1::12", "ff02::1:ff00:1", forged, hops: 255), .dropped(4))
      let claim = ProbeContent.icmp(type: 136, code: 0, body: ip("fd00:10:244:1::13").bytes + [2, 1, 2, 0, 0, 0, 0, 1])
      expect("another's address", try from("fd00:10:244:1::12", "ff02::1", claim, hops: 255), .dropped(4))
      let router = ProbeContent.icmp(type: 134, code: 0, body: [0, 0, 0, 0, 0, 0, 0, 0])
      expect("a router's word", try from("fe80::2", "ff02::1", router, hops: 255), .dropped(5))
      let report = ProbeContent.icmp(type: 131, code: 0, body: ip("ff02::1:ff00:2").bytes)
      expect("a report", try from("fe80::2", "ff02::1:ff00:2", report, hops: 1), .passed)
      expect("a report to outside", try from("fd00:10:244:1::12", "2001:db8::9", report, hops: 64), .dropped(6))
      let datagram = ProbeContent.udp(source: 9, destination: 9)
      expect("link-local to a pod", try from("fe80::1", "fd00:10:244:1::13", datagram, hops: 64), .dropped(4))
      expect("no source to a pod", try from("::", "fd00:10:244:1::13", datagram, hops: 64), .dropped(4))
    }
  }

  @Test(
    "only what this node generated, from an address of its own, is the node's",
    .enabled(if: PacketRunner.canForward, PacketRunner.forwardsNothing))
  func host() throws {
    let policy = "{podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress]}"
    try PacketScene.run("host", ["p": policy]) { scene, findings in
      for family in IPFamily.allCases {
        func expect(_ what: String, _ verdict: PacketRunner.Verdict, _ wanted: PacketRunner.Verdict) {
          findings.expect("\(family): \(what)", verdict, wanted)
        }
        let probe = scene.packet("node", "b", family, .udp(source: 9000, destination: 9))
        expect("the node", try scene.send("node", probe), .passed)
        expect("its address from outside, in a live flow", try scene.send("world", probe), .dropped(4))
        try scene.runner.forgetFlows()
        expect("its address from outside", try scene.send("world", probe), .dropped(4))
        let reassembled = scene.packet("world", "b", family, .udp(source: 9, destination: 9))
        expect("no device, but not the node's", try scene.send("node", reassembled), .dropped(6))
        let forged = PacketRunner.frame(scene.packet("node", "world", family, .udp(source: 9, destination: 9)))
        func wire(isForOthers: Bool) throws -> PacketRunner.Verdict {
          try scene.runner.run(.fromWire, at: PacketRunner.uplink, isForOthers: isForOthers, forged).verdict
        }
        expect("its address at the device to the outside", try wire(isForOthers: false), .dropped(4))
        expect("a frame for others", try wire(isForOthers: true), .passed)
        let pods = scene.packet("a", "b", family, .udp(source: 9, destination: 9))
        expect("a pod's address from outside", try scene.send("world", pods), .dropped(4))
      }
    }
  }

  @Test("what follows a packet in its frame is not read, and later fragments follow their first")
  func fragments() throws {
    let policy =
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}"
    try PacketScene.run("fragments", ["p": policy]) { scene, findings in
      func expect(_ what: String, _ verdict: PacketRunner.Verdict, _ wanted: PacketRunner.Verdict) {
        findings.expect(what, verdict, wanted)
      }
      let (a, b) = (scene.address("a", .v6), scene.address("b", .v6))
      func v6(_ length: UInt8, _ next: UInt8, _ rest: [UInt8]) -> [UInt8] {
        [0x60, 0, 0, 0, 0, length, next, 64] + a.bytes + b.bytes + rest
      }
      let udp: [UInt8] = [0x10, 0, 0, 53, 0, 8, 0, 0]
      // Half of a header of options within the packet, the rest and the allowed port behind its end.
      let options: [UInt8] = [17, 1, 1, 12] + [UInt8](repeating: 0, count: 12)
      let trailer = v6(16, 44, [60, 0, 0, 1, 0, 0, 0, 1] + options + udp)
      expect("options that end behind the packet", try scene.send("a", trailer), .dropped(9))
      expect("ports behind the packet", try scene.send("a", v6(4, 17, udp)), .dropped(9))
      // The first fragment with its ports, then a later one; and one that has no first.
      expect("first", try scene.send("a", v6(16, 44, [17, 0, 0, 1, 0, 0, 0, 2] + udp)), .redirected)
      expect("later", try scene.send("a", v6(16, 44, [17, 0, 0, 8, 0, 0, 0, 2] + udp)), .redirected)
      expect("later without first", try scene.send("a", v6(16, 44, [17, 0, 0, 8, 0, 0, 0, 3] + udp)), .dropped(10))
      let denied: [UInt8] = [0x10, 0, 0, 54, 0, 8, 0, 0]
      expect("denied first", try scene.send("a", v6(16, 44, [17, 0, 0, 1, 0, 0, 0, 4] + denied)), .dropped(6))
      expect("denied later", try scene.send("a", v6(16, 44, [17, 0, 0, 8, 0, 0, 0, 4] + udp)), .dropped(6))
      // Of another address: nothing of it is remembered.
      let forged = [0x60, 0, 0, 0, 0, 16, 44, 64] + b.bytes + b.bytes + [17, 0, 0, 1, 0, 0, 0, 5] + udp
      expect("forged first", try scene.send("a", forged), .dropped(4))
      expect("a route through others", try scene.send("a", v6(16, 43, [17, 0, 0, 1, 0, 0, 0, 0] + udp)), .dropped(12))
      let (a4, b4) = (scene.address("a", .v4), scene.address("b", .v4))
      func v4(_ flags: [UInt8], _ id: UInt8, _ rest: [UInt8], ihl: UInt8 = 5, length: UInt8 = 28) -> [UInt8] {
        [0x40 | ihl, 0, 0, length, 0, id] + flags + [64, 17, 0, 0] + a4.bytes + b4.bytes + rest
      }
      expect("IPv4 first", try scene.send("a", v4([0x20, 0], 2, udp)), .redirected)
      expect("IPv4 later", try scene.send("a", v4([0, 1], 2, udp)), .redirected)
      expect("IPv4 later without first", try scene.send("a", v4([0, 1], 3, udp)), .dropped(10))
      expect("IPv4 without header length", try scene.send("a", v4([0, 0], 4, udp, ihl: 4)), .dropped(9))
      expect("IPv4 ports behind the packet", try scene.send("a", v4([0, 0], 4, udp, length: 24)), .dropped(9))
    }
  }
}
