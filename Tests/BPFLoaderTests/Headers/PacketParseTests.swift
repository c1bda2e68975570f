import DataplaneModel
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// bpf/include/parse.h: from a frame to a tuple.
@Suite("parse.h") struct PacketParseTests {
  /// Of a only DNS gets out, and nothing into b.
  static let onlyDNS = [
    "a":
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}",
    "b":
      "{podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: UDP, port: 53}]}]}",
  ]
  private static let (dns, other) = (
    ProbeContent.udp(source: 4000, destination: 53), ProbeContent.udp(source: 4000, destination: 54)
  )

  @Test("IPv4 options of every length are passed over, to the ports behind them")
  func options() throws {
    try PacketScene.run("options", Self.onlyDNS) { scene, findings in
      for words in 0...10 {
        // Record route with no room left, then no operations: neither is the packet's business.
        let options = Array(([7, 3, 4, 0] + [UInt8](repeating: 1, count: 40)).prefix(words * 4))
        for (content, wanted) in [(Self.dns, PacketRunner.Verdict.redirected), (Self.other, .dropped(6))] {
          var packet = scene.raw("a", "b", .v4, content)
          packet.options = options
          findings.expect("\(words) words of options", try scene.send("a", packet.bytes), wanted)
        }
      }
    }
  }

  @Test("IPv6 extension headers of every kind, and as many as there may be")
  func extensions() throws {
    typealias Header = RawPacket.Extension
    let chains: [(String, [Header])] = [
      ("hop-by-hop", [.hopByHop]), ("destination options", [.destination]), ("routing, none left", [.routing(left: 0)]),
      ("not fragmented", [.fragment(7)]), ("authentication", [.authentication()]),
      ("a long authentication", [.authentication(words: 8)]), ("long options", [.options(60, units: 9)]),
      ("one of each", [.hopByHop, .destination, .routing(left: 0), .fragment(7), .authentication(), .destination]),
      ("seven", [Header](repeating: .destination, count: 7)),
    ]
    try PacketScene.run("extensions", Self.onlyDNS) { scene, findings in
      for (name, chain) in chains {
        for (content, wanted) in [(Self.dns, PacketRunner.Verdict.redirected), (Self.other, .dropped(6))] {
          var packet = scene.raw("a", "b", .v6, content)
          packet.extensions = chain
          findings.expect(name, try scene.send("a", packet.bytes), wanted)
        }
      }
      let refused: [(String, [Header])] = [
        ("eight", [Header](repeating: .destination, count: 8)), ("routing, one left", [.routing(left: 1)]),
        ("routing behind others", [.hopByHop, .destination, .routing(left: 3)]),
      ]
      for (name, chain) in refused {
        var packet = scene.raw("a", "b", .v6, Self.dns)
        packet.extensions = chain
        findings.expect(name, try scene.send("a", packet.bytes), .dropped(12))
      }
    }
  }

  @Test("headers that contradict themselves are malformed")
  func contradictions() throws {
    try PacketScene.run("contradictions", [:]) { scene, findings in
      func expect(_ what: String, _ packet: [UInt8], _ wanted: PacketRunner.Verdict = .dropped(9)) throws {
        findings.expect(what, try scene.send("a", packet), wanted)
      }
      let tcp = ProbeContent.tcp(source: 4000, destination: 80, .synchronize)
      for family in IPFamily.allCases {
        let whole = scene.packet("a", "b", family, tcp)
        let header = family == .v4 ? 20 : 40
        try expect("\(family) as it should be", whole, .redirected)
        // What its frame's type says is not what it is.
        var version = whole
        version[0] = version[0] & 15 | 0x50
        findings.expect(
          "\(family), version 5",
          try scene.runner.run(
            .fromPod, at: PacketScene.device("a"),
            Array(PacketRunner.frame(whole).prefix(14)) + version
          ).verdict, .dropped(9))
        for offset in 0..<5 {
          var short = whole
          short[header + 12] = UInt8(offset) << 4
          try expect("\(family), \(offset) words of TCP", short)
        }
        var long = whole
        long[header + 12] = 0xf0
        try expect("\(family), TCP options behind the end", long)
        try expect("\(family), half of TCP", RawPacket.with(length: (family == .v4 ? 20 : 0) + 19, whole))
        try expect("\(family), its last byte is another packet's", whole + [0], .redirected)
      }
      let v4 = scene.packet("a", "b", .v4, tcp)
      for content in [tcp, Self.dns] {
        let packet = scene.packet("a", "b", .v4, content)
        for words in 0..<5 { try expect("IPv4, \(words) words of header", [0x40 | UInt8(words)] + packet.dropFirst()) }
      }
      try expect("IPv4, shorter than its header", RawPacket.with(length: 19, v4))
      try expect("IPv4, header behind its end", [0x4f] + RawPacket.with(length: 59, v4).dropFirst())
      // A segment that the kernel has yet to cut up cannot say how long it is.
      try expect("IPv4 without length", RawPacket.with(length: 0, v4), .redirected)
    }
  }

  @Test("an IPv6 packet with an IPv4-mapped address is none of either family")
  func mapped() throws {
    try PacketScene.run("mapped", [:]) { scene, findings in
      let packet = scene.packet("a", "b", .v6, Self.dns)
      let prefix = [UInt8](repeating: 0, count: 10) + [0xff, 0xff]
      let (source, destination) = (prefix + scene.address("a", .v4).bytes, prefix + scene.address("b", .v4).bytes)
      func with(_ source: [UInt8], _ destination: [UInt8]) -> [UInt8] {
        packet.prefix(8) + source + destination + packet.dropFirst(40)
      }
      let (a, b) = (scene.address("a", .v6).bytes, scene.address("b", .v6).bytes)
      findings.expect("as it should be", try scene.send("a", with(a, b)), .redirected)
      for (what, packet) in [
        ("source", with(source, b)), ("destination", with(a, destination)), ("both", with(source, destination)),
      ] {
        findings.expect(what, try scene.send("a", packet), .dropped(9))
        findings.expect("\(what), to the pod", try scene.send("world", packet), .dropped(9))
      }
    }
  }

  @Test("fragments: in order, later ones first, another first one of the same packet, too small to be read")
  func fragments() throws {
    try PacketScene.run("fragment-order", Self.onlyDNS) { scene, findings in
      for family in IPFamily.allCases {
        func piece(_ content: ProbeContent, _ id: UInt8, offset: UInt16, more: Bool, size: Int? = nil) -> [UInt8] {
          var packet = scene.raw("a", "b", family, content)
          packet.identification = UInt16(id)
          packet.fragment = offset | (more ? 0x2000 : 0)
          packet.extensions = [.fragment(id, offset: offset, more: more)]
          if let size { packet.transport = Array(packet.transport.prefix(size)) }
          return packet.bytes
        }
        func expect(_ what: String, _ packet: [UInt8], _ wanted: PacketRunner.Verdict) throws {
          findings.expect("\(family): \(what)", try scene.send("a", packet), wanted)
        }
        try expect("first", piece(Self.dns, 2, offset: 0, more: true), .redirected)
        try expect("second", piece(Self.other, 2, offset: 2, more: true), .redirected)
        try expect("last", piece(Self.other, 2, offset: 4, more: false), .redirected)
        try expect("later one first", piece(Self.dns, 3, offset: 2, more: true), .dropped(10))
        try expect("then its first", piece(Self.dns, 3, offset: 0, more: true), .redirected)
        try expect("and again", piece(Self.dns, 3, offset: 2, more: true), .redirected)
        // Who puts the packet together gets no part of it that was judged as another.
        try expect("a second first one", piece(Self.other, 2, offset: 0, more: true), .dropped(6))
        try expect("then what follows", piece(Self.dns, 2, offset: 2, more: false), .dropped(6))
        try expect("the ports' second half", piece(Self.dns, 4, offset: 0, more: true, size: 3), .dropped(9))
        try expect("no room for all of UDP", piece(Self.dns, 5, offset: 0, more: true, size: 7), .dropped(9))
        let tcp = ProbeContent.tcp(source: 1, destination: 53, .synchronize)
        try expect("no room for TCP's flags", piece(tcp, 6, offset: 0, more: true, size: 8), .dropped(9))
        try expect("nor is that remembered", piece(tcp, 6, offset: 1, more: false), .dropped(10))
        // Another packet's: each has a number of its own.
        try expect("of another packet", piece(Self.dns, 7, offset: 2, more: false), .dropped(10))
      }
    }
  }
}
