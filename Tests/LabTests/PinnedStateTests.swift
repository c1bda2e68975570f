import Lab
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab

/// What `dpctl` reads from the kernel itself: the agent may be dead.
@Suite("Without an agent", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct PinnedStateTests {
  private static let node = "node1"
  private static let service = StaticService.echo("web", index: 2, nodePort: 30080)

  /// A lab of one node with one pod behind a Service, and a connection from outside that lives as long as `body` runs.
  private func withFlow(_ engine: String, _ body: (Lab, LabPod) throws -> Void) throws {
    var configuration = LabHarness.configuration("pins-\(engine)", nodes: 1)
    configuration.engine = engine
    // By packets, so that flows are tracked as flows to the Service; and nothing is mended that a test damages.
    configuration.socketLB = nil
    configuration.agentArguments = ["--verify-interval", "3600"]
    try LabHarness.withLab(configuration) { lab in
      let pod = try lab.addPod(StaticService.backend("backend"))
      try Self.service.apply(to: lab)
      try Self.service.scale(to: [pod], in: lab)
      try lab.waitUntilCommitted(Self.service, [pod])
      let nodePort = try #require(Port(30080))
      var spec = EchoFlowSpec(.tcp, to: SocketAddress(try lab.nodeAddress(Self.node, .v4), nodePort))
      spec.intervalMilliseconds = 20
      spec.gapMilliseconds = 2000
      let flow = try lab.startFlows(from: .client, spec)
      try LabHarness.eventually("the flow is tracked as open") {
        try Self.flows(lab, "--port", "30080").contains { $0.text("state") == "open" }
      }
      try body(lab, pod)
      LabHarness.expectUninterrupted(try flow.stop())
    }
  }

  private static func dpctl(_ lab: Lab, _ arguments: String...) throws -> ExecResult {
    try lab.exec(in: .node(node), [LabHarness.dpctl] + arguments)
  }

  private static func flows(_ lab: Lab, _ arguments: String...) throws -> [JSONValue] {
    let result = try lab.exec(
      in: .node(node), [LabHarness.dpctl, "conntrack", "list", "-o", "json"] + arguments)
    #expect(result.status == 0, "\(result.stderr)")
    return try JSONValue(parsing: Array(result.stdout.utf8))["items"]?.arrayValue ?? []
  }

  /// The connection from outside, as every engine tells it.
  private func expectFlow(_ lab: Lab, _ pod: LabPod, sourceLocation: SourceLocation = #_sourceLocation) throws {
    let address = try #require(pod.address(.v4))
    let found = try Self.flows(lab, "--port", "30080", "--proto", "tcp", "--address", "\(address)")
    let flow = try #require(found.first, sourceLocation: sourceLocation)
    #expect(found.count == 1, "\(found)", sourceLocation: sourceLocation)
    #expect(
      flow["destination"]?.text("address") == "\(try lab.nodeAddress(Self.node, .v4))", sourceLocation: sourceLocation)
    #expect(flow["backend"]?.text("address") == "\(address)", sourceLocation: sourceLocation)
    #expect(flow["backend"]?.number("port") == 8081, sourceLocation: sourceLocation)
    #expect(flow.text("state") == "open", sourceLocation: sourceLocation)
    // Netfilter has a shorter one while something is not acknowledged.
    #expect((200...86_400).contains(flow.number("secondsLeft")), "\(flow)", sourceLocation: sourceLocation)
    #expect(try Self.flows(lab, "--port", "30080", "--proto", "udp").isEmpty, sourceLocation: sourceLocation)
    #expect(try Self.flows(lab, "--address", "192.0.2.99").isEmpty, sourceLocation: sourceLocation)
  }

  @Test("the ebpf engine's maps, flows and differences are read from pins, with the agent and without")
  func maps() throws {
    try withFlow("ebpf") { lab, pod in
      #expect(try Self.dpctl(lab, "service", "diff").status == 0)
      try expectFlow(lab, pod)
      try expectGauges(lab)
      let slot = try MapDamage(lab, Self.node, map: "slots")
      let alive = try slot.whileGone { try Self.dpctl(lab, "service", "diff") }
      #expect(alive.status == 1 && alive.stdout.contains("agent and kernel   missing   map slots: "), "\(alive)")
      try LabHarness.expectAgreement(of: lab)

      try lab.killAgent(Self.node)
      try expectFlow(lab, pod)
      try expectMaps(lab, pod)
      let whole = try Self.dpctl(lab, "service", "diff")
      #expect(whole.status == 0 && whole.stdout.isEmpty, "\(whole)")
      #expect(whole.stderr.contains("only the pinned maps are compared"))
      for map in ["slots", "sets", "members", "frontends"] {
        let damage = try MapDamage(
          lab, Self.node, map: map, where: { $0.contains("service=") || $0.contains("10.96.0.2") })
        let dead = try damage.whileGone { try Self.dpctl(lab, "service", "diff") }
        #expect(dead.status == 1 && dead.stdout.contains("missing   map \(map): "), "\(map): \(dead)")
      }
      #expect(try Self.dpctl(lab, "service", "diff").status == 0)
      let status = try Self.dpctl(lab, "status")
      #expect(status.status == 3 && status.stdout.contains("BPF maps are in place, with "), "\(status)")
      try lab.startAgent(Self.node)
      try LabHarness.expectAgreement(of: lab)
      try expectFlow(lab, pod)
    }
  }

  private func expectMaps(_ lab: Lab, _ pod: LabPod) throws {
    let list = try Self.dpctl(lab, "map", "list", "-o", "json")
    #expect(list.status == 0, "\(list.stderr)")
    let items = try JSONValue(parsing: Array(list.stdout.utf8))["items"]?.arrayValue ?? []
    let frontends = try #require(items.first { $0.text("name") == "frontends" })
    // A cluster address and a NodePort, TCP and UDP, of both families.
    #expect(frontends.number("entries") == 8 && frontends.number("maxEntries") == 131_072, "\(frontends)")
    #expect(frontends.text("kind") == "hash" && frontends.number("memoryBytes") > 0)
    #expect(Set(items.map { $0.text("name") }).isSuperset(of: ["flows", "pairs", "blocks", "lost_events", "events"]))
    #expect(try Self.dpctl(lab, "map").stdout.hasPrefix("NAME "))

    let found = try Self.dpctl(lab, "map", "get", "frontends", "10.96.0.2", "tcp")
    #expect(
      found.stdout.hasPrefix("address=10.96.0.2 port=80 protocol=tcp -> service=")
        && found.stdout.contains(" service-name=shop/web:tcp/") && found.stdout.contains(" kind=ClusterIP "), "\(found)"
    )
    #expect(found.stdout.split(separator: "\n").count == 1)
    let address = try #require(pod.address(.v4))
    let backends = try Self.dpctl(lab, "map", "get", "slots", "address=\(address)", "-o", "json")
    let lines = backends.stdout.split(separator: "\n")
    #expect(lines.count == 2, "\(backends)")
    for line in lines {
      let value = try JSONValue(parsing: Array(line.utf8))["value"]
      #expect(value?.text("address") == "\(address)" && value?.number("port") == 8081, "\(line)")
    }
    for item in items where !["events", "memory"].contains(item.text("name")) {
      let elements = try Self.dpctl(lab, "map", "get", item.text("name"))
      #expect(elements.status == 0, "\(elements.stderr)")
      let fits =
        item.text("kind") == "lru_hash" || elements.stdout.split(separator: "\n").count == item.number("entries")
      #expect(fits, "\(item): \(elements.stdout)")
    }
    let unknown = try Self.dpctl(lab, "map", "get", "flowz")
    #expect(unknown.status == 1 && unknown.stderr.contains("there is no map 'flowz'"), "\(unknown)")
    for name in ["flows", "frontends", "pairs"] { #expect(unknown.stderr.contains(" \(name)")) }
  }

  private func expectGauges(_ lab: Lab) throws {
    try LabHarness.eventually("maps are counted") {
      try lab.metrics(Self.node)["sluice_bpf_map_entries{map=\"frontends\"}"] == 8
    }
    let metrics = try lab.metrics(Self.node)
    #expect(metrics["sluice_bpf_map_max_entries{map=\"flows\"}"] == 262_144)
    #expect(metrics["sluice_events_lost_total"] == 0)
    #expect(metrics.keys.contains("sluice_tracked_flows{state=\"open\"}"))
  }

  @Test("the nftables engine's flows are told in the same words; it has no maps")
  func netfilter() throws {
    try withFlow("nftables") { lab, pod in
      try lab.killAgent(Self.node)
      try expectFlow(lab, pod)
      let list = try Self.dpctl(lab, "map", "list")
      #expect(list.status == 1 && list.stdout.isEmpty && list.stderr.contains("/sys/fs/bpf/sluice"), "\(list)")
      #expect(try Self.dpctl(lab, "service", "diff").status == 3)
      try lab.startAgent(Self.node)
    }
  }
}

extension JSONValue {
  fileprivate func text(_ key: String) -> String { self[key]?.stringValue ?? "" }
  fileprivate func number(_ key: String) -> Int64 { self[key]?.intValue ?? -1 }
}
