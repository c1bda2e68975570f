import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Which UDP flows must go, and which must be left alone (services.md, point 16).
@Suite("Stale UDP flows")
struct StaleFlowTests {
  private static let plain = "clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]"
  private static let published = """
    type: NodePort, clusterIP: 10.96.0.10, externalIPs: [198.51.100.9],
    ports: [{port: 53, nodePort: 30053, protocol: UDP}]
    """

  private static func endpoints(_ pods: String..., proto: String = "UDP", port: Int = 1053) -> String {
    slice(pods, ports: "{port: \(port), protocol: \(proto)}")
  }

  private static func numbered(_ conditions: Condition...) -> String {
    slice(
      conditions.enumerated().map { pod("10.244.2.\($0.offset)", $0.element) }, ports: "{port: 1053, protocol: UDP}")
  }

  @Test("flows to a backend that is gone go, at each of the Service's frontends")
  func gone() throws {
    var world = try World(service(Self.published), Self.numbered(.ready, .ready))
    let delta = try world.apply(Self.numbered(.ready))
    #expect(
      world.stale(delta) == [
        "10.96.0.10 udp/53 via 10.244.2.1:1053", "198.51.100.9 udp/53 via 10.244.2.1:1053",
        "node/IPv4 udp/30053 via 10.244.2.1:1053",
      ])
  }

  @Test("flows to the last backend go too", arguments: [Condition.notReady, .ended])
  func lastOne(_ condition: Condition) throws {
    var world = try World(service(Self.plain), Self.numbered(.ready))
    #expect(try world.stale(applying: Self.numbered(condition)) == ["10.96.0.10 udp/53 via 10.244.2.0:1053"])
    var other = try World(service(Self.plain), Self.numbered(.ready))
    #expect(other.stale(deleting: .endpointSlice, "api-4") == ["10.96.0.10 udp/53 via 10.244.2.0:1053"])
  }

  @Test("a leaving backend keeps its flows as long as it serves, takes no new ones, and loses them at its end")
  func draining() throws {
    var world = try World(service(Self.plain), Self.numbered(.ready, .ready))
    var delta = try world.apply(Self.numbered(.ending, .ready))
    #expect(world.stale(delta).isEmpty)
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .udp) == ["to 10.244.2.1:1053, source kept"])
    #expect(try world.tables.services.sets.values.map(\.draining) == [[backend("10.244.2.0", 1053)]])
    delta = try world.apply(Self.numbered(.ended, .ready))
    #expect(world.stale(delta) == ["10.96.0.10 udp/53 via 10.244.2.0:1053"])
    #expect(world.tables.services.sets.values.allSatisfy { $0.draining.isEmpty })
  }

  @Test("a backend that drains and comes back has lost nothing")
  func comingBack() throws {
    var world = try World(service(Self.plain), Self.numbered(.ready, .ready))
    #expect(try world.stale(applying: Self.numbered(.ending, .ready)).isEmpty)
    #expect(try world.stale(applying: Self.numbered(.ready, .ready)).isEmpty)
  }

  @Test("flows to a backend that topology no longer picks, but that still serves, go on")
  func topology() throws {
    func hinted(_ zones: [String]) -> String {
      Self.endpoints(pod("10.244.2.0", zones: zones), pod("10.244.2.1", zones: ["a"]))
    }
    var world = try World(service(Self.plain), hinted(["a"]))
    let delta = try world.apply(hinted(["b"]))
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .udp).count == 1)
    #expect(world.stale(delta).isEmpty)
  }

  @Test("only UDP drains, and no TCP or SCTP flow is ever stale", arguments: ["TCP", "SCTP"])
  func otherProtocols(_ proto: String) throws {
    let document = service(Self.plain.replacing("UDP", with: proto))
    var world = try World()
    var stale: Set<String> = []
    for documents in [
      [Self.endpoints(pod("10.244.2.0"), pod("10.244.2.1"), proto: proto)],
      [document], [Self.endpoints(pod("10.244.2.0", .ending), pod("10.244.2.1"), proto: proto)],
    ] {
      for text in documents { stale.formUnion(try world.stale(applying: text)) }
    }
    #expect(world.tables.services.sets.values.allSatisfy { $0.draining.isEmpty })
    stale.formUnion(world.stale(deleting: .endpointSlice, "api-4"))
    stale.formUnion(world.stale(deleting: .service, "api"))
    #expect(stale.isEmpty)
  }

  @Test("flows tracked before there was a Service, or while it had no backend, are not left in a black hole")
  func beforeTheRule() throws {
    var world = try World()
    #expect(try world.stale(applying: service(Self.plain)) == ["10.96.0.10 udp/53"])
    #expect(try world.stale(applying: Self.numbered(.ready)) == ["10.96.0.10 udp/53"])
    #expect(try world.stale(applying: Self.numbered(.ready, .ready)).isEmpty)
    let delta = try world.apply(service(Self.published))
    #expect(world.stale(delta) == ["198.51.100.9 udp/53", "node/IPv4 udp/30053"])
  }

  @Test("an edit of the Service alone ends the flows of the ports and addresses it gave up")
  func serviceEdits() throws {
    var world = try World(service(Self.published), Self.numbered(.ready))
    var delta = try world.apply(service(Self.published.replacing("port: 53", with: "port: 54")))
    #expect(
      world.stale(delta) == [
        "10.96.0.10 udp/53", "10.96.0.10 udp/54", "198.51.100.9 udp/53", "198.51.100.9 udp/54",
      ])
    delta = try world.apply(
      service(Self.published.replacing("port: 53", with: "port: 54").replacing("30053", with: "30054")))
    #expect(world.stale(delta) == ["node/IPv4 udp/30053", "node/IPv4 udp/30054"])
    delta = world.delete(.service, "api")
    #expect(world.stale(delta) == ["10.96.0.10 udp/54", "198.51.100.9 udp/54", "node/IPv4 udp/30054"])
  }

  @Test("another target port, or a port under another name, leaves no flow behind")
  func targetPort() throws {
    var world = try World(service(Self.plain), Self.endpoints(pod("10.244.2.0")))
    let delta = try world.apply(Self.endpoints(pod("10.244.2.0"), port: 2053))
    #expect(world.stale(delta) == ["10.96.0.10 udp/53 via 10.244.2.0:1053"])
    let renamed = try world.apply(service(Self.plain.replacing("{port", with: "{name: dns, port")))
    #expect(world.stale(renamed) == ["10.96.0.10 udp/53"])
  }

  @Test("a frontend that another Service takes over leads no flow to the old one's backends")
  func takeover() throws {
    let other = service(
      "clusterIP: 10.96.0.11, externalIPs: [198.51.100.9], ports: [{port: 53, protocol: UDP}]", name: "other")
    var world = try World(service(Self.published), other, Self.numbered(.ready))
    let delta = world.delete(.service, "api")
    #expect(world.stale(delta).contains("198.51.100.9 udp/53"))
    // What still belongs to the loser of a contest is not touched by its changes.
    var contest = try World(service(Self.published), other, Self.numbered(.ready))
    let filled = try contest.apply(slice(of: "other", [pod("10.244.2.7")], ports: "{port: 1053, protocol: UDP}"))
    #expect(contest.stale(filled) == ["10.96.0.11 udp/53"])
  }

  @Test("each family's flows are judged alone")
  func families() throws {
    var world = try World(
      service("clusterIPs: [10.96.0.10, 'fd00:96::10'], ports: [{port: 53, protocol: UDP}]"), Self.numbered(.ready))
    let v6 = { (pods: [String]) in slice(pods, ports: "{port: 1053, protocol: UDP}", family: .v6) }
    #expect(try world.stale(applying: v6([pod("fd00:244:2::2")])) == ["fd00:96::10 udp/53"])
    #expect(try world.stale(applying: v6([])) == ["fd00:96::10 udp/53 via [fd00:244:2::2]:1053"])
  }

  // MARK: Flows that must live

  @Test("the first endpoint on this node ends no flow of frontends that never use the local set")
  func firstLocalEndpoint() throws {
    let document = service(Self.published + ", externalTrafficPolicy: Local")
    var world = try World(document, Self.endpoints(pod("10.244.2.0")))
    let delta = try world.apply(Self.endpoints(pod("10.244.2.0"), pod("10.244.1.2", on: "here")))
    let stale = world.stale(delta)
    #expect(stale.contains("node/IPv4 udp/30053"))
    #expect(!stale.contains("10.96.0.10 udp/53"))
  }

  @Test("a Service that gains or loses its node port keeps the flows of its ClusterIP")
  func typeChange() throws {
    let cluster = service("clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]")
    let nodePort = service(
      """
      type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 53, nodePort: 30053, protocol: UDP}],
      externalTrafficPolicy: Local
      """)
    var world = try World(cluster, Self.endpoints(pod("10.244.1.2", on: "here")))
    let gained = try world.stale(applying: nodePort)
    #expect(gained.contains("node/IPv4 udp/30053"))
    let lost = try world.stale(applying: cluster)
    #expect(lost.contains("node/IPv4 udp/30053"))
    #expect(gained == ["node/IPv4 udp/30053"])
    #expect(lost == ["node/IPv4 udp/30053"])
  }

  @Test("a traffic policy that becomes Local ends the flows to other nodes' backends")
  func policyBecomesLocal() throws {
    var world = try World(service(Self.published), Self.endpoints(pod("10.244.2.0")))
    let delta = try world.apply(service(Self.published + ", internalTrafficPolicy: Local"))
    #expect(world.walk(.pod, to: "10.96.0.10", 53, .udp) == ["dropped: no-local-endpoint"])
    let covering: Set = ["10.96.0.10 udp/53", "10.96.0.10 udp/53 via 10.244.2.0:1053"]
    #expect(!world.stale(delta).isDisjoint(with: covering))
  }
}
