// What a client is told where there is nobody to serve it.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("without a backend")
  struct Refusals {
    @Test("refuse at once, from a pod, the node and outside, through every frontend, and serve the first that comes")
    func noEndpoints() throws {
      try ServiceScene.run("refuse") { scene in
        let service = ServiceSpec(type: "LoadBalancer", "externalIPs: [198.51.100.7, \"2001:db8:7::7\"]")
        try scene.apply(service)
        let routes = ["198.51.100.7/32", "2001:db8:7::7/128", "203.0.113.10/32", "2001:db8::10/128"]
        for route in routes + LabAddresses.serviceCIDRs.map(\.description) {
          try scene.routeFromClient(route, via: "node1")
        }
        // Every question from an address of its own: Linux limits ICMP errors per receiver.
        var asker = 0
        func expectAllRefused() throws {
          for traffic in Traffic.all {
            let frontends = try frontends(service, traffic, scene)
            for (address, port) in frontends {
              asker += 1
              let text = traffic.family == .v4 ? "192.168.100.\(20 + asker)" : "fd00:100::1:\(asker)"
              let source = try #require(IPAddress(text))
              try scene.addAddress(source, to: .client)
              try scene.expectRefused(traffic, from: .client, to: address, port, source: source)
              try scene.expectRefused(traffic, from: .node("node1"), to: address, port)
            }
          }
        }
        try expectAllRefused()
        // A pod has one address: one pod for each frontend.
        for index in 0..<4 {
          let pod = try scene.clientPod("asker-\(index)", on: "node1")
          for traffic in Traffic.all {
            let (address, port) = try frontends(service, traffic, scene)[index]
            try scene.expectRefused(traffic, from: scene.target(pod), to: address, port)
          }
        }

        let pod = try scene.backend("web-1", on: "node2", ready: false)
        try scene.sync()
        for traffic in Traffic.all {
          try scene.expectRefused(traffic, from: .node("node1"), to: try service.clusterIP(traffic.family))
        }
        try scene.lab.setReady(pod.name, true)
        try scene.sync()
        for traffic in Traffic.all {
          for (address, port) in try frontends(service, traffic, scene) {
            for place in [LabTarget.pod(PodName(ServiceSpec.namespace, "asker-0")), .node("node1"), .client] {
              try scene.expectServed(traffic, from: place, to: address, port, by: ["web-1"])
            }
          }
        }
        try scene.lab.setReady(pod.name, false)
        try scene.sync()
        try expectAllRefused()
      }
    }

    private func frontends(
      _ service: ServiceSpec, _ traffic: Traffic, _ scene: ServiceScene
    ) throws -> [(IPAddress, Int)] {
      [
        (try service.clusterIP(traffic.family), 80), (try scene.lab.nodeAddress("node1", traffic.family), 30080),
        (try service.virtualIP(traffic.family), 80),
        (try #require(IPAddress(traffic.family == .v4 ? "198.51.100.7" : "2001:db8:7::7")), 80),
      ]
    }

    @Test("refuse an undefined port, and drop what is sent to an address of a ServiceCIDR that no Service has")
    func undefinedPorts() throws {
      try ServiceScene.run("undefined", expectedDrops: ["drop-unallocated"]) { scene in
        let service = ServiceSpec()
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod("asker", on: "node1")
        let second = try scene.clientPod("second", on: "node1")
        for range in LabAddresses.serviceCIDRs { try scene.routeFromClient("\(range)", via: "node1") }
        let fresh = try ["192.168.100.210", "fd00:100::210"].map { try #require(IPAddress($0)) }
        for address in fresh { try scene.addAddress(address, to: .client) }
        // Somebody beyond the default route who has the address: what is not dropped is answered.
        let unallocated = try ["10.96.200.1", "fd00:10:96::2001"].map { try #require(IPAddress($0)) }
        for address in unallocated {
          try scene.addAddressAnswering(address, to: .switch, device: "br0", others: fresh)
        }
        let server = try scene.startServer("beyond", in: .switch, port: 7000)
        defer { server.signal(SIGKILL) }
        let places = [scene.target(asker), .node("node1"), .client]
        func each(_ body: (Traffic, LabTarget, IPAddress) throws -> Void) throws {
          for traffic in Traffic.all {
            let address = try #require(unallocated.first { $0.family == traffic.family })
            for place in places { try body(traffic, place, address) }
          }
        }
        try each { try scene.expectServed($0, from: $1, to: $2, 7000, by: ["beyond"]) }
        try scene.lab.apply(
          "cidrs",
          """
          apiVersion: networking.k8s.io/v1
          kind: ServiceCIDR
          metadata: {name: kubernetes}
          spec: {cidrs: [10.96.0.0/16, "fd00:10:96::/112"]}
          """)
        try scene.sync()
        try each { try scene.expectDropped($0, from: $1, to: $2, 7000) }
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          // Not the client's own address: ICMP redirects have used up its share of ICMP messages.
          let source = try #require(fresh.first { $0.family == traffic.family })
          for place in [scene.target(second), .node("node1")] {
            try scene.expectServed(traffic, from: place, to: address, by: ["web-1"])
            try scene.expectRefused(traffic, from: place, to: address, 81)
          }
          try scene.expectServed(traffic, from: .client, to: address, by: ["web-1"], source: source)
          try scene.expectRefused(traffic, from: .client, to: address, 81, source: source)
        }
        try scene.lab.removeManifest("cidrs")
        try scene.sync()
        try each { try scene.expectServed($0, from: $1, to: $2, 7000, by: ["beyond"]) }
      }
    }
  }
}
