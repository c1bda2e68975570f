import DataplaneModel
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/source.h and path.h: who may send what, and how it is sent on.
@Suite("source.h and path.h") struct PacketSourceTests {
  private static let gateway: [UInt8] = [2, 0, 0, 0, 0, 0xfe]

  @Test("ARP: a pod claims its own addresses only")
  func arp() throws {
    try PacketScene.run("source-arp") { scene, findings in
      let own = (PacketRunner.podMAC.bytes, scene.address("a", .v4).bytes)
      func expect(
        _ what: String, _ wanted: PacketRunner.Verdict, header: [UInt8] = [0, 1, 8, 0, 6, 4], operation: UInt8 = 1,
        mac: [UInt8]? = nil, sender: [UInt8]? = nil, cut: Int = 0
      ) throws {
        let body =
          header + [0, operation] + (mac ?? own.0) + (sender ?? own.1) + [0, 0, 0, 0, 0, 0] + [169, 254, 1, 1]
        let frame = Self.gateway + own.0 + [8, 6] + body.dropLast(cut)
        findings.expect(what, try scene.runner.run(.fromPod, at: PacketScene.device("a"), Array(frame)).verdict, wanted)
      }
      try expect("a question", .passed)
      try expect("an answer", .passed, operation: 2)
      try expect("b's address", .dropped(4), sender: scene.address("b", .v4).bytes)
      try expect("b's address in an answer", .dropped(4), operation: 2, sender: scene.address("b", .v4).bytes)
      try expect("another's hardware address", .dropped(4), mac: [2, 0, 0, 0, 0, 9])
      try expect("a probe", .passed, sender: [0, 0, 0, 0])
      try expect("an answer from nobody", .dropped(4), operation: 2, sender: [0, 0, 0, 0])
      for at in [0, 1, 2, 3, 4, 5] {
        var header: [UInt8] = [0, 1, 8, 0, 6, 4]
        header[at] ^= 2
        try expect("header, byte \(at)", .dropped(9), header: header)
      }
      for cut in [1, 4, 10, 27] { try expect("\(cut) bytes too short", .dropped(9), cut: cut) }
    }
  }

  @Test("frames: their own hardware address, and types that are known")
  func frames() throws {
    try PacketScene.run("source-frames") { scene, findings in
      for family in IPFamily.allCases {
        let packet = scene.packet("a", "b", family, .udp(source: 4000, destination: 53))
        let forged = PacketRunner.frame(packet, from: MACAddress("02:00:00:00:00:09").unsafelyUnwrapped)
        let device = PacketScene.device("a")
        findings.expect("\(family)", try scene.runner.run(.fromPod, at: device, forged).verdict, .dropped(4))
        for type in [[UInt8(0x88), 0xcc], [0x81, 0], [8, 0x35]] {
          let frame = Self.gateway + PacketRunner.podMAC.bytes + type + packet
          findings.expect(
            "\(family), type \(type)", try scene.runner.run(.fromPod, at: device, frame).verdict, .dropped(12))
        }
        for program in [PacketRunner.Program.fromPod, .toPod] {
          let verdict = try scene.runner.run(program, at: PacketRunner.uplink, PacketRunner.frame(packet)).verdict
          findings.expect("\(family), \(program) at no pod's device", verdict, .dropped(7))
        }
        let others = scene.packet("b", "world", family, .udp(source: 4000, destination: 53))
        findings.expect("\(family), b's address", try scene.send("a", others), .dropped(4))
        for address in [scene.address("node", family), .unspecified(family), scene.address("world", family)] {
          let packet = ProbePacket(
            source: address, destination: scene.address("b", family), content: .udp(source: 1, destination: 2))
          findings.expect("\(family), from \(address)", try scene.send("a", packet.bytes(number: 1)), .dropped(4))
        }
      }
    }
  }

  @Test("neighbour discovery: options, targets and redirects")
  func discovery() throws {
    try PacketScene.run("source-discovery") { scene, findings in
      func expect(
        _ what: String, _ wanted: PacketRunner.Verdict, type: UInt8, target: String?, _ options: [UInt8] = [],
        extensions: [RawPacket.Extension] = []
      ) throws {
        let body = (target.map { ip($0).bytes } ?? []) + options
        var packet = RawPacket(
          ProbePacket(
            source: scene.address("a", .v6), destination: ip("ff02::1"),
            content: .icmp(type: type, code: 0, body: body),
            hopLimit: 255))
        // Without the number that ends test packets: it would be an option.
        packet.transport.removeLast(8)
        packet.extensions = extensions
        findings.expect(what, try scene.send("a", packet.bytes), wanted)
      }
      let (own, forged): ([UInt8], [UInt8]) = ([1, 1, 2, 0, 0, 0, 0, 1], [1, 1, 2, 0, 0, 0, 0, 9])
      let nonce: [UInt8] = [14, 1, 1, 2, 3, 4, 5, 6]
      try expect("a question", .passed, type: 135, target: "fe80::1", own)
      try expect("its own address", .passed, type: 136, target: "fd00:10:244:1::12", [2] + own.dropFirst())
      try expect("a link-local address", .passed, type: 136, target: "fe80::2", [2] + own.dropFirst())
      try expect("b's address", .dropped(4), type: 136, target: "fd00:10:244:1::13", [2] + own.dropFirst())
      try expect("a forged answer", .dropped(4), type: 136, target: "fe80::2", [2] + forged.dropFirst())
      for count in 0...3 {
        let before = [[UInt8]](repeating: nonce, count: count).flatMap { $0 }
        try expect("forged behind \(count) options", .dropped(4), type: 135, target: "fe80::1", before + forged)
        try expect(
          "own behind \(count) options", count < 3 ? .passed : .dropped(12), type: 135, target: "fe80::1", before + own)
      }
      try expect(
        "an option without length", .dropped(9), type: 135, target: "fe80::1", [14, 0, 0, 0, 0, 0, 0, 0] + forged)
      try expect("no target", .dropped(9), type: 135, target: nil)
      try expect("who are routers", .passed, type: 133, target: nil, own)
      try expect("who are routers, forged", .dropped(4), type: 133, target: nil, forged)
      try expect("a router's word", .dropped(5), type: 134, target: nil, [0, 0, 0, 0, 0, 0, 0, 0])
      try expect("a redirect", .dropped(5), type: 137, target: "fe80::1", own)
      try expect(
        "in a fragment", .dropped(4), type: 135, target: "fe80::1", own, extensions: [.fragment(1, more: true)])
    }
  }

  @Test("straight into the other pod, as a router would: hops, checksums, hardware addresses; or by the node's stack")
  func sendOn() throws {
    try PacketScene.run("path-send") { scene, findings in
      for family in IPFamily.allCases {
        for hops in [UInt8(2), 64, 255] {
          let content = ProbeContent.udp(source: UInt16(4000) + UInt16(hops), destination: 53)
          let result = try scene.deliver("a", scene.packet("a", "b", family, content, hops: hops))
          findings.expect("\(family), \(hops) hops", result.verdict, .redirected)
          let wanted = scene.packet("a", "b", family, content, hops: hops - 1)
          findings.expect("\(family), \(hops) hops", Array(result.frame.dropFirst(14)), wanted)
          findings.expect("\(family): to b", Array(result.frame[0..<6]), PacketRunner.podMAC.bytes)
        }
        for hops in [UInt8(0), 1] {
          let packet = scene.packet("a", "b", family, .udp(source: 4000, destination: 53), hops: hops)
          let result = try scene.deliver("a", packet)
          findings.expect("\(family), \(hops) hops", result.verdict, .passed)
          findings.expect("\(family), \(hops) hops", Array(result.frame.dropFirst(14)), packet)
        }
        // A pod whose rate is shaped gets its packets by the queue of its device.
        let maps = scene.runner.engine.maps
        let address = AddressLayout(scene.address("b", family))
        guard var shaped = try maps.podDevices[address] else {
          findings.expect("\(family): b has no device", false, true)
          continue
        }
        shaped.flags |= 2
        try maps.podDevices.set(address, shaped)
        let packet = scene.packet("a", "b", family, .udp(source: 5000, destination: 53))
        findings.expect("\(family), shaped", try scene.send("a", packet), .passed)
        shaped.flags &= ~2
        try maps.podDevices.set(address, shaped)
      }
    }
  }

  @Test("where established flows are kept, a changed policy meets new ones only", arguments: [false, true])
  func established(keeps: Bool) throws {
    let (open, closed) = (
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{}]}",
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress]}"
    )
    try PacketScene.run("path-keeps-\(keeps)", ["p": open], keepsEstablished: keeps) { scene, findings in
      for family in IPFamily.allCases {
        try scene.change(["p": open])
        func segment(_ flags: ProbeContent.TCPFlags, port: UInt16 = 4000) -> [UInt8] {
          scene.packet("a", "b", family, .tcp(source: port, destination: 80, flags))
        }
        let answer = scene.packet("b", "a", family, .tcp(source: 80, destination: 4000, [.synchronize, .acknowledge]))
        findings.expect("\(family): a begins", try scene.send("a", segment(.synchronize)), .redirected)
        findings.expect("\(family): b answers", try scene.send("b", answer), .redirected)
        try scene.change(["p": closed])
        let wanted = keeps ? PacketRunner.Verdict.redirected : .dropped(6)
        findings.expect("\(family): a goes on", try scene.send("a", segment(.acknowledge)), wanted)
        findings.expect("\(family): b goes on", try scene.send("b", answer), wanted)
        let new = segment(.synchronize, port: 4001)
        findings.expect("\(family): another", try scene.send("a", new), .dropped(6))
      }
    }
  }
}
