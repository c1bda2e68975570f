// A hop that takes 1,280 bytes, behind translation: senders learn of it by ICMP errors that were translated outside and inside.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

@Suite("A hop of 1,280 bytes", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct PathMTUTests {
  private static let hop = 1280

  @Test(
    "is learnt by a pod of a Service, by a backend of a masqueraded client, and by a pod that leaves the cluster",
    arguments: [("nftables", "off"), ("ebpf", "host")])
  func learnt(engine: String, sockets: String) throws {
    var configuration = LabHarness.configuration("mtu")
    (configuration.engine, configuration.socketLB) = (engine, sockets)
    try LabHarness.withLab(configuration) { lab in
      let stage = PolicyStage(lab)
      let service = StaticService.echo("web", index: 1, nodePort: 30080)
      try lab.addPod(PodSpec("shop", "asker", node: "node1"))
      let backend = try lab.addPod(try StaticService.backend("web", node: "node2"))
      try service.apply(to: lab)
      try service.scale(to: [backend], in: lab)
      try lab.waitUntilCommitted(service, [backend])
      try stage.serve(on: "client")
      usleep(300_000)
      for family in IPFamily.allCases {
        let outside = try #require(LabAddresses.client.first { $0.family == family })
        let pod = try #require(backend.address(family))
        // Before, packets of full size are in use everywhere.
        let asker = LabTarget.pod(PodName("shop", "asker"))
        let virtual = try service.target(family)
        try Self.exchange(lab, asker, virtual, "before, \(family)")
        #expect(try Self.learnt(lab, asker, virtual.address) == nil)
        // Both hops are the first node's: to the backend's pod, and to who is outside.
        try Self.narrow(lab, pod, via: try lab.nodeAddress("node2", family))
        try Self.narrow(lab, outside, via: nil)

        try Self.exchange(lab, asker, virtual, "a pod to a ClusterIP, \(family)")
        #expect(
          try Self.learnt(lab, asker, virtual.address) == Self.hop, "of the address that the pod knows, \(family)")

        try Self.exchange(lab, asker, SocketAddress(outside, try #require(Port(80))), "out of the cluster, \(family)")
        #expect(try Self.learnt(lab, asker, outside) == Self.hop, "of who is outside, \(family)")

        // Last: the client learns of its own way in, and would announce small segments.
        let nodePort = SocketAddress(try lab.nodeAddress("node1", family), try #require(Port(30080)))
        try Self.exchange(lab, .client, nodePort, "from outside to a NodePort, \(family)")
        // The client is masqueraded: the backend knows the first node only, on whose way to the client the hop is.
        #expect(
          try Self.learnt(lab, .pod(backend.name), try lab.nodeAddress("node1", family)) == Self.hop,
          "of the node that the backend knows, \(family)")
      }
    }
  }

  private static func narrow(_ lab: Lab, _ address: IPAddress, via: IPAddress?) throws {
    let way = via.map { ["via", "\($0)"] } ?? ["dev", "eth0"]
    let result = try lab.exec(
      in: .node("node1"),
      ["ip", address.family == .v4 ? "-4" : "-6", "route", "add", "\(address)"] + way + ["mtu", "\(hop)"])
    #expect(result.status == 0, "\(result.stderr)")
  }

  /// Sends lines that fill many packets, and expects all of them back.
  private static func exchange(_ lab: Lab, _ place: LabTarget, _ target: SocketAddress, _ what: String) throws {
    let text = String(repeating: String(repeating: "x", count: 999) + "\n", count: 200)
    let received = try lab.network(of: place).run { () -> Int? in
      guard let stream = PlainStream(connectingTo: target, protocolNumber: Int32(IPPROTO_TCP)) else { return nil }
      stream.write(text)
      var (count, part) = (0, stream.read())
      while !part.isEmpty {
        count += part.utf8.count
        if count >= text.utf8.count + 20 { break }
        part = stream.read()
      }
      return count
    }
    // A greeting comes first.
    #expect(try #require(received, "\(what): no connection") > text.utf8.count, "\(what)")
  }

  /// What the place's own routes say it has learnt of packets to that address; nil: nothing.
  private static func learnt(_ lab: Lab, _ place: LabTarget, _ address: IPAddress) throws -> Int? {
    let words = try lab.exec(in: place, ["ip", "route", "get", "\(address)"]).stdout
      .split { $0 == " " || $0 == "\n" }
    guard let mark = words.firstIndex(of: "mtu"), mark + 1 < words.count else { return nil }
    return Int(words[mark + 1])
  }
}
