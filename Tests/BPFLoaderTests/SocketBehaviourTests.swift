import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader

/// What programs see of Services that are translated at their socket.
@Suite("Sockets of Services") struct SocketBehaviourTests {
  /// One Service of two backends per family and protocol, and who may use it.
  private final class Scene {
    let pod: Everywhere
    let host: Everywhere
    let name: String
    var tables = Tables()
    var balancer: SocketBalancer

    static let vips = [ip("10.96.0.1"), ip("fd00:96::1")]
    static let nodes = RandomServices.nodeAddresses

    init(_ name: String, _ change: (inout TableDelta) -> Void = { _ in }) throws {
      self.name = name
      (pod, host) = (try Everywhere(), try Everywhere())
      balancer = try Self.balancer(name, host)
      var delta = TableDelta()
      for family in IPFamily.allCases {
        for (number, proto) in [(1, L4Protocol.tcp), (2, .udp)] {
          delta.frontends[Self.key(family, proto)] = Change(old: nil, new: Self.frontend(number))
          delta.sets[Self.set(number, family)] = Change(old: nil, new: Self.set(family, [2, 3]))
          delta.frontends[FrontendKey(.node(family), proto, port(30080))] = Change(
            old: nil, new: Self.frontend(number, .nodePort))
        }
        delta.nodePortAddresses.added.insert(Self.nodes.of(family))
        delta.internalAddresses[family] = Change(old: nil, new: Self.nodes.of(family))
      }
      delta.endpoints["slc0"] = Change(
        old: nil,
        new: LocalEndpoint(
          interface: "slc0", mac: podMAC, addresses: RandomServices.podAddresses,
          netnsCookie: pod.cookie))
      change(&delta)
      tables.apply(delta)
      _ = try balancer.resync(tables)
    }

    deinit { try? balancer.cleanUp() }

    static func balancer(_ name: String, _ host: Everywhere) throws -> SocketBalancer {
      try SocketBalancer(
        pins: try Surroundings.pins(name), cgroup: try Surroundings.cgroup, hostCookie: host.cookie)
    }
    static func key(_ family: IPFamily, _ proto: L4Protocol) -> FrontendKey {
      FrontendKey(.address(vips.of(family)), proto, port(80))
    }
    static func frontend(_ number: Int, _ kind: FrontendKind = .clusterIP) -> Frontend {
      Frontend(
        service: BPFLoaderTests.service(number), kind: kind, nodeScope: .cluster, outsideScope: .cluster,
        masquerade: .exceptPods)
    }
    static func set(_ number: Int, _ family: IPFamily) -> BackendSetID {
      BackendSetID(service: BPFLoaderTests.service(number), scope: .cluster, family: family)
    }
    static func set(_ family: IPFamily, _ hosts: [Int], affinity: UInt32? = nil, draining: [Int] = []) -> BackendSet {
      BackendSet(
        backends: hosts.map { backend(family, $0) }, emptyAction: .reject, affinityTimeout: affinity,
        draining: draining.map { backend(family, $0) })
    }
    static func backend(_ family: IPFamily, _ host: Int) -> SocketAddress {
      SocketAddress(ip(family == .v4 ? "10.244.2.\(host)" : "fd00:244:2::\(host)"), port(8080))
    }
    static func vip(_ family: IPFamily) -> SocketAddress { SocketAddress(vips.of(family), port(80)) }

    func change(_ number: Int, _ family: IPFamily, _ new: BackendSet) throws {
      var delta = TableDelta()
      let id = Self.set(number, family)
      delta.sets[id] = Change(old: tables.services.sets[id], new: new)
      tables.apply(delta)
      _ = try balancer.apply(delta, tables: tables)
    }

    /// As many connections as leave no doubt.
    func arrivals(_ from: Everywhere, to: SocketAddress, _ proto: L4Protocol, _ count: Int = 40) throws -> Set<Arrival>
    {
      Set(try (0..<count).map { _ in try from.connect(to: to, proto) })
    }
  }

  private static func both(_ family: IPFamily) -> Set<Arrival> {
    [.at(Scene.backend(family, 2)), .at(Scene.backend(family, 3))]
  }

  @Test("getpeername(2) says what was asked for, and the connection goes to a backend", arguments: IPFamily.allCases)
  func peerNames(family: IPFamily) throws {
    let scene = try Scene("peer-\(family)")
    for _ in 0..<20 {
      let client = try scene.pod.socket(family, SOCK_STREAM)
      #expect(client.connect(Scene.vip(family)) == 0)
      #expect(client.peer == Scene.vip(family))
      #expect(Self.both(family).contains(try scene.pod.arrival(ofConnectionTo: family)))
    }
  }

  @Test(
    "datagrams of one socket stay with one backend, and answers come from the address asked",
    arguments: IPFamily.allCases)
  func datagrams(family: IPFamily) throws {
    let scene = try Scene("datagrams-\(family)")
    var places: Set<Arrival> = []
    for round in 0..<12 {
      let client = try scene.pod.socket(family, SOCK_DGRAM)
      var own: Set<Arrival> = []
      for message in 0..<5 {
        #expect(client.send("\(round).\(message)", to: Scene.vip(family)) == 0)
        let (place, text) = try scene.pod.arrival(ofDatagram: family, answer: "answer \(message)")
        #expect(text == "\(round).\(message)")
        own.insert(place)
        let answer = try #require(client.receive(), "no answer")
        #expect(answer.text == "answer \(message)" && answer.from == Scene.vip(family), "\(answer)")
      }
      #expect(own.count == 1, "\(own)")
      places.formUnion(own)
    }
    #expect(places == Self.both(family))
  }

  @Test("a socket leaves a backend that went, and not one that only drains", arguments: IPFamily.allCases)
  func removedBackend(family: IPFamily) throws {
    let scene = try Scene("removed-\(family)")
    let client = try scene.pod.socket(family, SOCK_DGRAM)
    func send() throws -> Arrival {
      #expect(client.send("x", to: Scene.vip(family)) == 0)
      return try scene.pod.arrival(ofDatagram: family).place
    }
    let first = try send()
    let (its, other) = first == .at(Scene.backend(family, 2)) ? (2, 3) : (3, 2)
    try scene.change(2, family, Scene.set(family, [other], draining: [its]))
    #expect(try send() == first)
    try scene.change(2, family, Scene.set(family, [other]))
    #expect(try send() == .at(Scene.backend(family, other)))
  }

  @Test("a Service without endpoints refuses at connect(2)", arguments: IPFamily.allCases)
  func refusal(family: IPFamily) throws {
    let scene = try Scene("refusal-\(family)")
    for number in [1, 2] { try scene.change(number, family, Scene.set(family, [])) }
    for proto in [L4Protocol.tcp, .udp] {
      #expect(try scene.arrivals(scene.pod, to: Scene.vip(family), proto, 3) == [.refused(ECONNREFUSED)])
    }
    for number in [1, 2] { try scene.change(number, family, Scene.set(family, [3])) }
    for proto in [L4Protocol.tcp, .udp] {
      #expect(try scene.arrivals(scene.pod, to: Scene.vip(family), proto, 3) == [.at(Scene.backend(family, 3))])
    }
  }

  @Test(
    "NodePorts answer on localhost for the node's own processes, without route_localnet", arguments: IPFamily.allCases)
  func localhost(family: IPFamily) throws {
    let scene = try Scene("localhost-\(family)")
    let number = port(30080)
    let loopback = SocketAddress(family == .v4 ? ip("127.0.0.1") : ip("::1"), number)
    for proto in [L4Protocol.tcp, .udp] {
      #expect(try scene.arrivals(scene.host, to: loopback, proto) == Self.both(family))
      #expect(
        try scene.arrivals(scene.host, to: SocketAddress(Scene.nodes.of(family), number), proto) == Self.both(family))
      // A pod's localhost is its own.
      #expect(try scene.arrivals(scene.pod, to: loopback, proto, 5) == [.at(loopback)])
    }
  }

  @Test("an IPv6 socket that talks IPv4 is translated as IPv4")
  func mapped() throws {
    let scene = try Scene("mapped")
    let vip = Scene.vip(.v4)
    for _ in 0..<5 {
      let client = try scene.pod.socket(.v6, SOCK_STREAM)
      #expect(client.connect(mapped: vip) == 0)
      #expect(client.mappedPeer == vip.address)
      #expect(Self.both(.v4).contains(try scene.pod.arrival(ofConnectionTo: .v4)))
    }
    let client = try scene.pod.socket(.v6, SOCK_DGRAM)
    #expect(client.send("x", mapped: vip) == 0)
    #expect(Self.both(.v4).contains(try scene.pod.arrival(ofDatagram: .v4, answer: "y").place))
    #expect(client.receiveMapped() == vip.address)
  }

  @Test("sockets of nobody we know are left alone")
  func strangers() throws {
    let scene = try Scene("strangers")
    let stranger = try Everywhere()
    #expect(try scene.arrivals(stranger, to: Scene.vip(.v4), .tcp, 5) == [.at(Scene.vip(.v4))])
  }

  @Test("a connection to no address is one to localhost, not to NodePorts", arguments: IPFamily.allCases)
  func unspecified(family: IPFamily) throws {
    let scene = try Scene("unspecified-\(family)")
    let to = SocketAddress(.unspecified(family), port(30080))
    let here = Arrival.at(SocketAddress(family == .v4 ? ip("127.0.0.1") : ip("::1"), port(30080)))
    #expect(try scene.arrivals(scene.pod, to: to, .tcp, 5) == [here])
  }

  @Test("affinity leads no new socket to a backend that only drains")
  func affinityToDraining() throws {
    let scene = try Scene("affinity-draining")
    try scene.change(2, .v4, Scene.set(.v4, [2, 3], affinity: 10_800))
    let first = try scene.pod.connect(to: Scene.vip(.v4), .udp)
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .udp, 10) == [first])
    let (its, other) = first == .at(Scene.backend(.v4, 2)) ? (2, 3) : (3, 2)
    try scene.change(2, .v4, Scene.set(.v4, [other], affinity: 10_800, draining: [its]))
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .udp, 10) == [.at(Scene.backend(.v4, other))])
  }

  @Test("a connected UDP socket is known until it is closed or connected elsewhere", arguments: IPFamily.allCases)
  func connections(family: IPFamily) throws {
    let scene = try Scene("connections-\(family)")
    let maps = try Surroundings.pins("connections-\(family)")
    let pin = try #require(maps.names.first { $0.hasPrefix("map-connections-") })
    let map = try BPFMap<UInt64, ConnectionLayout>(
      "connections", owning: FileDescriptor(owning: try #require(try maps.open(pin))))
    func known() throws -> [ConnectionLayout] { Array(try map.elements().values) }
    var told = ConnectionLayout()
    told.told = BackendLayout(Scene.vip(family))
    do {
      let client = try scene.pod.socket(family, SOCK_DGRAM)
      #expect(client.connect(Scene.vip(family)) == 0 && client.peer == Scene.vip(family))
      #expect(try known().map(\.told) == [told.told])
      let elsewhere = SocketAddress(ip(family == .v4 ? "10.1.1.1" : "fd00:1::1"), port(53))
      #expect(client.connect(elsewhere) == 0 && client.peer == elsewhere)
      #expect(try known().isEmpty)
      #expect(client.connect(Scene.vip(family)) == 0)
      #expect(try known().count == 1)
    }
    #expect(try known().isEmpty, "it was closed")
  }

  @Test("of two devices of one pod one may go: its sockets are still the pod's")
  func twoDevices() throws {
    let scene = try Scene("devices")
    let both = scene.tables.node.endpoints["slc0"]
    var second = try #require(both)
    second.interface = "slc1"
    second.addresses = [ip("10.244.1.99")]
    for (name, old, new) in [("slc1", nil, second), ("slc0", both, nil)] as [(String, LocalEndpoint?, LocalEndpoint?)] {
      var delta = TableDelta()
      delta.endpoints[name] = Change(old: old, new: new)
      scene.tables.apply(delta)
      _ = try scene.balancer.apply(delta, tables: scene.tables)
      #expect(try scene.balancer.verify(scene.tables) == [])
      #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .tcp) == Self.both(.v4))
    }
  }

  @Test("affinity ends with its time, and each new connection begins it anew")
  func affinityTime() throws {
    let scene = try Scene("affinity")
    try scene.change(1, .v4, Scene.set(.v4, [2, 3, 4, 5, 6, 7, 8, 9], affinity: 2))
    var last: Arrival?
    // Longer than the time-out in all, never between two.
    for _ in 0..<6 {
      let place = try scene.pod.connect(to: Scene.vip(.v4), .tcp)
      #expect(last == nil || place == last)
      last = place
      usleep(700_000)
    }
    var others: Set<Arrival> = []
    for _ in 0..<4 where others.count < 2 {
      usleep(2_100_000)
      others.insert(try scene.pod.connect(to: Scene.vip(.v4), .tcp))
    }
    #expect(others.count > 1, "one of eight backends, four times over")
  }

  // MARK: Life cycle

  @Test("programs serve on without an agent, and the next one takes over what it finds")
  func adoption() throws {
    let scene = try Scene("adoption")
    let vip = Scene.vip(.v4)
    let before = try Surroundings.pins("adoption").names
    // No other reference to programs, maps and links is left than their pins.
    scene.balancer = try Scene.balancer("adoption", scene.host)
    #expect(try scene.arrivals(scene.pod, to: vip, .tcp) == Self.both(.v4))
    let (report, drift) = try scene.balancer.resync(scene.tables)
    #expect(drift == [] && report.messages == 0, "\(report) \(drift)")
    #expect(try Surroundings.pins("adoption").names == before)
    #expect(try scene.arrivals(scene.pod, to: vip, .tcp) == Self.both(.v4))
  }

  @Test("a new generation takes the old one's place while connections come: none misses both")
  func generations() throws {
    let scene = try Scene("generations")
    let vip = Scene.vip(.v4)
    let stop = Flag()
    let connections = Connections(from: scene.pod, to: vip, permitted: Self.both(.v4), until: stop)
    var generations = 0
    while generations < 20 || connections.count < 100 {
      scene.balancer = try Scene.balancer("generations", scene.host)
      _ = try scene.balancer.resync(scene.tables)
      generations += 1
    }
    stop.set()
    #expect(try connections.misses() == [])
  }

  @Test("scaled up and down 1,000 times, every connection finds a backend of the moment or of the one before")
  func scalings() throws {
    let scene = try Scene("scalings")
    let vip = Scene.vip(.v4)
    let stop = Flag()
    let all = Set((2...9).map { Arrival.at(Scene.backend(.v4, $0)) })
    let connections = Connections(from: scene.pod, to: vip, permitted: all, until: stop)
    var round = 0
    // On busy processors one of both sides may run ahead.
    while round < 1000 || connections.count < 100 {
      round += 1
      let id = Scene.set(1, .v4)
      let wanted = Scene.set(.v4, Array(2...(2 + round % 8)))
      try scene.change(1, .v4, wanted.withSlots(following: scene.tables.services.sets[id]?.backends ?? []))
    }
    stop.set()
    #expect(try connections.misses() == [])
  }

  @Test("what is wrong in the kernel is named and mended")
  func drift() throws {
    let scene = try Scene("drift")
    let maps = try Surroundings.pins("drift")
    let frontends = try #require(maps.names.first { $0.hasPrefix("map-frontends-") })
    let descriptor = try #require(try maps.open(frontends))
    defer { close(descriptor) }
    var key = FrontendKeyLayout(Scene.key(.v4, .tcp))
    #expect(bpf_map_delete_elem(descriptor, &key) == 0)
    var stranger = FrontendKeyLayout(FrontendKey(.address(ip("10.96.9.9")), .tcp, port(80)))
    var value = FrontendLayout(Scene.frontend(1), sourceList: 0)
    #expect(bpf_map_update_elem(descriptor, &stranger, &value, 0) == 0)
    try maps.remove("link-connect4")
    let kinds = try scene.balancer.verify(scene.tables).map { "\($0.kind) \($0.object.prefix { $0 != ":" })" }
    #expect(kinds.sorted() == ["extra map frontends", "missing link connect4", "missing map frontends"])
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.balancer.verify(scene.tables) == [])
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .tcp) == Self.both(.v4))
  }

  @Test("another cgroup at the next start: the links follow, the old one is left")
  func otherCgroup() throws {
    let scene = try Scene("cgroup")
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
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .tcp, 5) == [.at(Scene.vip(.v4))])
    scene.balancer = try balancer(try Surroundings.cgroup)
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .tcp) == Self.both(.v4))
    scene.balancer = try balancer("\(other)/none")
    #expect(throws: SystemError.self) { _ = try scene.balancer.resync(scene.tables) }
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v4), .tcp) == Self.both(.v4), "what serves, serves on")
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
      _ = try Scene.balancer("foreign", try Everywhere())
      Issue.record("it was taken over")
    } catch let error as SystemError {
      #expect("\(error)".contains(name), "\(error)")
    }
    #expect(pins.names == [name])
    try pins.remove(name)
  }

  @Test("clean-up leaves nothing pinned and nothing attached")
  func cleanUp() throws {
    let scene = try Scene("clean")
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v6), .tcp) == Self.both(.v6))
    try scene.balancer.cleanUp()
    #expect(try Surroundings.pins("clean").names == [])
    #expect(try scene.arrivals(scene.pod, to: Scene.vip(.v6), .tcp, 5) == [.at(Scene.vip(.v6))])
  }
}
