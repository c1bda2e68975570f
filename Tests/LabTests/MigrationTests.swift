// A node that kube-proxy served is taken over: nobody's connection ends, and nothing of kube-proxy stays.
import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "Taking a node over from kube-proxy", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct MigrationTests {
  private static let nodes = ["node1", "node2"]

  @Test(
    """
    --migrate-from kube-proxy: of 1,000 new connections a second and of long flows none is lost, and what is left in the \
    kernel is what others have; without it the agent does not start beside kube-proxy's rules
    """,
    arguments: KubeProxyRules.Layout.allCases.map { ($0, "nftables") } + [(.nftables, "ebpf"), (.legacy, "ebpf")])
  func migration(layout: KubeProxyRules.Layout, engine: String) throws {
    var configuration = LabHarness.configuration("migration")
    // Who attaches the pods; that node then loses it again.
    (configuration.engine, configuration.socketLB) = ("nftables", nil)
    try LabHarness.withLab(configuration, expectedErrors: ["kube-proxy runs, or ran"]) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try Self.nodes.map { try lab.addPod(StaticService.backend("backend-\($0)", node: $0)) }
      let service = StaticService.echo("web", index: 1, nodePort: 30080)
      let rules = KubeProxyRules(service: service, pods: pods)
      var before: [String: [String]] = [:]
      for node in Self.nodes {
        try lab.killAgent(node)
        for family in ["ip", "ip6"] { _ = try lab.nft(on: node, "delete", "table", family, "sluice") }
        try rules.install(layout, on: node, of: lab)
        before[node] = try KubeProxyRules.inForce(on: node, of: lab)
      }
      try service.apply(to: lab)
      try service.scale(to: pods, in: lab)

      let refusal = #expect(throws: LabError.self) { try lab.startAgent("node1", arguments: ["--engine", engine]) }
      let place = layout == .nftables ? "table ip6 kube-proxy" : "nat KUBE-SERVICES"
      #expect("\(try #require(refusal))".contains(place), "\(String(describing: refusal))")
      #expect("\(try #require(refusal))".contains("--migrate-from kube-proxy"))
      #expect(try KubeProxyRules.inForce(on: "node1", of: lab) == before["node1"])

      // Through kube-proxy's rules alone.
      let traffic = try Traffic(lab, client, service, nodesOwn: engine == "nftables")
      usleep(300_000)
      for node in Self.nodes {
        var log = LogTail(lab.agentLogPath(node))
        let arguments = ["--engine", engine] + (layout == .legacy && engine == "ebpf" ? ["--socket-lb", "host"] : [])
        try lab.startAgent(node, arguments: arguments + ["--migrate-from", "kube-proxy"])
        try LabHarness.eventually("\(node) has taken over") {
          log.newLines().contains { $0.contains("rules of kube-proxy removed") && $0.contains(place) }
        }
        // What was held back is sent again a second later: not into the other node's change.
        usleep(1_500_000)
      }
      for node in Self.nodes {
        let lines = (Files.text(lab.agentLogPath(node)) ?? "").split(separator: "\n")
        for line in lines where line.contains("taken over") { print("migration: \(node): \(line)") }
      }
      try traffic.expectNothingLost(losingOfUDP: engine == "ebpf" ? 60 : 0, "\(layout) -> \(engine)")

      for node in Self.nodes {
        let left = try KubeProxyRules.inForce(on: node, of: lab)
        #expect(left == before[node]?.filter { !Self.isKubeProxys($0) }, "\(node)")
        #expect(left.count < before[node]?.count ?? 0)
      }
      // Whoever answers now is who the agent says.
      try service.scale(to: [pods[1]], in: lab)
      try lab.waitUntilCommitted(service, [pods[1]])
      for family in IPFamily.allCases {
        let report = try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: try service.target(family), count: 20))
        #expect(report.backends == ["backend-node2": 20], "\(report.summary)")
      }
      try lab.expectNoDifference(on: "node1")
    }
  }

  /// As a human would tell from the words of a rule.
  private static func isKubeProxys(_ line: String) -> Bool {
    line.contains("kube-proxy") || line.contains("kubernetes service portals")
      || line.contains("KUBE-") && !line.contains("KUBE-FIREWALL") && !line.contains("KUBE-KUBELET-CANARY")
  }

  /// New connections and long ones, from a pod, from outside and from the node, in both families.
  private struct Traffic {
    private var probes: [(name: String, work: BackgroundWork<ProbeReport>)] = []
    private var flows: [(name: String, isUDP: Bool, work: BackgroundWork<[EchoFlowReport]>)] = []

    /// - Parameter nodesOwn: the node's own connections too; made under netfilter, they cannot be handed to sockets.
    init(_ lab: Lab, _ client: LabPod, _ service: StaticService, nodesOwn: Bool) throws {
      for family in IPFamily.allCases {
        let port = try #require(Port(30080))
        let ways: [(LabTarget, SocketAddress)] = [
          (.pod(client.name), try service.target(family)),
          (.client, SocketAddress(try lab.nodeAddress("node1", family), port)),
        ]
        for (place, target) in ways {
          // All there are until they are stopped.
          var spec = ProbeSpec(.tcp, to: target, count: 1_000_000)
          spec.rate = 250
          probes.append(("\(place) to \(target)", try lab.startProbe(from: place, spec)))
        }
        for mode in [ProbeSpec.Mode.tcp, .udp] {
          let nodePort = try #require(Port(mode == .tcp ? 30080 : 30081))
          try start(lab, .pod(client.name), mode, try service.target(family))
          try start(lab, .client, mode, SocketAddress(try lab.nodeAddress("node1", family), nodePort))
          if nodesOwn { try start(lab, .node("node1"), mode, try service.target(family)) }
        }
      }
    }

    private mutating func start(_ lab: Lab, _ place: LabTarget, _ mode: ProbeSpec.Mode, _ target: SocketAddress) throws
    {
      var spec = EchoFlowSpec(mode, to: target)
      spec.flows = 4
      spec.intervalMilliseconds = 20
      spec.gapMilliseconds = 2000
      flows.append(("\(mode) from \(place) to \(target)", mode == .udp, try lab.startFlows(from: place, spec)))
    }

    func expectNothingLost(losingOfUDP: Int, _ name: String) throws {
      var count = 0
      for (way, work) in probes {
        let report = try work.stop()
        count += report.answered
        #expect(report.failures.isEmpty, "\(name): \(way): \(report.summary)")
        #expect(report.backends.count == 2, "\(name): \(way): \(report.backends)")
      }
      let stops = flows.map { flow in (flow.name, flow.isUDP, BackgroundWork { _ in try flow.work.stop() }) }
      var messages = 0
      for (way, isUDP, stop) in stops {
        for report in try stop.wait() {
          messages += report.received
          let words = "\(name): \(way): \(report.json.serialized())"
          #expect(report.broken == nil && report.sent > 30, "\(words)")
          #expect(isUDP || report.gaps == [], "\(words)")
          #expect(report.sent - report.received <= (isUDP ? losingOfUDP : 0), "\(words)")
          #expect(report.pods.count == 1, "\(name): \(way) did not stay with its backend: \(report.pods)")
        }
      }
      print("migration: \(name): \(count) new connections, \(messages) messages of \(flows.count * 4) flows")
    }
  }
}
