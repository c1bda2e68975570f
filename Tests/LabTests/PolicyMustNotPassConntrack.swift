// What must not pass while the kernel cannot track another flow. Its limit is the whole machine's: in a virtual machine.
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour.MustNotPass {
  static let ownsMachine = getenv("SLUICE_OWN_MACHINE") != nil

  /// The kernel drops each new flow's packets before any rule sees them: nothing denied passes, what is allowed is lost,
  /// and flows that live go on.
  @Test(
    "while conntrack's table is full",
    .enabled(if: ownsMachine, "its limit is the whole machine's: make vm-test runs this in a virtual machine"))
  func fullTable() throws {
    let node = "node1"
    try Self.run("np-full", without: "a/caged") { stage, prober in
      let lab = stage.lab
      // Only entries of flows that were answered keep their place when it gets tight.
      let flows = try ["s/near", "s/far"].flatMap { server in
        try IPFamily.allCases.map { family in
          var spec = EchoFlowSpec(.tcp, to: SocketAddress(try stage.address(server, family), try #require(Port(80))))
          spec.flows = Self.liveFlows / 2
          spec.intervalMilliseconds = 200
          // Emulated, beside others: longer than any silence there, and still one that a lost flow never ends.
          spec.gapMilliseconds = 10_000
          return try lab.startFlows(from: .pod(PodName("a", "client")), spec)
        }
      }
      let limit = try Int(Sysctl.read("net", "netfilter", "nf_conntrack_max")) ?? 0
      try Sysctl.write("net", "netfilter", "nf_conntrack_max", value: Self.liveFlows)
      defer { try? Sysctl.write("net", "netfilter", "nf_conntrack_max", value: limit) }
      // Entries of unanswered flows give way to the next ones until none is left.
      try LabHarness.eventually(milliseconds: 60_000, "no new flow has a place") {
        let count = try prober.during(milliseconds: 300)
        return count.lostAllowed == count.sentAllowed && count.sentAllowed > 0
      }
      let before = try Self.refused(on: node, lab)
      let count = try prober.during {
        usleep(4_000_000)
        try lab.killAgent(node)
        usleep(4_000_000)
      }
      count.expectClosed("a full conntrack table, the agent killed", losesNothing: false, isAtFullRate: false)
      // In emulation, beside others: some 400 a second where the machine has time for them.
      #expect(count.sentDenied > Int(count.seconds * 100), "\(count)")
      // A place may become free, for one that is allowed, when a flow ends.
      #expect(count.lostAllowed * 100 > count.sentAllowed * 95, "the table was not full all the time: \(count)")
      let refused = try Self.refused(on: node, lab) - before
      print("must not pass: \(node) had no place for \(refused) flows")
      #expect(refused > count.sentDenied)
      LabHarness.expectUninterrupted(try flows.flatMap { try $0.stop() })
      try Sysctl.write("net", "netfilter", "nf_conntrack_max", value: limit)
      try lab.startAgent(node)
      try prober.waitUntilClosed("with room in the table again")
    }
  }

  /// To each server. The table has room for these alone.
  private static let liveFlows = 50

  /// Packets that the node has dropped because their flow had no place.
  private static func refused(on node: String, _ lab: Lab) throws -> Int {
    // One line of numbers per CPU under their names.
    let text = try lab.network(of: .node(node)).run { Files.text("/proc/thread-self/net/stat/nf_conntrack") ?? "" }
    let lines = text.split(separator: "\n").map { $0.split(separator: " ") }
    let column = try #require(lines.first?.firstIndex(of: "drop"))
    return lines.dropFirst().reduce(0) { $0 + (Int($1[column], radix: 16) ?? 0) }
  }
}
