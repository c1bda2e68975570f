// What every lab test shares: names, the programs under test, take-down whatever happens, and the invariants.
import Glibc
import Lab
import Testing

@testable import Lab

enum LabHarness {
  /// `SLUICE_BIN_DIR`, or `bin/` of the package.
  static let binDirectory: String = {
    if let value = getenv("SLUICE_BIN_DIR") { return String(cString: value) }
    // Tests/LabTests/LabHarness.swift -> the package's folder.
    return #filePath.split(separator: "/").dropLast(3).reduce("") { "\($0)/\($1)" } + "/bin"
  }()

  static let dpctl = "\(binDirectory)/dpctl"

  static let nft = ["/usr/sbin/nft", "/sbin/nft"].first { (path: String) in access(path, X_OK) == 0 } ?? "nft"

  /// For agents whose tables a test damages: owned ones it could not.
  static let sharedTables = ["--own-tables", "false"]

  /// Labs need root and the built `dpctl`; tests that need more name it. Where somebody has said where the programs are,
  /// and in CI, a missing one fails the tests instead of skipping them.
  static func canRun(_ programs: String...) -> Bool {
    guard geteuid() == 0 else { return false }
    if getenv("CI") != nil || getenv("SLUICE_BIN_DIR") != nil { return true }
    return (programs + ["dpctl"]).allSatisfy { access("\(binDirectory)/\($0)", X_OK) == 0 }
  }

  /// Unique on this machine, so that suites run side by side.
  static func uniqueName(_ purpose: String) -> String {
    "\(purpose)-\(getpid())-\(UInt32.random(in: 0...0xffff))"
  }

  static func configuration(
    _ purpose: String, nodes: Int = 2, agents: Bool = true
  ) -> LabConfiguration {
    var configuration = LabConfiguration(name: uniqueName(purpose), nodes: nodes, binDirectory: binDirectory)
    configuration.startsAgents = agents
    // The same tests by another engine.
    if let engine = getenv("SLUICE_ENGINE"), agents { configuration.engine = String(cString: engine) }
    // The same tests with what an API server tells.
    configuration.usesAPIServer = agents && getenv("SLUICE_SOURCE").map { String(cString: $0) } == "apiserver"
    // The same tests with connections translated at the socket.
    configuration.socketLB = agents ? getenv("SLUICE_SOCKET_LB").map { String(cString: $0) } : nil
    return configuration
  }

  /// Makes a folder of the built programs, some of them as shell scripts.
  static func wrapPrograms(in directory: String, _ scripts: [String: String]) throws {
    try Files.makeDirectories(directory)
    for program in ["dpctl", "sluice", "sluice-agent", "apiserver-double"] {
      if let script = scripts[program] {
        try Files.replace("\(directory)/\(program)", "#!/bin/sh\n\(script)\n", mode: 0o755)
      } else {
        #expect(symlink("\(binDirectory)/\(program)", "\(directory)/\(program)") == 0)
      }
    }
  }

  /// Brings a lab up, runs `body`, checks the invariants and takes the lab down, whatever happens.
  ///
  /// - Parameter expectedErrors: substrings of agent log lines that this test provokes.
  static func withLab<Result>(
    _ configuration: LabConfiguration, expectedErrors: [String] = [], _ body: (Lab) throws -> Result
  ) throws -> Result {
    let lab = try Lab(configuration)
    try lab.up()
    defer {
      do { try lab.down() } catch { Issue.record("lab \(lab.name) cannot be taken down: \(error)") }
    }
    // Told also where the body failed: it may be the cause.
    defer { if let end = lab.apiServerEnd() { Issue.record("\(end)") } }
    let result = try body(lab)
    expectQuietLogs(of: lab, except: expectedErrors)
    return result
  }

  /// No agent has logged an error or a warning that the test did not provoke.
  static func expectQuietLogs(
    of lab: Lab, except expected: [String] = [], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    for node in lab.configuration.nodes {
      for line in lab.agentLog(node.name).split(separator: "\n") {
        let text = line.lowercased()
        let isBad = ["error", "critical", "fatal", "panic"].contains { text.contains($0) }
        guard isBad, !expected.contains(where: { line.contains($0) }) else { continue }
        Issue.record("agent of \(node.name) logged: \(line)", sourceLocation: sourceLocation)
      }
    }
  }

  /// `dpctl service diff`, run in each node, finds objects, agent and kernel equal.
  static func expectAgreement(of lab: Lab, sourceLocation: SourceLocation = #_sourceLocation) throws {
    for node in lab.configuration.nodes {
      let diff = try lab.exec(in: .node(node.name), [dpctl, "service", "diff"])
      #expect(
        diff.status == 0 && diff.stdout.isEmpty, "\(node.name): \(diff.stdout)\(diff.stderr)",
        sourceLocation: sourceLocation)
    }
  }

  /// Packets were dropped by these chains of the agents' tables, and by no other. Not checked where there is no `nft`.
  static func expectDrops(
    of lab: Lab, _ expected: Set<String>, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    if lab.configuration.engine == "ebpf" {
      try expectCountedDrops(of: lab, expected, sourceLocation)
      return
    }
    guard let nft = ["/usr/sbin/nft", "/sbin/nft"].first(where: { (path: String) in access(path, X_OK) == 0 })
    else { return }
    var found: Set<String> = []
    for node in lab.configuration.nodes {
      var chain = ""
      for line in try lab.exec(in: .node(node.name), [nft, "list", "ruleset"]).stdout.split(separator: "\n") {
        let words = line.split { $0 == " " || $0 == "\t" }
        if let name = words.firstIndex(where: { $0 == "chain" }), name + 1 < words.count {
          chain = String(words[name + 1])
        }
        if let packets = words.firstIndex(of: "packets"), words.contains("drop"), words[packets + 1] != "0" {
          found.insert(chain)
        }
      }
    }
    #expect(found == expected, "the chains that dropped something", sourceLocation: sourceLocation)
  }

  /// The same of an engine without chains, by what agents have counted.
  private static func expectCountedDrops(
    of lab: Lab, _ expected: Set<String>, _ sourceLocation: SourceLocation
  ) throws {
    let chains = [
      "source-range": "drop-source-range", "no-local-endpoint": "drop-no-local-endpoint",
      "unallocated-service-address": "drop-unallocated", "forged-source": "drop-forged",
    ]
    var found: Set<String> = []
    for node in lab.configuration.nodes {
      for (name, value) in try lab.metrics(node.name) where name.hasPrefix("sluice_drop_packets_total") && value > 0 {
        let reason = name.split(separator: "\"").dropFirst().first.map(String.init) ?? name
        found.insert(chains[reason] ?? reason)
      }
    }
    #expect(found == expected, "what dropped something", sourceLocation: sourceLocation)
  }

  /// Every flow lived, every message was answered, and no answer was late.
  static func expectUninterrupted(
    _ flows: [EchoFlowReport], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    for flow in flows {
      #expect(flow.broken == nil, sourceLocation: sourceLocation)
      #expect(flow.gaps == [], sourceLocation: sourceLocation)
      #expect(flow.lostAtMilliseconds == [], sourceLocation: sourceLocation)
      #expect(flow.sent == flow.received, sourceLocation: sourceLocation)
      #expect(flow.sent > 0, "a flow that sent nothing proves nothing", sourceLocation: sourceLocation)
    }
  }

  /// Whether other tests run at the same time.
  static let sharesMachine = getenv("SLUICE_SHARED_MACHINE") != nil

  /// Asks again until it holds, at most that long.
  static func eventually(
    milliseconds: Int = 20_000, _ what: String, sourceLocation: SourceLocation = #_sourceLocation,
    _ holds: () throws -> Bool
  ) throws {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    while try !holds() {
      guard monotonicNanoseconds() < deadline else {
        Issue.record("not within \(milliseconds) ms: \(what)", sourceLocation: sourceLocation)
        return
      }
      usleep(10_000)
    }
  }
}
