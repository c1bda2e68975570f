import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// Edits of Services, what the agent reports of them, and what it takes over from the kernel.
@Suite("Changes of Services")
struct ChangeTests {
  private static let slices = slice([pod("10.244.1.2", on: "here"), pod("10.244.2.2")])
  private static let loadBalancer = service(
    """
    type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}], externalIPs: [198.51.100.9],
    externalTrafficPolicy: Local, healthCheckNodePort: 32000
    """, ingress: "{ip: 198.51.100.1}")

  private static let shapes: [String] = [
    service("clusterIP: 10.96.0.1, ports: [{port: 80}]"),
    service("type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]"),
    loadBalancer,
    service("clusterIP: None, ports: [{port: 80}]"),
    service("type: ExternalName, externalName: example.com"),
    service("clusterIP: 10.96.0.2, ports: [{name: a, port: 80}, {name: b, port: 81, protocol: UDP}]"),
    service("clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 8080}], sessionAffinity: ClientIP"),
  ]

  @Test(
    "whatever a Service was, a changed one is as if it had always been so", arguments: shapes.indices, shapes.indices)
  func reshaping(_ first: Int, _ second: Int) throws {
    var world = try World(Self.slices, Self.shapes[first])
    try world.apply(Self.shapes[second])
    let fresh = try World(Self.slices, Self.shapes[first], Self.shapes[second])
    var compiler = ServiceCompiler(nodeName: "here", numbering: world.compiler.numbering)
    var tables = Tables()
    tables.apply(compiler.compile(fresh.state.services.keys, in: fresh.state, tables: tables))
    #expect(world.tables.services == tables.services)
    #expect(world.compiler.names == compiler.names)
    #expect(world.compiler.healthChecks == compiler.healthChecks)
    // And back to nothing.
    world.delete(.service, "api")
    #expect(world.tables.services == ServiceTable())
    #expect(world.compiler.names.isEmpty)
    #expect(world.compiler.healthChecks.isEmpty)
    #expect(world.compiler.conflicts(nodePortAddresses: []).isEmpty)
  }

  @Test("what is applied twice changes nothing the second time")
  func idempotent() throws {
    var world = try World(Self.loadBalancer, Self.slices)
    #expect(try world.apply(Self.loadBalancer, Self.slices).isEmpty)
    let all = Array(world.state.services.keys)
    var compiler = world.compiler
    #expect(compiler.compile(all, in: world.state, tables: world.tables).isEmpty)
  }

  @Test("a delta says what was there before, so that a reader needs no tables")
  func oldValues() throws {
    var world = try World(Self.loadBalancer, Self.slices)
    let before = world.tables.services
    let delta = try world.apply(
      service("clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: ClientIP"), slice([pod("10.244.2.9")]))
    for (key, change) in delta.frontends { #expect(change.old == before.frontends[key]) }
    for (id, change) in delta.sets { #expect(change.old == before.sets[id]) }
    #expect(delta.frontends.values.allSatisfy { $0.old != $0.new })
    #expect(delta.sets.values.allSatisfy { $0.old != $0.new })
  }

  @Test("a Service named twice in one call is compiled as if it were named once")
  func namedTwice() throws {
    let world = try World(Self.loadBalancer, Self.slices)
    let key = ObjectKey(namespace: "shop", name: "api")
    for slots in [[:], try Self.reversedSlots(world)] {
      var once = ServiceCompiler(nodeName: "here", numbering: VolatileNumbering(), slotsInForce: slots)
      var twice = once
      let single = once.compile([key], in: world.state, tables: Tables())
      let double = twice.compile([key, key], in: world.state, tables: Tables())
      #expect(!single.isEmpty)
      // Not compared within the expectation: the deltas would fill pages.
      let isSame = double == single
      #expect(isSame)
    }
  }

  // MARK: Numbers and slots

  private static func reversedSlots(_ world: World) throws -> [BackendSetID: [SocketAddress]] {
    world.tables.services.sets.mapValues { $0.backends.reversed() }
  }

  @Test("slots found in the kernel are kept, whatever order a fresh compiler would choose")
  func inheritedSlots() throws {
    let pods = slice((2...6).map { pod("10.244.2.\($0)") })
    let first = try World(service("clusterIP: 10.96.0.1, ports: [{port: 80}]"), pods)
    let slots = try Self.reversedSlots(first)
    var restarted = try World(slotsInForce: slots)
    try restarted.apply(service("clusterIP: 10.96.0.1, ports: [{port: 80}]"), pods)
    #expect(restarted.tables.services.sets.mapValues(\.backends) == slots)
    // What went while the agent was away costs its own slot only.
    var later = try World(slotsInForce: slots)
    try later.apply(
      service("clusterIP: 10.96.0.1, ports: [{port: 80}]"), slice([2, 3, 4, 6].map { pod("10.244.2.\($0)") }))
    let expected = try [6, 2, 4, 3].map { try backend("10.244.2.\($0)") }
    #expect(later.tables.services.sets.values.map(\.backends) == [expected])
  }

  @Test("slots that nobody asked for at first are forgotten on request")
  func forgottenSlots() throws {
    let pods = slice([pod("10.244.2.2"), pod("10.244.2.3")])
    let document = service("clusterIP: 10.96.0.1, ports: [{port: 80}]")
    let world = try World(document, pods)
    var compiler = ServiceCompiler(
      nodeName: "here", numbering: VolatileNumbering(), slotsInForce: try Self.reversedSlots(world))
    compiler.forgetInheritedSlots()
    let delta = compiler.compile(world.state.services.keys, in: world.state, tables: Tables())
    #expect(delta.sets == world.tables.asDelta.sets)
  }

  @Test("a service port keeps its number through every edit, deletion included; another protocol is another port")
  func numbers() throws {
    func number(_ world: World) -> ServicePortID? { world.compiler.names.keys.first }
    var world = try World(Self.shapes[0])
    let id = try #require(number(world))
    try world.apply(Self.loadBalancer)
    #expect(number(world) == id)
    world.delete(.service, "api")
    #expect(number(world) == nil)
    try world.apply(Self.shapes[1])
    #expect(number(world) == id)
    try world.apply(service("clusterIP: 10.96.0.1, ports: [{port: 80, protocol: UDP}]"))
    #expect(number(world) != nil && number(world) != id)
  }

  /// Has two numbers to give.
  private struct ScarceNumbering: ServiceNumbering {
    var given: [ServicePortName: ServicePortID] = [:]
    mutating func number(of name: ServicePortName) -> ServicePortID? {
      if given[name] == nil, given.count < 2 { given[name] = ServicePortID(given.count + 1) }
      return given[name]
    }
  }

  @Test("a port that gets no number is named, and holds up no other")
  func unnumbered() throws {
    let world = try World(
      service("clusterIP: 10.96.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}, {name: c, port: 82}]"),
      slice([pod("10.244.2.2")], ports: "{name: a, port: 1}, {name: b, port: 2}, {name: c, port: 3}"))
    let key = ObjectKey(namespace: "shop", name: "api")
    var compiler = ServiceCompiler(nodeName: "here", numbering: ScarceNumbering())
    var tables = Tables()
    tables.apply(compiler.compile([key], in: world.state, tables: tables))
    #expect(tables.services.frontends.count == 2)
    #expect(compiler.unnumbered.mapValues { $0.map(\.description) } == [key: ["shop/api:c/tcp"]])
    world.state.apply(.delete(.service, key))
    tables.apply(compiler.compile([key], in: world.state, tables: tables))
    #expect(compiler.unnumbered.isEmpty)
    #expect(tables == Tables())
  }

  // MARK: Health checks and traffic policies

  private func health(_ world: World) -> [ObjectKey: ServiceHealthCheck] { world.compiler.healthChecks }

  @Test("the health check counts this node's ready endpoints, each address once")
  func healthCheck() throws {
    let key = ObjectKey(namespace: "shop", name: "api")
    let port = try #require(Port(32000))
    var world = try World(
      Self.loadBalancer,
      slice([
        pod("10.244.1.2", on: "here"), pod("10.244.1.3", on: "here", .ending), pod("10.244.1.4", on: "here", .notReady),
        pod("10.244.2.2"), "{addresses: [10.244.2.3]}",
      ]), slice([pod("10.244.1.2", on: "here")], name: "again"))
    #expect(health(world) == [key: ServiceHealthCheck(port: port, localEndpoints: 1)])
    try world.apply(slice([pod("10.244.1.3", on: "here"), pod("10.244.1.4", on: "here")]))
    #expect(health(world) == [key: ServiceHealthCheck(port: port, localEndpoints: 3)])
    world.delete(.endpointSlice, "api-4")
    world.delete(.endpointSlice, "again")
    #expect(health(world) == [key: ServiceHealthCheck(port: port, localEndpoints: 0)])
    world.delete(.service, "api")
    #expect(health(world).isEmpty)
  }

  @Test(
    "only a LoadBalancer with externalTrafficPolicy Local and a port for it has a health check",
    arguments: [
      service("type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]"),
      service("type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}], externalTrafficPolicy: Local"),
      service("type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80}], externalTrafficPolicy: Local"),
      service(
        """
        type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}], externalTrafficPolicy: Local,
        healthCheckNodePort: 32000
        """, labels: "service.kubernetes.io/service-proxy-name: other"),
    ])
  func noHealthCheck(_ document: String) throws {
    var world = try World(Self.loadBalancer, Self.slices)
    #expect(!health(world).isEmpty)
    try world.apply(document)
    #expect(health(world).isEmpty)
  }

  @Test("a pod with addresses of both families is one local endpoint")
  func dualStackHealth() throws {
    let world = try World(
      service(
        """
        type: LoadBalancer, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}],
        externalTrafficPolicy: Local, healthCheckNodePort: 32000
        """),
      slice([pod("10.244.1.2", on: "here")]), slice([pod("fd00:244:1::2", on: "here")], family: .v6))
    #expect(health(world).values.map(\.localEndpoints) == [1])
  }

  @Test("endpoints of a family in which the Service has no address do not make a node healthy")
  func otherFamilyHealth() throws {
    let world = try World(Self.loadBalancer, slice([pod("fd00:244:1::2", on: "here")], family: .v6))
    #expect(world.walk(.outside, to: "198.51.100.1") == ["rejected: no-endpoint"])
    #expect(health(world).values.map(\.localEndpoints) == [0])
  }

  @Test("Services whose traffic policy finds nothing here are named, by policy, as long as it is so")
  func withoutLocalEndpoint() throws {
    func named(_ world: World) -> [String: Set<ObjectKey>] {
      world.compiler.withoutLocalEndpoint.filter { !$0.value.isEmpty }
    }
    let key = ObjectKey(namespace: "shop", name: "api")
    let remote = slice([pod("10.244.2.2")])
    var world = try World(Self.loadBalancer, remote)
    #expect(named(world) == ["external": [key]])
    try world.apply(Self.slices)
    #expect(named(world).isEmpty)
    try world.apply(slice([pod("10.244.1.2", on: "here", .ending), pod("10.244.2.2")]))
    #expect(named(world).isEmpty, "a leaving endpoint still serves")
    try world.apply(service("clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]"), remote)
    #expect(named(world) == ["internal": [key]])
    // Without any endpoint there is nothing that a policy could forbid.
    world.delete(.endpointSlice, "api-4")
    #expect(named(world).isEmpty)
    try world.apply(remote)
    world.delete(.service, "api")
    #expect(named(world).isEmpty)
  }
}
