// What operators are told: counters, `dpctl monitor` and `dpctl explain`, against the specification and real packets.
import Glibc
import KubernetesObjects
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("reports", .serialized)
  struct Reports {
    static let denials = 2000
    static let explanations = 500

    @Test("each denied packet is one step of the counters and one line of the monitor, with the policies that deny it")
    func everyDenial() throws {
      try LabHarness.withLab(LabHarness.configuration("np-denials")) { lab in
        let scene = try PolicyMatrixScene(lab)
        let monitors = try lab.configuration.nodes.map { try PolicyMonitor(lab, node: $0.name) }
        var random = SmallRandom(state: 4)
        var count = 0
        var audited = 0
        for item in try PolicyMatrixCases.audits() + PolicyMatrixCases.mixtures() where count < Self.denials {
          guard let (denied, allowed) = try Self.reportedCells(item, in: scene) else { continue }
          let asked = denied.shuffled(using: &random).prefix(200) + allowed.shuffled(using: &random).prefix(40)
          for monitor in monitors { try monitor.settle() }
          let before = try PolicyCounters(lab)
          let expected = try Self.ask(Array(asked), in: scene)
          var found: [PolicyReport] = []
          for monitor in monitors {
            let wanted = expected.count { $0.node == monitor.node }
            found += try monitor.reports(atLeast: wanted)
          }
          #expect(found.sorted() == expected.sorted(), "\(item.name): the monitor's lines")
          let step = try PolicyCounters(lab).minus(before)
          #expect(step == PolicyCounters(expected), "\(item.name): the counters' steps")
          count += min(denied.count, 200)
          audited += expected.count { $0.kind == "audit" }
        }
        print(
          "\(count) denied packets and \(audited) audits: as many lines of dpctl monitor, as many steps of counters")
        #expect(count >= Self.denials && audited > 100)
      }
    }

    /// Puts a case in force: the cells that it denies, and those that it allows but an audit policy would not. nil where
    /// it does not come into force.
    private static func reportedCells(
      _ item: PolicyMatrixCase, in scene: PolicyMatrixScene
    ) throws -> (denied: [PolicyMatrixScene.Cell], audited: [PolicyMatrixScene.Cell])? {
      guard let expected = try Self.converge(item, in: scene) else { return nil }
      let cells = zip(try scene.cells(services: false).joined(), expected.joined())
      // A datagram may have the ports of an earlier one, and then belongs to a flow that has been judged.
      let allowed = cells.filter { $0.1 && $0.0.target.transport != .udp }.map(\.0)
      return (
        cells.filter { !$0.1 }.map(\.0),
        try allowed.filter { try !PolicyReport.expected(of: $0, in: scene).isEmpty }
      )
    }

    private static func converge(_ item: PolicyMatrixCase, in scene: PolicyMatrixScene) throws -> [[Bool]]? {
      var world = scene.baseWorld
      world.policies = item.policies
      try scene.publish(world)
      let expected = try scene.expectation(services: false)
      let deadline = monotonicNanoseconds() + 20_000_000_000
      while try !scene.wrongCells(expected, services: false).isEmpty {
        guard monotonicNanoseconds() < deadline else {
          Issue.record("\(item.name) does not come into force")
          return nil
        }
      }
      return expected
    }

    /// Begins one flow for each cell, from all places at the same time; what is to be reported of them.
    private static func ask(
      _ cells: [PolicyMatrixScene.Cell], in scene: PolicyMatrixScene
    ) throws -> [PolicyReport] {
      let works = try Dictionary(grouping: cells, by: \.source).map { source, cells in
        let network = try scene.lab.network(of: scene.place(source))
        let (targets, expected) = (cells.map(\.target), try cells.map { try scene.isAllowed($0) })
        let work = BackgroundWork<[MatrixOutcome]> { _ in
          try network.run { try MatrixProber.ask(targets, expected: expected) }
        }
        return (work: work, expected: expected.map { $0 ? MatrixOutcome.answered : .silent })
      }
      for (work, expected) in works { #expect(try work.wait() == expected) }
      return try cells.flatMap { try PolicyReport.expected(of: $0, in: scene) }
    }

    @Test("dpctl explain says what becomes of a connection, exit status included")
    func explain() throws {
      try LabHarness.withLab(LabHarness.configuration("np-explain")) { lab in
        let scene = try PolicyMatrixScene(lab)
        var random = SmallRandom(state: 5)
        var statuses: [Int32: Int] = [:]
        for item in try PolicyMatrixCases.mixtures().suffix(10) {
          // The table of real connections is the specification's, and so must be every explanation.
          guard try Self.converge(item, in: scene) != nil else { continue }
          let cells = try scene.cells(services: false).joined().shuffled(using: &random).prefix(Self.explanations / 10)
          for cell in cells where statuses.values.reduce(0, +) < Self.explanations {
            for (node, verdict) in try scene.verdicts(cell) {
              let arguments = try Self.arguments(cell, on: node, in: scene)
              let answer = try lab.exec(in: .node(node), [LabHarness.dpctl, "explain"] + arguments)
              #expect(
                answer.status == (verdict.isAllowed ? 0 : 1),
                "\(item.name), on \(node): dpctl explain \(arguments.joined(separator: " ")); \(verdict)\n\(answer.stdout)\(answer.stderr)"
              )
              statuses[answer.status, default: 0] += 1
            }
          }
        }
        print("\(statuses[0] ?? 0) flows explained as allowed, \(statuses[1] ?? 0) as denied")
        #expect(statuses.values.reduce(0, +) >= Self.explanations)
        #expect((statuses[1] ?? 0) > 50 && (statuses[0] ?? 0) > 50)
      }
    }

    private static func arguments(
      _ cell: PolicyMatrixScene.Cell, on node: String, in scene: PolicyMatrixScene
    ) throws -> [String] {
      let family = cell.destinationAddress.family
      let source =
        switch cell.source {
        case .pod(let key): "\(key)"
        case .node(node): "host"
        default: try scene.address(of: cell.source, family).description
        }
      let destination =
        switch cell.destination {
        case .pod(let key): "\(key)"
        default: family == .v4 ? "\(cell.destinationAddress)" : "[\(cell.destinationAddress)]"
        }
      let port =
        switch cell.proto {
        case .tcp(let port): ":\(port)/tcp"
        case .udp(let port): ":\(port)/udp"
        default: "/icmp"
        }
      return ["--family", "\(family)", source, destination + port]
    }
  }
}

/// What an operator is told of one packet: that it was denied, or would have been.
struct PolicyReport: Hashable, Comparable, CustomStringConvertible {
  var node: String
  /// `drop`, or `audit` for what an audit policy would drop.
  var kind: String
  /// `ingress` or `egress`.
  var direction: String
  /// Addresses, protocol and port.
  var flow: String
  /// Those that isolate the pod, sorted.
  var policies: [String]

  var description: String { "\(node) \(kind) \(direction) \(flow) \(policies)" }
  static func < (left: PolicyReport, right: PolicyReport) -> Bool { left.description < right.description }

  /// What the specification has reported of one packet: what audit policies think of it on its way, then who denies it.
  static func expected(of cell: PolicyMatrixScene.Cell, in scene: PolicyMatrixScene) throws -> [PolicyReport] {
    let source = try scene.address(of: cell.source, cell.destinationAddress.family)
    let flow = "\(cell.target.transport.rawValue) \(source) -> \(cell.destinationAddress) \(cell.target.port)"
    var reports: [PolicyReport] = []
    for (node, verdict) in try scene.verdicts(cell) {
      // The sender's node sees it first, and its egress before any ingress.
      for (direction, found) in [("egress", verdict.egress), ("ingress", verdict.ingress)] {
        func report(_ kind: String, _ policies: [ObjectKey]) {
          reports.append(
            PolicyReport(
              node: node, kind: kind, direction: direction, flow: flow, policies: policies.map(\.description)))
        }
        if let audit = found.auditDenial { report("audit", audit) }
        if case .denied(let policies) = found.verdict {
          report("drop", policies)
          return reports
        }
      }
    }
    return reports
  }

  private init(node: String, kind: String, direction: String, flow: String, policies: [String]) {
    (self.node, self.kind, self.direction, self.flow, self.policies) = (node, kind, direction, flow, policies)
  }

  /// A line of `dpctl monitor -o jsonl`; nil where it is about no policy.
  init?(_ event: JSONValue, node: String) {
    guard let kind = event["type"]?.stringValue, kind != "lost",
      kind == "audit" || event["reason"]?.stringValue == "policy-denied",
      let direction = event["direction"]?.stringValue, let source = event["source"]?["address"]?.stringValue,
      let destination = event["destination"]?["address"]?.stringValue, let transport = event["protocol"]?.stringValue,
      let policies = event["policies"]?.arrayValue
    else { return nil }
    (self.node, self.kind, self.direction) = (node, kind, direction)
    let isEcho = transport.hasPrefix("icmp")
    let port = isEcho ? 0 : event["destination"]?["port"]?.intValue ?? 0
    flow = "\(isEcho ? "icmp" : transport) \(source) -> \(destination) \(port)"
    self.policies = policies.compactMap(\.stringValue).sorted()
  }
}

/// `dpctl monitor` on a node, read as it goes on.
final class PolicyMonitor {
  let node: String
  private let log: String
  /// Lines that have been read.
  private var taken = 0

  init(_ lab: Lab, node: String) throws {
    self.node = node
    log = "\(lab.manifestsDirectory)/../monitor-\(node).log"
    _ = try lab.spawn(in: .node(node), [LabHarness.dpctl, "monitor", "-o", "jsonl"], log: log)
  }

  private func lines() -> [Substring] { (Files.text(log) ?? "").split(separator: "\n") }

  /// Waits until a while has brought nothing new, and forgets everything until now.
  func settle() throws {
    let deadline = monotonicNanoseconds() + 20_000_000_000
    repeat {
      taken = lines().count
      usleep(300_000)
      guard monotonicNanoseconds() < deadline else { throw LabError.timedOut("the monitor of \(node) is never quiet") }
    } while lines().count != taken
  }

  /// Waits for that many lines, and a while for more than those.
  func reports(atLeast count: Int) throws -> [PolicyReport] {
    try LabHarness.eventually("the monitor of \(node) shows \(count) lines") { lines().count >= taken + count }
    usleep(200_000)
    let new = lines().dropFirst(taken)
    taken += new.count
    return try new.compactMap { line in
      let event = try JSONValue(parsing: String(line))
      let denial = PolicyReport(event, node: node)
      if denial == nil { Issue.record("the monitor of \(node) shows \(line)") }
      return denial
    }
  }
}

/// How many packets each policy has had part in denying, or would have: by node, direction and policy. Zeros are left out.
struct PolicyCounters: Equatable, CustomStringConvertible {
  private var packets: [String: Int] = [:]

  var description: String {
    packets.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }.joined(separator: "; ")
  }

  init(_ denials: [PolicyReport]) {
    for denial in denials {
      for policy in denial.policies {
        packets["\(denial.node) \(denial.kind) \(denial.direction) \(policy)", default: 0] += 1
      }
    }
  }

  /// As the agents have them now.
  init(_ lab: Lab) throws {
    for node in lab.configuration.nodes {
      let answer = try lab.agentClient(node.name).request("GET", "/v1/policies")
      let json = try JSONValue(parsing: String(decoding: answer.body, as: UTF8.self))
      for policy in try #require(json["items"]?.arrayValue) {
        let name = "\(policy["namespace"]?.stringValue ?? "")/\(policy["name"]?.stringValue ?? "")"
        for direction in ["ingress", "egress"] {
          for (kind, field) in [("drop", "denied"), ("audit", "wouldDeny")] {
            let count = try #require(policy[field]?[direction]?["packets"]?.intValue)
            if count > 0 { packets["\(node.name) \(kind) \(direction) \(name)"] = Int(count) }
          }
        }
      }
    }
  }

  func minus(_ other: PolicyCounters) -> PolicyCounters {
    var result = self
    for (key, count) in other.packets {
      let rest = (result.packets[key] ?? 0) - count
      result.packets[key] = rest == 0 ? nil : rest
    }
    return result
  }
}
