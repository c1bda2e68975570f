import DataplaneModel
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/reject.h: the answers that refuse, byte by byte.
@Suite("reject.h") struct PacketRejectTests {
  private static func cluster(_ delta: inout TableDelta) {
    delta.addCluster()
    delta.addService(1, port: 80, ["b"])
    delta.addService(2, port: 81, [], nodePort: 30081)
  }

  /// Refused by a Service without endpoints, and on a port that no Service has.
  private static let ports: [UInt16] = [81, 99]

  private static func tcp(_ answer: [UInt8]) -> (sequence: UInt32, acknowledged: UInt32, flags: UInt8) {
    let segment = answer.dropFirst(answer[0] >> 4 == 4 ? 20 : 40)
    func number(_ at: Int) -> UInt32 { segment.dropFirst(at).prefix(4).reduce(0) { $0 << 8 | UInt32($1) } }
    return (number(4), number(8), segment.dropFirst(13).first ?? 0)
  }

  @Test("TCP: the reset that RFC 9293 wants, to whoever asked")
  func resets() throws {
    try PacketScene.run("reject-tcp", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        let header = family == .v4 ? 20 : 40
        for port in Self.ports {
          // Flags, whether what follows the packet in its frame is counted, and the answer.
          let cases: [(ProbeContent.TCPFlags, Int, (UInt32, UInt32, UInt8))] = [
            (.synchronize, 0, (0, 1000 + 8 + 1, 0x14)), (.synchronize, 6, (0, 1000 + 8 + 1, 0x14)),
            ([.synchronize, .finish], 0, (0, 1000 + 8 + 2, 0x14)), (.acknowledge, 0, (777, 0, 4)),
            ([.synchronize, .acknowledge], 3, (777, 0, 4)), ([], 0, (0, 1008, 0x14)),
          ]
          for (flags, padding, wanted) in cases {
            for isExtended in [false, true] {
              let what = "\(family) to \(port), \(flags), \(padding) behind it\(isExtended ? ", options" : "")"
              var probe = scene.probe("a", "service", family, .tcp(source: 4000, destination: port, flags))
              (probe.sequence, probe.acknowledgement) = (1000, 777)
              var packet = RawPacket(probe)
              if isExtended { (packet.options, packet.extensions) = ([1, 1, 1, 1], [.hopByHop, .destination]) }
              let result = try scene.deliver("a", packet.bytes + [UInt8](repeating: 9, count: padding))
              findings.expect(what, result.verdict, .redirected)
              let answer = Array(result.frame.dropFirst(14))
              findings.expect(what, answer.count, header + 20)
              findings.expect(what, Checksums.wrong(in: answer), [])
              findings.expect("\(what): \(Self.tcp(answer))", Self.tcp(answer) == wanted)
              guard let seen = PacketHeaders(answer) else { continue }
              findings.expect(what, seen.source, scene.address("service", family))
              findings.expect(what, seen.destination, scene.address("a", family))
              findings.expect(what, seen.sourcePort, port)
              findings.expect(what, seen.destinationPort, 4000)
              findings.expect(what, seen.totalLength, answer.count)
              findings.expect(what, answer[family == .v4 ? 8 : 7], 64)
              // Back to who sent it.
              findings.expect(what, Array(result.frame[0..<6]), PacketRunner.podMAC.bytes)
              findings.expect(what, result.events.map(\.kind), [4])
            }
          }
        }
      }
      findings.expect("no flow", try scene.runner.onlyFlow() == nil)
    }
  }

  @Test("all else: port unreachable, with what its sender has to know it again by")
  func unreachable() throws {
    try PacketScene.run("reject-other", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        let header = family == .v4 ? 20 : 40
        for port in Self.ports {
          for content in [
            ProbeContent.udp(source: 4000, destination: port), .sctp(source: 4000, destination: port), .echo(7),
            .other(253),
          ] {
            for isExtended in [false, true] {
              let what = "\(family), \(content)\(isExtended ? ", options" : "")"
              let plain = scene.raw("a", "service", family, content)
              var packet = plain
              if isExtended { (packet.options, packet.extensions) = ([1, 1, 1, 1], [.hopByHop, .destination]) }
              let result = try scene.deliver("a", packet.bytes + [9, 9])
              findings.expect(what, result.verdict, .redirected)
              let answer = Array(result.frame.dropFirst(14))
              findings.expect(what, Checksums.wrong(in: answer), [])
              findings.expect(what, answer.count, header + 8 + header + 8)
              let seen = PacketHeaders(answer)
              findings.expect(what, seen?.icmpType, family == .v4 ? 3 : 1)
              findings.expect(what, seen?.icmpCode, family == .v4 ? 3 : 4)
              findings.expect(what, seen?.source, scene.address("service", family))
              findings.expect(what, seen?.destination, scene.address("a", family))
              findings.expect(what, seen?.totalLength, answer.count)
              // Options and extension headers are left out.
              findings.expect(what, Array(answer.dropFirst(header + 8)), Array(plain.bytes.prefix(header + 8)))
            }
          }
        }
      }
    }
  }

  @Test("who asks from outside is answered there, and this node's own processes here")
  func elsewhere() throws {
    try PacketScene.run("reject-elsewhere", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        for content in [
          ProbeContent.tcp(source: 4000, destination: 30081, .synchronize), .udp(source: 4000, destination: 30081),
        ] {
          let asked = scene.packet("world", "node", family, content)
          guard let answer = try scene.travel("world", asked).answer else {
            findings.expect("\(family) \(content): an answer", false)
            continue
          }
          let packet = Array(answer.dropFirst(14))
          findings.expect("\(family) \(content)", Checksums.wrong(in: packet), [])
          findings.expect("\(family) \(content)", PacketHeaders(packet)?.source, scene.address("node", family))
          findings.expect("\(family) \(content)", PacketHeaders(packet)?.destination, scene.address("world", family))
        }
        let own = PacketRunner.frame(
          scene.packet("node", "service", family, .tcp(source: 4000, destination: 81, .synchronize)))
        let result = try scene.runner.run(.toWire, at: PacketRunner.uplink, own)
        findings.expect("\(family), the node's", result.verdict, .redirected)
        let packet = Array(result.frame.dropFirst(14))
        findings.expect("\(family), the node's", Checksums.wrong(in: packet), [])
        findings.expect("\(family), the node's", PacketHeaders(packet)?.destination, scene.address("node", family))
      }
    }
  }

  @Test("nobody answers a reset or an error, nor a later fragment")
  func unanswered() throws {
    try PacketScene.run("reject-none", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        // 80 has an endpoint: a late reset is of a connection that is over.
        for port in Self.ports + [80] {
          for flags in [ProbeContent.TCPFlags.reset, [.reset, .acknowledge]] {
            let late = scene.packet("a", "service", family, .tcp(source: 4000, destination: port, flags))
            let result = try scene.deliver("a", late)
            findings.expect("\(family), late reset to \(port)", result.verdict, .dropped(14))
            findings.expect("\(family), late reset to \(port)", result.events.map(\.kind), [0])
          }
        }
        let about = scene.packet("service", "a", family, .udp(source: 81, destination: 4000))
        let error = scene.unreachable("a", "service", family, about: about)
        findings.expect("\(family), error", try scene.send("a", error), .dropped(14))
        var first = scene.raw("a", "service", family, .other(253))
        (first.fragment, first.extensions) = (0x2000, [.fragment(1, more: true)])
        findings.expect("\(family), first fragment", try scene.send("a", first.bytes), .redirected)
        var later = first
        (later.fragment, later.extensions) = (4, [.fragment(1, offset: 4)])
        findings.expect("\(family), later fragment", try scene.send("a", later.bytes), .dropped(12))
        let end = scene.packet("a", "service", family, .tcp(source: 4000, destination: 80, [.finish, .acknowledge]))
        findings.expect("\(family), late end", try scene.send("a", end), .redirected)
      }
    }
  }
}
