// A node changes its engine: connections go on, and nothing passes meanwhile that should not.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

@Suite("Changing the engine of a running node", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct EngineSwitchTests {
  private static let nodes = ["node1", "node2"]
  /// Pods' connections by packets: one that was made at its socket has nothing to hand over.
  private static let ebpf = ["--engine", "ebpf", "--socket-lb", "host"]
  private static let nftables = ["--engine", "nftables", "--socket-lb", "off"]

  @Test(
    """
    from nftables to eBPF and back keeps direct, ClusterIP, NodePort, masqueraded and hairpin connections, TCP and UDP, both \
    families, whichever engine they began under
    """)
  func connections() throws {
    try PolicyBehaviour.MustNotPass.run("switch", agentArguments: Self.nftables) { stage, prober in
      var world = try FlowKinds(stage)
      try world.startFlows("begun under nftables")
      for (arguments, engine) in [(Self.ebpf, "ebpf"), (Self.nftables, "nftables"), (Self.ebpf, "ebpf")] {
        try prober.during { try Self.change(stage.lab, to: arguments, from: engine == "ebpf" ? "nftables" : "eBPF") }
          .expectClosed("a change to \(engine)", losesNothing: false)
        try stage.expectFlows(&world, "after the change to \(engine)")
        if world.generations == 1 { try world.startFlows("begun under ebpf") }
      }
      // Three changes of two nodes; what is held back of UDP is lost: 200 ms of each, twice that on a machine shared.
      try world.expectFlowsLived(losing: LabHarness.sharesMachine ? 120 : 60)
    }
  }

  @Test("wherever the agents are killed meanwhile, opens nothing, and heals")
  func kills() throws {
    try PolicyBehaviour.MustNotPass.run("switch-killed", agentArguments: Self.nftables) { stage, prober in
      var random = SeededRandom("switch")
      for arguments in [Self.ebpf, Self.nftables] {
        try prober.during {
          for round in 1...12 {
            // Mostly on the way there, sometimes back.
            let other = arguments == Self.ebpf ? Self.nftables : Self.ebpf
            for node in Self.nodes {
              try stage.lab.killAgent(node)
              try stage.lab.startAgent(node, arguments: round % 4 == 0 ? other : arguments, waits: false)
            }
            usleep(UInt32.random(in: 20_000...400_000, using: &random))
          }
          for node in Self.nodes { try stage.lab.killAgent(node) }
          for node in Self.nodes { try stage.lab.startAgent(node, arguments: arguments) }
        }.expectClosed("killed 12 times on the way to \(arguments[1])", losesNothing: false)
        try prober.waitUntilClosed("there")
        for node in Self.nodes { try Self.expectAlone(arguments[1], stage.lab, node) }
      }
    }
  }

  @Test(
    """
    connections from one port to a Service, its node port and its backend stay three connections; one more, balanced at its \
    socket, has the tuple of one that was balanced by packets before, and is one for itself
    """)
  func onePort() throws {
    // Chains of nftables are not there any more at the end.
    let held: Set<String> = LabHarness.configuration("").engine == "ebpf" ? ["engine-switch"] : []
    try ServiceScene.run("switch-port", agentArguments: Self.nftables, expectedDrops: held) { scene in
      let service = ServiceSpec(type: "NodePort")
      try scene.apply(service)
      let asker = try scene.clientPod("asker", on: "node1")
      let backend = try scene.backend("web-1", on: "node2")
      try scene.sync()
      /// TCP sends again what was held back.
      func begin(_ port: UInt16, _ order: [Int]) throws -> [OnePort] {
        try IPFamily.allCases.map {
          try OnePort(from: asker, to: backend, service, $0, port: port, order, gapMilliseconds: 3000, scene.lab)
        }
      }
      let before = try begin(20_001, [0, 1, 2])
      let alone = try begin(20_002, [0])
      for (arguments, former) in [
        (Self.ebpf, "nftables"), (Self.nftables, "eBPF"), (["--engine", "ebpf", "--socket-lb", "all"], "nftables"),
      ] { try Self.change(scene.lab, to: arguments, from: former) }
      let atSocket = try begin(20_002, [0])
      for (flows, name) in [(before, "three"), (alone, "of before"), (atSocket, "at the socket")] {
        for flow in flows { try flow.expectAnswered(name) }
      }
    }
  }

  /// Changes one node after the other.
  private static func change(_ lab: Lab, to arguments: [String], from old: String) throws {
    for node in nodes {
      var log = LogTail(lab.agentLogPath(node))
      try lab.stopAgent(node)
      try lab.startAgent(node, arguments: arguments)
      let line = log.newLines().first { $0.contains("packet path taken over from \(old)") }
      print("engine switch: \(node): \(try #require(line))")
      try expectAlone(arguments[1], lab, node)
    }
  }

  /// Only this engine has anything on the node's packet path.
  private static func expectAlone(_ engine: String, _ lab: Lab, _ node: String) throws {
    let tables = try lab.exec(in: .node(node), [LabHarness.nft, "list", "tables"]).stdout
    #expect(tables.contains("table ip sluice") == (engine == "nftables"), "\(node): \(tables)")
    let chains = try lab.exec(in: .node(node), [LabHarness.nft, "list", "ruleset"]).stdout
    #expect(!chains.contains("flags dormant"), "\(node)")
    // One for each program at each device.
    let links = try lab.exec(in: .node(node), ["/bin/ls", "/sys/fs/bpf/sluice"]).stdout
    #expect(links.contains("tc-from_pod") == (engine == "ebpf"), "\(node): \(links)")
  }
}

extension PolicyStage {
  /// New connections work as well as old ones.
  fileprivate func expectFlows(_ world: inout FlowKinds, _ what: String) throws {
    try expect(
      .allowed("a/client", "s/near"), .allowed("a/client", "s/far"), .denied("a/stranger", "s/near"),
      .denied("a/stranger", "s/far"))
    usleep(500_000)
  }
}
