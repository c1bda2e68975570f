// Who may use which backend from where: traffic policies, source ranges, external addresses.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("obey policies")
  struct Policies {
    private static let remoteAsker = "asker"

    @Test("externalTrafficPolicy Local: the client's address is kept, a node without an endpoint drops")
    func externalLocal() throws {
      try ServiceScene.run("ext-local", expectedDrops: ["drop-no-local-endpoint"]) { scene in
        var service = ServiceSpec(type: "LoadBalancer", "externalTrafficPolicy: Local")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod(Self.remoteAsker, on: "node2")
        try scene.routeFromClient("203.0.113.10/32", via: "node1")
        try scene.routeFromClient("2001:db8::10/128", via: "node1")
        // Eleven leads to the same Service, by the node without an endpoint.
        service.lines.append("externalIPs: [203.0.113.11, \"2001:db8::11\"]")
        try scene.routeFromClient("203.0.113.11/32", via: "node2")
        try scene.routeFromClient("2001:db8::11/128", via: "node2")
        try scene.apply(service)

        for traffic in Traffic.all {
          let family = traffic.family
          let (near, far) = (try scene.lab.nodeAddress("node1", family), try scene.lab.nodeAddress("node2", family))
          let client = try #require(LabAddresses.client.first { $0.family == family })
          let virtual = try service.virtualIP(family)
          let external = try #require(IPAddress(family == .v4 ? "203.0.113.11" : "2001:db8::11"))
          try scene.expectServed(traffic, from: .client, to: near, 30080, by: ["web-1"], seeing: client)
          try scene.expectServed(traffic, from: .client, to: virtual, by: ["web-1"], seeing: client)
          try scene.expectDropped(traffic, from: .client, to: far, 30080)
          try scene.expectDropped(traffic, from: .client, to: external)

          // From the node without an endpoint the whole cluster's are reached: pods keep their address, itself cannot.
          let pod = try #require(asker.address(family))
          for (address, port) in [(far, 30080), (virtual, 80), (external, 80)] {
            try scene.expectServed(
              traffic, from: scene.target(asker), to: address, port, by: ["web-1"], seeing: pod)
            try scene.expectServed(traffic, from: .node("node2"), to: address, port, by: ["web-1"], seeing: far)
          }
        }
        // What was dropped is served by policy Cluster, masqueraded.
        service.lines[0] = "externalTrafficPolicy: Cluster"
        try scene.apply(service)
        for traffic in Traffic.all {
          let far = try scene.lab.nodeAddress("node2", traffic.family)
          let external = try #require(IPAddress(traffic.family == .v4 ? "203.0.113.11" : "2001:db8::11"))
          try scene.expectServed(traffic, from: .client, to: far, 30080, by: ["web-1"], seeing: far)
          try scene.expectServed(traffic, from: .client, to: external, by: ["web-1"], seeing: far)
        }
      }
    }

    @Test("externalTrafficPolicy Local: the endpoints of the node that is asked, and no other")
    func externalLocalStaysHere() throws {
      try ServiceScene.run("ext-here") { scene in
        var service = ServiceSpec(type: "NodePort", "externalTrafficPolicy: Local")
        try scene.apply(service)
        for (name, node) in [("web-1", "node1"), ("web-2", "node1"), ("web-3", "node2")] {
          try scene.backend(name, on: node)
        }
        try scene.sync()
        for traffic in Traffic.all {
          let first = try scene.lab.nodeAddress("node1", traffic.family)
          let second = try scene.lab.nodeAddress("node2", traffic.family)
          try scene.expectServed(traffic, from: .client, to: first, 30080, by: ["web-1", "web-2"])
          try scene.expectServed(traffic, from: .client, to: second, 30080, by: ["web-3"])
          try scene.expectServed(traffic, from: .node("node1"), to: first, 30080, by: ["web-1", "web-2", "web-3"])
        }
        service.lines = ["externalTrafficPolicy: Cluster"]
        try scene.apply(service)
        for traffic in Traffic.all {
          let second = try scene.lab.nodeAddress("node2", traffic.family)
          try scene.expectServed(traffic, from: .client, to: second, 30080, by: ["web-1", "web-2", "web-3"])
        }
      }
    }

    @Test("internalTrafficPolicy Local: dropped where there is no endpoint, served by the own node's where there is")
    func internalLocal() throws {
      try ServiceScene.run("int-local", expectedDrops: ["drop-no-local-endpoint"]) { scene in
        var service = ServiceSpec(type: "NodePort", "internalTrafficPolicy: Local")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let near = try scene.clientPod("near", on: "node1")
        let far = try scene.clientPod("far", on: "node2")
        for range in LabAddresses.serviceCIDRs { try scene.routeFromClient("\(range)", via: "node2") }
        try scene.sync()
        let places = [scene.target(far), .node("node2"), .client]
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          for place in places { try scene.expectDropped(traffic, from: place, to: address) }
          try scene.expectServed(traffic, from: scene.target(near), to: address, by: ["web-1"])
          try scene.expectServed(traffic, from: .node("node1"), to: address, by: ["web-1"])
          // NodePorts follow the other policy.
          let node = try scene.lab.nodeAddress("node2", traffic.family)
          try scene.expectServed(traffic, from: .client, to: node, 30080, by: ["web-1"])
        }
        try scene.backend("web-2", on: "node2")
        try scene.sync()
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          for place in places { try scene.expectServed(traffic, from: place, to: address, by: ["web-2"]) }
        }
        service.lines = ["internalTrafficPolicy: Cluster"]
        try scene.apply(service)
        for traffic in Traffic.all {
          let address = try service.clusterIP(traffic.family)
          for place in places { try scene.expectServed(traffic, from: place, to: address, by: ["web-1", "web-2"]) }
        }
      }
    }

    @Test("loadBalancerSourceRanges: hold for the load balancer's address, for everyone, and for nothing else")
    func sourceRanges() throws {
      try ServiceScene.run("ranges", expectedDrops: ["drop-source-range"]) { scene in
        let ranges = "loadBalancerSourceRanges: [192.168.100.200/32, \"fd00:100::200/128\", 10.244.1.0/24]"
        var service = ServiceSpec(type: "LoadBalancer", ranges)
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        try scene.backend("web-2", on: "node2")
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.routeFromClient("203.0.113.10/32", via: "node1")
        try scene.routeFromClient("2001:db8::10/128", via: "node1")
        let others = try ["192.168.100.201", "fd00:100::201"].map { try #require(IPAddress($0)) }
        for address in others { try scene.addAddress(address, to: .client) }
        try scene.sync()
        let all: Set = ["web-1", "web-2"]
        for traffic in Traffic.all {
          let family = traffic.family
          let (virtual, node) = (try service.virtualIP(family), try scene.lab.nodeAddress("node1", family))
          let other = try #require(others.first { $0.family == family })
          let client = try #require(LabAddresses.client.first { $0.family == family })
          try scene.expectServed(traffic, from: .client, to: virtual, by: all, source: client)
          try scene.expectDropped(traffic, from: .client, to: virtual, source: other)
          try scene.expectDropped(traffic, from: .node("node1"), to: virtual)
          // The pods' range is in the list, of one family only.
          if family == .v4 {
            try scene.expectServed(traffic, from: scene.target(asker), to: virtual, by: all)
          } else {
            try scene.expectDropped(traffic, from: scene.target(asker), to: virtual)
          }
          try scene.expectServed(traffic, from: .client, to: node, 30080, by: all, source: other)
          try scene.expectServed(traffic, from: scene.target(asker), to: try service.clusterIP(family), by: all)
        }
        service.lines = []
        try scene.apply(service)
        for traffic in Traffic.all {
          let virtual = try service.virtualIP(traffic.family)
          let other = try #require(others.first { $0.family == traffic.family })
          try scene.expectServed(traffic, from: .client, to: virtual, by: all, source: other)
          try scene.expectServed(traffic, from: .node("node1"), to: virtual, by: all)
          try scene.expectServed(traffic, from: scene.target(asker), to: virtual, by: all)
        }
      }
    }

    @Test("external addresses: externalIPs and load balancer addresses are served on every node, masqueraded")
    func externalAddresses() throws {
      try ServiceScene.run("external") { scene in
        var service = ServiceSpec(type: "LoadBalancer", "externalIPs: [198.51.100.7, \"2001:db8:7::7\"]")
        try scene.apply(service)
        try scene.backend("web-1", on: "node1")
        let asker = try scene.clientPod("asker", on: "node2")
        let routes = ["198.51.100.7/32", "2001:db8:7::7/128", "203.0.113.10/32", "2001:db8::10/128"]
        for route in routes { try scene.routeFromClient(route, via: "node2") }
        try scene.sync()
        func each(_ body: (Traffic, IPAddress) throws -> Void) throws {
          for traffic in Traffic.all {
            try body(traffic, try service.virtualIP(traffic.family))
            try body(traffic, try #require(IPAddress(traffic.family == .v4 ? "198.51.100.7" : "2001:db8:7::7")))
          }
        }
        try each { traffic, address in
          let node = try scene.lab.nodeAddress("node2", traffic.family)
          for place in [scene.target(asker), .node("node2"), .client] {
            try scene.expectServed(traffic, from: place, to: address, by: ["web-1"], seeing: node)
          }
        }
        // Nothing else answers on these addresses.
        service.lines = []
        service.hasVirtualIPs = false
        try scene.apply(service)
        try each { traffic, address in
          let report = try scene.probe(traffic, from: scene.target(asker), to: address, milliseconds: 100)
          #expect(report.answered == 0)
        }
      }
    }
  }
}
