import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// Every reason there is, each by a packet that is dropped for it, told and counted.
@Suite("Drop reasons in BPF") struct DropReasonTests {
  private static let policies = [
    "a":
      "{podSelector: {matchLabels: {name: a}}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 8080}, {protocol: UDP}]}]}",
    "b":
      "{podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}, {protocol: UDP}]}]}",
  ]
  private static func cluster(_ delta: inout TableDelta) {
    delta.addCluster()
    delta.addService(1, port: 80, ["b"], local: ["b"])
    delta.addService(2, port: 82, ["b"], sources: ["v4": "192.0.2.0/24", "v6": "2001:db8::/32"])
    delta.addService(3, port: 83, ["2"], policy: .local)
    delta.endpoints["slc-new"] = Change(
      old: nil,
      new: LocalEndpoint(
        interface: "slc-new", mac: PacketRunner.podMAC, addresses: IPFamily.allCases.map(newcomer), subjects: nil))
  }
  private static func newcomer(_ family: IPFamily) -> IPAddress {
    ip(family == .v4 ? "10.244.1.99" : "fd00:10:244:1::99")
  }

  /// - Returns: nil where the family has no such packet.
  private static func drop(
    for reason: DropReason, _ direction: PolicyDirection?, _ scene: PacketScene, _ family: IPFamily
  ) throws -> PacketRunner.Result? {
    func send(_ content: ProbeContent, to: String = "service") throws -> PacketRunner.Result {
      try scene.deliver("a", scene.packet("a", to, family, content))
    }
    let syn = ProbeContent.tcp(source: 4000, destination: 80, .synchronize)
    switch reason {
    case .sourceRange: return try send(.udp(source: 4000, destination: 82))
    case .noLocalEndpoint: return try send(.udp(source: 4000, destination: 83))
    case .unallocatedServiceAddress:
      let nobody = ip(family == .v4 ? "10.96.7.7" : "fd00:96::77")
      return try scene.deliver(
        "a", ProbePacket(source: scene.address("a", family), destination: nobody, content: syn).bytes(number: 1))
    case .forgedSource: return try scene.deliver("a", scene.packet("b", "service", family, syn))
    case .forgedAdvertisement:
      guard family == .v6 else { return nil }
      let router = ProbeContent.icmp(type: 134, code: 0, body: [0, 0, 0, 0, 0, 0, 0, 0])
      return try scene.deliver(
        "a",
        ProbePacket(source: ip("fe80::2"), destination: ip("ff02::1"), content: router, hopLimit: 255).bytes(number: 1))
    case .policyDenied:
      return try send(
        .tcp(source: 4000, destination: direction == .egress ? 81 : 80, .synchronize), to: "b")
    case .unknownEndpoint:
      let frame = PacketRunner.frame(
        ProbePacket(source: newcomer(family), destination: scene.address("b", family), content: syn).bytes(number: 1))
      return try scene.runner.run(.fromPod, at: "slc-new", frame)
    case .noVerdict:
      for key in try scene.runner.engine.maps.pairs.keys() { try scene.runner.engine.maps.pairs.remove(key) }
      let result = try send(syn, to: "b")
      _ = try scene.runner.engine.resync(scene.runner.tables)
      return result
    case .malformed: return try scene.deliver("a", Array(scene.packet("a", "b", family, syn).dropLast(20)))
    case .fragment:
      var later = scene.raw("a", "b", family, .udp(source: 4000, destination: 53))
      (later.fragment, later.extensions) = (4, [.fragment(77, offset: 4)])
      return try scene.deliver("a", later.bytes)
    case .masqueradePorts:
      // An answer whose translation a cache has lost.
      _ = try send(.tcp(source: 4500, destination: 80, .synchronize))
      let maps = scene.runner.engine.maps
      for key in try maps.tracking.translations.keys() { try maps.tracking.translations.remove(key) }
      let answer = ProbeContent.tcp(source: 8080, destination: 4500, [.synchronize, .acknowledge])
      return try scene.deliver("b", scene.packet("b", "a", family, answer))
    case .unsupported: return try send(.sctp(source: 4000, destination: 80))
    case .noRoom:
      return try scene.runner.run(
        .toWire, at: PacketRunner.uplink, arrivedBy: PacketScene.device("a"),
        PacketRunner.frame(scene.packet("a", "world", family, syn)))
    case .noConnection: return try send(.tcp(source: 4000, destination: 80, .reset))
    case .engineSwitch:
      let flows = scene.runner.engine.flows
      try flows.setMode(aside: false, held: .seconds(60))
      defer { try? flows.setMode(aside: false) }
      return try send(syn)
    }
  }

  @Test("each is reached, told and counted")
  func reached() throws {
    try PacketScene.run("drop-reasons", Self.policies, change: Self.cluster) { scene, findings in
      for reason in DropReason.allCases {
        let directions: [PolicyDirection?] = reason == .policyDenied ? PolicyDirection.allCases : [nil]
        for direction in directions {
          try Self.check(reason, direction, &scene, &findings)
        }
      }
    }
  }

  private static func check(
    _ reason: DropReason, _ direction: PolicyDirection?, _ scene: inout PacketScene,
    _ findings: inout PacketScene.Findings
  ) throws {
    var wanted = try scene.runner.engine.counters().drops
    let key = PolicyCounters.Drop(reason, direction)
    var dropped = 0
    for family in IPFamily.allCases {
      guard let result = try drop(for: reason, direction, scene, family) else { continue }
      let what = "\(family) \(reason.rawValue)"
      guard case .dropped = result.verdict, let last = result.events.last else {
        findings.expect("\(what): \(result.verdict)", false)
        continue
      }
      let event = PacketEvent(last)
      findings.expect(what, event.reason, reason)
      findings.expect(what, event.kind, .drop)
      if let direction { findings.expect(what, event.direction, direction) }
      findings.expect("\(what): told once", result.events.count { $0.kind == 0 }, 1)
      wanted[key, default: TrafficCount()] += TrafficCount(packets: 1, bytes: UInt64(event.length))
      dropped += 1
    }
    findings.expect("\(reason.rawValue): packets", dropped > 0)
    // It, and no other.
    findings.expect("\(reason.rawValue): counters", try scene.runner.engine.counters().drops, wanted)
    try scene.runner.forgetFlows()
  }
}
