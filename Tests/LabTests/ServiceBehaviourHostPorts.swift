// Ports of the node that lead to a pod, from `portMappings` of the runtime to packets.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("host ports")
  struct HostPorts {
    private static let port = 8080

    /// A pod whose TCP and UDP port 80 a port of its node leads to.
    private static func pod(
      _ name: String, on node: String, port: Int = port, at address: IPAddress? = nil
    ) throws -> PodSpec {
      let hostPort = PodPort.HostPort(try #require(Port(port)), at: address)
      let own = try #require(Port(80))
      return PodSpec(
        ServiceSpec.namespace, name, node: node, labels: ["app": "web"],
        ports: [
          PodPort("tcp", .tcp, own, service: .echo, hostPort: hostPort), PodPort("udp", .udp, own, hostPort: hostPort),
        ])
    }

    @Test("lead to the pod from everywhere, which sees its client; only at their node, and only at their addresses")
    func meaning() throws {
      try ServiceScene.run("hostports") { scene in
        let lab = scene.lab
        let web = try lab.addPod(try Self.pod("web", on: "node1"))
        let near = try scene.clientPod("near", on: "node1")
        let far = try scene.clientPod("far", on: "node2")
        let other = try scene.startServer("other", in: .client, port: Self.port)
        // Somebody else's address: what is sent there is not this pod's.
        let wanted = Self.port + 1
        let real = try scene.startServer("real", in: .client, port: wanted)
        for family in IPFamily.allCases {
          let address = try #require(LabAddresses.client.first { $0.family == family })
          try lab.addPod(try Self.pod("greedy-\(family == .v4 ? 4 : 6)", on: "node1", port: wanted, at: address))
        }
        for traffic in Traffic.all {
          let address = try lab.nodeAddress("node1", traffic.family)
          let client = try #require(LabAddresses.client.first { $0.family == traffic.family })
          for (place, seen) in [
            (LabTarget.client, client), (scene.target(near), near.address(traffic.family)),
            (scene.target(far), far.address(traffic.family)), (scene.target(web), nil),
            (.node("node1"), nil), (.node("node2"), nil),
          ] {
            try scene.expectServed(traffic, from: place, to: address, Self.port, by: ["web"], seeing: seen)
          }
          // What only passes through the node is not for it, whatever the port.
          for pod in [near, web] {
            try scene.expectServed(traffic, from: scene.target(pod), to: client, Self.port, by: ["other"])
            try scene.expectServed(traffic, from: scene.target(pod), to: client, wanted, by: ["real"])
          }
          try scene.expectServed(traffic, from: .node("node1"), to: client, wanted, by: ["real"])
          let elsewhere = try lab.nodeAddress("node2", traffic.family)
          try scene.expectRefused(traffic, from: .client, to: elsewhere, Self.port)
        }
        for server in [other, real] { server.signal(SIGKILL) }
      }
    }

    @Test("survive a killed agent, go with the pod, and come again with the next, long-lived datagrams too")
    func life() throws {
      try ServiceScene.run("hostport-life") { scene in
        let lab = scene.lab
        try lab.addPod(try Self.pod("first", on: "node1"))
        func expect(_ pod: String) throws {
          for traffic in Traffic.all {
            let address = try lab.nodeAddress("node1", traffic.family)
            try scene.expectServed(traffic, from: .client, to: address, Self.port, by: [pod])
          }
        }
        try expect("first")
        try lab.killAgent("node1")
        try expect("first")
        try lab.startAgent("node1")
        try expect("first")
        let flows = try Traffic.all.filter { $0.transport == .udp }.map { traffic in
          try scene.startFlow(
            traffic, from: .client, to: try lab.nodeAddress("node1", traffic.family), Self.port, survivesErrors: true)
        }
        // They have to have begun.
        usleep(500_000)
        try lab.removePod(PodName(ServiceSpec.namespace, "first"), graceful: false)
        // Datagrams' refusals go to the flows: the kernel limits how many a client gets.
        for traffic in Traffic.all where traffic.transport == .tcp {
          try scene.expectRefused(
            traffic, from: .client, to: try lab.nodeAddress("node1", traffic.family), Self.port)
        }
        try lab.addPod(try Self.pod("second", on: "node1"))
        try expect("second")
        usleep(500_000)
        for flow in flows {
          let reports = try flow.stop()
          #expect(reports.map(\.pods) == [["first", "second"]])
        }
      }
    }

    @Test("are had by one pod of a node at an address; another one's ADD says whose they are")
    func conflicts() throws {
      try ServiceScene.run("hostport-taken") { scene in
        let lab = scene.lab
        let address = try lab.nodeAddress("node1", .v4)
        try lab.addPod(try Self.pod("holder", on: "node1", at: address))
        let error = #expect(throws: LabError.self) { try lab.addPod(try Self.pod("late", on: "node1")) }
        let words = "\(error.map { "\($0)" } ?? "")"
        #expect(words.contains("tcp/8080") && words.contains("\(ServiceSpec.namespace)/holder"), "\(words)")
        try lab.addPod(try Self.pod("elsewhere", on: "node2"))
        try lab.addPod(try Self.pod("beside", on: "node1", port: Self.port + 1))
        for traffic in Traffic.all {
          let own = try lab.nodeAddress("node1", traffic.family)
          if traffic.family == .v4 {
            try scene.expectServed(traffic, from: .client, to: own, Self.port, by: ["holder"])
          } else {
            try scene.expectRefused(traffic, from: .client, to: own, Self.port)
          }
          try scene.expectServed(
            traffic, from: .client, to: try lab.nodeAddress("node2", traffic.family), Self.port, by: ["elsewhere"])
          try scene.expectServed(traffic, from: .client, to: own, Self.port + 1, by: ["beside"])
        }
      }
    }
  }
}
