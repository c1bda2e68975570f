import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Who is led where, and with which source (services.md, the table of frontends and points 11, 12).
@Suite("Traffic policies and masquerade")
struct TrafficPolicyTests {
  /// Where the Service's endpoints are.
  enum Endpoints: String, CaseIterable {
    case none, elsewhere, here, both

    var slices: String {
      let here = pod("10.244.1.2", on: "here")
      let there = pod("10.244.2.2", on: "there")
      return
        switch self
      {
      case .none: slice([pod("10.244.1.2", on: "here", .ended), pod("10.244.2.2", .notReady)])
      case .elsewhere: slice([there])
      case .here: slice([here])
      case .both: slice([here, there])
      }
    }
  }

  private static func world(_ inside: String, _ outside: String, _ endpoints: Endpoints) throws -> World {
    try World(
      service(
        """
        type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}],
        externalIPs: [198.51.100.9], internalTrafficPolicy: \(inside), externalTrafficPolicy: \(outside)
        """, ingress: "{ip: 198.51.100.1}"), endpoints.slices)
  }

  private static let local = "10.244.1.2"
  private static let remote = "10.244.2.2"

  /// What leads to these backends with the source kept, or replaced as the backend's place asks.
  private static func to(_ backends: [String], masqueraded: Bool) -> Set<String> {
    Set(
      backends.map {
        let source = !masqueraded ? "source kept" : $0 == local ? "source 192.168.0.1" : "masqueraded"
        return "to \($0):8080, \(source)"
      })
  }

  /// What a policy permits where the endpoints are here or there; nil: it does not come to a choice.
  private static func choice(_ isLocal: Bool, _ endpoints: Endpoints) -> [String]? {
    switch (endpoints, isLocal) {
    case (.none, _), (.elsewhere, true): nil
    case (.elsewhere, false): [remote]
    case (.here, _), (.both, true): [local]
    case (.both, false): [local, remote]
    }
  }

  private static let combinations = ["Cluster", "Local"].flatMap { inside in
    ["Cluster", "Local"].flatMap { outside in Endpoints.allCases.map { (inside, outside, $0) } }
  }

  @Test("a ClusterIP follows internalTrafficPolicy alone", arguments: combinations)
  func clusterIP(_ inside: String, _ outside: String, _ endpoints: Endpoints) throws {
    let world = try Self.world(inside, outside, endpoints)
    let walks = world.walkFromEverywhere(to: "10.96.0.1")
    guard let backends = Self.choice(inside == "Local", endpoints) else {
      let outcome = endpoints == .none ? "rejected: no-endpoint" : "dropped: no-local-endpoint"
      #expect(walks == Array(repeating: [outcome], count: 3))
      return
    }
    // Only pods keep their source.
    #expect(walks[0] == Self.to(backends, masqueraded: false))
    #expect(walks[1] == Self.to(backends, masqueraded: true))
    #expect(walks[2] == Self.to(backends, masqueraded: true))
  }

  @Test(
    "external addresses of all three kinds follow externalTrafficPolicy alone, which does not bind this node itself",
    arguments: combinations)
  func external(_ inside: String, _ outside: String, _ endpoints: Endpoints) throws {
    let world = try Self.world(inside, outside, endpoints)
    for (destination, port) in [("192.168.0.1", UInt16(30080)), ("198.51.100.1", 80), ("198.51.100.9", 80)] {
      let walks = world.walkFromEverywhere(to: destination, port)
      let isLocal = outside == "Local"
      if let backends = Self.choice(false, endpoints) {
        #expect(walks[0] == Self.to(backends, masqueraded: !isLocal), "\(destination)")
        #expect(walks[1] == Self.to(backends, masqueraded: true), "\(destination)")
      } else {
        #expect(walks[0] == ["rejected: no-endpoint"], "\(destination)")
        #expect(walks[1] == ["rejected: no-endpoint"], "\(destination)")
      }
      if let backends = Self.choice(isLocal, endpoints) {
        #expect(walks[2] == Self.to(backends, masqueraded: !isLocal), "\(destination)")
      } else {
        let outcome = endpoints == .none ? "rejected: no-endpoint" : "dropped: no-local-endpoint"
        #expect(walks[2] == [outcome], "\(destination)")
      }
    }
  }

  @Test("the policies hold for IPv6, UDP and SCTP as they do for IPv4 and TCP", arguments: [L4Protocol.udp, .sctp])
  func otherFamilyAndProtocol(_ proto: L4Protocol) throws {
    let world = try World(
      service(
        """
        type: NodePort, clusterIP: 'fd00:96::1', externalTrafficPolicy: Local,
        ports: [{port: 80, nodePort: 30080, protocol: \(proto.kubernetesName)}]
        """),
      slice(
        [pod("fd00:244:1::2", on: "here"), pod("fd00:244:2::2")],
        ports: "{port: 8080, protocol: \(proto.kubernetesName)}", family: .v6))
    #expect(world.walk(.outside, to: "fd00:192::1", 30080, proto) == ["to [fd00:244:1::2]:8080, source kept"])
    #expect(
      world.walk(.host, to: "fd00:192::1", 30080, proto) == [
        "to [fd00:244:1::2]:8080, source fd00:192::1", "to [fd00:244:2::2]:8080, masqueraded",
      ])
    #expect(
      world.walk(.pod, to: "fd00:192::1", 30080, proto) == [
        "to [fd00:244:1::2]:8080, source kept", "to [fd00:244:2::2]:8080, source kept",
      ])
  }

  @Test("with Local, a node whose endpoints are all leaving still serves with them rather than drop")
  func localTerminating() throws {
    let slices = slice([pod("10.244.1.2", on: "here", .ending), pod("10.244.2.2")])
    let world = try World(
      service(
        "type: NodePort, clusterIP: 10.96.0.1, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]"),
      slices)
    #expect(world.walk(.outside, to: "192.168.0.1", 30080) == ["to 10.244.1.2:8080, source kept"])
    #expect(world.walk(.pod, to: "192.168.0.1", 30080) == ["to 10.244.2.2:8080, source kept"])
  }

  @Test("leaving endpoints elsewhere are endpoints: with Local the packet is dropped, not rejected")
  func endingElsewhere() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]"),
      slice([pod("10.244.2.2", .ending)]))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["dropped: no-local-endpoint"])
  }

  @Test("a policy that changes takes effect, both ways")
  func policyChange() throws {
    var world = try Self.world("Cluster", "Cluster", .elsewhere)
    let before = world.tables
    #expect(world.walk(.outside, to: "192.168.0.1", 30080) == Self.to([Self.remote], masqueraded: true))
    try world.apply(
      service(
        """
        type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}],
        externalIPs: [198.51.100.9], internalTrafficPolicy: Local, externalTrafficPolicy: Local
        """, ingress: "{ip: 198.51.100.1}"))
    #expect(world.walk(.outside, to: "192.168.0.1", 30080) == ["dropped: no-local-endpoint"])
    #expect(world.walk(.pod, to: "10.96.0.1") == ["dropped: no-local-endpoint"])
    try world.apply(
      service(
        """
        type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}], externalIPs: [198.51.100.9]
        """, ingress: "{ip: 198.51.100.1}"))
    #expect(world.tables == before)
  }

  // MARK: Sources

  @Test(
    "a pod that meets itself through its Service is masqueraded, at every frontend and with either policy",
    arguments: ["Cluster", "Local"])
  func hairpin(_ policy: String) throws {
    let world = try Self.world("Cluster", policy, .here)
    for (destination, port) in [
      ("10.96.0.1", UInt16(80)), ("192.168.0.1", 30080), ("198.51.100.1", 80), ("198.51.100.9", 80),
    ] {
      #expect(
        world.walk(.pod, to: destination, port, source: Self.local) == ["to 10.244.1.2:8080, source 192.168.0.1"])
    }
  }

  @Test("of several backends only the pod itself is a hairpin")
  func hairpinAmongOthers() throws {
    let world = try World(
      service("clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]"),
      slice([pod("10.244.1.2", on: "here"), pod("10.244.1.3", on: "here")]),
      slice([pod("fd00:244:1::2", on: "here"), pod("fd00:244:2::2")], family: .v6))
    #expect(
      world.walk(.pod, to: "10.96.0.1", source: "10.244.1.2") == [
        "to 10.244.1.2:8080, source 192.168.0.1", "to 10.244.1.3:8080, source kept",
      ])
    #expect(
      world.walk(.pod, to: "fd00:96::1", source: "fd00:244:1::2") == [
        "to [fd00:244:1::2]:8080, source fd00:192::1", "to [fd00:244:2::2]:8080, source kept",
      ])
  }

  @Test("without an InternalIP of the family a local pod still sees a masqueraded source")
  func noInternalIP() throws {
    var world = try Self.world("Cluster", "Cluster", .here)
    world.changeNode { $0.internalAddresses[.v4] = Change(old: address("192.168.0.1"), new: nil) }
    #expect(world.walk(.outside, to: "10.96.0.1") == ["to 10.244.1.2:8080, masqueraded"])
  }

  @Test("a host-network backend is no local pod: the device it is reached by gives the source")
  func hostNetworkBackend() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{port: 443}]"),
      slice([pod("192.168.0.1", on: "here"), pod("192.168.0.2")], ports: "{port: 6443}"))
    #expect(
      world.walk(.host, to: "10.96.0.1", 443) == [
        "to 192.168.0.1:6443, masqueraded", "to 192.168.0.2:6443, masqueraded",
      ]
    )
    #expect(
      world.walk(.pod, to: "10.96.0.1", 443) == [
        "to 192.168.0.1:6443, source kept", "to 192.168.0.2:6443, source kept",
      ])
  }
}
