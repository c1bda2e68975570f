// Which endpoints count: terminating ones, several slices, and what load balancers are told of a node.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("endpoints")
  struct Endpoints {
    private static func name(_ name: String) -> PodName { PodName(ServiceSpec.namespace, name) }

    @Test("that terminate are used while they serve and no ready one exists")
    func terminating() throws {
      try ServiceScene.run("terminating") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        for (name, node) in [("web-1", "node1"), ("web-2", "node2"), ("web-3", "node2")] {
          try scene.backend(name, on: node)
        }
        let asker = try scene.clientPod("asker", on: "node1")
        let places = [(scene.target(asker), false), (.node("node1"), false), (.client, true)]
        func expectServed(by pods: Set<String>) throws {
          try scene.sync()
          for traffic in Traffic.all {
            for (place, throughNodePort) in places {
              let address =
                throughNodePort
                ? try scene.lab.nodeAddress("node1", traffic.family) : try service.clusterIP(traffic.family)
              try scene.expectServed(traffic, from: place, to: address, throughNodePort ? 30080 : 80, by: pods)
            }
          }
        }
        try expectServed(by: ["web-1", "web-2", "web-3"])
        try scene.lab.terminate(Self.name("web-1"))
        try expectServed(by: ["web-2", "web-3"])
        for name in ["web-2", "web-3"] { try scene.lab.terminate(Self.name(name)) }
        try expectServed(by: ["web-1", "web-2", "web-3"])
        try scene.lab.terminate(Self.name("web-1"), serving: false)
        try expectServed(by: ["web-2", "web-3"])
        try scene.backend("web-4", on: "node1")
        try expectServed(by: ["web-4"])
        try scene.lab.terminate(Self.name("web-4"), serving: false)
        try expectServed(by: ["web-2", "web-3"])
        for name in ["web-2", "web-3"] { try scene.lab.terminate(Self.name(name), serving: false) }
        try scene.sync()
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          for (place, _) in places.dropLast() { try scene.expectRefused(traffic, from: place, to: address) }
        }
      }
    }

    @Test("of this node that terminate are used where the policy is Local, though others are ready elsewhere")
    func terminatingLocal() throws {
      try ServiceScene.run("term-local", expectedDrops: ["drop-no-local-endpoint"]) { scene in
        let service = ServiceSpec(type: "NodePort", "externalTrafficPolicy: Local")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        try scene.backend("web-2", on: "node2")
        try scene.lab.terminate(Self.name("web-1"))
        try scene.sync()
        for traffic in Traffic.all {
          let address = try scene.lab.nodeAddress("node1", traffic.family)
          try scene.expectServed(traffic, from: .client, to: address, 30080, by: ["web-1"])
          try scene.expectServed(traffic, from: .node("node1"), to: address, 30080, by: ["web-2"])
        }
        try scene.lab.terminate(Self.name("web-1"), serving: false)
        try scene.sync()
        for traffic in Traffic.all {
          try scene.expectDropped(
            traffic, from: .client, to: try scene.lab.nodeAddress("node1", traffic.family), 30080)
        }
      }
    }

    @Test("of two slices: one named port with a different number in each")
    func namedPorts() throws {
      try ServiceScene.run("named") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        try scene.backend("web-2", on: "node2", tcp: 9091, udp: 9092)
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        for traffic in Traffic.all {
          let (standard, other) = traffic.transport == .tcp ? (8081, 9091) : (8082, 9092)
          for (place, port) in [(scene.target(asker), 80), (.node("node2"), 80), (.client, 30080)] {
            let address =
              port == 80 ? try service.clusterIP(traffic.family) : try scene.lab.nodeAddress("node2", traffic.family)
            let report = try scene.probe(traffic, from: place, to: address, port, count: 40)
            let reached = Set(report.results.map { "\($0.pod ?? "nobody") \($0.serverPort?.number ?? 0)" })
            #expect(report.answered == 40 && reached == ["web-1 \(standard)", "web-2 \(other)"], "\(report.summary)")
          }
        }
      }
    }

    @Test("of this node are told to load balancers at the healthCheckNodePort")
    func healthCheck() throws {
      try ServiceScene.run("health") { scene in
        var service = ServiceSpec(type: "LoadBalancer", "externalTrafficPolicy: Local", "healthCheckNodePort: 32000")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        try scene.backend("web-2", on: "node1", ready: false)
        try scene.sync()
        try expectHealth(scene, ["node1": 1, "node2": 0])
        try scene.lab.setReady(Self.name("web-2"), true)
        try scene.sync()
        try expectHealth(scene, ["node1": 2, "node2": 0])
        try scene.lab.terminate(Self.name("web-1"))
        try scene.backend("web-3", on: "node2")
        try scene.sync()
        try expectHealth(scene, ["node1": 1, "node2": 1])
        // What terminates serves on, but no load balancer is to send more.
        try scene.lab.terminate(Self.name("web-2"))
        try scene.sync()
        try expectHealth(scene, ["node1": 0, "node2": 1])

        service.lines = ["externalTrafficPolicy: Cluster"]
        try scene.apply(service)
        for node in ["node1", "node2"] {
          let address = SocketAddress(try scene.lab.nodeAddress(node, .v4), try #require(Port(32000)))
          try LabHarness.eventually("the health check of \(node) has ended") {
            try scene.lab.probe(from: .client, ProbeSpec(.tcp, to: address)).outcomes == [.refused: 1]
          }
        }
      }
    }

    private func expectHealth(_ scene: ServiceScene, _ localEndpoints: [String: Int]) throws {
      for (node, count) in localEndpoints {
        for family in IPFamily.allCases {
          for place in [LabTarget.client, .node(node)] {
            let address = SocketAddress(try scene.lab.nodeAddress(node, family), try #require(Port(32000)))
            // The server starts beside the kernel's programming: a new port needs a moment.
            var answer: PlainHTTP.Answer?
            try LabHarness.eventually("\(address) answers") {
              answer = try scene.lab.network(of: place).run { PlainHTTP.get(address, path: "/healthz") }
              return answer != nil
            }
            #expect(answer?.statusLine == (count > 0 ? "HTTP/1.1 200 OK" : "HTTP/1.1 503 Service Unavailable"))
            #expect(
              answer?.body
                == """
                {"service":{"namespace":"shop","name":"web"},"localEndpoints":\(count),"serviceProxyHealthy":true}
                """)
            #expect(answer?.headers["content-type"] == "application/json")
            #expect(answer?.headers["x-content-type-options"] == "nosniff")
            #expect(answer?.headers["x-load-balancing-endpoint-weight"] == "\(count)")
          }
        }
      }
    }
  }
}
