import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite("A killed agent", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct CrashTests {
  private static let node = CrashWorld.node

  @Test("breaks no flow, however often it is killed while slices change")
  func killedAtRandomMoments() throws {
    try LabHarness.withLab(LabHarness.configuration("killed", nodes: 1)) { lab in
      var world = try CrashWorld(lab)
      try world.startFlows()
      var random = SeededRandom("killed")
      for kill in 1...20 {
        let end = monotonicNanoseconds() + UInt64.random(in: 0...150_000_000, using: &random)
        repeat {
          _ = try world.edit(&random)
          usleep(UInt32.random(in: 0...8000, using: &random))
        } while monotonicNanoseconds() < end
        try lab.killAgent(Self.node)
        try world.expectAllowedOutcomes("dead after kill \(kill)", isDead: true)
        try lab.startAgent(Self.node)
        // Ready is who has put in force what the API server had when asked; of the last edits it may not have known.
        try lab.awaitAPIServer()
        world.confirm()
        try world.expectAllowedOutcomes("restarted after kill \(kill)")
        try lab.expectNoDifference(on: Self.node, "after kill \(kill)")
      }
      try world.expectFlowsLived()
      #expect(world.refusals > 0)
    }
  }

  /// Two suites on one machine make 200 together, each its own.
  private static let points = LabHarness.sharesMachine ? 100 : 200

  @Test(
    """
    at 200 system calls (100, where two suites share a machine), between send and answer among them, leaves the old or the \
    new objects in force, and its successor the new ones
    """,
    .enabled(if: KillPoint.canInject))
  func killedAtSystemCalls() throws {
    let wrapper = try AgentWrapper()
    defer { wrapper.remove() }
    var configuration = LabHarness.configuration("points", nodes: 1)
    // Points are counted in system calls, and a connection makes them by chance.
    configuration.usesAPIServer = false
    configuration.binDirectory = wrapper.directory
    try LabHarness.withLab(configuration) { lab in
      var world = try CrashWorld(lab)
      try world.startFlows()
      var random = SeededRandom("points \(configuration.engine)")
      var reached: [String: Int] = [:]
      let started = monotonicNanoseconds()
      for number in 1...Self.points {
        let point = KillPoint(configuration.engine, &random)
        let place = try run(to: point, wrapper, &world, &random)
        reached[place, default: 0] += 1
        let name = "point \(number), \(point), \(place)"
        try world.expectAllowedOutcomes("dead at \(name)", isDead: true)
        try lab.startAgent(Self.node)
        world.confirm()
        try world.expectAllowedOutcomes("restarted after \(name)")
        try lab.expectNoDifference(on: Self.node, "\(name)")
      }
      let seconds = (monotonicNanoseconds() - started) / 1_000_000_000
      print("points: \(Self.points) in \(seconds) s, \(world.probes) probes, \(world.refusals) refused")
      for (place, count) in reached.sorted(by: { $0.key < $1.key }) { print("points: \(place): \(count)") }
      try world.expectFlowsLived()
      #expect(world.refusals > 0)
      for place in KillPoint.places(configuration.engine) {
        #expect(try #require(reached[place]) >= Self.points / 20, "\(place): \(reached)")
      }
      #expect(reached["at no chosen call"] ?? 0 < Self.points * 3 / 10, "\(reached)")
    }
  }

  /// Runs the agent, with edits all the time, until it is killed at the point, or after a while anyway.
  ///
  /// - Returns: where it was.
  private func run(
    to point: KillPoint, _ wrapper: AgentWrapper, _ world: inout CrashWorld, _ random: inout SeededRandom
  ) throws -> String {
    let lab = world.lab
    var log = LogTail(lab.agentLogPath(Self.node))
    var tracer: ChildProcess?
    unlink(wrapper.trace)
    if point.isAtStart {
      try lab.killAgent(Self.node)
      for _ in 0..<2 { _ = try world.edit(&random) }
      // The agent writes it anew.
      if Bool.random(using: &random) { unlink(try lab.path("/run/sluice/node.json", on: Self.node)) }
      try wrapper.arm(point)
      defer { try? wrapper.disarm() }
      try lab.startAgent(Self.node, waits: false)
      while lab.isAgentRunning(Self.node) {
        guard !log.newLines().contains(where: { $0.hasSuffix("] ready") }) else {
          world.confirm()
          break
        }
        usleep(500)
      }
    } else {
      let agent = try #require(lab.agentProcessID(Self.node))
      tracer = try lab.spawn(
        in: .node(Self.node), ["/usr/bin/strace", "-p", "\(agent)"] + point.options(trace: wrapper.trace),
        log: "\(wrapper.directory)/strace.log")
      while Files.text("/proc/\(agent)/status")?.contains("TracerPid:\t0\n") == true { usleep(500) }
    }
    var edits = 0
    while lab.isAgentRunning(Self.node), edits < 10 {
      let name = try world.edit(&random)
      edits += 1
      let deadline = monotonicNanoseconds() + 300_000_000
      // One line per commit; without it the edit stays in doubt.
      while lab.isAgentRunning(Self.node), monotonicNanoseconds() < deadline {
        let lines = log.newLines().compactMap { ProgrammedLine(Substring($0)) }
        if lines.contains(where: { $0.services == "\(name)" }) {
          world.confirm(name)
          break
        }
        usleep(300)
      }
      usleep(UInt32.random(in: 0...3000, using: &random))
    }
    let isKilled = !lab.isAgentRunning(Self.node)
    try lab.killAgent(Self.node)
    tracer?.wait(milliseconds: 5000)
    return isKilled ? point.place(in: Files.text(wrapper.trace) ?? "") : "at no chosen call"
  }

  // MARK: A foreign hand

  @Test("(or rather one that lives) finds what others delete, repairs, counts and names it")
  func foreignHand() throws {
    var configuration = LabHarness.configuration("foreign", nodes: 1)
    configuration.agentArguments = ForeignHand.agentArguments
    try LabHarness.withLab(configuration) { lab in
      let world = try CrashWorld(lab)
      let address = try #require(world.pods[0].address(.v4))
      for hand in ForeignHand.all(configuration.engine, service: "10.96.0.2", pod: "\(address)") {
        let before = try lab.metrics(Self.node)
        var log = LogTail(lab.agentLogPath(Self.node))
        let started = monotonicNanoseconds()
        try hand.strike(lab)
        var strikes = 1
        var lines: [String] = []
        try LabHarness.eventually(milliseconds: 30_000, "\(hand) is repaired") {
          lines += log.newLines()
          // A repair may come in the middle of the blow: then the next one is for the rest, or this one was, without having
          // seen it go.
          if strikes < 3, monotonicNanoseconds() - started > UInt64(strikes) * 8_000_000_000,
            lines.contains(where: { $0.contains("] kernel repaired") })
          {
            strikes += 1
            try hand.strike(lab)
          }
          return lines.contains { $0.contains("] kernel repaired") }
            && hand.named.allSatisfy { name in lines.contains { $0.contains(name) && $0.hasSuffix("] repaired") } }
        }
        let milliseconds = (monotonicNanoseconds() - started) / 1_000_000
        print("foreign hand: \(hand): repaired after \(milliseconds) ms")
        try lab.expectNoDifference(on: Self.node, "\(hand)")
        lines += log.newLines()
        let repaired = lines.filter { $0.hasSuffix("] repaired") }
        for name in hand.named { #expect(repaired.contains { $0.contains(name) }, "\(hand): \(repaired)") }
        let after = try lab.metrics(Self.node)
        func growth(_ name: String) throws -> Double { try #require(after[name]) - #require(before[name]) }
        #expect(try (1...Double(2 * strikes)).contains(growth("sluice_repairs_total")), "\(hand)")
        #expect(try growth("sluice_drift_objects_total") >= 1, "\(hand)")
        var checked = world
        try checked.expectAllowedOutcomes("after \(hand)")
      }
    }
  }
}

/// Where the agent is to be killed: on entering the nth call of this kind in one of its threads.
struct KillPoint: CustomStringConvertible {
  private static let program = "/usr/bin/strace"
  /// Without strace there is nothing to test with; where somebody insists on all tests, its absence is a failure.
  static var canInject: Bool {
    access(program, X_OK) == 0 || getenv("CI") != nil || getenv("SLUICE_BIN_DIR") != nil
  }

  var call: String
  var number: Int
  /// Traced from its first instruction; otherwise from when it serves.
  var isAtStart: Bool

  /// Where most of the points have to be: amid a change.
  static func places(_ engine: String) -> [String] {
    engine == "ebpf"
      ? ["before an element is written", "before an element is removed"]
      : ["before a batch is sent", "between send and answer"]
  }

  init(_ engine: String, _ random: inout SeededRandom) {
    isAtStart = Int.random(in: 0..<10, using: &random) < 2
    let programming: [(call: String, weight: Int, atStart: Int, later: Int)] =
      engine == "ebpf" ? [("bpf", 75, 600, 30)] : [("sendto", 35, 40, 6), ("recvfrom", 40, 100, 12)]
    let choices =
      programming + [
        ("write", 8, 40, 12), ("openat", 6, 60, 5), ("fdatasync", 6, 2, 5), ("rename", 3, 2, 1), ("close", 2, 60, 5),
      ]
    var place = Int.random(in: 0..<choices.reduce(0) { $0 + $1.weight }, using: &random)
    var choice = choices[0]
    for candidate in choices {
      choice = candidate
      place -= candidate.weight
      if place < 0 { break }
    }
    // Files are replaced only while the agent starts.
    if choice.call == "rename" { isAtStart = true }
    call = choice.call
    // The first calls after an edit are those that program it.
    let last = isAtStart ? choice.atStart : Int.random(in: 1...choice.later, using: &random)
    number = Int.random(in: 1...last, using: &random)
  }

  var description: String { "\(call) \(number) \(isAtStart ? "of a starting agent" : "of an agent that serves")" }

  func options(trace: String) -> [String] {
    // recvfrom needs the sends before it to tell whose answer it was.
    ["-f", "-o", trace, "-e", "trace=sendto,recvfrom,\(call)", "-e", "inject=\(call):signal=KILL:when=\(number)"]
  }

  /// What the killed thread was about to do: the call that was never finished, or the last one that is told of.
  func place(in trace: String) -> String {
    var lastSend: [Substring: Bool] = [:]
    var (unfinished, last): (String?, String?)
    for line in trace.split(separator: "\n") {
      let words = line.split(separator: " ", maxSplits: 1)
      guard words.count == 2 else { continue }
      let rest = words[1].drop { $0 == " " }
      // nf_tables' batches begin with a message of type 16.
      let isBatch = rest.contains("nlmsg_type=0x10 ") || rest.contains("NFNL_MSG_BATCH_BEGIN")
      if rest.hasPrefix("sendto(") { lastSend[words[0]] = isBatch }
      guard rest.hasPrefix("\(call)(") else { continue }
      let place =
        switch call {
        case "sendto": isBatch ? "before a batch is sent" : "before another request is sent"
        case "recvfrom": lastSend[words[0]] == true ? "between send and answer" : "before another answer is read"
        case "bpf" where rest.hasPrefix("bpf(BPF_MAP_UPDATE"): "before an element is written"
        case "bpf" where rest.hasPrefix("bpf(BPF_MAP_DELETE"): "before an element is removed"
        default: "before \(call)"
        }
      last = place
      if rest.contains("unfinished") || rest.contains("= ?") { unfinished = place }
    }
    return unfinished ?? last ?? "before \(call), untold"
  }
}

/// A folder of programs in which the agent can be told to run under strace.
private struct AgentWrapper {
  let directory: String
  var trace: String { "\(directory)/trace" }
  private var arming: String { "\(directory)/strace-options" }

  init() throws {
    directory = "/tmp/\(LabHarness.uniqueName("sluice-crash"))"
    try LabHarness.wrapPrograms(
      in: directory,
      [
        "sluice-agent": """
        if [ -s \(directory)/strace-options ]; then
          exec /usr/bin/strace $(cat \(directory)/strace-options) \
            \(LabHarness.binDirectory)/sluice-agent "$@"
        fi
        exec \(LabHarness.binDirectory)/sluice-agent "$@"
        """
      ])
    try disarm()
  }

  func arm(_ point: KillPoint) throws { try Files.replace(arming, point.options(trace: trace).joined(separator: " ")) }
  func disarm() throws { try Files.replace(arming, "") }
  func remove() { Files.removeTree(directory) }
}
