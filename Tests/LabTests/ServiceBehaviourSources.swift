// Whose address a backend sees.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("source addresses")
  struct Sources {
    @Test("a pod that reaches itself through ClusterIP or NodePort is seen as its node")
    func hairpin() throws {
      try ServiceScene.run("hairpin") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        let pod = try scene.backend("web-1", on: "node1")
        try scene.sync()
        for traffic in Traffic.all {
          let node = try scene.lab.nodeAddress("node1", traffic.family)
          let address = try service.clusterIP(traffic.family)
          try scene.expectServed(traffic, from: scene.target(pod), to: address, by: ["web-1"], seeing: node)
          try scene.expectServed(traffic, from: scene.target(pod), to: node, 30080, by: ["web-1"], seeing: node)
        }
        // Itself or another: only the flow to itself is masqueraded.
        let other = try scene.backend("web-2", on: "node1")
        try scene.sync()
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          let report = try scene.probe(traffic, from: scene.target(pod), to: address, count: 40)
          let node = try scene.lab.nodeAddress("node1", traffic.family)
          let itself = report.results.filter { $0.pod == "web-1" }
          let others = report.results.filter { $0.pod == "web-2" }
          #expect(report.answered == 40 && !itself.isEmpty && !others.isEmpty, "\(report.summary)")
          #expect(Set(itself.compactMap(\.client?.address)) == [node])
          #expect(Set(others.compactMap(\.client?.address)) == Set([pod.address(traffic.family)].compactMap { $0 }))
        }
        #expect(other.node == pod.node)
      }
    }

    @Test("through a Service: pods are seen as themselves, the node and clients outside as the node")
    func throughServices() throws {
      try ServiceScene.run("seen") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let near = try scene.clientPod("near", on: "node1")
        let far = try scene.clientPod("far", on: "node2")
        for range in LabAddresses.serviceCIDRs { try scene.routeFromClient("\(range)", via: "node2") }
        // A node's process may have any source address; masquerade must not depend on which.
        let odd = try ["172.31.0.7", "fd00:31::7"].map { try #require(IPAddress($0)) }
        for node in ["node1", "node2"] {
          for address in odd { try scene.addAddress(address, to: .node(node), device: "lo") }
        }
        try scene.sync()
        for traffic in Traffic.all {
          let family = traffic.family
          let (first, second) = (try scene.lab.nodeAddress("node1", family), try scene.lab.nodeAddress("node2", family))
          let address = try service.clusterIP(family)
          for pod in [near, far] {
            try scene.expectServed(
              traffic, from: scene.target(pod), to: address, by: ["web-1"], seeing: pod.address(family))
          }
          // To a pod of its own the node is seen as its InternalIP, to another's as the device it leaves by.
          let source = try #require(odd.first { $0.family == family })
          for (place, node) in [("node1", first), ("node2", second)] {
            try scene.expectServed(traffic, from: .node(place), to: address, by: ["web-1"], seeing: node)
            try scene.expectServed(
              traffic, from: .node(place), to: address, by: ["web-1"], seeing: node, source: source)
          }
          try scene.expectServed(traffic, from: .client, to: address, by: ["web-1"], seeing: second)
          // NodePort, also on the node without the backend.
          try scene.expectServed(traffic, from: .client, to: first, 30080, by: ["web-1"], seeing: first)
          try scene.expectServed(traffic, from: .client, to: second, 30080, by: ["web-1"], seeing: second)
          try scene.expectServed(traffic, from: .node("node2"), to: second, 30080, by: ["web-1"], seeing: second)
          try scene.expectServed(traffic, from: scene.target(far), to: second, 30080, by: ["web-1"], seeing: second)
          try scene.expectServed(traffic, from: scene.target(near), to: first, 30080, by: ["web-1"], seeing: first)
        }
      }
    }

    @Test("pods leave the cluster as their node, and stay themselves inside it", arguments: [true, false])
    func leavingTheCluster(isMasqueraded: Bool) throws {
      let arguments = isMasqueraded ? [] : ["--masquerade-egress", "false"]
      try ServiceScene.run("egress", agentArguments: arguments) { scene in
        let near = try scene.backend("web-1", on: "node1")
        let far = try scene.backend("web-2", on: "node2")
        let asker = try scene.clientPod("asker", on: "node1")
        let server = try scene.startServer("world", in: .client, port: 7000)
        defer { server.signal(SIGKILL) }
        // Without masquerade the answer needs a way back; with it there must be none, nor does one do harm.
        for range in LabAddresses.podCIDRs(0) where !isMasqueraded {
          try scene.routeFromClient("\(range)", via: "node1")
        }
        try scene.sync()
        for traffic in Traffic.all {
          let family = traffic.family
          let (pod, node) = (asker.address(family), try scene.lab.nodeAddress("node1", family))
          let client = try #require(LabAddresses.client.first { $0.family == family })
          try scene.expectServed(
            traffic, from: scene.target(asker), to: client, 7000, by: ["world"], seeing: isMasqueraded ? node : pod)
          let port = try #require(ServiceScene.targetPorts[traffic.transport])
          for other in [near, far] {
            let address = try #require(other.address(family))
            try scene.expectServed(
              traffic, from: scene.target(asker), to: address, port, by: [other.name.name], seeing: pod)
          }
        }
        // Nodes' addresses belong to the cluster.
        let second = try scene.startServer("second", in: .node("node2"), port: 7001)
        defer { second.signal(SIGKILL) }
        for traffic in Traffic.all {
          let address = try scene.lab.nodeAddress("node2", traffic.family)
          try scene.expectServed(
            traffic, from: scene.target(asker), to: address, 7001, by: ["second"],
            seeing: asker.address(traffic.family))
        }
      }
    }
  }
}
