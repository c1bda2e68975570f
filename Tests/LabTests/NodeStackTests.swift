// What a pod's connection to a Service on its own node costs the node's network stack.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

@Suite("A Service on the pod's own node", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct NodeStackTests {
  private static let connections = 1200

  @Test(
    "meets neither netfilter's conntrack nor IP forwarding by eBPF, at sockets and by packets; both by nftables",
    arguments: [("ebpf", "all"), ("ebpf", "host"), ("nftables", "off")])
  func cost(engine: String, sockets: String) throws {
    var configuration = LabHarness.configuration("stack", nodes: 1)
    configuration.engine = engine
    configuration.socketLB = sockets
    try LabHarness.withLab(configuration) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let backend = try lab.addPod(try StaticService.backend("web"))
      let service = StaticService.echo("web", index: 1)
      try service.apply(to: lab)
      try service.scale(to: [backend], in: lab)
      try lab.waitUntilCommitted(service, [backend])
      // With a policy: what is judged is not tracked elsewhere for it.
      try lab.apply(
        "np",
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: web, namespace: shop}
        spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{}]}

        """)
      usleep(500_000)
      for family in IPFamily.allCases {
        let before = try StackCounters(lab, family)
        let spec = ProbeSpec(.tcp, to: try service.target(family), count: Self.connections)
        let report = try lab.startProbe(from: .pod(client.name), spec).wait()
        #expect(report.answered == Self.connections, "\(report.summary)")
        let after = try StackCounters(lab, family)
        let (tracked, forwarded) = (after.tracked - before.tracked, after.forwarded - before.forwarded)
        print("node stack: \(engine), sockets \(sockets), \(family): \(tracked) tracked, \(forwarded) forwarded")
        if engine == "ebpf" {
          #expect(after.tracked == 0 && forwarded == 0, "\(family): \(after)")
        } else {
          // Several packets each. Some flows may have ended meanwhile.
          #expect(tracked > 1000 && forwarded > 4 * Self.connections, "\(family): \(after)")
        }
      }
    }
  }

  private struct StackCounters {
    /// Flows in the node's conntrack.
    var tracked: Int
    /// Packets that the node's IP layer has forwarded.
    var forwarded: Int

    init(_ lab: Lab, _ family: IPFamily) throws {
      // Files of /proc tell of the reader's namespace; sysctls too, by the process that reads.
      func read(_ file: String) throws -> String { try lab.exec(in: .node("node1"), ["/bin/cat", file]).stdout }
      tracked = try #require(
        Int(try read("/proc/sys/net/netfilter/nf_conntrack_count").filter(\.isNumber)), "conntrack is not there")
      if family == .v6 {
        let line = try read("/proc/net/snmp6").split(separator: "\n").first { $0.hasPrefix("Ip6OutForwDatagrams") }
        forwarded = try #require(line?.split { $0 == " " || $0 == "\t" }.last.flatMap { Int($0) })
        return
      }
      let lines = try read("/proc/net/snmp").split(separator: "\n").filter { $0.hasPrefix("Ip:") }
        .map { $0.split(separator: " ") }
      try #require(lines.count == 2)
      let column = try #require(lines[0].firstIndex(of: "ForwDatagrams"))
      forwarded = try #require(Int(lines[1][column]))
    }
  }
}
