// The small world of the crash tests: two Services that are edited all the time, one that is left alone and carries the
// long-lived flows, and what each may answer at any moment.
import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

/// What one Service's objects say.
struct CrashTestState: Hashable {
  /// Names of the pods behind it; none: refused.
  var pods: Set<String>
  /// Whether there is a second port, 81.
  var hasSecondPort = false
}

/// One Service, and which of its states may be in force.
struct EditedService {
  var service: StaticService
  /// The one known to be in the kernel, and all written after it.
  var possible: [CrashTestState]

  mutating func confirm() { possible = possible.suffix(1) }
}

/// A lab of one node with pods, Services and flows.
struct CrashWorld {
  static let node = "node1"
  let lab: Lab
  let client: LabPod
  let pods: [LabPod]
  /// Never edited.
  let stable = StaticService.echo("stable", index: 1, nodePort: 30080)
  var edited: [EditedService] = []
  private var flows: [(name: String, work: BackgroundWork<[EchoFlowReport]>)] = []
  /// Probes so far, and how many of them met a Service that had or may have had no backend.
  private(set) var probes = 0
  private(set) var refusals = 0

  init(_ lab: Lab) throws {
    self.lab = lab
    client = try lab.addPod(PodSpec("shop", "client", node: Self.node))
    pods = try (1...3).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
    for service in [
      stable, StaticService.echo("web", index: 2, nodePort: 30090), StaticService.echo("tool", index: 3),
    ] {
      try service.apply(to: lab)
      try write(Set(pods.map(\.name.name)), service)
      try lab.waitUntilCommitted(service, pods)
      let state = CrashTestState(pods: Set(pods.map(\.name.name)))
      if service.name != stable.name { edited.append(EditedService(service: service, possible: [state])) }
    }
  }

  // MARK: Flows

  /// Opens flows to the untouched Service from a pod and from outside, TCP and UDP, both families; and TCP flows to the
  /// Service whose slices change: those go on as long as their pod serves.
  mutating func startFlows() throws {
    for family in IPFamily.allCases {
      for mode in [ProbeSpec.Mode.tcp, .udp] {
        let nodePort = try #require(Port(mode == .tcp ? 30080 : 30081))
        try start(.pod(client.name), mode, try stable.target(family))
        try start(.node(Self.node), mode, try stable.target(family))
        try start(.client, mode, SocketAddress(try lab.nodeAddress(Self.node, family), nodePort))
      }
      try start(.pod(client.name), .tcp, try edited[0].service.target(family))
      try start(.client, .tcp, SocketAddress(try lab.nodeAddress(Self.node, family), try #require(Port(30090))))
    }
  }

  private mutating func start(_ place: LabTarget, _ mode: ProbeSpec.Mode, _ target: SocketAddress) throws {
    var spec = EchoFlowSpec(mode, to: target)
    spec.flows = 2
    spec.intervalMilliseconds = 20
    // A busy machine may be slow to answer; a flow that is cut is never answered.
    spec.gapMilliseconds = 2000
    flows.append(("\(mode) from \(place) to \(target)", try lab.startFlows(from: place, spec)))
  }

  /// No flow that was open noticed anything.
  mutating func expectFlowsLived() throws {
    // Each waits for its last answers: all at once.
    let stops = flows.map { flow in (flow.name, BackgroundWork { _ in try flow.work.stop() }) }
    flows = []
    for (name, stop) in stops {
      let reports = try stop.wait()
      #expect(reports.count == 2)
      LabHarness.expectUninterrupted(reports)
      for report in reports {
        #expect(report.pods.count == 1, "\(name) did not stay with its backend: \(report.pods)")
      }
    }
  }

  // MARK: Edits

  /// Writes another state of one of the edited Services; returns its name.
  mutating func edit(_ random: inout SeededRandom) throws -> PodName {
    let index = Int.random(in: 0..<edited.count, using: &random)
    let current = edited[index].possible[edited[index].possible.count - 1]
    var next = current
    if index == 1, Bool.random(using: &random) {
      next.hasSecondPort.toggle()
      var service = edited[index].service
      if next.hasSecondPort {
        service.ports.append(.init(name: "second", protocol: .tcp, port: 81, target: 8081))
      }
      try service.apply(to: lab)
    } else {
      while next == current {
        // Without any backend one time in eight.
        next.pods = Set(pods.map(\.name.name).filter { _ in Bool.random(using: &random) })
      }
      try write(next.pods, edited[index].service)
    }
    edited[index].possible.append(next)
    return edited[index].service.name
  }

  /// Slices name the second port always: where the Service has none of that name, it means nothing.
  private func write(_ names: Set<String>, _ service: StaticService) throws {
    var service = service
    service.ports.append(.init(name: "second", protocol: .tcp, port: 81, target: 8081))
    try service.scale(to: pods.filter { names.contains($0.name.name) }, in: lab)
  }

  mutating func confirm(_ name: PodName? = nil) {
    for index in edited.indices where name == nil || edited[index].service.name == name { edited[index].confirm() }
  }

  // MARK: Checks

  private struct Question {
    var place: LabTarget
    var spec: ProbeSpec
    var answers: Set<String>
    var mayRefuse: Bool
  }

  /// Connections from pod, node and client to every Service have only outcomes that its possible states allow.
  ///
  /// - Parameter isDead: the agent was killed, perhaps before it had ended the UDP flows that its last commits left: who
  ///   sends from such a flow's port still reaches its pod.
  mutating func expectAllowedOutcomes(_ what: String, isDead: Bool = false) throws {
    var questions: [Question] = []
    func ask(
      _ places: [LabTarget], _ mode: ProbeSpec.Mode, _ target: SocketAddress, _ states: [Set<String>]
    ) {
      for place in places {
        var spec = ProbeSpec(mode, to: target, count: mode == .tcp ? 5 : 3)
        let mayRefuse = states.contains([])
        // Of UDP's ICMP errors the kernel limits the rate, so that a refusal may come to no one's notice.
        // Longer than it takes to send a SYN for the third time: the machine is busy, and who is slow is told.
        spec.timeoutMilliseconds = mayRefuse && mode == .udp ? 60 : 4500
        questions.append(
          Question(
            place: place, spec: spec, answers: states.reduce([]) { $0.union($1) }, mayRefuse: mayRefuse))
      }
    }
    let inside = [LabTarget.pod(client.name), .node(Self.node)]
    let all = Set(pods.map(\.name.name))
    for family in IPFamily.allCases {
      let address = try lab.nodeAddress(Self.node, family)
      for mode in [ProbeSpec.Mode.tcp, .udp] {
        let (web, tool) = (edited[0], edited[1])
        ask(inside, mode, try web.service.target(family), web.possible.map(\.pods))
        ask(inside, mode, try tool.service.target(family), tool.possible.map(\.pods))
        let port = mode == .tcp ? 30090 : 30091
        ask([.client] + inside, mode, SocketAddress(address, try #require(Port(port))), web.possible.map(\.pods))
      }
      // Whether there is such a port says the Service, who answers say the slices: of each by itself something is in force.
      let states = edited[1].possible
      let second =
        (states.contains { $0.hasSecondPort } ? states.map(\.pods) : [])
        + (states.contains { !$0.hasSecondPort } ? [[]] : [])
      ask(inside, .tcp, try edited[1].service.target(family, port: 81), second)
      ask([.client], .tcp, SocketAddress(address, try #require(Port(30080))), [all])
    }
    let running = try questions.map { ($0, try lab.startProbe(from: $0.place, $0.spec)) }
    for (question, work) in running {
      let report = try work.wait()
      probes += report.results.count
      for result in report.results {
        let isAllowed =
          switch result.outcome {
          case .answered: question.answers.contains(result.pod ?? "") || isDead && question.spec.mode == .udp
          case .refused: question.mayRefuse
          case .timedOut: question.mayRefuse && question.spec.mode == .udp
          default: false
          }
        if result.outcome == .refused { refusals += 1 }
        if result.outcome == .answered, result.latency > 900_000_000 {
          let (took, spec) = (result.latency / 1_000_000, question.spec)
          print("slow, \(took) ms: \(what): \(spec.mode) from \(question.place) to \(spec.target)")
        }
        guard !isAllowed else { continue }
        Issue.record(
          """
          \(what): \(question.spec.mode) from \(question.place) to \(question.spec.target): \(result.outcome) \
          \(result.pod ?? ""), allowed: \(question.answers.sorted())\(question.mayRefuse ? " or refusal" : "")
          \(traces(of: question.spec))
          """)
      }
    }
  }
}

extension CrashWorld {
  /// What the node knows of connections that got no answer: the flows that nobody has answered, and what it dropped.
  private func traces(of spec: ProbeSpec) -> String {
    let flows = (try? lab.exec(in: .node(Self.node), [LabHarness.dpctl, "conntrack", "list", "--all"]).stdout) ?? ""
    let open = flows.split(separator: "\n").filter { $0.contains(" opening ") || $0.contains("\(spec.target) ") }
    let drops = ((try? lab.metrics(Self.node)) ?? [:]).filter {
      $0.key.hasPrefix("sluice_drop_packets_total") && $0.value > 0
    }
    return
      "dropped: \(drops.map { "\($0.key) \($0.value)" }.sorted()), flows:\n\(open.suffix(40).joined(separator: "\n"))"
  }
}

/// New lines of a log, and only those.
struct LogTail {
  private let path: String
  private var offset: off_t = 0

  init(_ path: String) {
    self.path = path
    _ = newLines()
  }

  mutating func newLines() -> [String] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0, lseek(descriptor, offset, SEEK_SET) == offset else { return [] }
    defer { close(descriptor) }
    let bytes = Files.drain(descriptor)
    // A line that is being written is taken when it is whole.
    guard let end = bytes.lastIndex(of: UInt8(ascii: "\n")) else { return [] }
    offset += off_t(end + 1)
    return String(decoding: bytes[...end], as: UTF8.self).split(separator: "\n").map(String.init)
  }
}
