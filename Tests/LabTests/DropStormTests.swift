// A pod that sends what it may not, as fast as it can.
import Glibc
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

@Suite("A storm of denied packets", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct DropStormTests {
  @Test("is counted to the packet, tells or counts each event, and leaves the agent its time", arguments: ["ebpf"])
  func storm(engine: String) throws {
    var configuration = LabHarness.configuration("storm", nodes: 1)
    configuration.engine = engine
    try LabHarness.withLab(configuration) { lab in
      let stage = PolicyStage(lab)
      try stage.pod("a/sender", on: "node1")
      try stage.pod("a/target", on: "node1")
      try stage.policy("a/cage", "{podSelector: {matchLabels: {pod: sender}}, policyTypes: [Egress]}")
      try stage.expect(.denied("a/sender", "a/target", .udp(80)))
      let target = try stage.address("a/target", .v4)
      // Nothing else is on its way.
      usleep(300_000)
      let agent = try #require(lab.agentProcessID("node1"))
      let before = try Counts(lab)
      let (used, began) = (try Self.processorTicks(of: agent), monotonicNanoseconds())
      let storm = try lab.network(of: .pod(PodName("a", "sender"))).run {
        try Storm.send(to: SocketAddress(target, try #require(Port(81))), count: 600_000)
      }
      let seconds = Double(monotonicNanoseconds() - began) / 1e9
      let share =
        Double(try Self.processorTicks(of: agent) - used) / Double(sysconf(CInt(_SC_CLK_TCK))) / seconds
      // What the agent leaves for the next second it reads then.
      var after = try Counts(lab)
      try LabHarness.eventually(milliseconds: 8000, "every event is told or counted as lost") {
        after = try Counts(lab)
        return after.told + after.lost - before.told - before.lost >= Double(storm.arrived)
      }
      let (dropped, clause) = (after.dropped - before.dropped, after.denied - before.denied)
      let (told, lost) = (after.told - before.told, after.lost - before.lost)
      print(
        "drop storm: \(engine): \(storm.sent) sent at \(Int(Double(storm.sent) / seconds)) a second, \(storm.arrived)",
        "reached the node, \(Int(dropped)) counted as dropped, \(Int(clause)) for the policy, \(Int(told)) told,",
        "\(Int(lost)) lost; agent \(Int(share * 100)) % of a processor")
      #expect(dropped == Double(storm.arrived) && clause == Double(storm.arrived))
      #expect(told + lost == Double(storm.arrived))
      #expect(told > 1000 && lost > 1000, "a storm that leaves nothing untold is none")
      #expect(share < 0.5)
    }
  }

  /// What the agent has counted.
  private struct Counts {
    var dropped: Double
    var denied: Double
    var told: Double
    var lost: Double

    init(_ lab: Lab) throws {
      let metrics = try lab.metrics("node1")
      func sum(_ name: String, _ labels: String...) -> Double {
        metrics.filter { entry in
          (entry.key == name || entry.key.hasPrefix("\(name){")) && labels.allSatisfy { entry.key.contains($0) }
        }.reduce(0) { $0 + $1.value }
      }
      dropped = sum("sluice_drop_packets_total", "policy-denied")
      denied = sum("sluice_policy_verdict_packets_total", "verdict=\"deny\"")
      told = sum("sluice_events_total", "drop")
      lost = sum("sluice_events_lost_total")
    }
  }

  /// User and system, in clock ticks.
  private static func processorTicks(of process: pid_t) throws -> Int {
    let text = try #require(Files.text("/proc/\(process)/stat"))
    let fields = try #require(text.split(separator: ")").last).split(separator: " ")
    let (user, system) = (try #require(Int(fields[11])), try #require(Int(fields[12])))
    return user + system
  }
}

/// Datagrams as fast as one processor sends them.
private struct Storm {
  var sent: Int
  /// Less what the sender's own device had no room for.
  var arrived: Int

  static func send(to target: SocketAddress, count: Int) throws -> Storm {
    let descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = target.port.number.bigEndian
    target.address.bytes.withUnsafeBytes { address.sin_addr.s_addr = $0.loadUnaligned(as: UInt32.self) }
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(connected == 0)
    let before = try transmitDrops()
    var (sent, byte) = (0, UInt8(0))
    for _ in 0..<count where Glibc.send(descriptor, &byte, 1, 0) == 1 { sent += 1 }
    return Storm(sent: sent, arrived: sent - (try transmitDrops() - before))
  }

  private static func transmitDrops() throws -> Int {
    let lines = (Files.text("/proc/thread-self/net/dev") ?? "").split(separator: "\n")
    let line = try #require(lines.first { $0.contains("eth0:") })
    let fields = try #require(line.split(separator: ":").last).split(separator: " ")
    return try #require(Int(fields[11]))
  }
}
