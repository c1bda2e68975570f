import DataplaneModel
import NetworkTypes
import Testing

/// What the tables mean for a packet, at the corners. The rules of Services are walked in ServiceCompilerTests.
@Suite("Packet walks")
struct WalkTests {
  /// Pods 10.244.1.2 (also fd00:244:1::2) and 10.244.1.3 are local; pods, nodes and Services are "the cluster".
  private static func node(_ body: (inout TableDelta) throws -> Void = { _ in }) throws -> Tables {
    let mac = try #require(MACAddress("0a:00:00:00:00:01"))
    let ranges = try ["10.244.0.0/16", "10.96.0.0/16", "192.168.0.0/24", "fd00::/16"].map { try #require(CIDR($0)) }
    return try Tables { delta in
      delta.endpoints.add(
        "veth2", LocalEndpoint(interface: "veth2", mac: mac, addresses: [ip("10.244.1.2"), ip("fd00:244:1::2")]))
      delta.endpoints.add("veth3", LocalEndpoint(interface: "veth3", mac: mac, addresses: [ip("10.244.1.3")]))
      delta.nodePortAddresses.added = [ip("192.168.0.1"), ip("fd00:192::1")]
      delta.internalAddresses.add(.v4, ip("192.168.0.1"))
      delta.clusterRanges.added = Set(ranges)
      try body(&delta)
    }
  }

  private func walk(
    _ tables: Tables, _ origin: Origin, _ source: String, _ destination: String, _ port: UInt16 = 80,
    _ proto: L4Protocol = .tcp, affinity: AffinityState = AffinityState()
  ) -> Set<ServiceOutcome> {
    tables.walk(
      Packet(
        origin: origin, source: ip(source), destination: ip(destination), proto: proto, sourcePort: 40000,
        destinationPort: port), affinity: affinity)
  }

  private static func allow(_ destination: String) throws -> Tables {
    try node {
      $0.frontends.add(try key(destination), try frontend(1))
      $0.sets.add(try setID(1), backends(try at("10.244.2.2")))
    }
  }

  // MARK: Forged sources

  @Test(
    "a pod that sends with an address of no local pod is dropped before anything else is asked",
    arguments: [
      "10.244.1.9", "10.244.2.2", "192.168.0.1", "10.96.0.1", "203.0.113.7", "127.0.0.1", "0.0.0.0",
    ])
  func forged(_ source: String) throws {
    let tables = try Self.allow("10.96.0.1")
    for destination in ["10.96.0.1", "10.244.2.2", "203.0.113.9", "169.254.20.10"] {
      #expect(walk(tables, .pod, source, destination) == [.dropped(.forgedSource)])
    }
  }

  @Test("the same source is no forgery from elsewhere or from the node, nor a pod's own in either family")
  func notForged() throws {
    let tables = try Self.node()
    #expect(walk(tables, .outside, "10.244.2.2", "10.244.1.2") == [.untouched(source: .kept)])
    #expect(walk(tables, .host, "192.168.0.1", "10.244.1.2") == [.untouched(source: .kept)])
    #expect(walk(tables, .pod, "10.244.1.2", "10.244.2.2") == [.untouched(source: .kept)])
    #expect(walk(tables, .pod, "fd00:244:1::2", "fd00:244:2::2") == [.untouched(source: .kept)])
    #expect(walk(tables, .pod, "fd00:244:1::3", "fd00:244:2::2") == [.dropped(.forgedSource)])
  }

  @Test("a pod that is detached cannot send any more")
  func detached() throws {
    var tables = try Self.node()
    let before = tables.node.endpoints["veth3"]
    tables.change { $0.endpoints["veth3"] = Change(old: before, new: nil) }
    #expect(walk(tables, .pod, "10.244.1.3", "10.244.2.2") == [.dropped(.forgedSource)])
    #expect(walk(tables, .pod, "10.244.1.2", "10.244.2.2") == [.untouched(source: .kept)])
  }

  // MARK: Leaving the cluster

  @Test("pod traffic to the world is masqueraded, within the cluster it is not; others' never is")
  func egress() throws {
    let tables = try Self.node()
    #expect(walk(tables, .pod, "10.244.1.2", "203.0.113.9") == [.untouched(source: .masquerade)])
    #expect(walk(tables, .pod, "fd00:244:1::2", "2001:db8::9") == [.untouched(source: .masquerade)])
    for inside in ["10.244.9.9", "10.96.0.7", "192.168.0.254"] {
      #expect(walk(tables, .pod, "10.244.1.2", inside) == [.untouched(source: .kept)])
    }
    #expect(walk(tables, .host, "192.168.0.1", "203.0.113.9") == [.untouched(source: .kept)])
    #expect(walk(tables, .outside, "203.0.113.7", "203.0.113.9") == [.untouched(source: .kept)])
  }

  @Test(
    "link-local and multicast destinations do not leave: their source stays",
    arguments: [
      ("10.244.1.2", "169.254.20.10"), ("10.244.1.2", "224.0.0.251"), ("10.244.1.2", "239.1.2.3"),
      ("fd00:244:1::2", "fe80::1"), ("fd00:244:1::2", "ff02::fb"),
    ])
  func notRoutable(_ source: String, _ destination: String) throws {
    #expect(walk(try Self.node(), .pod, source, destination, 53, .udp) == [.untouched(source: .kept)])
  }

  @Test("a family without ranges is not masqueraded, the other still is")
  func perFamily() throws {
    var tables = try Self.node()
    let v4 = tables.node.clusterRanges.filter { $0.family == .v4 }
    tables.change { $0.clusterRanges.removed = v4 }
    #expect(walk(tables, .pod, "10.244.1.2", "203.0.113.9") == [.untouched(source: .kept)])
    #expect(walk(tables, .pod, "fd00:244:1::2", "2001:db8::9") == [.untouched(source: .masquerade)])
  }

  @Test("what counts is where the backend is, not the Service's address")
  func backendOutside() throws {
    let tables = try Self.node {
      $0.frontends.add(try key("10.96.0.1"), try frontend(1))
      $0.frontends.add(try key("203.0.113.50"), try frontend(2, .externalIP, masquerade: .hostOnly))
      $0.sets.add(try setID(1), backends(try at("203.0.113.60"), try at("10.244.2.2"), try at("169.254.20.10")))
      $0.sets.add(try setID(2), backends(try at("10.244.2.2")))
    }
    #expect(
      walk(tables, .pod, "10.244.1.2", "10.96.0.1") == [
        .translated(to: try at("203.0.113.60"), source: .masquerade),
        .translated(to: try at("10.244.2.2"), source: .kept),
        .translated(to: try at("169.254.20.10"), source: .kept),
      ])
    #expect(
      walk(tables, .pod, "10.244.1.2", "203.0.113.50") == [.translated(to: try at("10.244.2.2"), source: .kept)])
  }

  // MARK: Claims to the node's addresses

  private static func contested(_ kind: FrontendKind) throws -> Tables {
    try node {
      $0.frontends.add(try nodeKey(80), try frontend(1, .nodePort))
      $0.frontends.add(try key("192.168.0.1"), try frontend(2, kind))
      $0.sets.add(try setID(1), backends(try at("10.244.2.1")))
      $0.sets.add(try setID(2), backends(try at("10.244.2.2")))
    }
  }

  @Test(
    "at an address of the node a ClusterIP goes before a NodePort, which goes before the others",
    arguments: [(FrontendKind.clusterIP, "10.244.2.2"), (.loadBalancer, "10.244.2.1"), (.externalIP, "10.244.2.1")])
  func nodePortAgainst(_ kind: FrontendKind, _ expected: String) throws {
    let tables = try Self.contested(kind)
    #expect(
      walk(tables, .outside, "203.0.113.7", "192.168.0.1") == [
        .translated(to: try at(expected), source: .masquerade)
      ])
  }

  @Test("a NodePort is for its own family, protocol, port and the listed addresses")
  func nodePortExactly() throws {
    let tables = try Self.contested(.externalIP)
    #expect(walk(tables, .outside, "2001:db8::7", "fd00:192::1") == [.untouched(source: .kept)])
    #expect(walk(tables, .outside, "203.0.113.7", "192.168.0.1", 80, .udp) == [.untouched(source: .kept)])
    #expect(walk(tables, .outside, "203.0.113.7", "192.168.0.1", 81) == [.untouched(source: .kept)])
    #expect(walk(tables, .outside, "203.0.113.7", "192.168.0.2", 80) == [.untouched(source: .kept)])
  }

  @Test("an address claim stands alone where the node's address serves no NodePorts")
  func withoutNodePortAddress() throws {
    var tables = try Self.contested(.externalIP)
    tables.change { $0.nodePortAddresses.removed = [ip("192.168.0.1")] }
    #expect(
      walk(tables, .outside, "203.0.113.7", "192.168.0.1") == [
        .translated(to: try at("10.244.2.2"), source: .masquerade)
      ])
  }

  // MARK: No Service

  @Test("a Service's address rejects other ports before its range drops them, port 0 included")
  func order() throws {
    let range = try #require(CIDR("10.96.0.0/16"))
    var tables = try Self.allow("10.96.0.1")
    tables.change {
      $0.serviceAddresses.added = [ip("10.96.0.1")]
      $0.serviceRanges.added = [range]
    }
    #expect(walk(tables, .host, "192.168.0.1", "10.96.0.1", 81) == [.rejected(.undefinedPort)])
    #expect(walk(tables, .host, "192.168.0.1", "10.96.0.1", 0) == [.rejected(.undefinedPort)])
    #expect(walk(tables, .host, "192.168.0.1", "10.96.0.2", 80) == [.dropped(.unallocatedServiceAddress)])
    #expect(walk(tables, .host, "192.168.0.1", "10.97.0.0", 80) == [.untouched(source: .kept)])
  }

  @Test("a frontend whose set is not there yet rejects, as one without endpoints does")
  func missingSet() throws {
    let tables = try Self.node { $0.frontends.add(try key("10.96.0.1"), try frontend(1)) }
    #expect(walk(tables, .outside, "203.0.113.7", "10.96.0.1") == [.rejected(.noEndpoint)])
  }

  @Test("draining backends take no new flow, not even a client that sticks to them")
  func draining() throws {
    let tables = try Self.node {
      $0.frontends.add(try key("10.96.0.1", 53, .udp), try frontend(1))
      $0.sets.add(
        try setID(1),
        BackendSet(
          backends: [try at("10.244.2.2"), try at("10.244.2.3")], emptyAction: .reject, affinityTimeout: 60,
          draining: [try at("10.244.2.4")]))
    }
    var affinity = AffinityState(
      entries: [.init(client: ip("203.0.113.7"), service: try service(1)): try at("10.244.2.4")])
    #expect(walk(tables, .outside, "203.0.113.7", "10.96.0.1", 53, .udp, affinity: affinity).count == 2)
    let live = try at("10.244.2.3")
    affinity.entries = affinity.entries.mapValues { _ in live }
    #expect(walk(tables, .outside, "203.0.113.7", "10.96.0.1", 53, .udp, affinity: affinity).count == 1)
  }

  @Test("every reason has a name of its own and says what it means")
  func reasons() {
    let names = DropReason.allCases.map(\.rawValue) + RejectReason.allCases.map(\.rawValue)
    #expect(Set(names).count == names.count)
    #expect(DropReason.allCases.allSatisfy { !$0.explanation.isEmpty })
    #expect(RejectReason.allCases.allSatisfy { !$0.explanation.isEmpty })
  }
}
