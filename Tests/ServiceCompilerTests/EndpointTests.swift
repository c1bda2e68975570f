import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Which endpoints of a Service take new flows (services.md, points 3, 5, 6, 7).
@Suite("Endpoints")
struct EndpointTests {
  private static let spec = "clusterIP: 10.96.0.1, ports: [{port: 80}]"

  /// The backends a pod may meet at 10.96.0.1, or why there is none.
  private func backends(_ world: World) -> Set<String> {
    Set(
      world.walk(.pod, to: "10.96.0.1").map {
        $0.replacing("to ", with: "").replacing(":8080, source kept", with: "")
      })
  }

  // MARK: Slices

  @Test("conditions that are not given mean ready")
  func nilConditions() throws {
    let world = try World(
      service(Self.spec),
      slice(["{addresses: [10.244.2.2]}", "{addresses: [10.244.2.3], conditions: {ready: null}}"]))
    #expect(backends(world) == ["10.244.2.2", "10.244.2.3"])
  }

  @Test("only the first address of an endpoint counts")
  func firstAddress() throws {
    let world = try World(service(Self.spec), slice(["{addresses: [10.244.2.2, 10.244.2.3]}"]))
    #expect(backends(world) == ["10.244.2.2"])
  }

  @Test("an endpoint need not be a local pod or have a node")
  func foreign() throws {
    let world = try World(service(Self.spec), slice(["{addresses: [203.0.113.99]}"]))
    #expect(world.walk(.outside, to: "10.96.0.1") == ["to 203.0.113.99:8080, masqueraded"])
    // The pod leaves the cluster's addresses: nobody there could answer it.
    #expect(world.walk(.pod, to: "10.96.0.1") == ["to 203.0.113.99:8080, masqueraded"])
  }

  @Test("all slices of a Service are merged, and one that goes takes its endpoints along")
  func merging() throws {
    var world = try World(
      service(Self.spec), slice([pod("10.244.2.2")], name: "x"), slice([pod("10.244.2.3")], name: "y"))
    #expect(backends(world) == ["10.244.2.2", "10.244.2.3"])
    world.delete(.endpointSlice, "x")
    #expect(backends(world) == ["10.244.2.3"])
    world.delete(.endpointSlice, "y")
    #expect(backends(world) == ["rejected: no-endpoint"])
  }

  @Test("one named port may be different numbers in different slices")
  func portsPerSlice() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}]"),
      slice([pod("10.244.2.2")], name: "old", ports: "{name: http, port: 8080}, {name: admin, port: 9000}"),
      slice([pod("10.244.2.3")], name: "new", ports: "{name: http, port: 8888}"))
    #expect(
      world.walk(.pod, to: "10.96.0.1") == ["to 10.244.2.2:8080, source kept", "to 10.244.2.3:8888, source kept"])
    #expect(world.walk(.pod, to: "10.96.0.1", 81) == ["to 10.244.2.2:9000, source kept"])
  }

  @Test("one address with two port numbers is two endpoints")
  func twoPorts() throws {
    let world = try World(
      service(Self.spec), slice([pod("10.244.2.2")], name: "x"),
      slice([pod("10.244.2.2")], name: "y", ports: "{port: 9090}"))
    #expect(
      world.walk(.pod, to: "10.96.0.1") == ["to 10.244.2.2:8080, source kept", "to 10.244.2.2:9090, source kept"])
  }

  @Test("a port without a number, or with 0, is skipped and does not hold up the others", arguments: ["0", "null"])
  func noNumber(_ number: String) throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 81}]"),
      slice([pod("10.244.2.2")], ports: "{name: http, port: \(number)}, {name: admin, port: 9000}"))
    #expect(world.walk(.pod, to: "10.96.0.1") == ["rejected: no-endpoint"])
    #expect(world.walk(.pod, to: "10.96.0.1", 81) == ["to 10.244.2.2:9000, source kept"])
  }

  @Test("slices that are headless, of host names, of nobody, or of another namespace count for nothing")
  func otherSlices() throws {
    let good = slice([pod("10.244.2.2")], name: "good")
    let world = try World(
      service(Self.spec), good,
      slice([pod("10.244.2.3")], name: "headless", labels: "service.kubernetes.io/headless: ''"),
      slice([pod("10.244.2.4")], name: "nobody").replacing("kubernetes.io/service-name", with: "some/label"),
      slice([pod("10.244.2.5")], name: "elsewhere", namespace: "bank"),
      slice(["{addresses: [example.com]}"], name: "fqdn").replacing("addressType: IPv4", with: "addressType: FQDN"))
    #expect(backends(world) == ["10.244.2.2"])
  }

  @Test("a slice that changes its Service leaves one and joins the other")
  func moving() throws {
    var world = try World(
      service(Self.spec), service("clusterIP: 10.96.0.2, ports: [{port: 80}]", name: "web"),
      slice(of: "api", [pod("10.244.2.2")], name: "s"))
    try world.apply(slice(of: "web", [pod("10.244.2.2")], name: "s"))
    #expect(backends(world) == ["rejected: no-endpoint"])
    #expect(world.walk(.pod, to: "10.96.0.2") == ["to 10.244.2.2:8080, source kept"])
  }

  @Test("slices that come before their Service serve it once it is there")
  func slicesFirst() throws {
    var world = try World()
    #expect(try world.apply(slice([pod("10.244.2.2")])).isEmpty)
    #expect(world.tables.services == ServiceTable())
    try world.apply(service(Self.spec))
    #expect(backends(world) == ["10.244.2.2"])
    // And they outlive it.
    world.delete(.service, "api")
    #expect(world.tables.services == ServiceTable())
    try world.apply(service(Self.spec))
    #expect(backends(world) == ["10.244.2.2"])
  }

  // MARK: Readiness

  private static let clusterCases: [([Condition], Set<String>)] = [
    ([.ready, .notReady, .ending, .ended], ["10.244.2.0"]),
    ([.notReady, .ending, .ended, .ending], ["10.244.2.1", "10.244.2.3"]),
    ([.notReady, .ended], ["rejected: no-endpoint"]),
    ([.ready, .ready, .ending], ["10.244.2.0", "10.244.2.1"]),
    ([], ["rejected: no-endpoint"]),
  ]

  @Test(
    "the cluster's endpoints are the ready ones; without any, those that are leaving but still serve",
    arguments: clusterCases)
  func readiness(_ conditions: [Condition], _ expected: Set<String>) throws {
    let pods = conditions.enumerated().map { pod("10.244.2.\($0.offset)", $0.element) }
    #expect(backends(try World(service(Self.spec), slice(pods))) == expected)
  }

  @Test(
    "serving and not terminating, but not ready, is not usable: only leaving endpoints are a fallback")
  func servingIsNotReady() throws {
    let odd = "{addresses: [10.244.2.2], conditions: {ready: false, serving: true, terminating: false}}"
    #expect(backends(try World(service(Self.spec), slice([odd]))) == ["rejected: no-endpoint"])
  }

  @Test("the fallback looks at the whole cluster: one ready endpoint far away ends it")
  func fallbackIsGlobal() throws {
    let world = try World(
      service(Self.spec), slice([pod("10.244.1.2", on: "here", .ending)], name: "x"),
      slice([pod("10.244.2.2", on: "there")], name: "y"))
    #expect(backends(world) == ["10.244.2.2"])
  }

  private static let localCases: [([Condition], Set<String>)] = [
    ([.ready, .ending], ["10.244.1.2"]),
    ([.ending, .ending], ["10.244.1.2", "10.244.1.3"]),
    ([.notReady, .ending], ["10.244.1.3"]),
    ([.notReady, .ended], ["dropped: no-local-endpoint"]),
  ]

  @Test("this node's endpoints have a fallback of their own, whatever is ready elsewhere", arguments: localCases)
  func localFallback(_ conditions: [Condition], _ expected: Set<String>) throws {
    let world = try World(
      service("\(Self.spec), internalTrafficPolicy: Local"),
      slice([
        pod("10.244.1.2", on: "here", conditions[0]), pod("10.244.1.3", on: "here", conditions[1]),
        pod("10.244.2.2", on: "there"),
      ]))
    #expect(backends(world) == expected)
  }

  @Test(
    "an endpoint that stands in two slices counts once, and the one that is not leaving wins",
    arguments: [
      (Condition.ending, Condition.ready), (.ended, .ready), (.ready, .ending), (.ready, .ended), (.ready, .ready),
    ])
  func duplicates(_ first: Condition, _ second: Condition) throws {
    let world = try World(
      service(Self.spec), slice([pod("10.244.2.2", first)], name: "a"), slice([pod("10.244.2.2", second)], name: "b"))
    let set = try #require(world.tables.services.sets.values.first)
    #expect(try set.backends == [backend("10.244.2.2")])
  }

  @Test("a duplicate of a leaving endpoint brings its own node and hints")
  func duplicateNode() throws {
    let world = try World(
      service("\(Self.spec), internalTrafficPolicy: Local"),
      slice([pod("10.244.1.2", on: "there", .ending)], name: "a"), slice([pod("10.244.1.2", on: "here")], name: "b"))
    #expect(backends(world) == ["10.244.1.2"])
  }

  // MARK: Topology

  private static let topologyCases: [(pods: [String], expected: Set<String>, why: Comment)] = [
    (
      [pod("10.244.2.2", zones: ["a"]), pod("10.244.2.3", zones: ["b"])], ["10.244.2.2"],
      "zone hints keep traffic in the zone"
    ),
    (
      [pod("10.244.2.2", zones: ["b", "a"]), pod("10.244.2.3", zones: ["a"])], ["10.244.2.2", "10.244.2.3"],
      "an endpoint may serve several zones"
    ),
    (
      [pod("10.244.2.2", zones: ["a"]), pod("10.244.2.3")], ["10.244.2.2", "10.244.2.3"],
      "one ready endpoint without a hint: ignored"
    ),
    (
      [pod("10.244.2.2", zones: ["b"]), pod("10.244.2.3", zones: ["c"])], ["10.244.2.2", "10.244.2.3"],
      "nothing for this zone: ignored"
    ),
    (
      [pod("10.244.2.2", zones: ["a"]), pod("10.244.2.3", .notReady), pod("10.244.2.4", .ending)], ["10.244.2.2"],
      "endpoints that are not ready need no hints"
    ),
    (
      [pod("10.244.2.2", .notReady, zones: ["a"]), pod("10.244.2.3", zones: ["b"])], ["10.244.2.3"],
      "the zone's only endpoint is not ready"
    ),
    (
      [pod("10.244.2.2", .ending, zones: ["b"]), pod("10.244.2.3", .ending, zones: ["a"])],
      ["10.244.2.2", "10.244.2.3"], "the fallback has no topology"
    ),
    (
      [pod("10.244.2.2", zones: ["b"], nodes: ["here"]), pod("10.244.2.3", zones: ["a"], nodes: ["there"])],
      ["10.244.2.2"], "node hints go before zone hints"
    ),
    (
      [pod("10.244.2.2", zones: ["b"], nodes: ["x"]), pod("10.244.2.3", zones: ["a"], nodes: ["y"])],
      ["10.244.2.3"], "no node hint names this node: zone hints"
    ),
    (
      [pod("10.244.2.2", zones: ["b"], nodes: ["here"]), pod("10.244.2.3", zones: ["a"])], ["10.244.2.3"],
      "not all have node hints: zone hints"
    ),
    (
      [pod("10.244.2.2", nodes: ["here"]), pod("10.244.2.3", zones: ["a"])], ["10.244.2.2", "10.244.2.3"],
      "neither kind is complete: ignored"
    ),
    (
      [pod("10.244.2.2", on: "here"), pod("10.244.2.3", zones: ["a"], nodes: ["here"])],
      ["10.244.2.2", "10.244.2.3"], "only hints count, not where the endpoint is"
    ),
  ]

  @Test("topology looks at hints only, node hints first", arguments: topologyCases.indices)
  func topology(_ index: Int) throws {
    let (pods, expected, why) = Self.topologyCases[index]
    #expect(backends(try World(service(Self.spec), slice(pods))) == expected, why)
  }

  @Test("hints of all slices are judged together")
  func hintsOfAllSlices() throws {
    let world = try World(
      service(Self.spec), slice([pod("10.244.2.2", zones: ["a"])], name: "x"), slice([pod("10.244.2.3")], name: "y"))
    #expect(backends(world) == ["10.244.2.2", "10.244.2.3"])
  }

  @Test("topology is judged for each family alone")
  func hintsPerFamily() throws {
    let world = try World(
      service("clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]"),
      slice([pod("10.244.2.2", zones: ["a"]), pod("10.244.2.3", zones: ["b"])]),
      slice([pod("fd00:244:2::2"), pod("fd00:244:2::3", zones: ["a"])], family: .v6))
    #expect(backends(world) == ["10.244.2.2"])
    #expect(world.walk(.pod, to: "fd00:96::1").count == 2)
  }

  @Test("a node that changes its zone, loses it or goes away changes which hints name it")
  func zoneChange() throws {
    var world = try World(
      service(Self.spec), slice([pod("10.244.2.2", zones: ["a"]), pod("10.244.2.3", zones: ["b"])]))
    #expect(backends(world) == ["10.244.2.2"])
    try world.apply(World.ownNode.replacing("zone: a", with: "zone: b"))
    #expect(backends(world) == ["10.244.2.3"])
    try world.apply(World.ownNode.replacing("zone: a", with: "other: a"))
    #expect(backends(world) == ["10.244.2.2", "10.244.2.3"])
    try world.apply(World.ownNode)
    world.delete(.node, "here")
    #expect(backends(world) == ["10.244.2.2", "10.244.2.3"])
  }

  @Test("the local set has no topology filter")
  func localIgnoresTopology() throws {
    let world = try World(
      service("\(Self.spec), internalTrafficPolicy: Local"),
      slice([pod("10.244.1.2", on: "here", zones: ["b"]), pod("10.244.1.3", on: "here", zones: ["a"])]))
    #expect(backends(world) == ["10.244.1.2", "10.244.1.3"])
  }
}
