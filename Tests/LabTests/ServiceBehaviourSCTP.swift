// SCTP through a Service, where the kernel speaks it.
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("SCTP")
  struct SCTP {
    /// nil where SCTP can be tested here, else why not.
    static let obstacle: String? = {
      let code = PlainStream.support(Int32(L4Protocol.sctp.rawValue))
      guard code != 0 else { return nil }
      let reason = "SCTP is not tested: this kernel has no SCTP sockets (\(String(cString: strerror(code))))"
      print(reason)
      return reason
    }()

    /// The same steps over TCP show that the test itself works where SCTP cannot be had.
    @Test(
      "and TCP: a connection through ClusterIP reaches the backend, from the client's own address",
      arguments: [L4Protocol.tcp, .sctp].filter { $0 != .sctp || obstacle == nil })
    func clusterIP(transport: L4Protocol) throws {
      try ServiceScene.run("stream-\(transport)") { scene in
        let spec = PodSpec(ServiceSpec.namespace, "web-1", node: "node2", labels: ["app": "web"])
        let backend = try scene.lab.addPod(spec)
        let asker = try scene.clientPod("asker", on: "node1")
        try scene.lab.apply(
          "web",
          """
          apiVersion: v1
          kind: Service
          metadata: {name: web, namespace: shop}
          spec:
            ipFamilies: [IPv4, IPv6]
            clusterIPs: [10.96.0.10, "fd00:10:96::10"]
            selector: {app: web}
            ports: [{protocol: \(transport.kubernetesName), port: 38412, targetPort: 38412}]
          """)
        try scene.sync()
        let port = try #require(Port(38412))
        let number = Int32(transport.rawValue)
        for family in IPFamily.allCases {
          let address = try #require(IPAddress(family == .v4 ? "10.96.0.10" : "fd00:10:96::10"))
          let listener = try scene.lab.network(of: .pod(backend.name)).run {
            PlainStream.listener(family, port: port, protocolNumber: number)
          }
          let server = try #require(listener)
          let connected = try scene.lab.network(of: .pod(asker.name)).run {
            PlainStream(connectingTo: SocketAddress(address, port), protocolNumber: number)
          }
          let client = try #require(connected)
          let accepted = try #require(server.accept())
          accepted.stream.write("hello")
          #expect(client.read() == "hello")
          #expect(accepted.client == asker.address(family))
        }
      }
    }
  }
}
