import Glibc
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab

extension ServiceBehaviour {
  /// With `--socket-lb`: connections are translated before there is a packet, by programs that outlive their agent.
  @Suite("at the socket", .serialized) struct SocketLB {
    private static let name = "web"

    /// Flows that the node tracks towards a Service address: one for each connection that packets were translated of.
    private static func tracked(_ scene: ServiceScene, to address: IPAddress, on node: String) throws -> Int {
      let result = try scene.lab.exec(
        in: .node(node), [LabHarness.dpctl, "conntrack", "list", "-o", "json", "--address", "\(address)"])
      #expect(result.status == 0, "\(result.stderr)")
      let flows = try JSONValue(parsing: Array(result.stdout.utf8))["items"]?.arrayValue ?? []
      return flows.count { $0["destination"]?["address"]?.stringValue == "\(address)" }
    }

    /// The least that an engine can translate at the socket: eBPF alone cannot translate a node's own packets.
    private static let least = LabHarness.configuration("").engine == "ebpf" ? "host" : "off"

    @Test("no packet of a pod's or a node's connection ever has a Service's address; without, all have")
    func noServicePackets() throws {
      for mode in ["all", Self.least] {
        try ServiceScene.run("socket-\(mode)", socketLB: mode) { scene in
          let service = ServiceSpec()
          try scene.apply(service)
          try scene.backend("web-1", on: "node1")
          try scene.backend("web-2", on: "node2")
          let asker = try scene.clientPod("asker", on: "node1")
          try scene.sync()
          for traffic in Traffic.all {
            let address = try service.clusterIP(traffic.family)
            for place in [scene.target(asker), .node("node1")] {
              let before = try Self.tracked(scene, to: address, on: "node1")
              try scene.expectServed(traffic, from: place, to: address, by: ["web-1", "web-2"])
              let flows = try Self.tracked(scene, to: address, on: "node1") - before
              let isAtSocket = scene.isAtSocket(place)
              #expect(isAtSocket ? flows == 0 : flows >= 40, "\(mode), \(traffic) from \(place): \(flows) of 40")
            }
          }
        }
      }
    }

    @Test("a NodePort answers on localhost to the node's own processes, and to no pod")
    func localhost() throws {
      try ServiceScene.run("socket-localhost", socketLB: "host") { scene in
        try scene.apply(ServiceSpec(type: "NodePort"))
        try scene.backend("web-1", on: "node2")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        for traffic in Traffic.all {
          let here = try #require(IPAddress(traffic.family == .v4 ? "127.0.0.1" : "::1"))
          try scene.expectServed(traffic, from: .node("node1"), to: here, 30080, by: ["web-1"])
          try scene.expectRefused(traffic, from: scene.target(asker), to: here, 30080)
        }
      }
    }

    @Test("connections are balanced on while the agent is killed, and it goes on where it was")
    func killedAgent() throws {
      try ServiceScene.run("socket-killed", socketLB: "all") { scene in
        let service = ServiceSpec()
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        try scene.backend("web-2", on: "node2")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        let address = try service.clusterIP(.v4)
        let tcp = Traffic(family: .v4, transport: .tcp)
        try scene.lab.killAgent("node1")
        try scene.expectServed(tcp, from: scene.target(asker), to: address, by: ["web-1", "web-2"])
        try scene.lab.startAgent("node1")
        try scene.backend("web-3", on: "node1")
        try scene.sync()
        try scene.expectServed(tcp, from: scene.target(asker), to: address, by: ["web-1", "web-2", "web-3"])
        #expect(try Self.tracked(scene, to: address, on: "node1") == 0)
        // Another life without it: the programs go, or leave pods alone.
        try scene.lab.stopAgent("node1")
        try scene.lab.startAgent("node1", arguments: ["--socket-lb", Self.least])
        try scene.expectServed(tcp, from: scene.target(asker), to: address, by: ["web-1", "web-2", "web-3"])
        #expect(try Self.tracked(scene, to: address, on: "node1") >= 40)
      }
    }

    @Test("a connected UDP socket is told when its backend goes, and one that drains goes on")
    func endedSockets() throws {
      try ServiceScene.run("socket-udp", socketLB: "all") { scene in
        let service = ServiceSpec()
        try scene.apply(service)
        try scene.backend("web-1", on: "node2")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        for place in [scene.target(asker), .node("node1")] {
          for family in IPFamily.allCases {
            let traffic = Traffic(family: family, transport: .udp)
            let flow = try scene.startFlow(traffic, from: place, to: try service.clusterIP(family))
            usleep(100_000)
            try scene.backend("web-2", on: "node1")
            try scene.lab.terminate(PodName(ServiceSpec.namespace, "web-1"))
            try scene.sync()
            usleep(100_000)
            #expect(!flow.isDone, "\(traffic) from \(place): it ended while its backend served")
            try scene.lab.terminate(PodName(ServiceSpec.namespace, "web-1"), serving: false)
            try scene.sync()
            try LabHarness.eventually("\(traffic) from \(place) ends") { flow.isDone }
            let report = try #require(try flow.stop().first)
            #expect(report.broken != nil && report.pods == ["web-1"], "\(traffic) from \(place): \(report)")
            // The next socket finds the other; and all is as it was.
            try scene.expectServed(traffic, from: place, to: try service.clusterIP(family), by: ["web-2"])
            for pod in ["web-1", "web-2"] { try scene.lab.removePod(PodName(ServiceSpec.namespace, pod)) }
            try scene.backend("web-1", on: "node2")
            try scene.sync()
          }
        }
      }
    }
  }
}
