// What must not pass does not, whatever happens to the agent and to its tables.
import Glibc
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("must not pass", .serialized)
  struct MustNotPass {
    static let nodes = ["node1", "node2"]
    private static let server =
      "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{namespaceSelector: {}, "
      + "podSelector: {matchLabels: {role: client}}}]}]}"
    private static let cage = "{podSelector: {matchLabels: {cage: shut}}, policyTypes: [Egress]}"

    /// A stranger whom the servers do not admit, one in a cage who may not go out, and a client who may: to a server on
    /// their own node and to one on another. Before and after `body` no policy is in force, and everything passes.
    static func run(
      _ purpose: String, without absent: String? = nil, agentArguments: [String] = [],
      _ body: (PolicyStage, MustNotPassProber) throws -> Void
    ) throws {
      try PolicyStage.run(purpose, agentArguments: agentArguments) { stage in
        for (name, node) in [("s/near", "node1"), ("s/far", "node2")] {
          try stage.pod(name, on: node, labels: ["role": "server"])
        }
        let labels = [
          "a/stranger": ["role": "stranger"], "a/caged": ["role": "client", "cage": "shut"],
          "a/client": ["role": "client"],
        ]
        for (name, labels) in labels where name != absent { try stage.pod(name, on: "node1", labels: labels) }
        func close() throws {
          try stage.policy("s/np", server)
          try stage.policy("a/cage", cage)
        }
        let lab = stage.lab
        let sources = try labels.keys.sorted().filter { $0 != absent }.map { name in
          let pod = try lab.pod(try #require(PodName(name)))
          return ProbeSource(
            name: name, network: try lab.network(of: .pod(pod.name)), addresses: pod.addresses,
            isAllowed: name == "a/client")
        }
        let servers = try ["s/near", "s/far"].map { try lab.pod(try #require(PodName($0))) }
        let prober = try MustNotPassProber(
          from: sources, to: servers.map { ("\($0.name)", $0.addresses) },
          seenBy: servers.map { ProbeWitness(network: try lab.network(of: .pod($0.name)), kind: .incoming) })
        do {
          try prober.expectOpen("before any policy")
          try close()
          try prober.waitUntilClosed("with the policies")
          try body(stage, prober)
          try PolicyStage.expectAgreement(of: lab)
          for name in ["s/np", "a/cage"] { try stage.removePolicy(name) }
          try lab.awaitAPIServer()
          try prober.expectOpen("after all policies")
        } catch {
          try? prober.stop()
          throw error
        }
        try prober.stop()
      }
    }

    @Test("while agents are restarted and killed")
    func restarts() throws {
      try Self.run("np-prober") { stage, prober in
        let lab = stage.lab
        try prober.during {
          for node in Self.nodes + Self.nodes {
            try lab.stopAgent(node)
            usleep(200_000)
            try lab.startAgent(node)
          }
        }.expectClosed("agents restarted, and away for a while")
        try prober.during {
          for round in 1...10 {
            // What it was told of last it may or may not have put into the kernel.
            try lab.setLabels(PodName("a", "stranger"), ["role": "stranger", "round": "\(round)"])
            try stage.policy("s/round", Self.server.replacing("client", with: "nobody-\(round)"))
            for node in Self.nodes { try lab.killAgent(node) }
            for node in Self.nodes { try lab.startAgent(node, waits: false) }
            for node in Self.nodes { try lab.waitUntilAgentIsReady(node) }
          }
        }.expectClosed("agents killed 10 times while policies and labels change")
        try stage.removePolicy("s/round")
      }
    }

    @Test("while classes are split 1,000 times")
    func splits() throws {
      try Self.run("np-splits") { stage, prober in
        // Rules that tell colours and teams apart, and let nobody do anything but what the others say.
        for (index, colour) in ["red", "green", "blue"].enumerated() {
          try stage.policy(
            "s/colour-\(colour)",
            "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{namespaceSelector: {}, "
              + "podSelector: {matchLabels: {colour: \(colour)}}}], ports: [{port: \(6000 + index)}]}]}")
        }
        let log = LogTail(stage.lab.agentLogPath("node1"))
        var splits = Splits(stage: stage, log: log)
        try prober.during { while splits.moves < 1000 { try splits.next() } }
          .expectClosed("1,000 class splits")
        print("must not pass: \(splits.changes) changes, \(splits.moves) of them moved addresses to other identities")
        for name in ["s/colour-red", "s/colour-green", "s/colour-blue", "s/more"] { try stage.removePolicy(name) }
      }
    }

    @Test("while others take elements out of our tables, where they are shared")
    func foreignElements() throws {
      try Self.run("np-taken", agentArguments: LabHarness.sharedTables) { stage, prober in
        let stranger = try stage.lab.pod(PodName("a", "stranger")).addresses
        let one = zip(["ip", "ip6"], stranger).map { ["delete", "element", $0, "sluice", "identities", "{ \($1) }"] }
        func flush(_ map: String, kind: String = "map") -> [[String]] {
          ["ip", "ip6"].map { ["flush", kind, $0, "sluice", map] }
        }
        for (what, commands) in [
          ("an identity", one), ("identities", flush("identities")), ("pairs", flush("pair-values")),
          ("subjects", flush("ingress-subjects") + flush("egress-subjects")), ("verdicts", flush("verdicts")),
          ("clauses", flush("clause-labels") + flush("outcomes") + flush("port-ranges")),
          ("interfaces", flush("local-interfaces", kind: "set")),
        ] {
          let count = try prober.during { try Self.damage(stage.lab, commands) }
          count.expectClosed("\(what) taken away", losesNothing: false)
          try prober.waitUntilClosed("\(what), mended")
        }
      }
    }

    @Test(
      """
      where tables are shared, once the agent has seen that others deleted its rules; until then everything does, and it \
      sees it soon
      """)
    func foreignRules() throws {
      try Self.run("np-deleted", agentArguments: LabHarness.sharedTables) { stage, prober in
        func both(_ command: String...) -> [[String]] {
          ["ip", "ip6"].map { family in command.map { $0 == "FAMILY" ? family : $0 } }
        }
        for (what, commands) in [
          ("chain policy-forward flushed", both("flush", "chain", "FAMILY", "sluice", "policy-forward")),
          ("table deleted", both("delete", "table", "FAMILY", "sluice")), ("ruleset flushed", [["flush", "ruleset"]]),
        ] {
          let count = try prober.during { try Self.damage(stage.lab, commands) }
          print("must not pass: \(what), which opens until it is mended: \(count)")
          let open = try #require(count.leak, "\(what): nothing passed without the rules, so that nothing was shown")
          #expect(open.count < Self.longestOpening, "\(what): \(count)")
          try prober.during(milliseconds: 1000).expectClosed("\(what), mended")
        }
      }
    }

    /// In milliseconds. The agent looks twenty times a second whether somebody else took rules away; the rest is two busy
    /// processors.
    private static let longestOpening = 600

    /// Has somebody else change our tables on both nodes, and waits until both agents have mended them.
    private static func damage(_ lab: Lab, _ commands: [[String]]) throws {
      let nft = try #require(["/usr/sbin/nft", "/sbin/nft"].first { Files.exists($0) })
      var logs = nodes.map { LogTail(lab.agentLogPath($0)) }
      for node in nodes {
        // In one transaction.
        let script = commands.map { $0.joined(separator: " ") }.joined(separator: "\n") + "\n"
        let result = try lab.exec(in: .node(node), [nft, "-f", "-"], input: script)
        #expect(result.status == 0, "\(commands): \(result.stderr)")
      }
      for index in logs.indices {
        try LabHarness.eventually("\(nodes[index]): \(commands) is mended") {
          logs[index].newLines().contains { $0.contains("] kernel repaired") }
        }
      }
    }

    /// Changes that have pods' addresses go from one identity to another.
    private struct Splits {
      let stage: PolicyStage
      var log: LogTail
      var changes = 0
      var moves = 0

      mutating func next() throws {
        let colours = ["red", "green", "blue"]
        let colour = colours[changes % 3]
        switch changes % 7 {
        case 0: try label("stranger", ["role": "stranger", "colour": colour])
        case 1: try label("caged", ["role": "client", "cage": "shut", "colour": colour])
        case 2: try label("client", ["role": "client", "colour": colour])
        case 3: try label("stranger", ["role": "stranger"])
        case 4: try label("caged", ["role": "client", "cage": "shut"])
        case 5: try label("client", ["role": "client"])
        default:
          // A peer of its own for each of them splits or joins the class that they are in.
          if changes % 2 == 0 {
            try stage.policy(
              "s/more",
              "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{namespaceSelector: {}, "
                + "podSelector: {matchLabels: {role: stranger}}}], ports: [{port: 5999}]}]}")
          } else {
            try stage.removePolicy("s/more")
          }
        }
        changes += 1
        let deadline = monotonicNanoseconds() + 500_000_000
        while true {
          let programmed = log.newLines().filter { $0.hasSuffix("] programmed") }
          moves += programmed.count { !$0.contains("identities=0 ") }
          if !programmed.isEmpty || monotonicNanoseconds() > deadline { return }
          usleep(200)
        }
      }

      private func label(_ name: String, _ labels: [String: String]) throws {
        try stage.lab.setLabels(PodName("a", name), labels)
      }
    }
  }
}
