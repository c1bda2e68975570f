import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/nat.h and rewrite.h: translated packets and what comes back, checksum by checksum.
@Suite("nat.h and rewrite.h") struct PacketNATTests {
  private static func cluster(_ delta: inout TableDelta) {
    delta.addCluster()
    delta.addService(1, port: 80, ["b"], local: ["b"], nodePort: 30080)
    delta.addService(2, port: 81, to: 81, ["b"])
  }

  typealias Exchange = (name: String, there: ProbeContent, back: @Sendable (UInt16) -> ProbeContent)
  private static let exchanges: [Exchange] = [
    (
      "TCP", .tcp(source: 4000, destination: 80, .synchronize),
      { .tcp(source: 80, destination: $0, [.synchronize, .acknowledge]) }
    ),
    ("UDP", .udp(source: 4000, destination: 80), { .udp(source: 80, destination: $0) }),
    ("echo", .echo(4000), { .echoReply($0) }),
    // These keep their ports: they have none, or no checksum that can be computed anew here.
    ("SCTP", .sctp(source: 4000, destination: 80), { .sctp(source: 80, destination: $0) }),
    ("protocol 253", .other(253), { _ in .other(253) }),
  ]

  /// Source port or echo identifier.
  private static func port(_ packet: [UInt8]) -> UInt16 {
    let at = packet[0] >> 4 == 4 ? Int(packet[0] & 15) * 4 : 40
    let isEcho = [1, 58].contains(packet[0] >> 4 == 4 ? packet[9] : packet[6])
    return UInt16(packet[at + (isEcho ? 4 : 0)]) << 8 | UInt16(packet[at + (isEcho ? 5 : 1)])
  }

  @Test("masqueraded there and back, by each protocol: addresses, ports and checksums are right")
  func masquerade() throws {
    try PacketScene.run("nat-masquerade", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        for (name, there, back) in Self.exchanges {
          let sent = scene.raw("a", "world", family, there)
          guard let out = try scene.travel("a", sent.bytes).packet(at: .outside), let seen = PacketHeaders(out) else {
            findings.expect("\(family) \(name) gets out", false)
            continue
          }
          findings.expect("\(family) \(name), checksums", Checksums.wrong(in: out), [])
          findings.expect("\(family) \(name), source", seen.source, scene.address("node", family))
          let port = Self.port(out)
          let hasChoice = ["TCP", "UDP", "echo"].contains(name)
          findings.expect("\(family) \(name), port \(port)", (61000...65535).contains(port) == hasChoice)
          let answer = scene.packet("world", "node", family, back(port))
          let arrived = try scene.travel("world", answer).packet(at: .pod(PacketScene.device("a"))) ?? []
          findings.expect("\(family) \(name), back", arrived, scene.packet("world", "a", family, back(4000)))
          // Once more: the same port.
          let again = try scene.travel("a", sent.bytes).packet(at: .outside) ?? []
          findings.expect("\(family) \(name), again", again, out)
        }
      }
    }
  }

  @Test("through a Service there and back, by each protocol, and only what is its is touched")
  func service() throws {
    try PacketScene.run("nat-service", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        for (name, there, _) in Self.exchanges.prefix(2) {
          let sent = scene.packet("a", "service", family, there)
          let arrived = try scene.travel("a", sent).packet(at: .pod(PacketScene.device("b"))) ?? []
          let (wanted, answer, told): (ProbeContent, ProbeContent, ProbeContent) =
            name == "TCP"
            ? (
              .tcp(source: 4000, destination: 8080, .synchronize),
              .tcp(source: 8080, destination: 4000, [.synchronize, .acknowledge]),
              .tcp(source: 80, destination: 4000, [.synchronize, .acknowledge])
            )
            : (
              .udp(source: 4000, destination: 8080), .udp(source: 8080, destination: 4000),
              .udp(source: 80, destination: 4000)
            )
          // One router on the way: none that pods see.
          findings.expect("\(family) \(name)", arrived, scene.packet("a", "b", family, wanted, hops: 63))
          let back = try scene.travel("b", scene.packet("b", "a", family, answer))
          findings.expect(
            "\(family) \(name), back", back.packet(at: .pod(PacketScene.device("a"))) ?? [],
            scene.packet("service", "a", family, told, hops: 63))
          // What the pod sends by itself from there is not the Service's.
          let direct = scene.packet("b", "a", family, .udp(source: 8081, destination: 4000))
          findings.expect(
            "\(family) \(name), another port",
            try scene.travel("b", direct).packet(at: .pod(PacketScene.device("a"))) ?? [],
            scene.packet("b", "a", family, .udp(source: 8081, destination: 4000), hops: 63))
        }
        let sctp = scene.packet("a", "service", family, .sctp(source: 5, destination: 81))
        let arrived = try scene.travel("a", sctp).packet(at: .pod(PacketScene.device("b"))) ?? []
        findings.expect(
          "\(family) SCTP", arrived, scene.packet("a", "b", family, .sctp(source: 5, destination: 81), hops: 63))
        let other = scene.packet("a", "service", family, .sctp(source: 5, destination: 80))
        findings.expect("\(family) SCTP to another port", try scene.travel("a", other).reason, 12)
      }
    }
  }

  @Test("UDP: no checksum stays none, and one that adds up to 0 is written as 0xffff")
  func zeroChecksums() throws {
    try PacketScene.run("nat-zero", change: Self.cluster) { scene, findings in
      var none = scene.raw("a", "service", .v4, .udp(source: 4000, destination: 80))
      none.transport.replaceSubrange(6..<8, with: [0, 0])
      let arrived = try scene.travel("a", none.bytes).packet(at: .pod(PacketScene.device("b"))) ?? []
      findings.expect("none", Array(arrived.dropFirst(26).prefix(2)), [0, 0])
      findings.expect("none, header", Checksums.wrong(in: arrived), [])
      for family in IPFamily.allCases {
        let header = family == .v4 ? 20 : 40
        func sum(_ packet: [UInt8]) -> UInt16 { UInt16(packet[header + 6]) << 8 | UInt16(packet[header + 7]) }
        let translated = scene.probe("a", "b", family, .udp(source: 4001, destination: 8080), hops: 63)
        // What the checksum lacks, as payload.
        let number = UInt64(sum(translated.bytes(number: 0)))
        let wanted = translated.bytes(number: number)
        findings.expect("\(family): the test's own", sum(wanted), 0xffff)
        let sent = scene.probe("a", "service", family, .udp(source: 4001, destination: 80)).bytes(number: number)
        let arrived = try scene.travel("a", sent).packet(at: .pod(PacketScene.device("b"))) ?? []
        findings.expect("\(family)", arrived, wanted)
      }
    }
  }

  @Test("ICMP errors about translated packets: who sent it learns of what it sent, inside and outside")
  func errors() throws {
    try PacketScene.run("nat-errors", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        let header = family == .v4 ? 20 : 40
        for (name, there, _) in Self.exchanges {
          let sent = scene.packet("a", "world", family, there)
          guard let out = try scene.travel("a", sent).packet(at: .outside) else { continue }
          for (from, size) in [("router", 68), ("world", 68), ("router", header + 8)] {
            let error = scene.unreachable(from, "node", family, about: Array(out.prefix(size)))
            let arrived = try scene.travel("world", error).packet(at: .pod(PacketScene.device("a"))) ?? []
            let what = "\(family) \(name), from \(from) with \(size) bytes"
            findings.expect(what, Checksums.wrong(in: arrived), [])
            // The packet inside is the one that was sent, but for a checksum that nobody reads and the hops it has made.
            let inside = Array(arrived.dropFirst(header + 8).prefix(header + 8))
            let checksums: [Int] =
              (family == .v4 ? [10, 11] : [])
              + (name == "echo" ? [header + 2, header + 3] : name == "UDP" ? [header + 6, header + 7] : [])
            for (at, byte) in inside.enumerated() where !checksums.contains(at) {
              findings.expect("\(what), byte \(at)", byte, sent[at])
            }
            guard let seen = PacketHeaders(arrived) else { continue }
            findings.expect(what, seen.source, scene.address(from, family))
            findings.expect(what, seen.destination, scene.address("a", family))
          }
          // About what another has sent: it is not for a.
          var stranger = out
          stranger[header] ^= 1
          let error = scene.unreachable("router", "node", family, about: stranger)
          if name == "TCP" || name == "UDP" {
            let end = try scene.travel("world", error).packet(at: .node)
            findings.expect("\(family) \(name), not a's", end, error)
          }
        }
        // From inside: world asks for the node's port, b refuses; world must not see b.
        let asked = scene.packet("world", "node", family, .udp(source: 4000, destination: 30080))
        let got = try scene.travel("world", asked).packet(at: .pod(PacketScene.device("b"))) ?? []
        findings.expect("\(family): what b gets", PacketHeaders(got)?.source, scene.address("node", family))
        let error = scene.unreachable("b", "node", family, about: got)
        let told = try scene.travel("b", error).packet(at: .outside) ?? []
        findings.expect("\(family): what world is told", Checksums.wrong(in: told), [])
        findings.expect("\(family): by whom", PacketHeaders(told)?.source, scene.address("node", family))
        let inside = PacketHeaders(Array(told.dropFirst(header + 8)))
        findings.expect("\(family): of what", inside?.destination, scene.address("node", family))
        findings.expect("\(family): of what port", inside?.destinationPort, 30080)
        findings.expect("\(family): of whose", inside?.sourcePort, 4000)
      }
    }
  }

  @Test(
    "masquerade ports: no two flows to one place share one; where all are taken there is a reason; the dead give theirs"
  )
  func ports() throws {
    try PacketScene.run("nat-ports", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        var ports: Set<UInt16> = []
        for port in 1000..<UInt16(2000) {
          let sent = scene.packet("a", "world", family, .udp(source: port, destination: 53))
          if let out = try scene.travel("a", sent).packet(at: .outside) { ports.insert(Self.port(out)) }
        }
        findings.expect("\(family): of 1,000 flows, ports", ports.count, 1000)
        try scene.runner.forgetFlows()

        // Every port to one place is another flow's.
        let (maps, probe) = (
          scene.runner.engine.maps, scene.raw("a", "world", family, .udp(source: 4000, destination: 53))
        )
        _ = try scene.travel("a", probe.bytes)
        guard let flow = try scene.runner.onlyFlow()?.flow, let own = try maps.tracking.attempts.elements().keys.first,
          var (answers, translation) = try maps.tracking.translations.elements().first(where: { $0.key.step == 1 })
        else { return findings.expect("\(family): a flow", false) }
        try scene.runner.forgetFlows()
        for number in UInt16(61000)...65535 {
          var key = own
          if key.sourcePort == UInt16(53).bigEndian {
            key.destinationPort = number.bigEndian
          } else {
            key.sourcePort = number.bigEndian
          }
          try maps.tracking.flows.set(key, flow)
          (answers.destinationPort, translation.to.destinationPort) = (number.bigEndian, number.bigEndian)
          try maps.tracking.translations.set(answers, translation)
        }
        let other = scene.packet("a", "world", family, .udp(source: 4001, destination: 53))
        findings.expect("\(family): all taken", try scene.travel("a", other).reason, 11)
        let elsewhere = scene.packet("a", "router", family, .udp(source: 4002, destination: 53))
        findings.expect("\(family): to another place", try scene.travel("a", elsewhere).packet(at: .outside) != nil)
        try scene.runner.age(seconds: 121)
        findings.expect("\(family): all dead", try scene.travel("a", other).packet(at: .outside) != nil)
        try scene.runner.forgetFlows()
      }
    }
  }

  @Test("what has lost its translation does not go out as it is")
  func lostTranslation() throws {
    try PacketScene.run("nat-lost", change: Self.cluster) { scene, findings in
      func forgetTranslations() throws {
        let maps = scene.runner.engine.maps
        for key in try maps.tracking.translations.keys() { try maps.tracking.translations.remove(key) }
      }
      for family in IPFamily.allCases {
        let sent = scene.packet("a", "world", family, .udp(source: 4000, destination: 53))
        _ = try scene.travel("a", sent)
        try forgetTranslations()
        let out = try scene.travel("a", sent).packet(at: .outside) ?? []
        findings.expect("\(family): masqueraded anew", PacketHeaders(out)?.source, scene.address("node", family))
        _ = try scene.travel("a", scene.packet("a", "service", family, .udp(source: 4000, destination: 80)))
        try forgetTranslations()
        let answer = scene.packet("b", "a", family, .udp(source: 8080, destination: 4000))
        findings.expect("\(family): a Service's answer", try scene.travel("b", answer).reason, 11)
        try scene.runner.forgetFlows()
      }
    }
  }

  @Test("connections from one port to a Service and to its backend itself are two, whichever begins")
  func onePort() throws {
    try PacketScene.run("nat-one-port", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        for order in [["service", "b"], ["b", "service"]] {
          var seen: [UInt16] = []
          for place in order {
            let what = "\(family), \(order), to \(place)"
            let port: UInt16 = place == "b" ? 8080 : 80
            for flags in [ProbeContent.TCPFlags.synchronize, .acknowledge] {
              let sent = scene.packet("a", place, family, .tcp(source: 4500, destination: port, flags))
              let got = PacketHeaders(try scene.travel("a", sent).packet(at: .pod(PacketScene.device("b"))) ?? [])
              guard let got else { return findings.expect("\(what) arrives", false) }
              findings.expect("\(what): whose", got.source, scene.address("a", family))
              let source = got.sourcePort ?? 0
              if flags == .synchronize { seen.append(source) }
              findings.expect("\(what): from one port", source, seen.last)
              let answer = scene.packet(
                "b", "a", family, .tcp(source: 8080, destination: source, [.synchronize, .acknowledge]))
              let back = PacketHeaders(try scene.travel("b", answer).packet(at: .pod(PacketScene.device("a"))) ?? [])
              findings.expect("\(what): answered by", back?.source, scene.address(place, family))
              findings.expect("\(what): answered from", back?.sourcePort, port)
              findings.expect("\(what): answered to", back?.destinationPort, 4500)
            }
          }
          findings.expect("\(family), \(order): the first keeps its port", seen.first, 4500)
          findings.expect("\(family), \(order): ports", Set(seen).count, 2)
          try scene.runner.forgetFlows()
        }
      }
    }
  }

  @Test("a packet that comes in by two devices, one above the other, is translated once")
  func twoDevices() throws {
    try PacketScene.run("nat-two-devices", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        for flags in [ProbeContent.TCPFlags.synchronize, .acknowledge] {
          let asked = scene.packet("world", "node", family, .tcp(source: 4000, destination: 30080, flags))
          let frame = PacketRunner.frame(asked, from: PacketRunner.podMAC)
          let below = try scene.runner.run(.fromWire, at: PacketRunner.uplink, frame)
          let above = try scene.runner.run(.fromWire, at: PacketRunner.uplink, below.frame)
          let what = "\(family), \(flags)"
          let seen = PacketHeaders(Array(below.frame.dropFirst(14)))
          findings.expect("\(what): translated", seen?.destination, scene.address("b", family))
          findings.expect("\(what): passes", above.verdict, .passed)
          findings.expect("\(what): as it was", above.frame, below.frame)
        }
        try scene.runner.forgetFlows()
      }
    }
  }
}
