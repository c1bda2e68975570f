import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Which addresses and ports a Service answers at (services.md, points 1-3, 9, 10, 13, 14).
@Suite("Frontends")
struct FrontendTests {
  private static let everywhere: Set<String> = [
    "to 10.244.2.2:8080, masqueraded", "to 10.244.2.3:8080, masqueraded",
  ]
  private let slices = slice([pod("10.244.2.2"), pod("10.244.2.3")])

  @Test("a ClusterIP leads to every ready endpoint, for each protocol and no other", arguments: L4Protocol.allCases)
  func protocols(_ proto: L4Protocol) throws {
    let name = proto.kubernetesName
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{port: 80, protocol: \(name)}]"),
      slice([pod("10.244.2.2"), pod("10.244.2.3")], ports: "{port: 8080, protocol: \(name)}"))
    let kept: Set<String> = ["to 10.244.2.2:8080, source kept", "to 10.244.2.3:8080, source kept"]
    #expect(world.walkFromEverywhere(to: "10.96.0.1", 80, proto) == [kept, Self.everywhere, Self.everywhere])
    for other in L4Protocol.allCases where other != proto {
      #expect(world.walk(.pod, to: "10.96.0.1", 80, other) == ["rejected: undefined-port"])
    }
  }

  @Test("one port number serves TCP, UDP and SCTP with different pods")
  func sameNumber() throws {
    let world = try World(
      service(
        """
        clusterIP: 10.96.0.10, ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP},
          {name: s, port: 53, protocol: SCTP}]
        """),
      slice([pod("10.244.2.2")], name: "t", ports: "{name: t, port: 1053}"),
      slice([pod("10.244.2.3")], name: "u", ports: "{name: u, port: 2053, protocol: UDP}"),
      slice([pod("10.244.2.4")], name: "s", ports: "{name: s, port: 3053, protocol: SCTP}"))
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .tcp) == ["to 10.244.2.2:1053, source kept"])
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .udp) == ["to 10.244.2.3:2053, source kept"])
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .sctp) == ["to 10.244.2.4:3053, source kept"])
  }

  @Test("a slice's port counts only where name and protocol are the Service port's")
  func portMatch() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{name: web, port: 80}]"),
      slice([pod("10.244.2.2")], name: "proto", ports: "{name: web, port: 8080, protocol: UDP}"),
      slice([pod("10.244.2.3")], name: "name", ports: "{name: api, port: 8080}, {port: 8081}"))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["rejected: no-endpoint"])
  }

  // MARK: Families

  @Test("a dual-stack Service answers each family from that family's slices")
  func dualStack() throws {
    let world = try World(
      service("clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]"),
      slice([pod("10.244.2.2")]), slice([pod("fd00:244:2::2")], ports: "{port: 9090}", family: .v6))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["to 10.244.2.2:8080, source kept"])
    #expect(world.walk(.pod, to: "fd00:96::1") == ["to [fd00:244:2::2]:9090, source kept"])
  }

  @Test("a dual-stack Service with endpoints of one family rejects the other family alone")
  func halfEmpty() throws {
    let world = try World(
      service("clusterIPs: ['fd00:96::1', 10.96.0.1], ports: [{port: 80}]"),
      slice([pod("fd00:244:2::2")], family: .v6))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["rejected: no-endpoint"])
    #expect(world.walk(.pod, to: "fd00:96::1") == ["to [fd00:244:2::2]:8080, source kept"])
  }

  @Test(
    "a single-stack Service has nothing in the other family, whatever its slices and addresses say",
    arguments: [
      ("10.96.0.1", IPFamily.v4), ("fd00:96::1", .v6),
    ])
  func singleStack(_ clusterIP: String, _ family: IPFamily) throws {
    let world = try World(
      service(
        """
        type: NodePort, clusterIP: '\(clusterIP)', ports: [{port: 80, nodePort: 30080}],
        externalIPs: [198.51.100.1, '2001:db8:1::1']
        """),
      slices, slice([pod("fd00:244:2::2")], family: .v6))
    let services = world.tables.services
    #expect(!services.frontends.isEmpty)
    #expect(services.frontends.keys.allSatisfy { $0.destination.family == family })
    #expect(services.sets.keys.allSatisfy { $0.family == family })
    let others = family == .v4 ? ["2001:db8:1::1", "fd00:192::1"] : ["198.51.100.1", "192.168.0.1"]
    #expect(world.walk(.outside, to: others[0]) == ["untouched, source kept"])
    #expect(world.walk(.outside, to: others[1], 30080) == ["untouched, source kept"])
  }

  // MARK: Kinds

  @Test("a NodePort answers at this node's address only, an address of the node has no other port")
  func nodePort() throws {
    let world = try World(
      service("type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]"), slices)
    #expect(world.walkFromEverywhere(to: "192.168.0.1", 30080) == Array(repeating: Self.everywhere, count: 3))
    #expect(world.walk(.outside, to: "192.168.0.1", 80) == ["untouched, source kept"])
    #expect(world.walk(.outside, to: "192.168.0.2", 30080) == ["untouched, source kept"])
    #expect(world.walk(.outside, to: "10.96.0.1", 30080) == ["rejected: undefined-port"])
  }

  @Test("NodePorts follow the addresses they listen on at once")
  func nodePortAddresses() throws {
    var world = try World(
      service("type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]"), slices)
    world.changeNode {
      $0.nodePortAddresses = SetChange(added: [address("192.168.7.7")], removed: [address("192.168.0.1")])
    }
    #expect(world.walk(.outside, to: "192.168.7.7", 30080) == Self.everywhere)
    #expect(world.walk(.outside, to: "192.168.0.1", 30080) == ["untouched, source kept"])
  }

  @Test("a load balancer's address counts with ipMode VIP or none; Proxy and host names do not")
  func ipMode() throws {
    let world = try World(
      service(
        "type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]",
        ingress: """
          {ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: VIP}, {ip: 198.51.100.3, ipMode: Proxy},
            {hostname: lb.example.com}
          """), slices)
    #expect(world.walkFromEverywhere(to: "198.51.100.1") == Array(repeating: Self.everywhere, count: 3))
    #expect(world.walk(.outside, to: "198.51.100.2") == Self.everywhere)
    #expect(world.walk(.outside, to: "198.51.100.3") == ["untouched, source kept"])
    #expect(world.walk(.outside, to: "198.51.100.1", 81) == ["untouched, source kept"])
  }

  @Test("a LoadBalancer Service without node ports still has its VIP")
  func noNodePorts() throws {
    let world = try World(
      service(
        "type: LoadBalancer, clusterIP: 10.96.0.1, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]",
        ingress: "{ip: 198.51.100.1}"), slices)
    #expect(world.walk(.outside, to: "198.51.100.1") == Self.everywhere)
    #expect(!world.tables.services.frontends.keys.contains { $0.destination == .node(.v4) })
  }

  @Test("external addresses of both families answer at the Service's port")
  func externalIPs() throws {
    let world = try World(
      service(
        "clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}], externalIPs: [198.51.100.9, '2001:db8:9::9']"),
      slices, slice([pod("fd00:244:2::2")], family: .v6))
    #expect(world.walkFromEverywhere(to: "198.51.100.9") == Array(repeating: Self.everywhere, count: 3))
    #expect(world.walk(.outside, to: "2001:db8:9::9") == ["to [fd00:244:2::2]:8080, masqueraded"])
  }

  // MARK: Source ranges

  private static func ranged(_ ranges: String) -> String {
    service(
      """
      type: LoadBalancer, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, nodePort: 30080}],
      externalIPs: [198.51.100.9], loadBalancerSourceRanges: [\(ranges)]
      """, ingress: "{ip: 198.51.100.1}, {ip: '2001:db8:1::1'}")
  }

  @Test("source ranges hold at the load balancer's address for everyone, and nowhere else")
  func sourceRanges() throws {
    let world = try World(Self.ranged("203.0.113.0/24, 10.244.1.9/32"), slices)
    #expect(world.walk(.outside, to: "198.51.100.1") == Self.everywhere)
    #expect(world.walk(.outside, to: "198.51.100.1", source: "203.0.112.255") == ["dropped: source-range"])
    #expect(world.walk(.outside, to: "198.51.100.1", source: "203.0.114.0") == ["dropped: source-range"])
    #expect(world.walk(.pod, to: "198.51.100.1") == Self.everywhere)
    #expect(world.walk(.pod, to: "198.51.100.1", source: "10.244.1.3") == ["dropped: source-range"])
    #expect(world.walk(.host, to: "198.51.100.1") == ["dropped: source-range"])
    for (destination, port) in [("10.96.0.1", UInt16(80)), ("192.168.0.1", 30080), ("198.51.100.9", 80)] {
      #expect(world.walk(.outside, to: destination, port, source: "9.9.9.9") == Self.everywhere)
    }
  }

  @Test("ranges of the other family only leave a family open; ranges of its own close it")
  func otherFamily() throws {
    let v6Slice = slice([pod("fd00:244:2::2")], family: .v6)
    let v6 = try World(Self.ranged("'2001:db8::/64'"), slices, v6Slice)
    #expect(v6.walk(.outside, to: "198.51.100.1", source: "9.9.9.9") == Self.everywhere)
    #expect(v6.walk(.outside, to: "2001:db8:1::1") == ["to [fd00:244:2::2]:8080, masqueraded"])
    #expect(v6.walk(.outside, to: "2001:db8:1::1", source: "2001:db8:0:1::7") == ["dropped: source-range"])
    let v4 = try World(Self.ranged("9.0.0.0/8"), slices, v6Slice)
    #expect(v4.walk(.outside, to: "198.51.100.1") == ["dropped: source-range"])
    #expect(v4.walk(.outside, to: "2001:db8:1::1") == ["to [fd00:244:2::2]:8080, masqueraded"])
  }

  @Test("overlapping and adjacent ranges become disjoint ones, and a range of everything is no range")
  func mergedRanges() throws {
    let world = try World(Self.ranged("10.1.0.0/16, 10.0.0.0/16, 10.1.2.0/24, 10.3.0.0/16"), slices)
    let key = FrontendKey(.address(address("198.51.100.1")), .tcp, try #require(Port(80)))
    #expect(
      world.tables.services.frontends[key]?.sourceRanges?.map(\.description) == [
        "10.0.0.0-10.1.255.255", "10.3.0.0-10.3.255.255",
      ])
    let open = try World(Self.ranged("10.1.0.0/16, 0.0.0.0/0"), slices)
    #expect(open.walk(.outside, to: "198.51.100.1", source: "9.9.9.9") == Self.everywhere)
  }

  @Test("where the node may use a load balancer's address, its packets with that address as source may too")
  func ownVIP() throws {
    var world = try World(Self.ranged("192.168.0.0/24"), slices)
    #expect(world.walk(.host, to: "198.51.100.1", source: "198.51.100.1") == Self.everywhere)
    // The node's address leaves the ranges: the exception goes with it.
    try world.apply(World.ownNode.replacing("192.168.0.1", with: "192.168.5.1"))
    #expect(world.walk(.host, to: "198.51.100.1", source: "198.51.100.1") == ["dropped: source-range"])
  }

  // MARK: What is not ours

  @Test(
    "a Service that is headless, an alias, without an address or another proxy's has no frontend",
    arguments: [
      service("clusterIP: None, ports: [{port: 80}]"),
      service("type: ExternalName, externalName: example.com"),
      service("ports: [{port: 80}]"),
      service("clusterIP: '', ports: [{port: 80}], externalIPs: [198.51.100.9]"),
      service(
        "type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]",
        labels: "service.kubernetes.io/service-proxy-name: other"),
      service("clusterIP: 10.96.0.1, ports: [{port: 80}]", labels: "service.kubernetes.io/service-proxy-name: ''"),
    ])
  func notOurs(_ document: String) throws {
    let world = try World(document, slices)
    #expect(world.tables.services.frontends.isEmpty && world.tables.services.sets.isEmpty)
    #expect(world.tables.services.serviceAddresses.isEmpty)
    #expect(world.walk(.outside, to: "192.168.0.1", 30080) == ["untouched, source kept"])
  }

  @Test("a Service handed to another proxy leaves the tables, and comes back")
  func handedOver() throws {
    let mine = "clusterIP: 10.96.0.1, ports: [{port: 80}]"
    var world = try World(service(mine), slices)
    let before = world.tables
    try world.apply(service(mine, labels: "service.kubernetes.io/service-proxy-name: other"))
    #expect(world.tables.services.frontends.isEmpty && world.tables.services.sets.isEmpty)
    #expect(world.tables.services.serviceAddresses.isEmpty)
    try world.apply(service(mine))
    #expect(world.tables == before)
  }

  // MARK: Nobody's ports and addresses

  @Test("a port no Service defines is rejected at a cluster address, for all protocols", arguments: L4Protocol.allCases)
  func undefinedPort(_ proto: L4Protocol) throws {
    let world = try World(
      service("clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, protocol: \(proto.kubernetesName)}]"))
    for destination in ["10.96.0.1", "fd00:96::1"] {
      #expect(
        world.walkFromEverywhere(to: destination, 81, proto) == Array(repeating: ["rejected: undefined-port"], count: 3)
      )
    }
  }

  @Test("an address of a ServiceCIDR that no Service has is dropped, and follows both at once")
  func unallocated() throws {
    var world = try World(slices)
    #expect(world.walk(.pod, to: "10.96.0.1") == ["untouched, source kept"])
    let range = """
      apiVersion: networking.k8s.io/v1
      kind: ServiceCIDR
      metadata: {name: kubernetes}
      spec: {cidrs: [10.96.0.0/24, 'fd00:96::/112']}
      """
    let delta = try world.apply(range)
    #expect(delta.frontends.isEmpty && delta.sets.isEmpty)
    #expect(
      world.walkFromEverywhere(to: "10.96.0.1")
        == Array(repeating: ["dropped: unallocated-service-address"], count: 3))
    #expect(world.walk(.pod, to: "fd00:96::ffff") == ["dropped: unallocated-service-address"])
    #expect(world.walk(.pod, to: "10.96.1.0") == ["untouched, source kept"])
    try world.apply(service("clusterIP: 10.96.0.1, ports: [{port: 80}]"))
    #expect(world.walk(.outside, to: "10.96.0.1") == Self.everywhere)
    #expect(world.walk(.pod, to: "10.96.0.1", 81) == ["rejected: undefined-port"])
    world.delete(.service, "api")
    #expect(world.walk(.pod, to: "10.96.0.1") == ["dropped: unallocated-service-address"])
    world.delete(.serviceCIDR, "kubernetes")
    #expect(world.walk(.pod, to: "10.96.0.1") == ["untouched, source kept"])
  }

  @Test("the address of another proxy's Service is allocated: it is left to that proxy")
  func otherProxysAddress() throws {
    let world = try World(
      """
      apiVersion: networking.k8s.io/v1
      kind: ServiceCIDR
      metadata: {name: kubernetes}
      spec: {cidrs: [10.96.0.0/24]}
      """,
      service("clusterIP: 10.96.0.1, ports: [{port: 80}]", labels: "service.kubernetes.io/service-proxy-name: other"))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["untouched, source kept"])
  }
}
