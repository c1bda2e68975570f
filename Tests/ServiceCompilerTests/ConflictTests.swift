import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Several Services that claim one address and port: who has it, who is told, who takes over.
@Suite("Colliding claims")
struct ConflictTests {
  private static let contested = "198.51.100.9"

  /// A claim of each kind to port 80 of the contested address, by a Service of its own.
  private static func claim(
    _ kind: FrontendKind, name: String, clusterIP: String = "10.96.0.9", created: String = ""
  ) -> [String] {
    let index = kind.rawValue + 1
    let document =
      switch kind {
      case .clusterIP: service("clusterIP: \(contested), ports: [{port: 80}]", name: name, created: created)
      case .nodePort:
        service(
          "type: NodePort, clusterIP: 10.96.0.\(index), ports: [{port: 99, nodePort: 80}]", name: name,
          created: created)
      case .loadBalancer:
        service(
          "type: LoadBalancer, clusterIP: \(clusterIP), ports: [{port: 80}]", name: name, created: created,
          ingress: "{ip: \(contested)}")
      // Those are no Service's: see HostPortTests.
      case .externalIP, .hostPort:
        service(
          "clusterIP: \(clusterIP), ports: [{port: 80}], externalIPs: [\(contested)]", name: name, created: created)
      }
    let number = name.utf8.reduce(0) { ($0 * 31 + Int($1)) % 200 }
    return [document, slice(of: name, [pod("10.244.3.\(number)")])]
  }

  private static func outcome(_ name: String, _ kind: FrontendKind) -> Set<String> {
    ["to 10.244.3.\(name.utf8.reduce(0) { ($0 * 31 + Int($1)) % 200 }):8080, masqueraded"]
  }

  private static let pairs: [(FrontendKind, FrontendKind)] = [
    (.clusterIP, .nodePort), (.clusterIP, .loadBalancer), (.clusterIP, .externalIP), (.nodePort, .loadBalancer),
    (.nodePort, .externalIP), (.loadBalancer, .externalIP),
  ]

  @Test(
    "ClusterIP goes before NodePort before LoadBalancer before externalIP, in whatever order they come and however old",
    arguments: pairs, [true, false])
  func precedence(_ kinds: (FrontendKind, FrontendKind), _ winnerFirst: Bool) throws {
    let (winner, loser) = kinds
    var world = try World()
    // The contested address is one of this node's, so that NodePorts claim it too.
    world.changeNode { $0.nodePortAddresses.added = [address(Self.contested)] }
    let documents = [
      Self.claim(winner, name: "zz-winner", created: "2026-05-01T00:00:00Z"),
      Self.claim(loser, name: "aa-loser", clusterIP: "10.96.0.8", created: "2020-01-01T00:00:00Z"),
    ]
    for document in (winnerFirst ? documents : documents.reversed()).joined() { try world.apply(document) }
    #expect(world.walk(.outside, to: Self.contested) == Self.outcome("zz-winner", winner))
    if winner != .nodePort, loser != .nodePort {
      #expect(
        world.conflicts == [
          "Service shop/aa-loser: \(loser) 198.51.100.9 tcp/80 is already taken by Service shop/zz-winner"
        ])
    }
    world.delete(.service, "zz-winner")
    #expect(world.walk(.outside, to: Self.contested) == Self.outcome("aa-loser", loser))
    #expect(world.conflicts.isEmpty)
  }

  @Test("a claim that loses to another kind's NodePort is reported like any other")
  func nodePortConflictIsReported() throws {
    var world = try World()
    world.changeNode { $0.nodePortAddresses.added = [address(Self.contested)] }
    for document in Self.claim(.nodePort, name: "winner") + Self.claim(.externalIP, name: "loser") {
      try world.apply(document)
    }
    #expect(world.walk(.outside, to: Self.contested) == Self.outcome("winner", .nodePort))
    #expect(world.conflicts.count == 1)
  }

  @Test("of one kind the older Service wins; then the name decides; one without a time stamp counts as the youngest")
  func age() throws {
    var world = try World()
    func add(_ name: String, _ ip: String, created: String) throws {
      for document in Self.claim(.externalIP, name: name, clusterIP: ip, created: created) { try world.apply(document) }
    }
    func winner() -> String? {
      ["a", "b", "c", "d"].first { world.walk(.outside, to: Self.contested) == Self.outcome($0, .externalIP) }
    }
    try add("a", "10.96.0.1", created: "")
    #expect(winner() == "a")
    try add("c", "10.96.0.3", created: "2026-05-01T00:00:00Z")
    #expect(winner() == "c")
    try add("b", "10.96.0.2", created: "2026-05-01T00:00:00Z")
    #expect(winner() == "b")
    try add("d", "10.96.0.4", created: "2026-04-30T23:59:59Z")
    #expect(winner() == "d")
    #expect(
      world.conflicts
        == ["a", "b", "c"].map {
          "Service shop/\($0): ExternalIP 198.51.100.9 tcp/80 is already taken by Service shop/d"
        })
    for expected in ["b", "c", "a"] {
      world.delete(.service, winner() ?? "")
      #expect(winner() == expected)
    }
    #expect(world.conflicts.isEmpty)
  }

  @Test("the namespace comes before the name")
  func namespaces() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{port: 80}], externalIPs: [198.51.100.9]", name: "a", namespace: "z"),
      slice(of: "a", [pod("10.244.2.1")], namespace: "z"),
      service("clusterIP: 10.96.0.2, ports: [{port: 80}], externalIPs: [198.51.100.9]", name: "z", namespace: "a"),
      slice(of: "z", [pod("10.244.2.2")], namespace: "a"))
    #expect(world.walk(.outside, to: "198.51.100.9") == ["to 10.244.2.2:8080, masqueraded"])
  }

  @Test("a loser keeps all it has besides the contested frontend")
  func loserLives() throws {
    var world = try World()
    for document in Self.claim(.loadBalancer, name: "winner", clusterIP: "10.96.0.1")
      + Self.claim(.externalIP, name: "loser", clusterIP: "10.96.0.2")
    { try world.apply(document) }
    #expect(world.walk(.outside, to: "10.96.0.2") == Self.outcome("loser", .externalIP))
  }

  @Test("two claims to one address with different ports or protocols do not collide")
  func noCollision() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{port: 80}], externalIPs: [198.51.100.9]", name: "a"),
      service("clusterIP: 10.96.0.2, ports: [{port: 80, protocol: UDP}], externalIPs: [198.51.100.9]", name: "b"),
      service("clusterIP: 10.96.0.3, ports: [{port: 81}], externalIPs: [198.51.100.9]", name: "c"))
    #expect(world.conflicts.isEmpty)
    #expect(world.tables.services.frontends.count == 6)
  }

  @Test("two Services with one ClusterIP: it stays a Service address until both are gone")
  func sharedClusterIP() throws {
    let spec = "clusterIP: 10.96.0.1, ports: [{port: 80}]"
    var world = try World(
      service(spec, name: "a"), service(spec, name: "b"), slice(of: "b", [pod("10.244.2.2")]))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["rejected: no-endpoint"])
    world.delete(.service, "a")
    #expect(world.walk(.pod, to: "10.96.0.1") == ["to 10.244.2.2:8080, source kept"])
    #expect(world.walk(.pod, to: "10.96.0.1", 81) == ["rejected: undefined-port"])
    world.delete(.service, "b")
    #expect(world.tables.services == ServiceTable())
  }

  @Test("a frontend that changes hands within one step is one change of the tables")
  func handOver() throws {
    let old = "clusterIP: 10.96.0.1, ports: [{port: 80}]"
    var world = try World(service(old, name: "a"))
    let delta = try world.apply(
      service("clusterIP: 10.96.0.2, ports: [{port: 80}]", name: "a"), service(old, name: "b"))
    #expect(delta.frontends.count == 2)
    #expect(delta.serviceAddresses == SetChange(added: [address("10.96.0.2")]))
    #expect(world.conflicts.isEmpty)
  }

  @Test("a Service that names one address twice does not collide with itself")
  func itself() throws {
    let world = try World(
      service(
        "type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}], externalIPs: [198.51.100.9, 198.51.100.9]",
        ingress: "{ip: 198.51.100.9}"), slice([pod("10.244.2.2")]))
    #expect(world.walk(.outside, to: "198.51.100.9") == ["to 10.244.2.2:8080, masqueraded"])
    #expect(world.conflicts.isEmpty)
  }
}
