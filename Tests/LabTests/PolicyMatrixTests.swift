// Truth tables: what passes between all pods, nodes and the world outside, against what the specification says.
import Lab
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// What NetworkPolicies must do, shown with real agents, the real plugin and real packets.
@Suite("NetworkPolicy", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
enum PolicyBehaviour {}

extension PolicyBehaviour {
  @Suite("truth tables", .serialized)
  struct Matrix {
    /// A change is in force everywhere after that time.
    static let convergenceMilliseconds: UInt64 = 2000

    @Test("every flow between pods, nodes and outside, in every case, is what the specification says")
    func truthTables() throws {
      try LabHarness.withLab(LabHarness.configuration("matrix")) { lab in
        let scene = try PolicyMatrixScene(lab)
        var summary = PolicyMatrixSummary()
        try Self.waitForServers(scene)
        for (number, item) in try PolicyMatrixCases.all().enumerated() {
          // A third of all cases is also asked through Services, each third another kind of case.
          try Self.check(item, in: scene, services: number % 3 == 0, &summary)
        }
        try PolicyStage.expectAgreement(of: lab)
        print(summary)
        #expect(summary.cases >= 150)
        #expect(summary.allowed > 0 && summary.denied > 0)
      }
    }

    /// The servers on nodes and client are started without a word to us.
    private static func waitForServers(_ scene: PolicyMatrixScene) throws {
      let expected = try scene.expectation(services: true)
      try LabHarness.eventually(milliseconds: 20_000, "everything answers without policies") {
        try scene.wrongCells(expected, services: true).isEmpty
      }
    }

    /// Writes a case's objects, waits until the table is as expected, and looks whether it stays so.
    private static func check(
      _ item: PolicyMatrixCase, in scene: PolicyMatrixScene, services: Bool, _ summary: inout PolicyMatrixSummary
    ) throws {
      var world = scene.baseWorld
      item.change(&world)
      world.policies = item.policies
      try scene.publish(world, policyTexts: item.texts)
      let begin = monotonicNanoseconds()
      let expected = try scene.expectation(services: services)
      var quick = MatrixPatience()
      quick.silenceMilliseconds = 100
      quick.answerMilliseconds = 250
      while try !scene.wrongCells(expected, services: services, quick).isEmpty {
        // The rest of the way: the full pass below says what is wrong.
        if monotonicNanoseconds() > begin + convergenceMilliseconds * 1_000_000 { break }
      }
      summary.note(convergence: monotonicNanoseconds() - begin)
      let wrong = try scene.wrongCells(expected, services: services)
      summary.add(try scene.cells(services: services), expected)
      guard !wrong.isEmpty else { return }
      let lines = wrong.prefix(12).map { "\($0.cell): \($0.found), expected \($0.expected ? "answered" : "silent")" }
      Issue.record(
        """
        \(item.name): \(wrong.count) flows are not as expected
        \(lines.joined(separator: "\n"))
        \(item.policies.map { WorldYAML.document(.networkPolicy($0)) }.joined())
        """)
    }
  }
}

/// What the truth tables have shown, for people.
struct PolicyMatrixSummary: CustomStringConvertible {
  struct Count {
    var allowed = 0
    var denied = 0
  }

  private(set) var cases = 0
  private var counts: [String: Count] = [:]
  private var longestConvergence: UInt64 = 0

  var allowed: Int { counts.values.reduce(0) { $0 + $1.allowed } }
  var denied: Int { counts.values.reduce(0) { $0 + $1.denied } }

  mutating func note(convergence nanoseconds: UInt64) { longestConvergence = max(longestConvergence, nanoseconds) }

  mutating func add(_ rows: [[PolicyMatrixScene.Cell]], _ expected: [[Bool]]) {
    cases += 1
    for (cell, answer) in zip(rows.joined(), expected.joined()) {
      let path = cell.isThroughService ? "Service" : "address"
      let key = "\(cell.target.transport.rawValue) \(cell.target.address.family) by \(path)"
      if answer { counts[key, default: Count()].allowed += 1 } else { counts[key, default: Count()].denied += 1 }
    }
  }

  var description: String {
    func row(_ name: String, _ flows: String, _ allowed: String, _ denied: String) -> String {
      func padded(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(0, width - text.count)) + text
      }
      return name + padded(flows, 40 - name.count) + padded(allowed, 12) + padded(denied, 12)
    }
    let lines = counts.sorted { $0.key < $1.key }.map { name, count in
      row(name, "\(count.allowed + count.denied)", "\(count.allowed)", "\(count.denied)")
    }
    let total = row("all", "\(allowed + denied)", "\(allowed)", "\(denied)")
    let head = row("\(cases) cases", "flows", "allowed", "denied")
    return ([head] + lines + [total, "in force at the latest after \(longestConvergence / 1_000_000) ms"])
      .joined(separator: "\n")
  }
}
