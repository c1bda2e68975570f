import DataplaneModel
import NetworkTypes
import Testing

@testable import NFTables

@Suite struct BatchTests {
  @Test("thousands of addresses that get another identity, their first one or none, in one change")
  func moves() throws {
    try inNode { findings in
      var engine = try NFTablesEngine()
      var tables = Tables()
      _ = try engine.resync(tables)
      var moved = 0
      for round in 1...4 {
        var delta = TableDelta()
        for number in 0..<3000 {
          let address = IPAddress(v4: 0x0af4_0000 + UInt32(number))
          let old = tables.identities.addresses[address]
          let new = number % 5 == round ? nil : IdentityID(rawValue: UInt32(round))
          if old != new { delta.identities[address] = Change(old: old, new: new) }
          if old != nil, new != nil { moved += 1 }
        }
        tables.apply(delta)
        let report = try engine.apply(delta, tables: tables)
        findings.expect(report.batches == 1, "\(report)")
        let drift = try engine.verify(tables)
        findings.expect(drift == [], "round \(round): \(drift.prefix(5))")
      }
      findings.expect(moved > 5000, "\(moved)")
    }
  }
}
