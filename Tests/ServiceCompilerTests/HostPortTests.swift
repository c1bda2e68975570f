import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

@Suite("Host ports")
struct HostPortTests {
  private static func target(
    _ proto: L4Protocol, at hostIP: String? = nil, pod: Int = 2, _ port: UInt16 = 80
  ) throws -> HostPortTarget {
    let port = try #require(Port(port))
    return HostPortTarget(
      proto, hostIP: hostIP.map { address($0) },
      backends: ["10.244.1.\(pod)", "fd00:244:1::\(pod)"].map { SocketAddress(address($0), port) })
  }

  @Test(
    "lead from the node's addresses to the pod, which sees its client; the node's own and the pod's own are masqueraded"
  )
  func meaning() throws {
    var world = try World()
    world.change(hostPort: 8080, try Self.target(.tcp))
    for (node, pod, client) in [
      ("192.168.0.1", "10.244.1.2:80", "10.244.1.2"), ("fd00:192::1", "[fd00:244:1::2]:80", "fd00:244:1::2"),
    ] {
      #expect(
        world.walkFromEverywhere(to: node, 8080) == [
          ["to \(pod), source kept"], ["to \(pod), source \(node)"], ["to \(pod), source kept"],
        ])
      #expect(world.walk(.pod, to: node, 8080, source: client) == ["to \(pod), source \(node)"])
      for (port, proto) in [(8080, .udp), (8081, .tcp), (80, .tcp)] as [(UInt16, L4Protocol)] {
        #expect(world.walk(.outside, to: node, port, proto) == ["untouched, source kept"])
      }
    }
    // Packets that only pass through, to whatever else (CVE-2025-67499).
    for other in ["192.168.0.2", "203.0.113.9", "10.244.1.3", "2001:db8::9"] {
      #expect(world.walk(.outside, to: other, 8080) == ["untouched, source kept"])
    }
    let numbered = world.compiler.names.map { "\($0.value)" }
    #expect(numbered == ["hostport/8080:/tcp"])

    world.change(hostPort: 8080)
    #expect(world.walk(.outside, to: "192.168.0.1", 8080) == ["untouched, source kept"])
    #expect(world.tables.services == ServiceTable())
  }

  @Test("with an address listen there alone, and those of a family at its addresses")
  func addresses() throws {
    var world = try World()
    world.change(
      hostPort: 53, try Self.target(.udp, at: "198.51.100.1", pod: 2), try Self.target(.udp, at: "::", pod: 3),
      try Self.target(.tcp, at: "0.0.0.0", pod: 9))
    #expect(world.walk(.outside, to: "198.51.100.1", 53, .udp) == ["to 10.244.1.2:80, source kept"])
    #expect(world.walk(.outside, to: "198.51.100.1", 53, .tcp) == ["untouched, source kept"])
    #expect(world.walk(.outside, to: "192.168.0.1", 53, .udp) == ["untouched, source kept"])
    #expect(world.walk(.outside, to: "fd00:192::1", 53, .udp) == ["to [fd00:244:1::3]:80, source kept"])
    #expect(world.walk(.outside, to: "192.168.0.1", 53, .tcp) == ["to 10.244.1.9:80, source kept"])
    #expect(world.walk(.outside, to: "fd00:192::1", 53, .tcp) == ["untouched, source kept"])
    #expect(world.compiler.differences(in: world.state, from: world.tables) == [])
  }

  @Test("give way to a Service's claim, in whatever order they come, and are told; afterwards they are served")
  func conflicts() throws {
    let api = service("type: NodePort, clusterIP: 10.96.0.9, ports: [{port: 99, nodePort: 8080}]")
    for serviceFirst in [true, false] {
      var world = try World()
      if serviceFirst { try world.apply(api, slice(of: "api", [pod("10.244.3.7")])) }
      world.change(hostPort: 8080, try Self.target(.tcp))
      if !serviceFirst { try world.apply(api, slice(of: "api", [pod("10.244.3.7")])) }
      #expect(world.walk(.outside, to: "192.168.0.1", 8080) == ["to 10.244.3.7:8080, masqueraded"])
      #expect(
        world.conflicts == [
          "Host port hostport/8080: HostPort node/IPv4 tcp/8080 is already taken by Service shop/api"
        ])
      // The Service has no second family.
      #expect(world.walk(.outside, to: "fd00:192::1", 8080) == ["to [fd00:244:1::2]:80, source kept"])
      world.delete(.service, "api")
      #expect(world.walk(.outside, to: "192.168.0.1", 8080) == ["to 10.244.1.2:80, source kept"])
      #expect(world.conflicts == [])
    }
  }

  @Test("keep their number when the pod changes, and leave datagrams of the old one to be swept")
  func replacement() throws {
    var world = try World()
    world.change(hostPort: 53, try Self.target(.udp, pod: 2))
    let before = world.tables.services.frontends
    let delta = world.change(hostPort: 53, try Self.target(.udp, pod: 3))
    #expect(world.tables.services.frontends == before)
    #expect(delta.frontends.isEmpty && delta.sets.count == 2)
    #expect(!world.stale(delta).isEmpty)
    let end = world.change(hostPort: 53)
    #expect(!world.stale(end).isEmpty)
  }

  @Test("do not disturb Services, nor what is compared with the objects")
  func apart() throws {
    var world = try World(
      service("clusterIP: 10.96.0.9, ports: [{port: 80}]"), slice(of: "api", [pod("10.244.3.7")]))
    let services = world.tables.services
    world.change(hostPort: 80, try Self.target(.tcp))
    #expect(world.compiler.differences(in: world.state, from: world.tables) == [])
    try world.apply(World.ownNode)
    #expect(world.compiler.differences(in: world.state, from: world.tables) == [])
    world.change(hostPort: 80)
    #expect(world.tables.services == services)
  }
}
