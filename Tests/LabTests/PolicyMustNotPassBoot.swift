// A node whose agent comes late: what the runtime tries meanwhile opens nothing.
import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour.MustNotPass {
  /// What a node remembers of the time before.
  enum Memory: String, CaseIterable {
    /// A boot empties /run.
    case none
    /// The tables are gone, and the plugin knows enough to begin.
    case nodeFacts
  }

  @Test("when the agent comes late: no attempt to start a pod lets anything in or out", arguments: Memory.allCases)
  func lateAgent(memory: Memory) throws {
    let node = "node1"
    try PolicyStage.run("np-late") { stage in
      let lab = stage.lab
      let free = try stage.pod("free/pod", on: "node2")
      try stage.policy("shut/np", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
      let pod = try ProbedSandbox(PodName("shut", "pod"), on: node, in: lab)

      try lab.killAgent(node)
      let nft = try lab.nft(on: node, "flush", "ruleset")
      #expect(nft.status == 0, "\(nft.stderr)")
      if memory == .none { Files.removeTree(try lab.path("/run/sluice", on: node)) }

      // Pods get addresses in order, and this is the node's first one.
      let addresses = LabAddresses.podCIDRs(0).compactMap {
        IPAddress(family: $0.family, number: $0.address.number + 1)
      }
      let network = try lab.network(of: .node(node))
      let uplink = try #require(try RouteSocket(in: network).link(named: "eth0")).index
      let prober = try MustNotPassProber(
        from: [
          ProbeSource(
            name: "free/pod", network: try lab.network(of: .pod(free.name)), addresses: free.addresses,
            isAllowed: false),
          ProbeSource(name: "shut/pod", network: pod.network, addresses: addresses, isAllowed: false),
        ], to: [("free/pod", free.addresses), ("shut/pod", addresses)],
        seenBy: [
          ProbeWitness(network: network, kind: .outgoing, otherThan: Int32(uplink)),
          ProbeWitness(network: try lab.network(of: .pod(free.name)), kind: .incoming),
        ])
      defer { try? prober.stop() }
      let rested = try lab.path("/var/lib/sluice/networks/sluice/released", on: node)
      var attempts = 0
      var count = try prober.during {
        let end = monotonicNanoseconds() + 2_000_000_000
        while monotonicNanoseconds() < end {
          #expect(throws: LabError.self, "ADD without an agent") { try pod.attach() }
          attempts += 1
          // The store lets a freed address rest: the next attempt is to get it again, as it is the one that is asked.
          for name in Files.names(in: rested) { unlink("\(rested)/\(name)") }
        }
        try lab.startAgent(node)
        try lab.awaitAPIServer()
        // The network configuration of the time before makes the agent look ready before it has written these.
        let facts = try lab.path("/run/sluice/node.json", on: node)
        try LabHarness.eventually("the agent writes what the plugin needs") { Files.exists(facts) }
        #expect(try pod.attach() == addresses)
        usleep(500_000)
      }
      print("must not pass: \(attempts) attempts to start a pod without an agent")
      count.expectClosed("a boot with a late agent, \(memory)", isAtFullRate: false)
      count = try prober.during(milliseconds: 500)
      count.expectClosed("a boot with a late agent, \(memory), later")
      try stage.removePolicy("shut/np")
      try prober.expectOpen("the late agent's pod, without its policy")
      try pod.detach()
    }
  }
}

/// A pod's sandbox that is attached as often as one likes.
struct ProbedSandbox {
  private let lab: Lab
  private let pod: LabPod
  let network: NetworkNamespace

  /// The sandbox and the Pod object; no attachment yet.
  init(_ name: PodName, on node: String, in lab: Lab) throws {
    self.lab = lab
    pod = try lab.createSandbox(of: PodSpec(name.namespace, name.name, node: node))
    network = NetworkNamespace(path: try lab.path(pod.netnsPath, on: node))
  }

  /// One ADD; the pod's addresses.
  func attach() throws -> [IPAddress] {
    let result = try lab.attach(pod)
    return (result["ips"]?.arrayValue ?? []).compactMap { ip in
      ip["address"]?.stringValue?.split(separator: "/").first.flatMap { IPAddress($0) }
    }
  }

  func detach() throws { try lab.detach(pod) }
}
