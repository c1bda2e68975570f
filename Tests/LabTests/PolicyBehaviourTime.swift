// What a change does to the flows that live, and whose an address is.
import Glibc
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("in time", .serialized)
  struct InTime {
    /// The flows of one source, all at once: TCP and UDP, both families.
    struct Flows {
      private var works: [BackgroundWork<[EchoFlowReport]>] = []
      /// CLOCK_MONOTONIC: all were open then.
      let opened: UInt64

      init(_ stage: PolicyStage, from source: String, to destination: String, each count: Int = 1) throws {
        for traffic in Traffic.all {
          let target = SocketAddress(try stage.address(destination, traffic.family), try #require(Port(80)))
          var spec = EchoFlowSpec(traffic.mode, to: target)
          spec.flows = count
          spec.intervalMilliseconds = 50
          // Two cores and everything at once: a scheduling delay is no interruption.
          spec.gapMilliseconds = 700
          works.append(try stage.lab.startFlows(from: LabTarget(source), spec))
        }
        opened = monotonicNanoseconds()
      }

      /// All at the same time: each waits a while for its last answers.
      func stop() throws -> [EchoFlowReport] {
        let stopping = works.map { work in BackgroundWork { _ in try work.stop() } }
        return try stopping.flatMap { try $0.wait() }
      }
    }

    private static let rule =
      "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: good}}, "
      + "podSelector: {matchExpressions: [{key: role, operator: In, values: [ROLES]}]}}]}]}"

    @Test("policy.md 19: a change stops the live flows that it denies within a second, and no others")
    func recheck() throws {
      try PolicyStage.run("np-recheck") { stage in
        try stage.pod("s/server", on: "node2")
        for (name, node, role) in [
          ("a/rest", "node1", "rest"), ("a/policy", "node1", "policy"), ("a/label", "node2", "label"),
          ("b/space", "node1", "space"),
        ] {
          try stage.pod(name, on: node, labels: ["role": role])
        }
        for namespace in ["a", "b"] { try stage.lab.setLabels(ofNamespace: namespace, ["team": "good"]) }
        let all = "rest, policy, label, space"
        try stage.policy("s/np", Self.rule.replacing("ROLES", with: all))
        try stage.expect(
          .allowed("a/rest", "s/server"), .allowed("a/policy", "s/server"), .allowed("a/label", "s/server"),
          .allowed("b/space", "s/server"))

        let others = try Flows(stage, from: "a/rest", to: "s/server", each: 25)
        let changes: [(source: String, change: () throws -> Void)] = [
          ("a/policy", { try stage.policy("s/np", Self.rule.replacing("ROLES", with: "rest, label, space")) }),
          ("a/label", { try stage.lab.setLabels(PodName("a", "label"), ["role": "nobody"]) }),
          ("b/space", { try stage.lab.setLabels(ofNamespace: "b", ["team": "bad"]) }),
        ]
        for (source, change) in changes {
          let flows = try Flows(stage, from: source, to: "s/server")
          // Long enough for every flow to have been answered many times.
          usleep(500_000)
          try change()
          try stage.lab.awaitAPIServer()
          let changed = monotonicNanoseconds()
          try stage.expect(.denied(source, "s/server"), .allowed("a/rest", "s/server"))
          usleep(1_500_000)
          let stopped = monotonicNanoseconds()
          let reports = try flows.stop()
          #expect(reports.count == 4)
          for report in reports {
            // One silence, from the change to the end.
            #expect(report.gaps.count == 1 && report.received > 3 && report.broken == nil, "\(source): \(report)")
            guard let gap = report.gaps.first else { continue }
            let limit = Int((changed - flows.opened) / 1_000_000) + 1500
            #expect(gap.atMilliseconds <= limit, "\(source) was heard \(gap.atMilliseconds - limit) ms too long")
            let end = Int((stopped - flows.opened) / 1_000_000)
            #expect(gap.atMilliseconds + gap.lengthMilliseconds >= end - 100, "\(source) was heard again")
          }
        }
        let reports = try others.stop()
        #expect(reports.count == 100)
        LabHarness.expectUninterrupted(reports)
      }
    }

    @Test("policy.md 19: with --live-flows keep-established a flow that lives goes on, a new one is denied")
    func keepEstablished() throws {
      try PolicyStage.run("np-keep", agentArguments: ["--live-flows", "keep-established"]) { stage in
        try stage.fourPods()
        try stage.policy("b/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: a}}}]}]}")
        try stage.expect(.allowed("a/x", "b/x"), .denied("b/y", "b/x"))
        let flows = try Flows(stage, from: "a/x", to: "b/x", each: 5)
        usleep(300_000)
        try stage.policy("b/np", "{podSelector: {}}")
        try stage.policy("a/np", "{podSelector: {}, policyTypes: [Egress]}")
        try stage.expect(.denied("a/x", "b/x"), .denied("a/x", "b/y"))
        usleep(1_000_000)
        LabHarness.expectUninterrupted(try flows.stop())
      }
    }

    @Test("policy.md 19: that a peer's object is gone ends none of its live flows")
    func peerIsGone() throws {
      try PolicyStage.run("np-gone") { stage in
        try stage.fourPods()
        try stage.policy("b/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: a}}}]}]}")
        try stage.expect(.allowed("a/x", "b/x"), .denied("b/y", "b/x"))
        let flows = try Flows(stage, from: "a/x", to: "b/x", each: 5)
        usleep(300_000)
        try stage.lab.removeManifest("pod_a_x")
        try stage.expect(.allowed("a/y", "b/x"), .denied("a/x", "b/x"))
        usleep(1_000_000)
        LabHarness.expectUninterrupted(try flows.stop())
      }
    }

    @Test("policy.md 20: a pod that has ended is neither subject nor peer; a terminating one still is both")
    func endedPods() throws {
      try PolicyStage.run("np-ended") { stage in
        try stage.fourPods()
        let addresses = try IPFamily.allCases.map { try stage.address("b/y", $0).description }
        func old(_ phase: String) throws {
          try stage.lab.apply(
            "pod_a_old",
            """
            apiVersion: v1
            kind: Pod
            metadata: {name: old, namespace: a, uid: 22222222-2222-2222-2222-222222222222, labels: {pod: old}}
            spec: {nodeName: node1, containers: [{name: main}]}
            status:
              phase: \(phase)
              podIP: \(addresses[0])
              podIPs: [{ip: "\(addresses[0])"}, {ip: "\(addresses[1])"}]

            """)
        }
        // Its address is another's already, of another namespace and other labels.
        for phase in ["Succeeded", "Failed"] {
          try old(phase)
          try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
          try stage.expect(.denied("b/y", "a/x"), .allowed("a/y", "a/x"), .allowed("a/x", "b/y"))
          try stage.policy(
            "a/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}")
          try stage.expect(.allowed("b/y", "a/x"), .denied("a/y", "a/x"))
        }
        try stage.lab.terminate(PodName("a", "y"))
        try stage.policy("a/np", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: y}}}]}]}")
        try stage.expect(.allowed("a/y", "a/x"), .denied("b/x", "a/y"), .denied("b/y", "a/x"))
      }
    }

    @Test("policy.md 20: a live flow to an address that another pod has now is judged as a flow to that pod")
    func reusedAddress() throws {
      try PolicyStage.run("np-reuse") { stage in
        for (name, node) in [("a/x", "node1"), ("b/old", "node2")] { try stage.pod(name, on: node) }
        try stage.policy("b/np", "{podSelector: {matchLabels: {pod: new}}, ingress: [{from: [{podSelector: {}}]}]}")
        try stage.expect(.allowed("a/x", "b/old"))
        let addresses = try stage.lab.pod(PodName("b", "old")).addresses
        var works: [BackgroundWork<[EchoFlowReport]>] = []
        for address in addresses {
          var spec = EchoFlowSpec(.udp, to: SocketAddress(address, try #require(Port(80))))
          spec.survivesErrors = true
          works.append(try stage.lab.startFlows(from: LabTarget("a/x"), spec))
        }
        usleep(300_000)
        try stage.lab.removePod(PodName("b", "old"), graceful: false)
        // The store lets a freed address rest: without these marks it does not know of it.
        let marks = try stage.lab.path("/var/lib/sluice/networks/sluice/released", on: "node2")
        for name in Files.names(in: marks) { unlink("\(marks)/\(name)") }
        let new = try stage.pod("b/new", on: "node2")
        let attached = monotonicNanoseconds()
        #expect(new.addresses == addresses)
        try stage.expect(.denied("a/x", "b/new"), .allowed("node2", "b/new"))
        usleep(500_000)
        let opened = monotonicNanoseconds()
        try stage.policy("b/np", "{podSelector: {matchLabels: {pod: new}}, ingress: [{}]}")
        try stage.expect(.allowed("a/x", "b/new"))
        usleep(500_000)
        let reports = try works.flatMap { try $0.stop() }
        #expect(reports.count == 2)
        for report in reports {
          #expect(report.pods == ["old", "new"])
          let early = report.greetings.filter { $0.pod == "new" && $0.at < opened }
          // Negative where it came before ADD had returned.
          let last = early.last.map { (Int64($0.at) - Int64(attached)) / 1_000_000 } ?? 0
          #expect(
            early.count == 0,
            "\(early.count) datagrams of an old flow have reached the new pod, the last one \(last) ms after its start")
        }
      }
    }
  }
}
