import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader

/// What programs see of Services that are translated at their socket.
@Suite("Sockets of Services") struct SocketBehaviourTests {
  @Test("getpeername(2) says what was asked for, and the connection goes to a backend", arguments: IPFamily.allCases)
  func peerNames(family: IPFamily) throws {
    let scene = try SocketScene("peer-\(family)")
    for _ in 0..<20 {
      let client = try scene.pod.socket(family, SOCK_STREAM)
      #expect(client.connect(SocketScene.vip(family)) == 0)
      #expect(client.peer == SocketScene.vip(family))
      #expect(SocketScene.both(family).contains(try scene.pod.arrival(ofConnectionTo: family)))
    }
  }

  @Test(
    "datagrams of one socket stay with one backend, and answers come from the address asked",
    arguments: IPFamily.allCases)
  func datagrams(family: IPFamily) throws {
    let scene = try SocketScene("datagrams-\(family)")
    var places: Set<Arrival> = []
    for round in 0..<40 {
      let client = try scene.pod.socket(family, SOCK_DGRAM)
      var own: Set<Arrival> = []
      for message in 0..<5 {
        #expect(client.send("\(round).\(message)", to: SocketScene.vip(family)) == 0)
        let (place, text) = try scene.pod.arrival(ofDatagram: family, answer: "answer \(message)")
        #expect(text == "\(round).\(message)")
        own.insert(place)
        let answer = try #require(client.receive(), "no answer")
        #expect(answer.text == "answer \(message)" && answer.from == SocketScene.vip(family), "\(answer)")
      }
      #expect(own.count == 1, "\(own)")
      places.formUnion(own)
    }
    #expect(places == SocketScene.both(family))
  }

  @Test("a socket leaves a backend that went, and not one that only drains", arguments: IPFamily.allCases)
  func removedBackend(family: IPFamily) throws {
    let scene = try SocketScene("removed-\(family)")
    let client = try scene.pod.socket(family, SOCK_DGRAM)
    func send() throws -> Arrival {
      #expect(client.send("x", to: SocketScene.vip(family)) == 0)
      return try scene.pod.arrival(ofDatagram: family).place
    }
    let first = try send()
    let (its, other) = first == .at(SocketScene.backend(family, 2)) ? (2, 3) : (3, 2)
    try scene.change(2, family, SocketScene.set(family, [other], draining: [its]))
    #expect(try send() == first)
    try scene.change(2, family, SocketScene.set(family, [other]))
    #expect(try send() == .at(SocketScene.backend(family, other)))
  }

  @Test("a Service without endpoints refuses at connect(2), where the kernel can", arguments: IPFamily.allCases)
  func refusal(family: IPFamily) throws {
    let scene = try SocketScene("refusal-\(family)")
    // An older kernel leaves it to packets.
    let refused = scene.balancer.features.socketErrors ? Arrival.refused(ECONNREFUSED) : .at(SocketScene.vip(family))
    for number in [1, 2] { try scene.change(number, family, SocketScene.set(family, [])) }
    for proto in [L4Protocol.tcp, .udp] {
      #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(family), proto, 3) == [refused])
    }
    for number in [1, 2] { try scene.change(number, family, SocketScene.set(family, [3])) }
    for proto in [L4Protocol.tcp, .udp] {
      #expect(
        try scene.arrivals(scene.pod, to: SocketScene.vip(family), proto, 3) == [.at(SocketScene.backend(family, 3))])
    }
  }

  @Test(
    "NodePorts answer on localhost for the node's own processes, without route_localnet", arguments: IPFamily.allCases)
  func localhost(family: IPFamily) throws {
    let scene = try SocketScene("localhost-\(family)")
    let number = port(30080)
    let loopback = SocketAddress(family == .v4 ? ip("127.0.0.1") : ip("::1"), number)
    for proto in [L4Protocol.tcp, .udp] {
      #expect(try scene.arrivals(scene.host, to: loopback, proto) == SocketScene.both(family))
      #expect(
        try scene.arrivals(scene.host, to: SocketAddress(SocketScene.nodes.of(family), number), proto)
          == SocketScene.both(family))
      // A pod's localhost is its own.
      #expect(try scene.arrivals(scene.pod, to: loopback, proto, 5) == [.at(loopback)])
    }
  }

  @Test("an IPv6 socket that talks IPv4 is translated as IPv4")
  func mapped() throws {
    let scene = try SocketScene("mapped")
    let vip = SocketScene.vip(.v4)
    for _ in 0..<5 {
      let client = try scene.pod.socket(.v6, SOCK_STREAM)
      #expect(client.connect(mapped: vip) == 0)
      #expect(client.mappedPeer == vip.address)
      #expect(SocketScene.both(.v4).contains(try scene.pod.arrival(ofConnectionTo: .v4)))
    }
    let client = try scene.pod.socket(.v6, SOCK_DGRAM)
    #expect(client.send("x", mapped: vip) == 0)
    #expect(SocketScene.both(.v4).contains(try scene.pod.arrival(ofDatagram: .v4, answer: "y").place))
    #expect(client.receiveMapped() == vip.address)
  }

  @Test("sockets of nobody we know are left alone")
  func strangers() throws {
    let scene = try SocketScene("strangers")
    let stranger = try Everywhere()
    #expect(try scene.arrivals(stranger, to: SocketScene.vip(.v4), .tcp, 5) == [.at(SocketScene.vip(.v4))])
  }

  @Test("a connection to no address is one to localhost, not to NodePorts", arguments: IPFamily.allCases)
  func unspecified(family: IPFamily) throws {
    let scene = try SocketScene("unspecified-\(family)")
    let to = SocketAddress(.unspecified(family), port(30080))
    let here = Arrival.at(SocketAddress(family == .v4 ? ip("127.0.0.1") : ip("::1"), port(30080)))
    #expect(try scene.arrivals(scene.pod, to: to, .tcp, 5) == [here])
  }

  @Test("affinity leads no new socket to a backend that only drains")
  func affinityToDraining() throws {
    let scene = try SocketScene("affinity-draining")
    try scene.change(2, .v4, SocketScene.set(.v4, [2, 3], affinity: 10_800))
    let first = try scene.pod.connect(to: SocketScene.vip(.v4), .udp)
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .udp, 10) == [first])
    let (its, other) = first == .at(SocketScene.backend(.v4, 2)) ? (2, 3) : (3, 2)
    try scene.change(2, .v4, SocketScene.set(.v4, [other], affinity: 10_800, draining: [its]))
    #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .udp, 10) == [.at(SocketScene.backend(.v4, other))])
  }

  @Test("a connected UDP socket is known until it is closed or connected elsewhere", arguments: IPFamily.allCases)
  func connections(family: IPFamily) throws {
    let scene = try SocketScene("connections-\(family)")
    let map: BPFMap<UInt64, ConnectionLayout> = try scene.openMap("connections")
    func known() throws -> [ConnectionLayout] { Array(try map.elements().values) }
    var told = ConnectionLayout()
    told.told = BackendLayout(SocketScene.vip(family))
    do {
      let client = try scene.pod.socket(family, SOCK_DGRAM)
      #expect(client.connect(SocketScene.vip(family)) == 0 && client.peer == SocketScene.vip(family))
      #expect(try known().map(\.told) == [told.told])
      let elsewhere = SocketAddress(ip(family == .v4 ? "10.1.1.1" : "fd00:1::1"), port(53))
      #expect(client.connect(elsewhere) == 0 && client.peer == elsewhere)
      #expect(try known().isEmpty)
      #expect(client.connect(SocketScene.vip(family)) == 0)
      #expect(try known().count == 1)
    }
    #expect(try known().isEmpty, "it was closed")
  }

  @Test("of two devices of one pod one may go: its sockets are still the pod's")
  func twoDevices() throws {
    let scene = try SocketScene("devices")
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
      #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp) == SocketScene.both(.v4))
    }
  }

  @Test("affinity ends with its time, and each new connection begins it anew")
  func affinityTime() throws {
    let scene = try SocketScene("affinity")
    try scene.change(1, .v4, SocketScene.set(.v4, [2, 3, 4, 5, 6, 7, 8, 9], affinity: 100))
    let affinities: BPFMap<AffinityKeyLayout, AffinityLayout> = try scene.openMap("affinities")
    func connect(after seconds: UInt64) throws -> Arrival {
      for (key, value) in try affinities.elements() {
        var old = value
        old.used &-= seconds * 1_000_000_000
        try affinities.set(key, old)
      }
      return try scene.pod.connect(to: SocketScene.vip(.v4), .tcp)
    }
    let first = try connect(after: 0)
    // Longer than the time in all, never between two.
    for _ in 0..<6 { #expect(try connect(after: 40) == first) }
    let others = Set(try (0..<40).map { _ in try connect(after: 101) })
    #expect(others.count > 1, "one of eight backends, forty times over")
  }
}
