import DataplaneModel
import Glibc
import KubernetesObjects
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// Transactions that fail, at every place where one can: nothing denied passes and nothing allowed is lost, neither then
/// nor while the kernel is mended; and the kernel has what it should have afterwards.
@Suite(.serialized) struct PolicyFaultTests {
  /// Goes back and forth between two worlds that differ in everything that a delta can have.
  private struct Course {
    var node: PolicyNode
    let changes: [[ObjectChange]]

    init(_ node: PolicyNode) throws {
      self.node = node
      changes = try (0...1).map { number in
        let other = 1 - number
        return PolicyMakeBeforeBreakTests.relabelled(node.world, "lab/bare", "colour", "c\(number)")
          + PolicyMakeBeforeBreakTests.relabelled(node.world, "bank/till", "colour", "c\(other)")
          + [
            try PolicyMakeBeforeBreakTests.policy(
              "colours",
              """
              {podSelector: {matchLabels: {app: api}}, ingress: [
                {from: [{podSelector: {matchLabels: {colour: c\(number)}}, namespaceSelector: {}}],
                 ports: [{port: \(7000 + number)}, {protocol: UDP, port: \(7100 + number), endPort: 7200}]},
                {from: [{ipBlock: {cidr: 203.0.113.0/\(25 + number), except: [203.0.113.\(number + 1)/32]}},
                        {ipBlock: {cidr: '2001:db8::/\(66 + number)'}}], ports: [{port: 6000}]}]}
              """)
          ]
      }
    }
  }

  enum Step: String {
    /// The engine gets a delta.
    case apply
    /// The engine finds the kernel behind its tables.
    case resync
  }

  /// What a failed transaction leaves does not depend on the number that comes back: mending is gone through once.
  @Test(
    "ENOMEM and EINTR at each message, each send and each answer of every transaction",
    arguments: [(ENOMEM, [Step.apply, .resync]), (EINTR, [.apply])])
  func faults(errno: Int32, steps: [Step]) throws {
    try inNode { findings in
      let stage = try PolicyMakeBeforeBreakTests.stage(&findings)
      var course = try Course(stage.node)
      try course.node.apply(course.changes[0])
      let kernel = FaultyKernel(course.node.engine)
      var struck: [String: Int] = [:]
      let counts = try stage.stream.during {
        for step in steps {
          try Self.everyFault(errno) { fault in
            kernel.arm(fault)
            var failure: NFTablesError?
            do throws(NFTablesError) { try Self.take(step, &course) } catch { failure = error }
            kernel.disarm()
            let name = "\(step), \(fault)"
            if kernel.hasStruck {
              struck["\(step)", default: 0] += 1
              Self.check(failure, fault, name, &findings)
            } else {
              findings.expect(failure == nil, "\(name): \(failure.map { "\($0)" } ?? "")")
            }
            // An agent waits a while before it mends.
            usleep(1000)
            if failure != nil { _ = try course.node.engine.resync(course.node.tables) }
            // Mending reads everything back and compares; mending again would find what it left.
            if failure == nil {
              let drift = try course.node.engine.verify(course.node.tables)
              findings.expect(drift == [], "\(name): \(drift)")
            }
            try course.node.apply(course.changes[0])
            _ = try course.node.engine.finishRemovals()
            return kernel.hasStruck
          }
        }
      }
      let drift = try course.node.engine.verify(course.node.tables)
      findings.expect(drift == [], "after all: \(drift)")
      print("must not pass: \(String(cString: strerror(errno))) injected \(struck): \(counts.summary)")
      for step in steps { findings.expect(struck["\(step)"] ?? 0 > 20, "\(step) had few faults: \(struck)") }
      let denials = try PolicyMakeBeforeBreakTests.denials(course.node)
      findings.expect(counts.failures == [], "\(counts.failures)\n  \(denials)")
    }
  }

  /// Calls `body` with every fault, message by message and transaction by transaction, until there is none left to fail.
  ///
  /// - Parameter body: returns whether the fault has struck.
  private static func everyFault(_ errno: Int32, _ body: (KernelFault) throws -> Bool) throws {
    for batch in 0... {
      guard try body(KernelFault(batch: batch, kind: .send, errno: errno)) else { return }
      _ = try body(KernelFault(batch: batch, kind: .answer, errno: errno))
      for message in 0... {
        guard try body(KernelFault(batch: batch, kind: .message(message), errno: errno)) else { break }
      }
    }
  }

  private static func take(_ step: Step, _ course: inout Course) throws(NFTablesError) {
    switch step {
    case .apply: try course.node.attempt(course.changes[1])
    case .resync:
      course.node.advance(course.changes[1])
      _ = try course.node.engine.resync(course.node.tables)
    }
    _ = try course.node.engine.finishRemovals()
  }

  /// An interrupted call is made again; everything else is told.
  private static func check(
    _ failure: NFTablesError?, _ fault: KernelFault, _ name: String, _ findings: inout Findings
  ) {
    guard fault.errno != EINTR || fault.kind != .send && fault.kind != .answer else {
      findings.expect(failure == nil, "\(name): \(failure.map { "\($0)" } ?? "")")
      return
    }
    findings.expect(failure != nil, "\(name): not noticed")
    guard let failure, fault.kind != .answer else { return }
    findings.expect(failure.errno == fault.errno, "\(name): \(failure)")
  }
}
