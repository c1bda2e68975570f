// Flows over time: UDP flows leave what is gone and find what is new; TCP connections are left alone.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("flows")
  struct Flows {
    /// A flow from one place through one frontend.
    private struct Way {
      var place: LabTarget
      var address: IPAddress
      var port: Int
      var name: String
    }

    /// From a pod and the node through ClusterIP, from outside through NodePort.
    private func ways(_ scene: ServiceScene, _ service: ServiceSpec, _ pod: LabPod) throws -> [Way] {
      try IPFamily.allCases.flatMap { family in
        let (virtual, node) = (try service.clusterIP(family), try scene.lab.nodeAddress("node1", family))
        return [
          Way(place: scene.target(pod), address: virtual, port: service.port, name: "pod \(family)"),
          Way(place: .node("node1"), address: virtual, port: service.port, name: "node \(family)"),
          Way(place: .client, address: node, port: 30080, name: "client \(family)"),
        ]
      }
    }

    private func start(
      _ transport: L4Protocol, _ ways: [Way], _ scene: ServiceScene, survivesErrors: Bool = false
    ) throws -> [(way: Way, work: BackgroundWork<[EchoFlowReport]>)] {
      try ways.map { way in
        let traffic = Traffic(family: way.address.family, transport: transport)
        return (
          way,
          try scene.startFlow(traffic, from: way.place, to: way.address, way.port, survivesErrors: survivesErrors)
        )
      }
    }

    private static func name(_ name: String) -> PodName { PodName(ServiceSpec.namespace, name) }

    @Test("of UDP move off a backend that no longer serves, and stay on one that terminates and serves")
    func movesOff() throws {
      try ServiceScene.run("udp-moves") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        let flows = try start(.udp, try ways(scene, service, asker), scene, survivesErrors: true)
        usleep(200_000)
        try scene.backend("web-2", on: "node2")
        try scene.lab.terminate(Self.name("web-1"))
        try scene.sync()
        usleep(300_000)
        let left = monotonicNanoseconds()
        try scene.lab.terminate(Self.name("web-1"), serving: false)
        try scene.sync()
        let moved = monotonicNanoseconds()
        usleep(900_000)
        for (way, work) in flows {
          let report = try #require(try work.stop().first)
          #expect(report.pods == ["web-1", "web-2"], "\(way.name)")
          // Between answers: a datagram that was under way to the backend that left may be lost.
          let silences = zip(report.greetings, report.greetings.dropFirst()).map { $1.at - $0.at }
          #expect(silences.max() ?? .max < 500_000_000, "\(way.name)")
          // A connected socket that was translated itself cannot move: it is ended, and the program takes another.
          #expect(scene.isAtSocket(way.place) ? report.errors == 1 : report.errors == 0, "\(way.name): \(report.json)")
          // While it terminated and served it had all of the flow: the first answer of the other came after the end.
          let first = try #require(report.greetings.first { $0.pod == "web-2" })
          let last = try #require(report.greetings.last { $0.pod == "web-1" })
          #expect(first.at > left && last.at < moved + 500_000_000, "\(way.name)")
          #expect(report.sent - report.received < 20, "\(way.name): \(report.sent) sent, \(report.received) answered")
        }
      }
    }

    @Test("of UDP that began before their Service existed, or had a backend, are answered once it has one")
    func zeroToOne() throws {
      try ServiceScene.run("udp-zero") { scene in
        let service = ServiceSpec(type: "NodePort")
        let asker = try scene.clientPod("asker", on: "node1")
        let ways = try ways(scene, service, asker)
        // Before the Service: what is sent follows the default route, and is remembered as it is.
        let before = try start(.udp, ways, scene, survivesErrors: true)
        usleep(200_000)
        try scene.apply(service)
        // Without a backend: refused.
        let without = try start(.udp, ways, scene, survivesErrors: true)
        usleep(200_000)
        try scene.backend("web-1", on: "node2")
        try scene.sync()
        usleep(400_000)
        // To zero and back: no flow stays with what was.
        try scene.lab.setReady(Self.name("web-1"), false)
        try scene.sync()
        let empty = monotonicNanoseconds()
        usleep(900_000)
        let back = monotonicNanoseconds()
        try scene.lab.setReady(Self.name("web-1"), true)
        try scene.sync()
        let ready = monotonicNanoseconds()
        usleep(400_000)
        for (flows, what) in [(before, "before the Service"), (without, "without a backend")] {
          for (way, work) in flows {
            let report = try #require(try work.stop().first)
            let name = Comment(rawValue: "\(way.name), begun \(what): \(report.received) of \(report.sent) answered")
            #expect(report.pods == ["web-1"], name)
            #expect(report.received > 40, name)
            // Only a node's own ICMP errors to itself are not limited to a few a second.
            #expect(report.errors > 0 || way.place != .node("node1"), "refused while there was no backend: \(name)")
            #expect(report.greetings.contains { $0.at > ready }, name)
            // The conntrack entries go a moment after the commit, on a loaded machine some hundred milliseconds.
            #expect(!report.greetings.contains { $0.at > empty + 500_000_000 && $0.at < back }, name)
          }
        }
      }
    }

    @Test("of UDP through a port that a Service no longer has end, though its backends live")
    func serviceEdit() throws {
      try ServiceScene.run("udp-edit") { scene in
        var service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        let inside = try ways(scene, service, asker).filter { $0.place != .client }
        let outside = try ways(scene, service, asker).filter { $0.place == .client }
        let (byClusterIP, byNodePort) = (try start(.udp, inside, scene), try start(.udp, outside, scene))
        usleep(200_000)
        service.port = 81
        try scene.apply(service)
        usleep(1_000_000)
        for (way, work) in byClusterIP {
          let report = try #require(try work.stop().first)
          let ended = scene.isAtSocket(way.place) ? ProbeOutcome.failed(errno: ECONNABORTED) : .refused
          #expect(report.broken == ended && report.received > 5, "\(way.name): \(report.json)")
        }
        // The other frontend of the same port has not changed.
        for (way, work) in byNodePort {
          let report = try #require(try work.stop().first)
          #expect(report.broken == nil, "\(way.name): \(report.json)")
        }
        for way in try ways(scene, service, asker) {
          try scene.expectServed(
            Traffic(family: way.address.family, transport: .udp), from: way.place, to: way.address, way.port,
            by: ["web-1"])
        }
      }
    }

    @Test("of TCP go on with a backend that has left the Service, and with whatever else changes")
    func connectionsGoOn() throws {
      try ServiceScene.run("tcp-stays") { scene in
        var service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        let ways = try ways(scene, service, asker)
        let flows = try start(.tcp, ways, scene)
        try scene.backend("web-2", on: "node2")
        try scene.lab.terminate(Self.name("web-1"))
        try scene.sync()
        try scene.lab.terminate(Self.name("web-1"), serving: false)
        try scene.sync()
        service.lines = ["sessionAffinity: ClientIP"]
        try scene.apply(service)
        try scene.lab.setReady(Self.name("web-2"), false)
        try scene.sync()
        usleep(200_000)
        for (_, work) in flows {
          let reports = try work.stop()
          LabHarness.expectUninterrupted(reports)
          #expect(reports.map(\.pods) == [["web-1"]])
        }
      }
    }

    @Test("of TCP from one port to a Service, through its node port and to its backend itself are three connections")
    func onePort() throws {
      // A client whose connections are balanced at their sockets knows better than to use the port again.
      try ServiceScene.run("one-port", socketLB: "host") { scene in
        try scene.apply(ServiceSpec(type: "NodePort"))
        let asker = try scene.clientPod("asker", on: "node1")
        var port: UInt16 = 20_000
        for node in ["node1", "node2"] {
          let backend = try scene.backend("web-\(node)", on: node)
          try scene.sync()
          for family in IPFamily.allCases {
            for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
              port += 1
              try OnePort(from: asker, to: backend, ServiceSpec(type: "NodePort"), family, port: port, order, scene.lab)
                .expectAnswered("\(node) \(family) \(order)")
            }
          }
          try scene.lab.removePod(backend.name)
          try scene.sync()
        }
      }
    }
  }
}
