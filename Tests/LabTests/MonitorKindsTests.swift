import Glibc
import LocalAPI
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab

/// What `dpctl monitor` tells on request: flows that are allowed, translations, packets on their way.
@Suite("dpctl monitor on request", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct MonitorKindsTests {
  private static let node = "node1"

  @Test("tells verdicts, translations and traces as long as somebody listens, and no longer")
  func kinds() throws {
    var configuration = LabHarness.configuration("kinds", nodes: 1)
    // By packets: what a socket translates has no translation that packets could tell of.
    (configuration.engine, configuration.socketLB) = ("ebpf", "host")
    try LabHarness.withLab(configuration) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: Self.node))
      let backend = try lab.addPod(StaticService.backend("backend"))
      let service = StaticService.echo("web", index: 1)
      try service.apply(to: lab)
      try service.scale(to: [backend], in: lab)
      try lab.waitUntilCommitted(service, [backend])
      try Files.replace(
        "\(lab.manifestsDirectory)/allow.yaml",
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: allow, namespace: shop}
        spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8081}]}]}

        """)
      try LabHarness.eventually("the policy is in force") {
        try lab.dpctl(on: Self.node, "policy", "list").stdout.contains("shop/allow")
      }
      #expect(try Self.heard(lab) == 0)
      let log = "\(lab.manifestsDirectory)/../monitor.log"
      let monitor = try lab.spawn(
        in: .node(Self.node), [LabHarness.dpctl, "monitor", "--type", "verdict,lb,trace", "-o", "wide"], log: log)
      try LabHarness.eventually("programs are asked") { try Self.heard(lab) != 0 }
      let target = try service.target(.v4)
      let report = try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: target))
      #expect(report.answered == 1, "\(report.summary)")
      func wait(for words: String...) throws {
        func hasCome() -> Bool {
          (Files.text(log) ?? "").split(separator: "\n").contains { line in words.allSatisfy { line.contains($0) } }
        }
        try LabHarness.eventually("a line with \(words)", hasCome)
        if !hasCome() { Issue.record("\(Files.text(log) ?? "no lines")") }
      }
      let (service80, backend8081) = ("10.96.0.1:80", "shop/backend:8081")
      try wait(
        for: " VERDICT ingress shop/client:", " -> \(backend8081) tcp SYN  allowed by shop/allow (NetworkPolicy)",
        "policy.h:")
      try wait(for: " LB shop/client:", " -> \(service80) tcp SYN  to \(backend8081)", "endpoint.c:")
      // The answer becomes the Service's again.
      try wait(for: " LB shop/client:", " <- \(backend8081) tcp ", "  as \(service80)", "nat.h:")
      try wait(for: " TRACE shop/client:", " -> \(backend8081) tcp ", "  passes", "endpoint.c:")
      try wait(for: " TRACE shop/client:", " <- \(backend8081) tcp ", "  passes")
      let closed = SocketAddress(target.address, try #require(Port(81)))
      #expect(try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: closed)).outcomes[.refused] == 1)
      try wait(for: " LB shop/client:", " -> 10.96.0.1:81 tcp SYN  rejected", "endpoint.c:")
      // Who asks for nothing is told nothing of it.
      let others = try lab.dpctl(on: Self.node, "monitor", "--last", "100")
      #expect(others.status == 0 && others.stdout.isEmpty, "\(others)")

      monitor.signal(SIGKILL)
      try LabHarness.eventually("nobody listens") { try Self.heard(lab) == 0 }
      // Nor do programs tell on for who was killed with the agent.
      let second = try lab.spawn(in: .node(Self.node), [LabHarness.dpctl, "monitor", "--type", "trace"], log: log)
      defer { second.signal(SIGKILL) }
      try LabHarness.eventually("programs are asked") { try Self.heard(lab) != 0 }
      try lab.killAgent(Self.node)
      #expect(try Self.heard(lab) != 0)
      try lab.startAgent(Self.node)
      #expect(try Self.heard(lab) == 0)
    }
  }

  @Test("is refused by name where the engine cannot tell")
  func refused() throws {
    var configuration = LabHarness.configuration("kinds-nft", nodes: 1)
    configuration.engine = "nftables"
    try LabHarness.withLab(configuration) { lab in
      let result = try lab.dpctl(on: Self.node, "monitor", "--type", "drop,verdict")
      #expect(result.status != 0 && result.stderr.contains("'verdict' events: not by the nftables engine"), "\(result)")
      #expect(try lab.dpctl(on: Self.node, "monitor", "--last", "1").status == 0)
    }
  }

  /// Which kinds of events programs tell, by bit.
  private static func heard(_ lab: Lab) throws -> UInt32 {
    let state = try #require(try PinnedMap.all(in: try MapDamage.pins(lab, node)).first { $0.name == "state" })
    var bits: UInt32?
    try state.forEach { key, value in
      if key.loadUnaligned(as: UInt32.self) == PacketTable.State.events { bits = value.loadUnaligned(as: UInt32.self) }
      return true
    }
    return try #require(bits)
  }
}
