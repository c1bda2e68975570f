// Long flows of every kind that a packet path has a hand in.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

/// Flows of every kind that an engine has a hand in.
struct FlowKinds {
  let stage: PolicyStage
  private let web = StaticService.echo("web", index: 50, nodePort: 30080)
  private let own = StaticService.echo("self", index: 51)
  private var flows: [(name: String, mode: ProbeSpec.Mode, work: BackgroundWork<[EchoFlowReport]>)] = []
  private(set) var generations = 0

  init(_ stage: PolicyStage) throws {
    self.stage = stage
    let lab = stage.lab
    let backends = try [("web-1", "node1"), ("web-2", "node2")].map {
      try lab.addPod(try StaticService.backend($0, node: $1))
    }
    let itself = try lab.addPod(try StaticService.backend("self", node: "node1"))
    try lab.addPod(PodSpec("shop", "asker", node: "node1"))
    for (service, pods) in [(web, backends), (own, [itself])] {
      try service.apply(to: lab)
      try service.scale(to: pods, in: lab)
      try lab.waitUntilCommitted(service, pods)
    }
    // Answers pass only where somebody knows that they are: begun from here nothing may go out.
    for pod in ["web-1", "web-2"] {
      try lab.setLabels(PodName("shop", pod), ["role": "web"])
    }
    try stage.policy(
      "shop/web", "{podSelector: {matchLabels: {role: web}}, policyTypes: [Ingress, Egress], ingress: [{}]}")
    try stage.policy("shop/asker", "{podSelector: {matchLabels: {pod: asker}}, policyTypes: [Ingress]}")
    try lab.setLabels(PodName("shop", "asker"), ["pod": "asker"])
    try stage.serve(on: "client")
    usleep(300_000)
  }

  mutating func startFlows(_ when: String) throws {
    generations += 1
    let lab = stage.lab
    let asker = LabTarget.pod(PodName("shop", "asker"))
    for family in IPFamily.allCases {
      let backendPort = try #require(Port(8081))
      for mode in [ProbeSpec.Mode.tcp, .udp] {
        for backend in ["web-1", "web-2"] {
          let address = try #require(try lab.pod(PodName("shop", backend)).address(family))
          try start("direct", asker, mode, SocketAddress(address, backendPort))
        }
        try start("ClusterIP", asker, mode, try web.target(family))
        try start("hairpin", .pod(PodName("shop", "self")), mode, try own.target(family))
        let nodePort = try #require(Port(mode == .tcp ? 30080 : 30081))
        for node in ["node1", "node2"] {
          try start("NodePort", .client, mode, SocketAddress(try lab.nodeAddress(node, family), nodePort))
        }
        let outside = try #require(LabAddresses.client.first { $0.family == family })
        try start("masqueraded", asker, mode, SocketAddress(outside, try #require(Port(80))))
      }
    }
  }

  private mutating func start(
    _ kind: String, _ place: LabTarget, _ mode: ProbeSpec.Mode, _ target: SocketAddress
  ) throws {
    var spec = EchoFlowSpec(mode, to: target)
    spec.flows = 3
    spec.intervalMilliseconds = 20
    // TCP sends again what was held back.
    spec.gapMilliseconds = 3000
    spec.survivesErrors = mode == .udp
    flows.append(
      ("\(kind), \(mode) to \(target), set \(generations)", mode, try stage.lab.startFlows(from: place, spec)))
  }

  /// Every flow is alive, with the server that it began with.
  ///
  /// - Parameter losing: fewer datagrams of a flow than that.
  mutating func expectFlowsLived(losing: Int = 1, atLeast: Int = 100) throws {
    let end = monotonicNanoseconds()
    let stops = flows.map { flow in (flow.name, flow.mode, BackgroundWork { _ in try flow.work.stop() }) }
    flows = []
    for (name, mode, stop) in stops {
      for report in try stop.wait() {
        #expect(report.broken == nil && (mode == .udp || report.gaps.isEmpty), "\(name): \(report)")
        #expect(report.pods.count == 1, "\(name) did not stay with its backend: \(report.pods)")
        let last = try #require(report.greetings.last)
        #expect(mode == .tcp || last.at + 500_000_000 > end, "\(name): answers ended early: \(report)")
        #expect(report.sent > atLeast, "\(name): a flow that sent nothing proves nothing")
        let lost = report.sent - report.received
        #expect(mode == .tcp ? lost == 0 : lost < losing, "\(name): \(lost) of \(report.sent) lost: \(report)")
      }
    }
  }
}
