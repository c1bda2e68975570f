import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// Tables that no packet meets: while engines change.
@Suite struct TableSleepTests {
  private static let tables = KernelTests.tables()

  private static func flags() throws -> [TableFlags?] {
    let connection = try Connection()
    return try IPFamily.allCases.map { try connection.ownTable($0)?.flags }
  }

  @Test("an engine that sleeps fills tables asleep, adopts them so, and wakes them as its own without making them anew")
  func wake() throws {
    try inNode { findings in
      for round in 1...2 {
        // The second one finds what the first one left.
        var engine = try NFTablesEngine(sleeps: true)
        let drift = try engine.resync(Self.tables).drift
        findings.expect(drift.isEmpty == (round == 2), "round \(round): \(drift)")
        findings.expect(try engine.verify(Self.tables).isEmpty, "round \(round)")
        findings.expect(try !engine.hasLostStructure(Self.tables), "round \(round)")
        findings.expect(try !engine.hasAwakeTable(), "round \(round)")
      }
      var engine = try NFTablesEngine(sleeps: true)
      _ = try engine.resync(Self.tables)
      let before = try run("nft -a list ruleset").output
      try engine.wake()
      let after = try run("nft -a list ruleset").output
      func rules(_ listing: String) -> [Substring] { listing.split(separator: "\n").filter { $0.hasPrefix("\t\t") } }
      findings.expect(rules(before) == rules(after), "waking made rules anew")
      findings.expect(try engine.verify(Self.tables).isEmpty, "after waking")
      for flags in try Self.flags() {
        findings.expect(flags?.contains(.dormant) == false, "\(String(describing: flags))")
      }
      let access = try engine.tableAccess()
      findings.expect(access == .owned || access == .unsupported, "\(String(describing: access))")
      try engine.cleanUp()
    }
  }

  @Test("tables of an agent that has ended are put to sleep; one that lives keeps its tables, and is named")
  func sleep() throws {
    try inNode { findings in
      do {
        var first = try NFTablesEngine()
        _ = try first.resync(Self.tables)
        var other = try NFTablesEngine()
        if try first.tableAccess() == .owned {
          do throws(NFTablesError) {
            try other.sleep()
            findings.expect(false, "an owner's tables were put to sleep")
          } catch {
            findings.expect(error.isAboutOwner, "\(error)")
          }
          findings.expect(try other.hasAwakeTable(), "refused and done")
        }
      }
      var other = try NFTablesEngine()
      try other.sleep()
      findings.expect(try !other.hasAwakeTable(), "still awake")
      try other.cleanUp()
      findings.expect(try run("nft list tables").output == "", "left")
      // Nothing there: nothing to do.
      try other.sleep()
      try other.wake()
    }
  }
}
