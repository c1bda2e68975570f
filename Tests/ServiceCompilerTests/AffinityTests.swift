import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// `sessionAffinity: ClientIP` (services.md, point 8).
@Suite("Session affinity")
struct AffinityTests {
  private static func spec(_ policy: String = "Cluster", affinity: String = "sessionAffinity: ClientIP") -> String {
    service(
      """
      type: LoadBalancer, clusterIP: 10.96.0.1, externalIPs: [198.51.100.9], externalTrafficPolicy: \(policy),
      ports: [{name: web, port: 80, nodePort: 30080}, {name: admin, port: 81, nodePort: 30081}], \(affinity)
      """, ingress: "{ip: 198.51.100.1}")
  }

  private static func slices(_ conditions: Condition...) -> String {
    slice(
      conditions.enumerated().map { pod("10.244.2.\($0.offset)", $0.element) },
      ports: "{name: web, port: 8080}, {name: admin, port: 9090}")
  }

  /// The state in which a client of the named port's Service sticks to a backend.
  private func sticking(
    _ world: World, _ client: String, to backend: SocketAddress, port: String = "web"
  ) throws -> AffinityState {
    let id = try #require(world.compiler.names.first { $0.value.port == port }?.key)
    return AffinityState(entries: [.init(client: address(client), service: id): backend])
  }

  @Test("a client sticks to its backend at all frontends of the port, whatever its origin; others do not")
  func shared() throws {
    let world = try World(Self.spec(), Self.slices(.ready, .ready, .ready))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.1"))
    for (destination, port) in [
      ("10.96.0.1", UInt16(80)), ("192.168.0.1", 30080), ("198.51.100.1", 80), ("198.51.100.9", 80),
    ] {
      #expect(
        world.walk(.outside, to: destination, port, affinity: affinity) == ["to 10.244.2.1:8080, masqueraded"])
      #expect(world.walk(.outside, to: destination, port, source: "203.0.113.8", affinity: affinity).count == 3)
    }
  }

  @Test("another port of the same Service chooses for itself")
  func perPort() throws {
    let world = try World(Self.spec(), Self.slices(.ready, .ready, .ready))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.1"))
    #expect(world.walk(.outside, to: "10.96.0.1", 81, affinity: affinity).count == 3)
    #expect(world.walk(.outside, to: "192.168.0.1", 30081, affinity: affinity).count == 3)
  }

  @Test(
    "affinity ends when the backend is no longer usable: gone, not ready, or leaving while others are ready",
    arguments: [Condition.notReady, .ending, .ended])
  func broken(_ condition: Condition) throws {
    var world = try World(Self.spec(), Self.slices(.ready, .ready, .ready))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.2"))
    try world.apply(Self.slices(.ready, .ready, condition))
    #expect(
      world.walk(.outside, to: "10.96.0.1", affinity: affinity) == [
        "to 10.244.2.0:8080, masqueraded", "to 10.244.2.1:8080, masqueraded",
      ])
    try world.apply(Self.slices(.ready, .ready))
    #expect(world.walk(.outside, to: "10.96.0.1", affinity: affinity).count == 2)
  }

  @Test("a leaving backend keeps its client while there is nothing better")
  func fallback() throws {
    let world = try World(Self.spec(), Self.slices(.ending, .ending))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.1"))
    #expect(world.walk(.outside, to: "10.96.0.1", affinity: affinity) == ["to 10.244.2.1:8080, masqueraded"])
  }

  @Test("a client that sticks to a backend elsewhere is not led there by a Local frontend")
  func localScope() throws {
    let world = try World(
      Self.spec("Local"),
      slice(
        [pod("10.244.1.2", on: "here"), pod("10.244.2.2")], ports: "{name: web, port: 8080}, {name: admin, port: 9090}")
    )
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.2"))
    #expect(
      world.walk(.outside, to: "192.168.0.1", 30080, affinity: affinity) == ["to 10.244.1.2:8080, source kept"])
    #expect(world.walk(.outside, to: "10.96.0.1", affinity: affinity) == ["to 10.244.2.2:8080, masqueraded"])
  }

  @Test("an entry for an address that listens at another port number now is no entry")
  func otherPortNumber() throws {
    let world = try World(Self.spec(), Self.slices(.ready, .ready))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.1", 7070))
    #expect(world.walk(.outside, to: "10.96.0.1", affinity: affinity).count == 2)
  }

  @Test(
    "the timeout is the Service's, three hours by default, and follows changes",
    arguments: [
      ("sessionAffinity: ClientIP", UInt32?(10800)),
      ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}", 1),
      ("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}", 86400),
      ("sessionAffinity: None", nil), ("", nil),
    ])
  func timeout(_ affinity: String, _ seconds: UInt32?) throws {
    var world = try World(Self.spec("Local", affinity: affinity), Self.slices(.ready))
    func expectTimeout(_ seconds: UInt32?) {
      #expect(world.tables.services.sets.count == 4)
      #expect(world.tables.services.sets.values.allSatisfy { $0.affinityTimeout == seconds })
      #expect(world.tables.services.frontends.values.allSatisfy { $0.hasAffinity == (seconds != nil) })
    }
    expectTimeout(seconds)
    try world.apply(
      Self.spec(
        "Local", affinity: "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 77}}"))
    expectTimeout(77)
    try world.apply(Self.spec("Local", affinity: ""))
    expectTimeout(nil)
  }

  @Test("without affinity an entry left over binds nobody")
  func switchedOff() throws {
    var world = try World(Self.spec(), Self.slices(.ready, .ready))
    let affinity = try sticking(world, "203.0.113.7", to: backend("10.244.2.1"))
    try world.apply(Self.spec(affinity: ""))
    #expect(world.walk(.outside, to: "10.96.0.1", affinity: affinity).count == 2)
  }
}
