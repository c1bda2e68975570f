import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

/// What a Service's slices said, from one rewriting to the next.
private struct Epoch {
  var pods: Set<String>
  /// CLOCK_MONOTONIC before the slices were written: nothing can be in force earlier.
  var written: UInt64
  /// CLOCK_MONOTONIC after the agent said that the *next* slices are in the kernel: no new flow may go by these ones
  /// later. A flow that starts after this time meets the next slices, without any grace.
  var replaced = UInt64.max
}

private struct History {
  private(set) var epochs: [Epoch]

  init(_ pods: [String]) { epochs = [Epoch(pods: Set(pods), written: 0)] }

  mutating func append(_ pods: [String], written: UInt64, committed: UInt64) {
    epochs[epochs.count - 1].replaced = committed
    epochs.append(Epoch(pods: Set(pods), written: written))
  }

  /// Everything a probe may have met that was under way from `start` to `end`.
  func possible(from start: UInt64, to end: UInt64) -> ArraySlice<Epoch> {
    let first = epochs.partitioningIndex { $0.replaced >= start }
    let last = epochs.partitioningIndex { $0.written > end }
    return epochs[first..<last]
  }
}

extension Array {
  /// The first index whose element fulfils the predicate, where all after it do as well.
  fileprivate func partitioningIndex(_ isBehind: (Element) -> Bool) -> Int {
    var (low, high) = (startIndex, endIndex)
    while low < high {
      let middle = (low + high) / 2
      if isBehind(self[middle]) { high = middle } else { low = middle + 1 }
    }
    return low
  }
}

/// What became of the probes of one kind.
private struct Judgement: CustomStringConvertible {
  var name: String
  var answered = 0
  var refusedWithoutBackend = 0
  var untoldWithoutBackend = 0
  /// With their backend.
  var ended = 0
  /// Started while the slices in force were not known for certain.
  var duringChange = 0
  var wrong: [String] = []
  var slowest: UInt64 = 0

  /// Nanoseconds. Who sends from the port of an earlier socket goes on with that one's flow until the agent has ended
  /// it, which is done beside the commits.
  private static let datagramGrace: UInt64 = 300_000_000

  /// - Parameter isAtSocket: flows are translated there: a datagram's socket is ended when its backend goes.
  init(_ mode: ProbeSpec.Mode, _ family: IPFamily, _ report: ProbeReport, _ history: History, isAtSocket: Bool) {
    name = "\(mode) \(family)"
    let isDatagram = mode == .udp
    for result in report.results {
      let end = result.started + result.latency
      let possible = history.possible(from: result.started - (isDatagram ? Self.datagramGrace : 0), to: end)
      if possible.count > 1 { duringChange += 1 }
      let mayBeEmpty = possible.contains { $0.pods.isEmpty }
      switch result.outcome {
      case .answered where possible.contains { $0.pods.contains(result.pod ?? "") }:
        answered += 1
        slowest = max(slowest, result.latency)
      case .refused where mayBeEmpty: refusedWithoutBackend += 1
      // The kernel limits the rate of ICMP errors to one client (icmp_ratelimit): refused, but not told. TCP is refused
      // with a reset, every time.
      case .timedOut where mayBeEmpty && isDatagram: untoldWithoutBackend += 1
      case .failed(errno: ECONNABORTED) where isDatagram && isAtSocket && possible.count > 1: ended += 1
      default:
        let since = possible.first.map { (Int64(result.started) - Int64($0.written)) / 1000 } ?? 0
        wrong.append(
          "\(result.outcome) \(result.pod ?? "") after \(result.latency / 1000) us, from port "
            + "\(result.client?.port.description ?? "?"), \(since) us after the slices were written; in force: "
            + possible.map { "\($0.pods.sorted())" }.joined(separator: ", then "))
      }
    }
  }

  var description: String {
    "\(name): \(answered) answered, slowest \(slowest / 1_000_000) ms; without a backend \(refusedWithoutBackend) refused,"
      + " \(untoldWithoutBackend) refused untold; \(ended) ended; \(duringChange) during a change; \(wrong.count) wrong"
  }
}

@Suite("Scaling under load", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct ScalingTests {
  private static let scalings = 1000

  @Test(
    """
    1,000 times, to zero and back as well, refuses no new flow while there is a backend and sends none to a backend that \
    was removed
    """)
  func thousandScalings() throws {
    try LabHarness.withLab(LabHarness.configuration("scaling", nodes: 1)) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try (1...4).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let service = StaticService.echo("scaled", index: 1)
      try service.apply(to: lab)
      try service.scale(to: pods, in: lab)
      try lab.waitUntilCommitted(service, pods)

      var history = History(pods.map(\.name.name))
      func start(_ mode: ProbeSpec.Mode, _ family: IPFamily, rate: Double) throws -> BackgroundWork<ProbeReport> {
        var spec = ProbeSpec(mode, to: try service.target(family), count: .max)
        spec.rate = rate
        spec.concurrency = 2000
        // A port that is used again may be one whose last flow conntrack still holds, with that one's backend.
        if mode == .tcp { spec.firstSourcePort = Port(1024) }
        return try lab.startProbe(from: .pod(client.name), spec)
      }
      let kinds: [(ProbeSpec.Mode, IPFamily, Double)] = [
        (.tcp, .v4, 500), (.tcp, .v6, 500), (.udp, .v4, 100), (.udp, .v6, 100),
      ]
      let started = monotonicNanoseconds()
      let probes = try kinds.map { ($0.0, $0.1, try start($0.0, $0.1, rate: $0.2)) }
      var random = SeededRandom("scaling")
      var current = pods
      for _ in 0..<Self.scalings {
        current = Self.next(after: current, of: pods, &random)
        let written = monotonicNanoseconds()
        try service.scale(to: current, in: lab)
        let committed = try lab.waitUntilCommitted(service, current)
        history.append(current.map(\.name.name), written: written, committed: committed)
        // Sometimes before the leavings of the last change are removed, sometimes after.
        usleep(UInt32.random(in: 0...60_000, using: &random))
      }
      let seconds = Double(monotonicNanoseconds() - started) / 1e9
      let isAtSocket = lab.configuration.socketMode == "all"
      let judgements = try probes.map { Judgement($0.0, $0.1, try $0.2.stop(), history, isAtSocket: isAtSocket) }
      judgements.forEach { print("scaling: \($0)") }
      let zeros = history.epochs.count { $0.pods.isEmpty }
      print("scaling: \(history.epochs.count - 1) in \(Int(seconds)) s, \(zeros) to zero")

      let complaints = lab.agentLog("node1").split(separator: "\n").filter {
        $0.contains(" warning ") || $0.contains(" error ")
      }
      for judgement in judgements {
        #expect(
          judgement.wrong.count == 0, "\(judgement.name): \(judgement.wrong.prefix(10)); the agent: \(complaints)")
        #expect(judgement.slowest < 900_000_000, "\(judgement): a first packet was lost and sent again")
        #expect(judgement.duringChange > 50, "\(judgement): too few met a change")
        #expect(judgement.refusedWithoutBackend > 5, "\(judgement): zero backends were never felt")
        #expect(
          judgement.refusedWithoutBackend + judgement.untoldWithoutBackend > 50, "\(judgement): zero backends were rare"
        )
      }
      let tcp = judgements.prefix(2).reduce(0) { $0 + $1.answered + $1.refusedWithoutBackend + $1.untoldWithoutBackend }
      #expect(Double(tcp) / seconds > 800, "too little load")
      #expect(zeros > 50)
      try lab.expectNoDifference(on: "node1")
    }
  }

  // A packet that was under way when a commit came has met the new backend set with the old rules of its chain: the chain
  // must have been there before. It takes very many packets to have one under way just then.
  @Test("between one backend and two leaves no moment in which a packet finds neither")
  func flood() throws {
    try LabHarness.withLab(LabHarness.configuration("flood", nodes: 1)) { lab in
      let place = LabTarget.node("node1")
      let service = StaticService.echo("flooded", index: 1)
      // Nobody answers there: what counts is where packets are sent.
      let addresses = ["10.244.1.201", "fd00:10:244:1::201", "10.244.1.202", "fd00:10:244:1::202"].compactMap {
        IPAddress($0)
      }
      let prepared = try lab.exec(
        in: place,
        [
          "/bin/sh", "-c",
          "ip route add blackhole 10.244.1.200/30 && echo 1 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout",
        ])
      #expect(prepared.status == 0, "\(prepared.stderr)")
      func write(_ count: Int) throws {
        try Files.replace(
          "\(lab.manifestsDirectory)/flooded-slices.yaml", service.slices([Array(addresses.prefix(count))]))
      }
      try service.apply(to: lab)
      try write(2)
      try LabHarness.eventually("the backend is in the kernel") {
        try lab.backends(of: service.name, on: "node1").values.filter { $0.count == 1 }.count == 4
      }
      let (network, target) = (try lab.network(of: place), try service.target(.v4))
      let floods: [BackgroundWork<(sent: Int, refused: Int)>] = (0..<2).map { _ in
        BackgroundWork { shouldStop in
          try network.run {
            var (sent, refused) = (0, 0)
            while !shouldStop() {
              // A new flow each.
              for _ in 0..<100 {
                let socket = try Socket(.v4, SOCK_DGRAM)
                // An error: nobody is there. The packet has met the tables all the same.
                let code = socket.connect(target)
                if code == 0 { _ = socket.send([1]) }
                if code == ECONNREFUSED { refused += 1 }
                sent += 1
              }
            }
            return (sent, refused)
          }
        }
      }
      let before = lab.programmedLines("node1").count
      for change in 0..<200 {
        try write(change % 2 == 0 ? 4 : 2)
        // Two edits that are seen at once are none.
        let deadline = monotonicNanoseconds() + 1_000_000_000
        while lab.programmedLines("node1").count <= before + change, monotonicNanoseconds() < deadline {
          usleep(10_000)
        }
        usleep(30_000)
      }
      let ends = try floods.map { try $0.stop() }
      let (sent, refused) = (ends.reduce(0) { $0 + $1.sent }, ends.reduce(0) { $0 + $1.refused })
      let changes = lab.programmedLines("node1").count - before
      print("scaling: \(sent) flows during \(changes) changes between one backend and two")
      #expect(sent > 100_000 && changes > 150)
      #expect(refused == 0, "refused at the socket although there was a backend all the time")
      #expect(try refusals(lab) == 0, "refused although there was a backend all the time")

      try write(0)
      try LabHarness.eventually("a refusal is counted where there is no backend") {
        let report = try lab.probe(from: place, ProbeSpec(.udp, to: target))
        return try refusals(lab) > 0 || (lab.configuration.engine == "ebpf" && report.outcomes[.refused] == 1)
      }
    }
  }

  /// What the node has refused by the rules of IPv4; at sockets only their programs know.
  private func refusals(_ lab: Lab) throws -> Int {
    guard lab.configuration.engine != "ebpf" else { return 0 }
    let words = try lab.nft(on: "node1", "list", "chain", "ip", "sluice", "reject-flow").stdout
      .split { $0.isWhitespace }
    return zip(words, words.dropFirst()).reduce(0) { $0 + ($1.0 == "packets" ? Int($1.1) ?? 0 : 0) }
  }

  /// Another choice of pods: one more, one less, none, all, or any.
  private static func next(after current: [LabPod], of all: [LabPod], _ random: inout SeededRandom) -> [LabPod] {
    let names = Set(current.map(\.name))
    let others = all.filter { !names.contains($0.name) }
    while true {
      var next = current
      switch Int.random(in: 0..<10, using: &random) {
      case 0...2: if let pod = others.randomElement(using: &random) { next.append(pod) }
      case 3...5: if let pod = next.indices.randomElement(using: &random) { next.remove(at: pod) }
      case 6: next = []
      case 7: next = all
      default: next = all.filter { _ in Bool.random(using: &random) }
      }
      if Set(next.map(\.name)) != names { return next.shuffled(using: &random) }
    }
  }
}
