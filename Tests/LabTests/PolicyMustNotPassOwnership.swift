// Tables that are the agent's own: nobody deletes them under the prober, and they outlive the agent.
import Glibc
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour.MustNotPass {
  /// Whether the kernel can make tables that outlive their owner: the agents say so themselves.
  private static func canOwnTables(_ lab: Lab) throws -> Bool {
    let status = try lab.dpctl(on: nodes[0], "status").stdout
    guard status.contains("tables unsupported") else { return true }
    print("must not pass: nothing shown of owned tables: this kernel has none (before Linux 6.9)")
    return false
  }

  /// What the agents say of their tables, and what `nft` says.
  private static func expectAccess(
    _ access: String, _ lab: Lab, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    for node in nodes {
      let status = try lab.dpctl(on: node, "status").stdout
      #expect(status.contains("tables \(access)"), "\(node): \(status)", sourceLocation: sourceLocation)
      #expect(try hasOwner(lab, node) == (access == "owned"), "\(node)", sourceLocation: sourceLocation)
    }
  }

  private static func hasOwner(_ lab: Lab, _ node: String) throws -> Bool {
    let lists = try ["ip", "ip6"].map { try lab.nft(on: node, "--terse", "list", "table", $0, "sluice").stdout }
    #expect(lists.allSatisfy { $0.contains("policy-forward") }, "\(node): \(lists)")
    return lists.allSatisfy { $0.contains("flags owner") }
  }

  /// All that is in the tables of the first node, with the kernel's handles: what is made anew has others.
  private static func handles(_ lab: Lab) throws -> Set<Substring> {
    let text = try ["ip", "ip6"].map { try lab.nft(on: nodes[0], "-a", "list", "table", $0, "sluice").stdout }.joined()
    return Set(text.split(separator: "\n").filter { $0.contains("chain ") && $0.contains("# handle ") })
  }

  /// Without ownership every one of them opens the node: `foreignRules`.
  @Test("while others try to delete elements, rules, chains, tables and the ruleset")
  func ownedTables() throws {
    try Self.run("np-owned") { stage, prober in
      let lab = stage.lab
      guard try Self.canOwnTables(lab) else { return }
      try Self.expectAccess("owned", lab)
      let address = try lab.pod(PodName("a", "stranger")).addresses[0]
      let commands: [(words: [String], isRefused: Bool)] = [
        (["delete", "element", "ip", "sluice", "identities", "{ \(address) }"], true),
        (["flush", "map", "ip6", "sluice", "pair-values"], true),
        (["flush", "set", "ip", "sluice", "own-addresses"], true),
        (["flush", "chain", "ip", "sluice", "policy-forward"], true),
        (["delete", "chain", "ip", "sluice", "policy-forward"], true),
        (["insert", "rule", "ip6", "sluice", "policy-forward", "accept"], true),
        (["flush", "table", "ip", "sluice"], true), (["delete", "table", "ip", "sluice"], true),
        (["delete", "table", "ip6", "sluice"], true), (["add", "table", "ip", "sluice", "{ flags dormant; }"], true),
        // Is done, and leaves out what is owned.
        (["flush", "ruleset"], false),
      ]
      let log = lab.agentLog(Self.nodes[0])
      let count = try prober.during {
        for _ in 0..<3 {
          for command in commands {
            for node in Self.nodes {
              let result = try lab.exec(in: .node(node), [LabHarness.nft] + command.words)
              #expect((result.status != 0) == command.isRefused, "\(command): \(result)")
              #expect(result.stderr.contains("Operation not permitted") == command.isRefused, "\(command): \(result)")
            }
          }
        }
        usleep(1_500_000)
      }
      count.expectClosed("\(3 * commands.count) attempts to delete what the agent owns")
      let news = lab.agentLog(Self.nodes[0]).dropFirst(log.count)
      #expect(!news.contains("repaired"), "\(news)")
      try Self.expectAccess("owned", lab)
    }
  }

  @Test("while an agent is dead, and its successor takes the tables as they are")
  func succession() throws {
    try Self.run("np-heir") { stage, prober in
      let lab = stage.lab
      guard try Self.canOwnTables(lab) else { return }
      let before = try Self.handles(lab)
      #expect(!before.isEmpty)
      for _ in 0..<3 {
        try prober.during {
          for node in Self.nodes { try lab.killAgent(node) }
          for node in Self.nodes { #expect(try !Self.hasOwner(lab, node), "\(node)") }
          usleep(500_000)
          for node in Self.nodes { try lab.startAgent(node) }
        }.expectClosed("tables without an owner, and with the next one")
        try Self.expectAccess("owned", lab)
      }
      // What an agent made that shared them, one that owns them takes, and the other way round.
      for (arguments, access) in [(LabHarness.sharedTables, "shared"), ([], "owned")] {
        try prober.during {
          for node in Self.nodes {
            try lab.stopAgent(node)
            try lab.startAgent(node, arguments: arguments)
          }
        }.expectClosed("tables that are now \(access)")
        try Self.expectAccess(access, lab)
      }
      #expect(try Self.handles(lab) == before, "made anew")
    }
  }

  @Test("while a second agent, or a clean-up, wants the tables of one that runs")
  func twoWriters() throws {
    try Self.run("np-second") { stage, prober in
      let lab = stage.lab
      guard try Self.canOwnTables(lab) else { return }
      let (node, agent) = (Self.nodes[0], "\(LabHarness.binDirectory)/sluice-agent")
      let elsewhere = ["--run-dir", "/run/second", "--state-dir", "/var/lib/second"]
      let second =
        elsewhere + [
          "--node-name", node, "--manifests", lab.manifestsDirectory, "--socket", "/run/second.sock",
          "--metrics-address", "127.0.0.1:10349", "--healthz-address", "127.0.0.1:10356",
        ]
      let process = try #require(lab.agentProcessID(node))
      let routes = try lab.exec(in: .node(node), ["/usr/sbin/ip", "route"]).stdout
      let files = try NodeSnapshot.take(of: node, lab).sections["files"]
      try prober.during {
        for (arguments, expected) in [
          (second, ["table ip sluice", "another program owns it", "stop the sluice-agent"]),
          (second + LabHarness.sharedTables, ["table ip sluice", "another program owns it"]),
          (["--cleanup"], ["/run/sluice/agent.lock", "Stop it first"]),
          (["--cleanup"] + elsewhere, ["table ip sluice", "another program owns it"]),
        ] {
          let result = try lab.exec(in: .node(node), [agent] + arguments)
          #expect(result.status != 0, "\(arguments)")
          for words in expected { #expect(result.stderr.contains(words), "\(arguments): \(result)") }
        }
      }.expectClosed("second agents and clean-ups")
      #expect(lab.agentProcessID(node) == process)
      #expect(try lab.exec(in: .node(node), ["/usr/sbin/ip", "route"]).stdout == routes)
      let left = Set(try NodeSnapshot.take(of: node, lab).sections["files"] ?? [])
      #expect(Set(files ?? []).subtracting(left) == [], "removed by a clean-up that was refused")
      for folder in ["/run/second", "/var/lib/second"] { Files.removeTree(try lab.path(folder, on: node)) }
      try Self.expectAccess("owned", lab)
    }
  }
}
