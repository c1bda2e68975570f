import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader

/// Programs at sockets while agents, cgroups and Services come and go.
@Suite("Life of the socket programs") struct SocketLifeTests {
  @Test("programs serve on without an agent, and the next one takes over what it finds")
  func adoption() throws {
    let scene = try SocketScene("adoption")
    let vip = SocketScene.vip(.v4)
    let before = try Surroundings.pins("adoption").names
    // No other reference to programs, maps and links is left than their pins.
    scene.balancer = try SocketScene.balancer("adoption", scene.host)
    #expect(try scene.arrivals(scene.pod, to: vip, .tcp) == SocketScene.both(.v4))
    let (report, drift) = try scene.balancer.resync(scene.tables)
    #expect(drift == [] && report.messages == 0, "\(report) \(drift)")
    #expect(try Surroundings.pins("adoption").names == before)
    #expect(try scene.arrivals(scene.pod, to: vip, .tcp) == SocketScene.both(.v4))
  }

  @Test("a new generation takes the old one's place while connections come: none misses both")
  func generations() throws {
    let scene = try SocketScene("generations")
    let vip = SocketScene.vip(.v4)
    let stop = Flag()
    let connections = Connections(from: scene.pod, to: vip, permitted: SocketScene.both(.v4), until: stop)
    var generations = 0
    while generations < 20 || connections.count < 100 {
      scene.balancer = try SocketScene.balancer("generations", scene.host)
      _ = try scene.balancer.resync(scene.tables)
      generations += 1
    }
    stop.set()
    #expect(try connections.misses() == [])
  }

  @Test("scaled up and down 1,000 times, every connection finds a backend of the moment or of the one before")
  func scalings() throws {
    let scene = try SocketScene("scalings")
    let vip = SocketScene.vip(.v4)
    let stop = Flag()
    let all = Set((2...9).map { Arrival.at(SocketScene.backend(.v4, $0)) })
    let connections = Connections(from: scene.pod, to: vip, permitted: all, until: stop)
    var round = 0
    // On busy processors one of both sides may run ahead.
    while round < 1000 || connections.count < 100 {
      round += 1
      let id = SocketScene.set(1, .v4)
      let wanted = SocketScene.set(.v4, Array(2...(2 + round % 8)))
      try scene.change(1, .v4, wanted.withSlots(following: scene.tables.services.sets[id]?.backends ?? []))
    }
    stop.set()
    #expect(try connections.misses() == [])
  }

  @Test("what is wrong in the kernel is named and mended")
  func drift() throws {
    let scene = try SocketScene("drift")
    let maps = try Surroundings.pins("drift")
    let frontends = try #require(maps.names.first { $0.hasPrefix("map-frontends-") })
    let descriptor = try #require(try maps.open(frontends))
    defer { close(descriptor) }
    var key = FrontendKeyLayout(SocketScene.key(.v4, .tcp))
    #expect(bpf_map_delete_elem(descriptor, &key) == 0)
    var stranger = FrontendKeyLayout(FrontendKey(.address(ip("10.96.9.9")), .tcp, port(80)))
    var value = FrontendLayout(SocketScene.frontend(1), sourceList: 0)
    #expect(bpf_map_update_elem(descriptor, &stranger, &value, 0) == 0)
    try maps.remove("link-connect4")
    let kinds = try scene.balancer.verify(scene.tables).map { "\($0.kind) \($0.object.prefix { $0 != ":" })" }
    #expect(kinds.sorted() == ["extra map frontends", "missing link connect4", "missing map frontends"])
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.balancer.verify(scene.tables) == [])
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp) == SocketScene.both(.v4))
  }

  @Test("another cgroup at the next start: the links follow, the old one is left")
  func otherCgroup() throws {
    let scene = try SocketScene("cgroup")
    let other = "\(try Surroundings.cgroup)-other"
    #expect(mkdir(other, 0o755) == 0)
    defer { rmdir(other) }
    func balancer(_ cgroup: String) throws -> SocketBalancer {
      try SocketBalancer(pins: try Surroundings.pins("cgroup"), cgroup: cgroup, hostCookie: scene.host.cookie)
    }
    scene.balancer = try balancer(other)
    #expect(try scene.balancer.verify(scene.tables).count == 9, "each of the programs is on another cgroup")
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.balancer.verify(scene.tables) == [])
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp, 5) == [.at(SocketScene.vip(.v4))])
    scene.balancer = try balancer(try Surroundings.cgroup)
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp) == SocketScene.both(.v4))
    scene.balancer = try balancer("\(other)/none")
    #expect(throws: SystemError.self) { _ = try scene.balancer.resync(scene.tables) }
    #expect(
      try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp) == SocketScene.both(.v4), "what serves, serves on")
  }

  @Test("somebody else's map under our name is refused by name, and left alone")
  func foreignPin() throws {
    let pins = try Surroundings.pins("foreign")
    let map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "foreign", 4, 4, 1, nil)
    defer { close(map) }
    let object = try BPFObject(.sock)
    let name = try MapPins.pin("frontends", of: object)
    try pins.pin(map, name)
    do {
      _ = try SocketScene.balancer("foreign", try Everywhere())
      Issue.record("it was taken over")
    } catch let error as SystemError {
      #expect("\(error)".contains(name), "\(error)")
    }
    #expect(pins.names == [name])
    try pins.remove(name)
  }

  @Test("clean-up leaves nothing pinned and nothing attached")
  func cleanUp() throws {
    let scene = try SocketScene("clean")
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v6), .tcp) == SocketScene.both(.v6))
    try scene.balancer.cleanUp()
    #expect(try Surroundings.pins("clean").names == [])
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v6), .tcp, 5) == [.at(SocketScene.vip(.v6))])
  }
}
