import DataplaneModel
import Netlink
import Glibc
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/parse.h once more: packets that are cut off or damaged get nowhere that policy does not let them go.
@Suite("Cut and damaged packets") struct PacketDamageTests {
  private static let contents: [(String, ProbeContent)] = [
    ("TCP", .tcp(source: 4000, destination: 80, .synchronize)), ("UDP", .udp(source: 4000, destination: 54)),
    ("SCTP", .sctp(source: 4000, destination: 80)), ("echo", .echo(7)), ("protocol 253", .other(253)),
  ]

  /// Of each protocol one packet, and of each ICMP error one that carries it.
  private static func packets(_ scene: PacketScene, _ from: String, _ to: String) -> [(String, [UInt8])] {
    IPFamily.allCases.flatMap { family in
      contents.flatMap { name, content in
        let packet = scene.packet(from, to, family, content)
        let about = scene.packet(to, from, family, content)
        var extended = scene.raw(from, to, family, content)
        extended.options = [1, 1, 1, 1]
        extended.extensions = [.hopByHop, .fragment(9), .destination]
        return [
          ("\(family) \(name)", packet), ("\(family) \(name) behind options", extended.bytes),
          ("\(family) error about \(name)", scene.unreachable(from, to, family, about: about)),
        ]
      }
    }
  }

  @Test("cut off after any byte, with the length it had or the one it has: none passes what would deny the whole")
  func cuts() throws {
    try PacketScene.run("cuts", PacketParseTests.onlyDNS) { scene, findings in
      var count = 0
      func expectDropped(_ what: String, _ result: PacketRunner.Result) {
        count += 1
        if case .dropped(let reason) = result.verdict, reason > 0 { return }
        findings.expect("\(what): \(result.verdict)", false)
      }
      for (from, name, packet) in Self.packets(scene, "a", "b").map({ ("a", $0.0, $0.1) })
        + Self.packets(scene, "world", "b").map({ ("world", $0.0, $0.1) })
      {
        let frame = PacketRunner.frame(packet)
        func run(_ what: String, _ frame: [UInt8]) throws {
          let result =
            from == "a"
            ? try scene.runner.run(.fromPod, at: PacketScene.device("a"), frame)
            : try scene.runner.run(.toPod, at: PacketScene.device("b"), arrivedBy: PacketRunner.uplink, frame)
          expectDropped("\(name) from \(from), \(what)", result)
          // Nor do programs at the device to the outside take it for a Service's, or answer it.
          for program in [PacketRunner.Program.fromWire, .toWire] where from == "world" {
            let verdict = try scene.runner.run(program, at: PacketRunner.uplink, frame).verdict
            findings.expect("\(name) at \(program), \(what): \(verdict)", verdict != .redirected)
          }
        }
        let header = packet[0] >> 4 == 4 ? 20 : 40
        // Newer kernels run no program for a frame without a whole IP header.
        for length in 0..<header { try? run("\(length) bytes", Array(frame.prefix(14 + length))) }
        for length in header...packet.count {
          try run("\(length) bytes", Array(frame.prefix(14 + length)))
          guard length < packet.count else { continue }
          let own = RawPacket.with(length: header == 20 ? length : length - 40, Array(packet.prefix(length)))
          // Without a length IPv6 packets end with their frame.
          if header == 40, length == 40 { continue }
          try run("\(length) bytes that it says it has", Array(frame.prefix(14)) + own)
          // The rest is there, but is not the packet's.
          try run("\(length) bytes of a longer frame", Array(frame.prefix(14)) + own + packet.dropFirst(length))
        }
      }
      findings.expect("no flow began", try scene.runner.engine.maps.tracking.attempts.elements().isEmpty)
      print("cut packets in BPF: \(count)")
    }
  }

  static let seeds: [UInt64] = [
    20_261_122, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]

  /// What another reader of packets says of what got through has to be what policy permits.
  @Test("10,000 packets with bytes changed at random: whatever passes is what policy lets pass", arguments: seeds)
  func damage(seed: UInt64) throws {
    try PacketScene.run("damage-\(seed)", PacketParseTests.onlyDNS) { scene, findings in
      var random = SplitMix(seed: seed)
      var passed = 0
      let allowed = IPFamily.allCases.flatMap { family in
        let dns = ProbeContent.udp(source: 4000, destination: 53)
        var extended = scene.raw("a", "b", family, dns)
        extended.options = [1, 1, 1, 1]
        extended.extensions = [.hopByHop, .fragment(9), .destination]
        return [("dns", scene.packet("a", "b", family, dns)), ("dns behind options", extended.bytes)]
      }
      let packets = Self.packets(scene, "a", "b") + allowed
      for number in 0..<10_000 {
        guard let (name, original) = packets.randomElement(using: &random) else { return }
        var packet = original
        for _ in 0..<Int.random(in: 1...4, using: &random) {
          let place = Int.random(in: 0..<min(packet.count, 80), using: &random)
          packet[place] =
            Bool.random(using: &random)
            ? .random(in: 0 ... .max, using: &random) : packet[place] ^ (1 << UInt8.random(in: 0...7, using: &random))
        }
        let frame = Array(PacketRunner.frame(original).prefix(14)) + packet
        let verdict = try scene.runner.run(.fromPod, at: PacketScene.device("a"), frame).verdict
        if case .dropped(let reason) = verdict {
          findings.expect("seed \(seed), packet \(number): a drop has a reason", reason > 0)
          continue
        }
        passed += 1
        findings.expect(
          "seed \(seed), packet \(number), once \(name): \(packet) is \(verdict)",
          Self.isPermitted(packet, scene))
        // Fragments and answers have to find nothing that these left behind.
        try scene.runner.forgetFlows()
        if findings.failures.count > 5 { return }
      }
      print("damaged packets in BPF: seed \(seed): 10000, of which passed \(passed)")
      findings.expect("some pass: \(passed)", passed > 200)
    }
  }

  private static func isPermitted(_ packet: [UInt8], _ scene: PacketScene) -> Bool {
    guard let headers = PacketHeaders(packet) else { return false }
    let isOwn = headers.source == scene.address("a", headers.family)
    // Of a later fragment the first one was judged: all here have one number.
    if headers.isFragment { return isOwn }
    guard let proto = headers.protocolNumber, isOwn else { return false }
    return scene.runner.tables.judge(
      PolicyPacket(
        origin: .pod, source: headers.source, destination: headers.destination, proto: proto,
        destinationPort: headers.destinationPort ?? 0)
    ).isAllowed
  }
}
