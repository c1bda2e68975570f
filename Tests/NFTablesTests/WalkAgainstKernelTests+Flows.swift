import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// What sets of packets show, and single packets that have to be pinned down.
@Suite struct FlowTests {
  /// One UDP Service of each family with an external frontend, on a node with its pods.
  private static func tables(
    backends: (IPFamily) -> [SocketAddress], affinity: UInt32? = nil, isLocal: Bool = false,
    internalAddress: Bool = true
  ) -> Tables {
    var tables = Tables()
    _ = tables.change { delta in
      for family in IPFamily.allCases {
        let address = World.clusterIP(family, 1)
        delta.clusterIP(1, "\(address)", .udp, 53, affinity: affinity != nil)
        let all = backends(family)
        delta.set(1, family, backends: all, affinity: affinity)
        delta.set(
          1, family, scope: .local, backends: all.filter { PacketRig.isPod($0.address) }, empty: .drop,
          affinity: affinity)
        for destination in [FrontendAddress.address(World.virtualIP(family, 0)), .node(family)] {
          delta.frontends[FrontendKey(destination, .udp, at("::", 53).port)] = Change(
            old: nil,
            new: Frontend(
              service: id(1), kind: destination == .node(family) ? .nodePort : .loadBalancer, nodeScope: .cluster,
              outsideScope: isLocal ? .local : .cluster, masquerade: isLocal ? .hostOnly : .always,
              hasAffinity: affinity != nil))
        }
        delta.nodePortAddresses.added.insert(PacketRig.uplink(family))
        if internalAddress {
          delta.internalAddresses[family] = Change(old: nil, new: PacketRig.nodeInternal(family, 0))
        }
      }
      delta.clusterRanges.added = [cidr("10.244.0.0/16"), cidr("fd00:10:244::/48")]
      for pod in 0..<PacketRig.podCount {
        delta.endpoints[PacketRig.interface(pod)] = Change(old: nil, new: PacketRig.endpoint(pod))
      }
    }
    return tables
  }

  private static func packet(
    _ rig: PacketRig, _ origin: Origin, _ source: IPAddress, _ destination: IPAddress
  ) -> Packet {
    Packet(
      origin: origin, source: source, destination: destination, proto: .udp, sourcePort: rig.nextPort(),
      destinationPort: 53)
  }

  // MARK: Distribution

  @Test("20,000 flows are spread evenly over five backends", arguments: IPFamily.allCases)
  func distribution(family: IPFamily) throws {
    try inRig { rig, findings in
      var engine = try NFTablesEngine()
      _ = try engine.resync(
        Self.tables(backends: { family in (0..<5).map { at("\(PacketRig.remotePod(family, $0))", 8080) } }))
      let total = 20_000
      var counts: [IPAddress: Int] = [:]
      for _ in 0..<total / 2000 {
        let sent = try (0..<2000).map { _ in
          try rig.send(Self.packet(rig, .pod, PacketRig.pod(family, 0), World.clusterIP(family, 1)), pod: 0)
        }
        for case .tracked(let entry) in try rig.outcomes(of: sent) { counts[entry.reply.source, default: 0] += 1 }
      }
      findings.expect(counts.values.reduce(0, +) == total, "flows were lost: \(counts)")
      findings.expect(counts.count == 5, "\(counts)")
      let expected = Double(total) / 5
      let chiSquare = counts.values.reduce(0.0) { $0 + pow(Double($1) - expected, 2) / expected }
      // The upper tail for four degrees of freedom has this closed form. The kernel's random numbers have no seed.
      let probability = exp(-chiSquare / 2) * (1 + chiSquare / 2)
      print("distribution \(family): chi-square \(chiSquare), p = \(probability)")
      findings.expect(probability >= 1e-6, "chi-square \(chiSquare), p = \(probability): \(counts)")
    }
  }

  // MARK: Affinity

  @Test(
    "a client sticks to its backend until the timeout, which every new flow starts anew", arguments: IPFamily.allCases)
  func affinityExpires(family: IPFamily) throws {
    try inRig { rig, findings in
      var engine = try NFTablesEngine()
      let backends = { (family: IPFamily) in (0..<6).map { at("\(PacketRig.remotePod(family, $0))", 8080) } }
      _ = try engine.resync(Self.tables(backends: backends, affinity: 2))
      let clients = (0..<40).map { PacketRig.external(family, 10 + $0) }
      func choices() throws -> [IPAddress?] {
        let sent = try clients.map { try rig.send(Self.packet(rig, .outside, $0, World.clusterIP(family, 1))) }
        return try rig.outcomes(of: sent).map { if case .tracked(let entry) = $0 { entry.reply.source } else { nil } }
      }
      let first = try choices()
      findings.expect(!first.contains(nil), "not all served: \(first)")
      findings.expect(Set(first).count > 1, "all clients at one backend: \(first)")
      // Three times within the timeout, together longer than it.
      for _ in 0..<3 {
        usleep(1_000_000)
        findings.expect(try choices() == first, "a client was moved within its timeout")
      }
      usleep(2_300_000)
      let later = try choices()
      // Of 40 clients with one chance in six each to stay by accident.
      let stayed = zip(first, later).count { $0 == $1 }
      findings.expect(stayed < 25, "\(stayed) of 40 clients stayed after the timeout")
    }
  }

  @Test("a client whose backend left is served by another at once, and sticks to that", arguments: IPFamily.allCases)
  func affinityFollows(family: IPFamily) throws {
    try inRig { rig, findings in
      var engine = try NFTablesEngine()
      let all = (0..<3).map { at("\(PacketRig.remotePod(family, $0))", 8080) }
      var tables = Self.tables(backends: { $0 == family ? all : [] }, affinity: 600)
      _ = try engine.resync(tables)
      func choice() throws -> SocketAddress? {
        let packet = Self.packet(rig, .outside, PacketRig.external(family, 10), World.clusterIP(family, 1))
        guard case .tracked(let entry) = try rig.outcome(of: packet), let port = Port(entry.reply.sourcePort) else {
          return nil
        }
        return SocketAddress(entry.reply.source, port)
      }
      let first = try choice()
      let before = BackendSet(backends: all, emptyAction: .reject, affinityTimeout: 600)
      let rest = BackendSet(backends: all.filter { $0 != first }, emptyAction: .reject, affinityTimeout: 600)
      let after = rest.withSlots(following: all)
      let delta = tables.change {
        $0.set(1, family, backends: after.backends, was: before, affinity: 600)
      }
      _ = try engine.apply(delta, tables: tables)
      let second = try choice()
      findings.expect(second != nil && second != first, "\(String(describing: second))")
      for _ in 0..<10 {
        let again = try choice()
        findings.expect(again == second, "moved to \(String(describing: again))")
      }
    }
  }

  // MARK: Sources

  @Test(
    "sources: the InternalIP towards local pods, the uplink's outside, the client's own with policy Local",
    arguments: IPFamily.allCases)
  func sources(family: IPFamily) throws {
    try inRig { rig, findings in
      var engine = try NFTablesEngine()
      let (service, virtual) = (World.clusterIP(family, 1), World.virtualIP(family, 0))
      let (here, there) = (PacketRig.pod(family, 1), PacketRig.remotePod(family, 1))
      let client = PacketRig.external(family, 50)
      func source(_ origin: Origin, _ source: IPAddress, _ destination: IPAddress, pod: Int? = nil) throws -> IPAddress?
      {
        let packet = Self.packet(rig, origin, source, destination)
        guard case .tracked(let entry) = try rig.outcome(of: packet, pod: pod) else { return nil }
        return entry.reply.destination
      }
      func check(_ backend: IPAddress, isLocal: Bool, _ cases: [(String, IPAddress?, IPAddress)]) {
        for (name, found, wanted) in cases {
          findings.expect(
            found == wanted,
            "\(name), backend \(backend), Local \(isLocal): \(found.map { "\($0)" } ?? "no flow"), not \(wanted)")
        }
      }
      let (uplink, own, pod) = (PacketRig.uplink(family), PacketRig.nodeInternal(family, 0), PacketRig.pod(family, 0))
      for (backend, taken) in [(here, own), (there, uplink)] {
        _ = try engine.resync(Self.tables(backends: { $0 == family ? [at("\(backend)", 8080)] : [] }))
        check(
          backend, isLocal: false,
          [
            ("pod, ClusterIP", try source(.pod, pod, service, pod: 0), pod),
            ("pod, virtual address", try source(.pod, pod, virtual, pod: 0), taken),
            ("pod, NodePort", try source(.pod, pod, uplink, pod: 0), taken),
            ("host, ClusterIP", try source(.host, uplink, service), taken),
            ("outside, ClusterIP", try source(.outside, client, service), taken),
            ("outside, virtual address", try source(.outside, client, virtual), taken),
            ("outside, NodePort", try source(.outside, client, uplink), taken),
          ])
      }
      _ = try engine.resync(
        Self.tables(backends: { $0 == family ? [at("\(here)", 8080)] : [] }, isLocal: true))
      check(
        here, isLocal: true,
        [
          ("outside, virtual address", try source(.outside, client, virtual), client),
          ("outside, NodePort", try source(.outside, client, uplink), client),
          ("outside, ClusterIP", try source(.outside, client, service), own),
          ("pod, virtual address", try source(.pod, pod, virtual, pod: 0), pod),
          ("host, virtual address", try source(.host, uplink, virtual), own),
          ("hairpin", try source(.pod, here, service, pod: 1), own),
        ])
      _ = try engine.resync(Self.tables(backends: { $0 == family ? [at("\(there)", 8080)] : [] }, isLocal: true))
      check(
        there, isLocal: true,
        [
          ("pod, virtual address", try source(.pod, pod, virtual, pod: 0), pod),
          ("host, virtual address", try source(.host, uplink, virtual), uplink),
        ])
      findings.expect(try source(.outside, client, virtual) == nil, "served from outside without a local endpoint")
    }
  }

  // MARK: Forgery

  @Test(
    "a pod sends with its own addresses only: another pod's, or another hardware address, is dropped",
    arguments: IPFamily.allCases)
  func forgery(family: IPFamily) throws {
    try inRig { rig, findings in
      var engine = try NFTablesEngine()
      _ = try engine.resync(Self.tables(backends: { [at("\(PacketRig.remotePod($0, 0))", 8080)] }))
      for destination in [World.clusterIP(family, 1), PacketRig.remotePod(family, 2)] {
        func check(_ name: String, _ isPassed: Bool, from source: IPAddress, mac: MACAddress? = nil) throws {
          let packet = Self.packet(rig, .pod, source, destination)
          let outcome = try rig.outcome(of: packet, pod: 0, mac: mac)
          if case .tracked = outcome {
            findings.expect(isPassed, "\(name) to \(destination): \(outcome)")
          } else {
            findings.expect(!isPassed, "\(name) to \(destination): \(outcome)")
          }
        }
        try check("own addresses", true, from: PacketRig.pod(family, 0))
        try check("another pod's address", false, from: PacketRig.pod(family, 1))
        try check("another pod's both", false, from: PacketRig.pod(family, 1), mac: PacketRig.podMAC(1))
        try check("another hardware address", false, from: PacketRig.pod(family, 0), mac: PacketRig.podMAC(1))
        try check("the node's address", false, from: PacketRig.uplink(family))
      }
    }
  }
}
