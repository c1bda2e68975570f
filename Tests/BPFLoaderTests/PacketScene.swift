import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab
@testable import PolicyWorlds

/// Pods shop/a and shop/b of this node, the node itself and the world, in both families; packets run through the compiled
/// programs one by one. What policies and Services say is each test's.
struct PacketScene {
  var compiled: CompiledWorld
  let runner: PacketRunner

  /// What was not as it should be.
  struct Findings {
    fileprivate(set) var failures: [String] = []

    mutating func expect<Value: Equatable>(_ what: String, _ found: Value, _ wanted: Value) {
      if found != wanted { failures.append("\(what): \(found), not \(wanted)") }
    }
    mutating func expect(_ what: String, _ isTrue: Bool) {
      if !isTrue { failures.append(what) }
    }
  }

  /// In a network namespace of its own.
  ///
  /// - Parameters:
  ///   - name: of its folder of pins.
  ///   - policies: specs by name, of namespace shop.
  ///   - audit: names of those that only audit.
  ///   - change: Services, and whatever else tables should have.
  static func run(
    _ name: String, _ policies: [String: String] = [:], audit: Set<String> = [],
    keepsEstablished: Bool = false, change: @escaping @Sendable (inout TableDelta) -> Void = { _ in },
    location: SourceLocation = #_sourceLocation,
    _ body: @escaping @Sendable (inout PacketScene, inout Findings) throws -> Void
  ) throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("scene-\(name)")
    let (failures, isCut) = try network.namespace.run { () throws -> ([String], Bool) in
      var scene = try PacketScene(policies, audit, pins, keepsEstablished, change)
      defer { try? scene.runner.engine.cleanUp() }
      var findings = Findings()
      do { try body(&scene, &findings) } catch is PacketRunner.ForwardsNothing { return (findings.failures, true) }
      return (findings.failures, false)
    }
    #expect(failures == [], sourceLocation: location)
    if isCut { try Test.cancel(PacketRunner.forwardsNothing) }
  }

  private init(
    _ policies: [String: String], _ audit: Set<String>, _ pins: PinFolder, _ keepsEstablished: Bool,
    _ change: (inout TableDelta) -> Void
  ) throws {
    var scene = try PolicyScene(policies, audit: audit)
    scene.add("shop/a", 1, 12, ["name": "a"])
    scene.add("shop/b", 1, 13, ["name": "b"])
    compiled = CompiledWorld(scene.world)
    var tables = Tables()
    var delta = compiled.tables.asDelta
    delta.ownAddresses.added = Set(IPFamily.allCases.map { Self.address("node", $0) })
    change(&delta)
    tables.apply(delta)
    runner = try PacketRunner(
      tables, pins: pins, masquerade: Uplink(v4: Self.address("node", .v4), v6: Self.address("node", .v6)),
      keepsEstablished: keepsEstablished)
  }

  mutating func change(_ policies: [String: String]) throws {
    let scene = try PolicyScene(policies)
    compiled.apply(scene.world.policies.map { .upsert(.networkPolicy($0)) })
    try runner.apply(compiled.lastDelta)
  }

  // MARK: Names

  static func address(_ name: String, _ family: IPFamily) -> IPAddress {
    switch name {
    case "a": ip(family == .v4 ? "10.244.1.12" : "fd00:10:244:1::12")
    case "b": ip(family == .v4 ? "10.244.1.13" : "fd00:10:244:1::13")
    case "node": ip(family == .v4 ? "172.18.0.1" : "fd00:172:18::1")
    case "service": ip(family == .v4 ? "10.96.0.1" : "fd00:96::1")
    case "router": ip(family == .v4 ? "198.51.100.1" : "2001:db8:ffff::1")
    default: ip(family == .v4 ? "203.0.113.9" : "2001:db8::9")
    }
  }
  func address(_ name: String, _ family: IPFamily) -> IPAddress { Self.address(name, family) }
  static func device(_ pod: String) -> String { CompiledWorld.interface(PolicyScene.key("shop/\(pod)")) }

  // MARK: Packets

  /// From a pod, the node or outside to a pod's device; from a pod, to where it leads.
  func deliver(_ from: String, _ packet: [UInt8], to: String? = nil) throws -> PacketRunner.Result {
    let frame = PacketRunner.frame(packet)
    switch from {
    case "a", "b": return try runner.run(.fromPod, at: Self.device(from), frame)
    case "node": return try runner.run(.toPod, at: Self.device(to ?? "b"), frame)
    default: return try runner.run(.toPod, at: Self.device(to ?? "b"), arrivedBy: PacketRunner.uplink, frame)
    }
  }

  func send(_ from: String, _ packet: [UInt8], to: String? = nil) throws -> PacketRunner.Verdict {
    try deliver(from, packet, to: to).verdict
  }

  /// Through all programs on its way.
  func travel(_ from: String, _ packet: [UInt8]) throws -> PacketRunner.Journey {
    let frame = PacketRunner.frame(packet)
    switch from {
    case "a", "b": return try runner.travel(frame, from: .pod(Self.device(from)))
    case "node": return try runner.travelFromNode(frame)
    default: return try runner.travel(frame, from: .outside)
    }
  }

  func probe(
    _ from: String, _ to: String, _ family: IPFamily, _ content: ProbeContent, hops: UInt8 = 64
  ) -> ProbePacket {
    ProbePacket(
      source: address(from, family), destination: address(to, family), content: content, hopLimit: hops)
  }

  func packet(
    _ from: String, _ to: String, _ family: IPFamily, _ content: ProbeContent, hops: UInt8 = 64
  ) -> [UInt8] {
    probe(from, to, family, content, hops: hops).bytes(number: 1)
  }

  func raw(_ from: String, _ to: String, _ family: IPFamily, _ content: ProbeContent) -> RawPacket {
    RawPacket(probe(from, to, family, content))
  }

  /// An ICMP error: port unreachable, about the beginning of a packet.
  func unreachable(_ from: String, _ to: String, _ family: IPFamily, about: [UInt8]) -> [UInt8] {
    let (type, code): (UInt8, UInt8) = family == .v4 ? (3, 3) : (1, 4)
    return packet(from, to, family, .icmp(type: type, code: code, body: Array(about.prefix(68))))
  }
}

extension PacketRunner.Journey {
  /// The packet, from its IP header on, where it has arrived at `place`.
  func packet(at place: PacketPlace) -> [UInt8]? {
    guard case .arrived(place, let frame) = self else { return nil }
    return Array(frame.dropFirst(14))
  }
  /// The node's own answer, a whole frame.
  var answer: [UInt8]? { if case .answered(let frame) = self { frame } else { nil } }
  var reason: UInt8? { if case .dropped(let reason) = self { reason } else { nil } }
}

extension TableDelta {
  /// What makes this a cluster with a network of its own: `service` is one of its addresses, and the node masquerades.
  mutating func addCluster() {
    for text in ["10.244.0.0/16", "172.18.0.0/16", "fd00:10:244::/48", "fd00:172:18::/48"] {
      if let range = CIDR(text) { clusterRanges.added.insert(range) }
    }
    for text in ["10.96.0.0/16", "fd00:96::/112"] {
      if let range = CIDR(text) { serviceRanges.added.insert(range) }
    }
    for family in IPFamily.allCases {
      let node = PacketScene.address("node", family)
      internalAddresses[family] = Change(old: nil, new: node)
      nodePortAddresses.added.insert(node)
      serviceAddresses.added.insert(PacketScene.address("service", family))
    }
  }

  /// A Service of every protocol at `service`, in both families and both scopes.
  ///
  /// - Parameters:
  ///   - backends: names of the scene's ends, or an address's last number among pods of another node.
  ///   - local: those of this node.
  mutating func addService(
    _ number: Int, port servicePort: UInt16, to targetPort: UInt16 = 8080, _ backends: [String], local: [String] = [],
    empty: EmptyAction = .reject, affinity: UInt32? = nil, sources: [String: String] = [:], nodePort: UInt16? = nil,
    policy: BackendScope = .cluster, draining: [String] = []
  ) {
    for family in IPFamily.allCases {
      func sockets(_ names: [String]) -> [SocketAddress] {
        names.map { name in
          let remote = ip(family == .v4 ? "10.244.2.\(name)" : "fd00:10:244:2::\(name)")
          return SocketAddress(
            Int(name) == nil ? PacketScene.address(name, family) : remote, BPFLoaderTests.port(targetPort))
        }
      }
      for (scope, names) in [(BackendScope.cluster, backends), (.local, local)] {
        sets[BackendSetID(service: service(number), scope: scope, family: family)] = Change(
          old: nil,
          new: BackendSet(
            backends: sockets(names), emptyAction: scope == .local ? .drop : empty, affinityTimeout: affinity,
            draining: sockets(draining)))
      }
      let ranges = sources[family == .v4 ? "v4" : "v6"].flatMap { CIDR($0) }.map { [AddressRange($0)] }
      for proto in [L4Protocol.tcp, .udp, .sctp] {
        let frontend = Frontend(
          service: service(number), kind: .clusterIP, nodeScope: policy, outsideScope: policy, masquerade: .exceptPods,
          hasAffinity: affinity != nil, sourceRanges: ranges)
        frontends[
          FrontendKey(.address(PacketScene.address("service", family)), proto, BPFLoaderTests.port(servicePort))] =
          Change(old: nil, new: frontend)
        guard let nodePort else { continue }
        frontends[FrontendKey(.node(family), proto, BPFLoaderTests.port(nodePort))] = Change(
          old: nil,
          new: Frontend(
            service: service(number), kind: .nodePort, nodeScope: .cluster, outsideScope: policy,
            masquerade: policy == .local ? .hostOnly : .always,
            hasAffinity: affinity != nil, sourceRanges: ranges))
      }
    }
  }
}
