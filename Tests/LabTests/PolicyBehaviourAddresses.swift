// Blocks, Services, nodes, and pods that are their node.
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("addresses", .serialized)
  struct Addresses {
    @Test("policy.md 12: a block is about addresses, pods and nodes included, and never about the other family")
    func blocks() throws {
      try PolicyStage.run("np-blocks") { stage in
        try stage.fourPods()
        func from(_ peers: String) throws {
          try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [\(peers)]}]}")
        }
        try from("{ipBlock: {cidr: 0.0.0.0/0}}")
        try stage.expect(
          .allowed("b/x", "a/x").only(.v4), .allowed("client", "a/x").only(.v4), .allowed("node2", "a/x").only(.v4),
          .denied("b/x", "a/x").only(.v6), .denied("client", "a/x").only(.v6), .denied("node2", "a/x").only(.v6))
        // What one item leaves out, another may allow.
        let pod = try stage.address("b/x", .v4)
        try from("{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}")
        try stage.expect(.denied("b/x", "a/x").only(.v4), .allowed("b/y", "a/x").only(.v4), .denied("client", "a/x"))
        try from("{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}, {ipBlock: {cidr: \(pod)/32}}")
        try stage.expect(.allowed("b/x", "a/x").only(.v4), .denied("a/y", "a/x").only(.v4))
        try from("{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}")
        try stage.policy("a/more", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.0/24}}]}]}")
        try stage.expect(.allowed("b/x", "a/x").only(.v4), .allowed("a/y", "a/x").only(.v4))
        try stage.removePolicy("a/more")
        // As stored objects may have them.
        try from("{ipBlock: {cidr: 010.244.2.99/24}}, {ipBlock: {cidr: 'FD00:10:244:2::7/64'}}")
        try stage.expect(.allowed("b/x", "a/x"), .denied("b/y", "a/x"))
      }
    }

    @Test("policy.md 13: policies judge the pod behind a Service and the client before masquerade")
    func services() throws {
      try PolicyStage.run("np-services") { stage in
        try stage.fourPods()
        try stage.service("a/front", number: 10, selects: "x")
        // To the pod's port and address, not to the Service's.
        try stage.policy(
          "a/np",
          "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}, "
            + "podSelector: {matchLabels: {pod: x}}}], ports: [{port: 80}]}]}")
        for virtual in ["10.96.0.10", "fd00:10:96::10"] {
          try stage.expect(.allowed("b/x", virtual, .tcp(1080)), .denied("b/y", virtual, .tcp(1080), .udp(1080)))
        }
        try stage.policy("a/np", "{podSelector: {}, ingress: [{ports: [{port: 1080}]}]}")
        for virtual in ["10.96.0.10", "fd00:10:96::10"] { try stage.expect(.denied("b/x", virtual, .tcp(1080))) }
        // Through its own node's NodePort the client is itself, through another node's it is that node.
        try stage.policy(
          "a/np",
          "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.100.200/32}}, {ipBlock: {cidr: 'fd00:100::200/128'}}]}]}"
        )
        try stage.expect(
          .allowed("client", "node1", .tcp(30080), .udp(30080)), .denied("client", "node2", .tcp(30080), .udp(30080)))
        try stage.policy(
          "a/np",
          "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.100.12/32}}, {ipBlock: {cidr: 'fd00:100::12/128'}}]}]}"
        )
        try stage.expect(
          .denied("client", "node1", .tcp(30080), .udp(30080)), .allowed("client", "node2", .tcp(30080), .udp(30080)))
        // Egress: the Service's address in a block means nothing, its pods do.
        try stage.removePolicy("a/np")
        try stage.policy(
          "b/np", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}]}")
        try stage.expect(.denied("b/x", "10.96.0.10", .tcp(1080)))
        try stage.policy(
          "b/np", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16}}]}]}")
        try stage.expect(.allowed("b/x", "10.96.0.10", .tcp(1080)), .denied("b/x", "fd00:10:96::10", .tcp(1080)))
      }
    }

    @Test("policy.md 14: a pod reaches itself: by its address, by loopback, through its own Service")
    func itself() throws {
      try PolicyStage.run("np-itself") { stage in
        try stage.fourPods()
        try stage.service("a/front", number: 10, selects: "x")
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
        try stage.expect(
          .denied("a/x", "a/y"), .denied("b/x", "a/x"), .allowed("a/x", "a/x", .tcp(80), .udp(81), .icmpEcho))
        for own in ["127.0.0.1", "::1"] { try stage.expect(.allowed("a/x", own)) }
        for virtual in ["10.96.0.10", "fd00:10:96::10"] {
          try stage.expect(
            .allowed("a/x", virtual, .tcp(1080), .udp(1080)), .denied("a/y", virtual, .tcp(1080), .udp(1080)))
        }
      }
    }

    @Test("policy.md 15: a pod's own node always reaches it, another node does not; egress to the own node is judged")
    func ownNode() throws {
      try PolicyStage.run("np-node") { stage in
        try stage.fourPods()
        for node in ["node1", "node2"] { try stage.serve(on: node) }
        try stage.expect(.allowed("a/x", "node1"), .allowed("a/x", "node2"))
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
        try stage.expect(
          .allowed("node1", "a/x", .tcp(80), .udp(81), .icmpEcho),
          .denied("node2", "a/x", .tcp(80), .udp(81), .icmpEcho),
          .allowed("node2", "a/y"), .denied("node1", "a/y"), .denied("a/x", "node1"), .denied("a/x", "node2"))
      }
    }

    @Test("policy.md 15: the node is an origin, not an address: what comes from elsewhere with its address is dropped")
    func forgedNode() throws {
      try PolicyStage.run("np-forged") { stage in
        try stage.pod("a/x", on: "node1")
        try stage.pod("a/y", on: "node1")
        let receiver = PodName("a", "x")
        for family in IPFamily.allCases {
          let target = SocketAddress(try stage.address("a/x", family), try #require(Port(80)))
          func send(from source: IPAddress, in place: LabTarget) throws {
            let packet = ForgedDatagram(source: source, destination: target)
            for _ in 0..<5 { try stage.lab.network(of: place).run { try packet.send() } }
          }
          // The honest one shows that such packets are sent, arrive and are counted.
          let before = try stage.receivedDatagrams(by: receiver, family)
          try send(from: try stage.address("client", family), in: .client)
          try LabHarness.eventually("\(family): honest packets arrive") {
            try stage.receivedDatagrams(by: receiver, family) == before + 5
          }
          let forgeries: [(source: String, place: LabTarget)] = [
            ("node1", .client), ("a/y", .client), ("node1", .pod(PodName("a", "y"))),
            ("client", .pod(PodName("a", "y"))),
          ]
          let counted = try stage.dropped(for: "forged-source", on: "node1")
          for (number, forgery) in forgeries.enumerated() {
            try send(from: try stage.address(forgery.source, family), in: forgery.place)
            try LabHarness.eventually("\(family): forgery \(number + 1) is dropped and counted") {
              try stage.dropped(for: "forged-source", on: "node1") == counted + 5 * (number + 1)
            }
          }
          #expect(try stage.receivedDatagrams(by: receiver, family) == before + 5)
        }
      }
    }

    @Test("policy.md 16: a hostNetwork pod is its node: no subject, no pod peer, but an address")
    func hostNetwork() throws {
      try PolicyStage.run("np-host") { stage in
        try stage.fourPods()
        try stage.serve(on: "node2")
        let addresses = try IPFamily.allCases.map { try stage.address("node2", $0).description }
        try stage.lab.apply(
          "pod_a_agent",
          """
          apiVersion: v1
          kind: Pod
          metadata: {name: agent, namespace: a, uid: 11111111-1111-1111-1111-111111111111, labels: {pod: agent}}
          spec: {nodeName: node2, hostNetwork: true, containers: [{name: main}]}
          status:
            phase: Running
            podIP: \(addresses[0])
            podIPs: [{ip: "\(addresses[0])"}, {ip: "\(addresses[1])"}]

          """)
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}")
        try stage.expect(.allowed("a/y", "a/x"), .denied("node2", "a/x"), .allowed("b/y", "node2"))
        try stage.policy(
          "a/np",
          "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: \(addresses[0])/32}}, {ipBlock: {cidr: '\(addresses[1])/128'}}]}]}"
        )
        try stage.expect(.denied("a/y", "a/x"), .allowed("node2", "a/x"))
      }
    }

    @Test("policy.md 17: every address of a pod counts, of both families")
    func bothFamilies() throws {
      try PolicyStage.run("np-families") { stage in
        try stage.fourPods()
        try stage.policy(
          "a/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}")
        try stage.expect(
          .allowed("b/x", "a/x").only(.v4), .allowed("b/x", "a/x").only(.v6), .denied("a/y", "a/x").only(.v4),
          .denied("a/y", "a/x").only(.v6))
        try stage.policy("b/np", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}")
        try stage.expect(
          .denied("b/x", "a/x").only(.v4), .denied("b/x", "a/x").only(.v6), .allowed("b/x", "b/y").only(.v4),
          .allowed("b/x", "b/y").only(.v6))
      }
    }
  }
}
