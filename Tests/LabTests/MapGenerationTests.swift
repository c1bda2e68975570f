// Another generation of maps and programs takes the place of the one that serves.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

@Suite("Another generation of BPF maps", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct MapGenerationTests {
  private static let ebpf = ["--engine", "ebpf", "--socket-lb", "host"]
  /// None as the programs' files have it: no map can be taken over, as from a build with other layouts.
  private static let others = [
    "flows=200000", "attempts=60000", "translations=250000", "fragments=9000", "affinities=50000", "connections=100000",
    "told_peers=50000", "real_peers=50000", "endpoints=3000", "pod_devices=3000", "addresses=100000", "ranges=10000",
    "uplinks=200", "identities=500000", "blocks=200000", "pairs=500000", "ports=200000", "port_ranges=200000",
    "clauses=100000", "frontends=100000", "sets=100000", "slots=200000", "members=200000", "node_addresses=3000",
    "sources=50000", "clients=9000",
  ]

  @Test("a build with other maps, and back: flows of every kind go on, nothing is lost and nothing passes")
  func upgrade() throws {
    try PolicyBehaviour.MustNotPass.run("generation", agentArguments: Self.ebpf) { stage, prober in
      let lab = stage.lab
      var flows = try FlowKinds(stage)
      try flows.startFlows("before")
      for arguments in [["--bpf-map-entries", Self.others.joined(separator: ",")], []] {
        try prober.during {
          for node in ["node1", "node2"] {
            let before = try Self.pins(lab, node)
            try lab.stopAgent(node)
            try lab.startAgent(node, arguments: Self.ebpf + arguments)
            let after = try Self.pins(lab, node)
            let kept = before.intersection(after).filter { $0.hasPrefix("map-") }
            // Of one size whatever is asked for.
            #expect(
              Set(kept.map { String($0.split(separator: "-")[1]) })
                == ["drops", "events", "internal_addresses", "lost_events", "memory", "state"],
              "\(node): \(kept.sorted())")
            #expect(before.filter { $0.hasPrefix("tc-") } == after.filter { $0.hasPrefix("tc-") }, "\(node)")
          }
        }.expectClosed("maps with \(arguments.isEmpty ? "their own" : "other") bounds")
        usleep(500_000)
      }
      try flows.expectFlowsLived()
    }
  }

  @Test("a map that is full grows while it serves: every change gets into the kernel, and no flow notices")
  func growth() throws {
    var configuration = LabHarness.configuration("growth", nodes: 1)
    configuration.engine = "ebpf"
    configuration.socketLB = "host"
    configuration.agentArguments = ["--bpf-map-entries", "frontends=8,members=16,addresses=24"]
    // The change that finds no room says so before it is programmed with more.
    try LabHarness.withLab(configuration, expectedErrors: ["programming failed"]) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let backend = try lab.addPod(try StaticService.backend("web"))
      let services = (1...40).map { StaticService.echo("web-\($0)", index: $0) }
      try Self.apply(services[0], backend, lab)
      try lab.waitUntilCommitted(services[0], [backend])
      var spec = EchoFlowSpec(.tcp, to: try services[0].target(.v4))
      spec.flows = 4
      let flows = try lab.startFlows(from: .pod(client.name), spec)
      for service in services.dropFirst() {
        try Self.apply(service, backend, lab)
        usleep(30_000)
      }
      for service in services { try Self.expectServed(service, client, lab) }
      LabHarness.expectUninterrupted(try flows.stop())
      let grown = lab.agentLog("node1").split(separator: "\n").filter { $0.contains("map grows") }
      print("map growth: \(grown.count) times")
      for map in ["frontends", "members", "addresses"] {
        #expect(grown.contains { $0.contains("map=\(map)") }, "\(map): \(grown)")
      }
      try LabHarness.expectAgreement(of: lab)
      let pins = try Self.pins(lab, "node1")
      #expect(pins.count { $0.hasPrefix("map-frontends-") } == 1, "\(pins)")
    }
  }

  private static func apply(_ service: StaticService, _ backend: LabPod, _ lab: Lab) throws {
    try service.apply(to: lab)
    try service.scale(to: [backend], in: lab)
  }

  private static func expectServed(_ service: StaticService, _ client: LabPod, _ lab: Lab) throws {
    for family in IPFamily.allCases {
      let spec = ProbeSpec(.tcp, to: try service.target(family), count: 1)
      // Each step of growth loads all programs anew; nothing is lost meanwhile, but changes wait.
      try LabHarness.eventually(milliseconds: 20_000, "\(service.name) is served, \(family)") {
        try lab.startProbe(from: .pod(client.name), spec).wait().answered == 1
      }
    }
  }

  private static func pins(_ lab: Lab, _ node: String) throws -> Set<String> {
    Set(
      try lab.exec(in: .node(node), ["/bin/ls", "/sys/fs/bpf/sluice"]).stdout.split(separator: "\n").map(String.init))
  }
}
