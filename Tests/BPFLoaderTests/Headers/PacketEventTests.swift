import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/events.h: what is told, and what is counted where nobody can be told.
@Suite("events.h") struct PacketEventTests {
  private static let policies = [
    "allow":
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}",
    "watch": "{podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress]}",
  ]
  private static func cluster(_ delta: inout TableDelta) {
    delta.addCluster()
    delta.addService(1, port: 80, to: 53, ["b"])
    delta.addService(2, port: 81, [])
  }

  /// The line of bpf/ that an event names.
  private static func line(_ place: String) -> String? {
    let parts = place.split(separator: ":")
    guard parts.count == 2, let number = Int(parts[1]) else { return nil }
    let root = #filePath.split(separator: "/").dropLast(4).map { "/\($0)" }.joined()
    let folder = parts[0].hasSuffix(".h") ? "bpf/include" : "bpf"
    let lines = Surroundings.read("\(root)/\(folder)/\(parts[0])")?.split(
      separator: "\n", omittingEmptySubsequences: false)
    return lines.flatMap { $0.indices.contains(number - 1) ? String($0[number - 1]) : nil }
  }

  private static func now() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  @Test("each field of a denial, an audit, a verdict, a translation and a rejection")
  func fields() throws {
    try PacketScene.run("event-fields", Self.policies, audit: ["watch"], change: Self.cluster) { scene, findings in
      let (tables, maps) = (scene.runner.tables, scene.runner.engine.maps)
      let device = scene.runner.device(PacketScene.device("a"))
      for family in IPFamily.allCases {
        let (a, b) = (scene.address("a", family), scene.address("b", family))
        func check(
          _ what: String, _ content: ProbeContent, to: String = "b", _ wanted: [(PacketEvent.Kind, String)]
        ) throws -> [PacketEvent] {
          let packet = scene.packet("a", to, family, content)
          let start = Self.now()
          let result = try scene.deliver("a", packet)
          let end = Self.now()
          let revision = try maps.tracking.state[PacketTable.State.revision]
          let events = result.events.map(PacketEvent.init)
          findings.expect("\(family) \(what)", events.map(\.kind), wanted.map(\.0))
          for ((event, raw), (kind, word)) in zip(zip(events, result.events), wanted) {
            let what = "\(family) \(what), \(kind)"
            findings.expect(what, event.device, device)
            findings.expect(what, event.length, packet.count)
            findings.expect(what, raw.revision, revision)
            findings.expect("\(what): time", (start...end).contains(event.time))
            findings.expect(what, event.source, a)
            findings.expect(what, event.sourcePort, content.ports?.source ?? event.sourcePort)
            findings.expect("\(what): \(event.place)", Self.line(event.place)?.contains(word) == true)
          }
          try scene.runner.forgetFlows()
          return events
        }
        func judged(_ port: UInt16, _ proto: UInt8 = 17) -> PolicyJudgement {
          tables.judge(PolicyPacket(origin: .pod, source: a, destination: b, proto: proto, destinationPort: port))
        }
        func expect(_ event: PacketEvent?, _ direction: PolicyDirection, _ decision: PolicyDecision) {
          guard let event, case .decided(let key, _) = decision else { return findings.expect("decided", false) }
          findings.expect("\(family): clause", event.clause, key)
          findings.expect("\(family): direction", event.direction, direction)
          let peer = direction == .egress ? b : a
          findings.expect("\(family): identity", event.identity, tables.identities.identity(of: peer))
        }

        let denied = try check("denied", .tcp(source: 4000, destination: 80, .synchronize), [(.drop, "DROP(")])
        findings.expect("\(family): reason", denied.first?.reason, .policyDenied)
        findings.expect("\(family): flags", denied.first?.tcpFlags, 2)
        findings.expect("\(family): destination", denied.first?.destination, b)
        findings.expect("\(family): port", denied.first?.destinationPort, 80)
        expect(denied.first, .egress, judged(80, 6).egress)

        let audited = try check(
          "audited", .udp(source: 4000, destination: 53), [(.verdict, "EVENT_VERDICT"), (.audit, "EVENT_AUDIT")])
        expect(audited.first, .egress, judged(53).egress)
        expect(audited.last, .ingress, judged(53).ingress)
        findings.expect("\(family): audited", audited.last?.clause?.clause.kind, .auditDeny)

        let echo = try check("echo", .echo(7), [(.drop, "DROP(")])
        findings.expect("\(family): type", echo.first?.icmpType, family == .v4 ? 8 : 128)
        findings.expect("\(family): protocol", echo.first?.proto, family == .v4 ? 1 : 58)

        let balanced = try check(
          "balanced", .udp(source: 4000, destination: 80), to: "service",
          [(.verdict, "EVENT_VERDICT"), (.audit, "EVENT_AUDIT"), (.translation, "EVENT_TRANSLATION")])
        findings.expect("\(family): from", balanced.last?.destination, scene.address("service", family))
        let refused = try check(
          "refused", .udp(source: 4000, destination: 81), to: "service", [(.reject, "EVENT_REJECT")])
        findings.expect("\(family): no verdict", refused.first?.clause, nil)
      }
    }
  }

  @Test("a translation's event has both tuples, and no other direction's rule")
  func translations() throws {
    try PacketScene.run("event-translation", ["allow": Self.policies["allow"] ?? ""], change: Self.cluster) {
      scene, findings in
      for family in IPFamily.allCases {
        let packet = scene.packet("a", "service", family, .udp(source: 4000, destination: 80))
        guard let event = try scene.deliver("a", packet).events.last(where: { $0.kind == 3 }) else {
          findings.expect("\(family): told", false)
          continue
        }
        findings.expect("\(family): to", event.other.destination, AddressLayout(scene.address("b", family)))
        findings.expect("\(family): port", UInt16(bigEndian: event.other.destinationPort), 53)
        findings.expect("\(family): from", event.other.source, AddressLayout(scene.address("a", family)))
        // b is not isolated: what was asked last has no rule.
        findings.expect("\(family): direction", event.direction, 0)
        findings.expect("\(family): attribution", event.attribution, 0)
      }
    }
  }

  @Test("where nobody listens, only drops and audits are told")
  func listeners() throws {
    try PacketScene.run("event-listeners", Self.policies, audit: ["watch"], change: Self.cluster) { scene, findings in
      try scene.runner.engine.maps.tracking.state.set(PacketTable.State.events, 0)
      let balanced = scene.packet("a", "service", .v4, .udp(source: 4000, destination: 80))
      findings.expect("balanced", try scene.deliver("a", balanced).events.map(\.kind), [2])
      let denied = scene.packet("a", "b", .v4, .udp(source: 4000, destination: 54))
      findings.expect("denied", try scene.deliver("a", denied).events.map(\.kind), [0])
      try scene.runner.engine.maps.tracking.state.set(PacketTable.State.events, 1 << 3)
      let again = scene.packet("a", "service", .v4, .udp(source: 4001, destination: 80))
      findings.expect("translations only", try scene.deliver("a", again).events.map(\.kind), [2, 3])
    }
  }

  @Test("events that find no room are counted: told and lost are all there were")
  func lost() throws {
    try PacketScene.run("event-lost", Self.policies) { scene, findings in
      let frame = PacketRunner.frame(scene.packet("a", "b", .v4, .udp(source: 4000, destination: 54)))
      let before = try scene.runner.engine.counters()
      let times = 20_000
      try scene.runner.run(.fromPod, PacketScene.device("a"), frame, times: times)
      let (told, lost) = try scene.runner.events()
      findings.expect("lost \(lost), told \(told.count)", lost > 0 && told.count > 1000)
      findings.expect("all", UInt64(told.count) + lost, UInt64(times))
      let drops = PolicyCounters.Drop(.policyDenied, .egress)
      let after = try scene.runner.engine.counters()
      findings.expect(
        "counted", (after.drops[drops]?.packets ?? 0) - (before.drops[drops]?.packets ?? 0), UInt64(times))
      // There is room again.
      findings.expect("told", try scene.deliver("a", Array(frame.dropFirst(14))).events.count, 1)
      findings.expect("lost no more", try scene.runner.events().lost, lost)
    }
  }
}

extension ProbeContent {
  fileprivate var ports: (source: UInt16, destination: UInt16)? {
    switch self {
    case .tcp(let source, let destination, _), .udp(let source, let destination): (source, destination)
    default: nil
    }
  }
}
