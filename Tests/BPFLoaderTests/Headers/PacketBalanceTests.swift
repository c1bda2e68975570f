import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/balance.h and services.h: where a new flow goes.
@Suite("balance.h and services.h") struct PacketBalanceTests {
  private static func cluster(_ delta: inout TableDelta) {
    delta.addCluster()
    delta.addService(1, port: 80, ["2", "3", "4", "5"], local: ["b"], nodePort: 30080)
    delta.addService(2, port: 81, ["2", "3", "4", "5"], affinity: 100)
    delta.addService(3, port: 82, ["b"], sources: ["v4": "10.244.1.12/32", "v6": "fd00:10:244:1::12/128"])
    delta.addService(4, port: 83, ["b"], sources: ["v4": "10.244.1.13/32", "v6": "fd00:10:244:1::13/128"])
    delta.addService(5, port: 84, ["2"], local: ["b"], nodePort: 30084, policy: .local)
    delta.addService(6, port: 85, ["2"], local: [], nodePort: 30085, policy: .local)
    delta.addService(7, port: 86, ["node"])
  }

  private static func datagram(
    _ scene: PacketScene, _ from: String, _ to: String, _ family: IPFamily, _ source: UInt16, _ port: UInt16
  ) -> [UInt8] {
    scene.packet(from, to, family, .udp(source: source, destination: port))
  }

  /// Where it leaves for; nil where it does not.
  private static func end(_ scene: PacketScene, _ from: String, _ packet: [UInt8]) throws -> IPAddress? {
    guard case .arrived(_, let frame) = try scene.travel(from, packet) else { return nil }
    return SeenPacket(frame)?.destination
  }

  @Test("new flows are spread over all slots alike, and each stays where it began")
  func spread() throws {
    try PacketScene.run("balance-spread", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        var counts: [IPAddress: Int] = [:]
        for source in UInt16(1000)..<1800 {
          let packet = Self.datagram(scene, "a", "service", family, source, 80)
          guard let end = try Self.end(scene, "a", packet) else { continue }
          counts[end, default: 0] += 1
          if source % 10 == 0 {
            for _ in 0..<5 { findings.expect("\(family): the same flow", try Self.end(scene, "a", packet), end) }
          }
        }
        // Of 800 by chance: 200 each, less than 130 once in 10^8 runs.
        findings.expect("\(family): \(counts)", counts.count == 4 && counts.values.allSatisfy { $0 > 130 })
      }
    }
  }

  @Test("affinity: a client stays with its backend until the time is over, or the backend goes; others have their own")
  func affinity() throws {
    try PacketScene.run("balance-affinity", change: Self.cluster) { scene, findings in
      let affinities: BPFMap<AffinityKeyLayout, AffinityLayout> = try scene.runner.engine.endpoint.openMap("affinities")
      func age(seconds: UInt64) throws {
        for (key, value) in try affinities.elements() {
          var old = value
          old.used &-= seconds * 1_000_000_000
          try affinities.set(key, old)
        }
      }
      for family in IPFamily.allCases {
        var source: UInt16 = 1000
        func next(_ from: String) throws -> IPAddress? {
          source += 1
          return try Self.end(scene, from, Self.datagram(scene, from, "service", family, source, 81))
        }
        let first = try next("a")
        findings.expect("\(family): somewhere", first != nil)
        for _ in 0..<30 { findings.expect("\(family): in time", try next("a"), first) }
        // Each use begins it anew.
        for _ in 0..<3 {
          try age(seconds: 95)
          findings.expect("\(family): before its time is over", try next("a"), first)
        }
        var others: Set<IPAddress> = []
        for _ in 0..<80 {
          try age(seconds: 101)
          if let end = try next("a") { others.insert(end) }
        }
        findings.expect("\(family): behind it, \(others)", others.count == 4)
        // b's first choice is its own: alike with a's in every round only once in 4^12 runs.
        var differs = false
        for _ in 0..<12 {
          try age(seconds: 101)
          let (of, other) = (try next("a"), try next("b"))
          differs = differs || of != other
        }
        findings.expect("\(family): another client", differs)
      }
    }
  }

  @Test("source ranges, traffic policies, and a backend in this node's network")
  func scopes() throws {
    try PacketScene.run("balance-scopes", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        func expect(_ what: String, _ from: String, _ to: String, _ port: UInt16, _ reason: UInt8) throws {
          let packet = Self.datagram(scene, from, to, family, 5000, port)
          findings.expect("\(family): \(what)", try scene.travel(from, packet).reason ?? 0, reason)
        }
        func expect(_ what: String, _ from: String, _ to: String, _ port: UInt16, at end: IPAddress) throws {
          let packet = Self.datagram(scene, from, to, family, 5000, port)
          findings.expect("\(family): \(what)", try Self.end(scene, from, packet), end)
        }
        let b = scene.address("b", family)
        try expect("within the ranges", "a", "service", 82, at: b)
        try expect("outside the ranges", "a", "service", 83, 1)
        try expect("the other one's ranges", "b", "service", 82, 1)
        try expect("Local, one here", "world", "node", 30084, at: b)
        try expect("Local, none here", "world", "node", 30085, 2)
        try expect("inside, Local, one here", "a", "service", 84, at: b)
        try expect("inside, Local, none here", "a", "service", 85, 2)
        try expect("a node's own process", "a", "service", 86, at: scene.address("node", family))
        // NodePorts of this node, asked by its pods: all endpoints.
        let other = ip(family == .v4 ? "10.244.2.2" : "fd00:10:244:2::2")
        try expect("a NodePort from a pod", "a", "node", 30085, at: other)
        let nobody = family == .v4 ? "10.96.7.7" : "fd00:96::77"
        let packet = ProbePacket(
          source: scene.address("a", family), destination: ip(nobody), content: .udp(source: 1, destination: 80))
        findings.expect("\(family): nobody's address", try scene.send("a", packet.bytes(number: 1)), .dropped(3))
      }
    }
  }

  @Test("clients from outside keep their address under Local, and get the node's under Cluster")
  func sources() throws {
    try PacketScene.run("balance-sources", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        func source(_ port: UInt16) throws -> IPAddress? {
          guard
            case .arrived(_, let frame) = try scene.travel(
              "world", Self.datagram(scene, "world", "node", family, 5000, port))
          else { return nil }
          return SeenPacket(frame)?.source
        }
        findings.expect("\(family): Cluster", try source(30080), scene.address("node", family))
        findings.expect("\(family): Local", try source(30084), scene.address("world", family))
      }
    }
  }

  @Test("a datagram flow leaves a backend that is gone, and stays with one that only drains; TCP stays with both")
  func goneBackends() throws {
    try PacketScene.run("balance-gone", change: Self.cluster) { scene, findings in
      for family in IPFamily.allCases {
        let id = BackendSetID(service: service(1), scope: .cluster, family: family)
        let datagram = Self.datagram(scene, "a", "service", family, 6000, 80)
        guard let old = scene.runner.tables.services.sets[id], let end = try Self.end(scene, "a", datagram) else {
          findings.expect("\(family): a backend", false)
          continue
        }
        func set(_ backends: [SocketAddress], draining: [SocketAddress] = []) throws {
          var delta = TableDelta()
          delta.sets[id] = Change(
            old: scene.runner.tables.services.sets[id],
            new: BackendSet(backends: backends, emptyAction: .reject, draining: draining))
          try scene.runner.apply(delta)
        }
        let segment = scene.packet("a", "service", family, .tcp(source: 6000, destination: 80, .synchronize))
        let connected = try Self.end(scene, "a", segment)
        let its = old.backends.filter { $0.address == end }
        let others = old.backends.filter { $0.address != end }
        try set(others, draining: its)
        for _ in 0..<10 { findings.expect("\(family): draining", try Self.end(scene, "a", datagram), end) }
        for source in UInt16(6001)..<6030 {
          let new = try Self.end(scene, "a", Self.datagram(scene, "a", "service", family, source, 80))
          findings.expect("\(family): a new flow", new != nil && new != end)
        }
        try set(others)
        let moved = try Self.end(scene, "a", datagram)
        findings.expect("\(family): gone", moved != nil && moved != end)
        findings.expect("\(family): moved once", try Self.end(scene, "a", datagram), moved)
        try set(old.backends.filter { $0.address != connected })
        let data = scene.packet("a", "service", family, .tcp(source: 6000, destination: 80, .acknowledge))
        findings.expect("\(family): a connection", try Self.end(scene, "a", data), connected)
      }
    }
  }
}
