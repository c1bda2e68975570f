import DataplaneModel
import Dispatch
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// Whose our tables are: who can change them while an engine lives, and how they go from one to the next.
@Suite struct OwnershipTests {
  private static let tables = KernelTests.tables()

  /// Whether this kernel can make tables that outlive their owner.
  private static let kernelOwns: Bool = {
    guard let place = try? AnonymousNetworkNamespace() else { return false }
    let answer = try? place.namespace.run { try Connection().canMakeTable(with: [.owner, .persist]) }
    return withExtendedLifetime(place) { answer ?? false }
  }()
  private static let reason: Comment = "this kernel cannot make tables that outlive their owner (before Linux 6.9)"

  /// IPv4's table and IPv6's; nil: there is none.
  private static func flags() -> [TableFlags?] {
    guard let connection = try? Connection() else { return [] }
    return IPFamily.allCases.map { try? connection.ownTable($0)?.flags }
  }

  /// Everything in our tables with the kernel's handles: made anew, it would have others.
  private static func handles() throws -> String {
    let listing = try run("nft -a list table ip sluice; nft -a list table ip6 sluice").output
    return listing.split(separator: "\n").filter { !$0.contains("\tflags ") && !$0.hasPrefix("table ") }
      .joined(separator: "\n")
  }

  private static let damages = [
    "delete table ip sluice", "delete table ip6 sluice", "flush chain ip sluice policy-forward",
    "delete chain ip6 sluice forged", "insert rule ip sluice services accept", "flush set ip sluice hairpin",
    "delete element ip sluice frontends { 10.96.0.1 . tcp . 80 }", "add chain ip sluice strange",
    "add table ip sluice { flags dormant; }",
  ]

  @Test("the tables have the flags that the kernel can: never an owner without persistence")
  func flagsOfNewTables() throws {
    try inNode { findings in
      let asked: [(TableOwnership, TableFlags, TableAccess)] = [
        (.owned, [.owner, .persist], .owned), (.shared, .persist, .shared),
      ]
      for (ownership, flags, access) in asked {
        var engine = try NFTablesEngine(ownership: ownership)
        findings.expect(try engine.tableAccess() == nil, "\(ownership): before there are tables")
        _ = try engine.resync(Self.tables)
        let expected = Self.kernelOwns ? flags : []
        findings.expect(Self.flags() == [expected, expected], "\(ownership): \(Self.flags())")
        let found = try engine.tableAccess()
        findings.expect(found == (Self.kernelOwns || ownership == .shared ? access : .unsupported), "\(ownership)")
        try engine.cleanUp()
      }
      findings.expect(try run("nft list tables").output == "", "the trial left a table")
    }
  }

  @Test("nobody else can delete, empty or add anything; without ownership they can", .enabled(if: kernelOwns, reason))
  func foreignHand() throws {
    try inNode { findings in
      do {
        var engine = try NFTablesEngine()
        _ = try engine.resync(Self.tables)
        for damage in Self.damages {
          let result = try run("nft '\(damage)'")
          findings.expect(
            result.status != 0 && result.output.contains("Operation not permitted"), "\(damage): \(result)")
        }
        // Not refused: it takes all tables but those that are owned.
        findings.expect(try run("nft add table ip other; nft flush ruleset").status == 0, "flush ruleset")
        findings.expect(try !run("nft list tables").output.contains("other"), "not flushed")
        let drift = try engine.verify(Self.tables)
        findings.expect(drift == [], "\(drift)")
        findings.expect(try run("nft list ruleset").output.contains("policy-forward"), "others cannot read it")
        var tables = Self.tables
        let delta = tables.change { $0.clusterIP(9, "10.96.0.9") }
        _ = try engine.apply(delta, tables: tables)
      }
      var shared = try NFTablesEngine(ownership: .shared)
      for damage in Self.damages.dropLast() + ["flush ruleset"] {
        _ = try shared.resync(Self.tables)
        findings.expect(try run("nft '\(damage)'").status == 0, "\(damage), shared")
        findings.expect(try !shared.verify(Self.tables).isEmpty, "\(damage), shared: nothing happened")
      }
    }
  }

  @Test("tables whose owner has gone stay, and the next one takes them in place", .enabled(if: kernelOwns, reason))
  func succession() throws {
    try inNode { findings in
      do {
        var first = try NFTablesEngine()
        _ = try first.resync(Self.tables)
      }
      let handles = try Self.handles()
      findings.expect(handles.contains("handle") && handles.contains("10.96.0.1"), handles)
      // From owned to owned, to shared, and back.
      let all: [(TableOwnership, TableFlags)] = [
        (TableOwnership.owned, [.owner, .persist]), (.shared, .persist), (.owned, [.owner, .persist]),
      ]
      for (ownership, flags) in all {
        findings.expect(Self.flags() == [.persist, .persist], "nobody's: \(Self.flags())")
        var next = try NFTablesEngine(ownership: ownership)
        try next.takeOwnership()
        findings.expect(Self.flags() == [flags, flags], "\(ownership): \(Self.flags())")
        _ = next.takeReport()
        let (report, drift) = try next.resync(Self.tables)
        findings.expect(drift == [] && report.batches == 0, "\(ownership): \(drift), \(report)")
        findings.expect(try next.tableAccess() == (ownership == .owned ? .owned : .shared), "\(ownership)")
        findings.expect(try Self.handles() == handles, "\(ownership): made anew")
      }
    }
  }

  @Test(
    "a second engine is told whose the tables are, and can go on when that one has gone",
    .enabled(if: kernelOwns, reason))
  func twoWriters() throws {
    try inNode { findings in
      var first: NFTablesEngine? = try NFTablesEngine()
      _ = try first?.resync(Self.tables)
      let handles = try Self.handles()
      for ownership in [TableOwnership.owned, .shared] {
        var second = try NFTablesEngine(ownership: ownership)
        var tables = Self.tables
        let delta = tables.change { $0.clusterIP(9, "10.96.0.9") }
        for attempt in ["take", "resync", "apply", "clean up"] {
          do {
            switch attempt {
            case "take": try second.takeOwnership(patience: .milliseconds(30))
            case "resync": _ = try second.resync(tables)
            case "apply": _ = try second.apply(delta, tables: tables)
            default: try second.cleanUp()
            }
            findings.expect(false, "\(ownership): \(attempt) is accepted")
          } catch let error as NFTablesError {
            let owner = first?.connection.portID ?? 0
            findings.expect(
              error.errno == EPERM && error.isAboutOwner && "\(error)".contains("table ip sluice")
                && "\(error)".contains("port ID \(owner) ") && "\(error)".contains("stop the sluice-agent"),
              "\(ownership), \(attempt): \(error)")
          }
        }
      }
      let drift = try first?.verify(Self.tables)
      findings.expect(drift == [], "\(drift ?? [])")
      findings.expect(try Self.handles() == handles, "changed by the second")
      var second = try NFTablesEngine()
      first = nil
      try second.takeOwnership()
      findings.expect(try second.tableAccess() == .owned, "not taken")
    }
  }

  @Test("an owner that is about to go is waited for", .enabled(if: kernelOwns, reason))
  func patience() throws {
    try inNode { findings in
      let holder = try Holder(Self.tables)
      var second = try NFTablesEngine()
      let began = ContinuousClock.now
      holder.letGo(after: .milliseconds(100))
      try second.takeOwnership(patience: .seconds(10))
      let took = ContinuousClock.now - began
      findings.expect(took < .seconds(5), "\(took)")
      findings.expect(try second.tableAccess() == .owned, "not taken")
    }
  }

  // MARK: Tables and kernels without it

  @Test("a kernel without such tables is programmed as ever")
  func oldKernel() throws {
    try inNode { findings in
      var engine = try NFTablesEngine()
      let kernel = KernelWithoutPersist(engine)
      _ = try engine.resync(Self.tables)
      findings.expect(kernel.refused == 1, "asked \(kernel.refused) times")
      findings.expect(Self.flags() == [[], []], "\(Self.flags())")
      findings.expect(try engine.tableAccess() == .unsupported, "access")
      findings.expect(try run("nft delete table ip sluice").status == 0, "not to be deleted")
      findings.expect(try engine.hasLostStructure(Self.tables), "not noticed")
      _ = try engine.resync(Self.tables)
      let drift = try engine.verify(Self.tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test(
    "what a version without ownership made is kept as it is; made anew, it is owned", .enabled(if: kernelOwns, reason))
  func inherited() throws {
    try inNode { findings in
      do {
        var older = try NFTablesEngine()
        _ = KernelWithoutPersist(older)
        _ = try older.resync(Self.tables)
      }
      let handles = try Self.handles()
      var engine = try NFTablesEngine()
      let (report, drift) = try engine.resync(Self.tables)
      findings.expect(drift == [] && report.batches == 0, "\(drift), \(report)")
      findings.expect(try Self.handles() == handles, "made anew")
      findings.expect(try engine.tableAccess() == .inherited, "access")
      findings.expect(try run("nft delete table ip sluice").status == 0, "not to be deleted")
      _ = try engine.resync(Self.tables)
      findings.expect(Self.flags() == [[.owner, .persist], []], "one made anew: \(Self.flags())")
      findings.expect(try engine.tableAccess() == .inherited, "access, one made anew")
      findings.expect(try run("nft flush ruleset").status == 0, "flush ruleset")
      _ = try engine.resync(Self.tables)
      findings.expect(try engine.tableAccess() == .owned, "access, both made anew")
    }
  }

  @Test("a table without anything of ours is replaced by one that can be owned", .enabled(if: kernelOwns, reason))
  func bare() throws {
    try inNode { findings in
      findings.expect(try run("nft 'add table ip sluice; add chain ip sluice strange'").status == 0, "nft")
      var engine = try NFTablesEngine()
      let drift = try engine.resync(Self.tables).drift
      findings.expect(drift.contains { $0.object == "table ip sluice: without maps" }, "\(drift)")
      findings.expect(try engine.tableAccess() == .owned, "access")
      let left = try engine.verify(Self.tables)
      findings.expect(left == [], "\(left)")
    }
  }

  @Test(
    "a table that was switched off while nobody owned it does not come back unseen", .enabled(if: kernelOwns, reason))
  func dormant() throws {
    try inNode { findings in
      do {
        var first = try NFTablesEngine()
        _ = try first.resync(Self.tables)
      }
      try Connection().commit([.addTable(.v4, [.persist, .dormant])])
      var engine = try NFTablesEngine()
      let drift = try engine.resync(Self.tables).drift
      findings.expect(drift.contains { $0.object == "table ip sluice: dormant" }, "\(drift)")
      findings.expect(Self.flags() == [[.owner, .persist], [.owner, .persist]], "\(Self.flags())")
      let left = try engine.verify(Self.tables)
      findings.expect(left == [], "\(left)")
    }
  }
}

/// An engine that is given up from another thread.
private final class Holder: @unchecked Sendable {
  private var engine: NFTablesEngine?

  init(_ tables: Tables) throws {
    var engine = try NFTablesEngine()
    _ = try engine.resync(tables)
    self.engine = engine
  }

  func letGo(after delay: DispatchTimeInterval) {
    DispatchQueue.global().asyncAfter(deadline: .now() + delay) { self.engine = nil }
  }
}
