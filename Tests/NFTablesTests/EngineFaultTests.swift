import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// What others do to our tables, what we find at start, and what the kernel refuses.
@Suite struct EngineFaultTests {
  /// Runs `nft`, which has to succeed.
  private static func nft(_ command: String) throws {
    let result = try run("nft '\(command)'")
    guard result.status == 0 else {
      throw NFTablesError(operation: "nft \(command)", object: result.output, errno: EINVAL)
    }
  }

  /// Another program's table beside ours, with a name that ours begins with.
  private static let foreignTable =
    "add table ip sluice-other; add chain ip sluice-other c; add rule ip sluice-other c counter"

  private struct Damage: Sendable, CustomTestStringConvertible {
    var command: String
    /// A part of each drift that has to be named.
    var drift: [(Drift.Kind, String)]
    var testDescription: String { command }
  }

  private static let damages: [Damage] = [
    Damage(
      command: "delete element ip sluice frontends { 10.96.0.1 . tcp . 80 }",
      drift: [(.missing, "ip frontends { 10.96.0.1 . tcp . 80 : 0x1 }")]),
    Damage(
      command: "delete element ip sluice backends { 0x00000001 . 0x00000001 }",
      drift: [(.missing, "ip backends { 1 . 0x1 : 10.244.2.2:8080 }")]),
    Damage(
      command: "delete element ip sluice backend-sets { 0x00000001 }; "
        + "add element ip sluice backend-sets { 0x00000001 : 0x80000001 }",
      drift: [(.different, "ip backend-sets { 0x1 : 0x80000001 }, should be ip backend-sets { 0x1 : 0x2 }")]),
    Damage(
      command: "add element ip sluice frontends { 10.96.9.9 . udp . 99 : 0x00000001 }",
      drift: [(.extra, "ip frontends { 10.96.9.9 . udp . 99 : 0x1 }")]),
    Damage(
      command: "delete element ip6 sluice hairpin { fd00:10:244:1::2 . fd00:10:244:1::2 }",
      drift: [(.missing, "ip6 hairpin { fd00:10:244:1::2 }")]),
    Damage(
      command: "add element ip sluice hairpin { 10.244.1.2 . 10.244.1.3 }", drift: [(.extra, "ip hairpin {")]),
    Damage(
      command: "add element ip sluice service-ranges { 10.97.0.0/16 }",
      drift: [(.extra, "ip service-ranges { 10.97.0.0-10.97.255.255 }")]),
    Damage(command: "flush chain ip sluice services", drift: [(.different, "chain ip services")]),
    Damage(command: "flush chain ip6 sluice postrouting", drift: [(.different, "chain ip6 postrouting")]),
    Damage(command: "insert rule ip sluice services accept", drift: [(.different, "chain ip services")]),
    Damage(command: "add chain ip sluice strange", drift: [(.extra, "chain ip strange")]),
    Damage(
      command: "add set ip sluice odd { type ipv4_addr; }; add chain ip sluice strange; "
        + "add rule ip sluice strange ip saddr @odd drop",
      drift: [(.extra, "chain ip strange"), (.extra, "map ip odd")]),
    Damage(
      command: "flush chain ip sluice postrouting; flush chain ip sluice masquerade-flow; "
        + "flush chain ip sluice service-source; flush chain ip sluice policy-forward; flush chain ip sluice forged; "
        + "flush set ip sluice hairpin; delete set ip sluice hairpin",
      drift: [
        (.missing, "map ip hairpin"), (.different, "chain ip postrouting"), (.different, "chain ip masquerade-flow"),
        (.different, "chain ip service-source"), (.different, "chain ip policy-forward"),
        (.different, "chain ip forged"),
      ]),
    Damage(command: "add table ip sluice { flags dormant; }", drift: [(.different, "table ip sluice: dormant")]),
    Damage(command: "delete table ip sluice", drift: [(.missing, "table ip sluice")]),
  ]

  @Test("what another program did to our tables is noticed, named and mended", arguments: damages.indices)
  func foreignChange(index: Int) throws {
    try inNode { findings in
      let damage = Self.damages[index]
      let tables = KernelTests.tables()
      var engine = try NFTablesEngine()
      // Where tables can be owned, nobody can do any of this: OwnershipTests.
      _ = KernelWithoutPersist(engine)
      _ = try engine.resync(tables)
      findings.expect(try !engine.wasChangedByOthers(), "changed before anything happened")
      try Self.nft(damage.command)
      findings.expect(try engine.wasChangedByOthers(), "\(damage.command): not noticed")
      let drift = try engine.verify(tables)
      for (kind, object) in damage.drift {
        findings.expect(
          drift.contains { $0.kind == kind && $0.object.contains(object) },
          "\(damage.command): \(kind) \(object) not in \(drift)")
      }
      findings.expect(drift.count == damage.drift.count, "\(damage.command): \(drift)")
      let mended = try engine.resync(tables)
      findings.expect(mended.drift.count >= drift.count && mended.report.batches > 0, "\(damage.command): \(mended)")
      let after = try engine.verify(tables)
      findings.expect(after == [], "\(damage.command), mended: \(after)")
      findings.expect(try !engine.wasChangedByOthers(), "\(damage.command): still changed after the mending")
      let again = try engine.resync(tables)
      findings.expect(again.report.batches == 0, "\(damage.command), mended twice: \(again)")
    }
  }

  @Test("deltas are no foreign changes, another program's table beside ours is one that leaves nothing to mend")
  func ownChanges() throws {
    try inNode { findings in
      var tables = KernelTests.tables()
      var engine = try NFTablesEngine()
      _ = try engine.resync(tables)
      for number in 10..<15 {
        let delta = tables.change {
          $0.clusterIP(number, "10.96.0.\(number)")
          $0.set(number, backends: (0..<number).map { at("10.244.2.\(1 + $0)", 80) })
        }
        _ = try engine.apply(delta, tables: tables)
        findings.expect(try !engine.wasChangedByOthers(), "our own change counts as another's")
      }
      _ = try engine.finishRemovals()
      try Self.nft(Self.foreignTable)
      findings.expect(try engine.wasChangedByOthers(), "not noticed")
      let drift = try engine.verify(tables)
      findings.expect(drift == [], "\(drift)")
      findings.expect(try !engine.wasChangedByOthers(), "looked at and found right, and still asked for")
    }
  }

  // MARK: Adoption

  @Test("a second engine finds its own tables and changes nothing, then goes on with deltas")
  func adoption() throws {
    try inNode { findings in
      var random = SeededGenerator(seed: WalkAgainstKernelTests.fixedSeed)
      for _ in 0..<5 {
        var world = World(services: 12, using: &random)
        var tables = Tables()
        tables.apply(world.delta(from: tables))
        var first = try NFTablesEngine(ownership: .shared)
        _ = try first.resync(tables)
        for _ in 0..<4 {
          world.change(using: &random)
          let delta = world.delta(from: tables)
          tables.apply(delta)
          _ = try first.apply(delta, tables: tables)
        }
        _ = try first.finishRemovals()
        var second = try NFTablesEngine(ownership: .shared)
        let adopted = try second.resync(tables)
        findings.expect(adopted.drift == [] && adopted.report.batches == 0, "\(adopted)")
        for _ in 0..<4 {
          world.change(using: &random)
          let delta = world.delta(from: tables)
          tables.apply(delta)
          _ = try second.apply(delta, tables: tables)
        }
        let drift = try second.verify(tables)
        findings.expect(drift == [], "\(drift)")
      }
    }
  }

  @Test("removals that were waiting when the agent died are made up for")
  func adoptionOfUnfinished() throws {
    try inNode { findings in
      var tables = KernelTests.tables()
      do {
        var engine = try NFTablesEngine()
        _ = try engine.resync(tables)
        let old = tables.services.sets[BackendSetID(service: id(2), scope: .cluster, family: .v4)]
        let delta = tables.change { $0.set(2, backends: [at("10.244.1.3", 53)], was: old, affinity: 60) }
        _ = try engine.apply(delta, tables: tables)
        findings.expect(engine.hasDeferredRemovals, "nothing waits")
      }
      var engine = try NFTablesEngine()
      let adopted = try engine.resync(tables)
      findings.expect(!adopted.drift.isEmpty && adopted.drift.allSatisfy { $0.kind == .extra }, "\(adopted.drift)")
      let drift = try engine.verify(tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("over an older, different state nothing is left over, and flows and stickiness live on")
  func olderState() throws {
    try inRig { rig, findings in
      var random = SeededGenerator(seed: WalkAgainstKernelTests.fixedSeed &+ 1)
      var older = Tables()
      older.apply(World(services: 20, using: &random).delta(from: older))
      var tables = Tables()
      _ = tables.change { delta in
        delta.clusterIP(900, "10.96.0.90", .udp, 53, affinity: true)
        delta.set(900, backends: (0..<4).map { at("\(PacketRig.remotePod(.v4, $0))", 53) }, affinity: 600)
      }
      _ = older.change { delta in
        delta.clusterIP(900, "10.96.0.90", .udp, 53, affinity: true)
        delta.set(900, backends: (0..<6).map { at("\(PacketRig.remotePod(.v4, $0))", 53) }, affinity: 600)
      }
      func flow() throws -> PacketRig.Sent {
        try rig.send(
          Packet(
            origin: .outside, source: ip("203.0.113.77"), destination: ip("10.96.0.90"), proto: .udp,
            sourcePort: rig.nextPort(), destinationPort: 53))
      }
      var first = try NFTablesEngine(ownership: .shared)
      _ = try first.resync(older)
      let before = try flow()
      usleep(20_000)
      let flows = try rig.conntrack.entries().map(\.reply)
      var second = try NFTablesEngine()
      let mended = try second.resync(tables)
      findings.expect(mended.drift.contains { $0.kind == .extra }, "\(mended.drift)")
      let drift = try second.verify(tables)
      findings.expect(drift == [], "\(drift)")
      let kept = try rig.conntrack.entries().map(\.reply)
      findings.expect(!flows.isEmpty && Set(flows).isSubset(of: kept), "flows \(flows), then \(kept)")
      let after = try flow()
      let outcomes = try rig.outcomes(of: [before, after])
      guard case .tracked(let one) = outcomes[0], case .tracked(let other) = outcomes[1] else {
        findings.expect(false, "\(outcomes)")
        return
      }
      let isStillThere = (0..<4).contains { PacketRig.remotePod(.v4, $0) == one.reply.source }
      findings.expect(!isStillThere || one.reply.source == other.reply.source, "the client was moved: \(outcomes)")
      findings.expect(
        (0..<4).contains { PacketRig.remotePod(.v4, $0) == other.reply.source },
        "sent to a removed backend: \(outcomes)")
    }
  }

  @Test("clean-up removes both tables and nothing else, once and again")
  func cleanUp() throws {
    try inNode { findings in
      try Self.nft(Self.foreignTable)
      let before = try run("nft list ruleset").output
      var engine = try NFTablesEngine()
      _ = try engine.resync(KernelTests.tables())
      findings.expect(try run("nft list tables").output.contains("ip6 sluice\n"), "no table")
      try engine.cleanUp()
      let after = try run("nft list ruleset").output
      findings.expect(before == after && before.contains("sluice-other"), "before:\n\(before)\nafter:\n\(after)")
      try engine.cleanUp()
      // And a new start finds an empty place.
      _ = try engine.resync(KernelTests.tables())
      let drift = try engine.verify(KernelTests.tables())
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test(
    "a table of another layout is built anew",
    arguments: [
      "add table ip sluice; add map ip sluice frontends { type ipv4_addr . inet_service : mark; }",
      "add table ip sluice; add set ip sluice backends { type ipv4_addr; }",
      "add table ip sluice; add chain ip sluice prerouting { type filter hook forward priority 5; }",
      "add table ip6 sluice { flags dormant; }",
    ])
  func otherLayout(command: String) throws {
    try inNode { findings in
      try Self.nft(command)
      var engine = try NFTablesEngine()
      let found = try engine.verify(KernelTests.tables())
      findings.expect(found.contains { $0.object.contains("table ip") }, "\(command): \(found)")
      _ = try engine.resync(KernelTests.tables())
      let drift = try engine.verify(KernelTests.tables())
      findings.expect(drift == [], "\(command): \(drift)")
      let listing = try run("nft list tables; nft list table ip sluice; nft list table ip6 sluice").output
      findings.expect(!listing.contains("dormant"), "\(command): still dormant")
    }
  }

  // MARK: Refusals

  @Test("a refused transaction names the object, changes nothing, and a resync mends")
  func refusal() throws {
    try inNode { findings in
      var tables = KernelTests.tables()
      var engine = try NFTablesEngine(ownership: .shared)
      _ = try engine.resync(tables)
      // Behind our back, somebody takes the element that the delta replaces.
      try Self.nft("delete element ip sluice backend-sets { 0x00000001 }")
      let setID = BackendSetID(service: id(1), scope: .cluster, family: .v4)
      let listing = try run("nft list table ip sluice").output
      let old = tables.services.sets[setID]
      let delta = tables.change { $0.set(1, backends: [], was: old) }
      do throws(NFTablesError) {
        _ = try engine.apply(delta, tables: tables)
        findings.expect(false, "accepted")
      } catch {
        findings.expect(
          error.errno == ENOENT && error.object.contains("ip backend-sets { 0x1"), "\(error)")
      }
      let after = try run("nft list table ip sluice").output
      findings.expect(listing == after, "half of a transaction:\n\(listing)\n\(after)")
      _ = try engine.resync(tables)
      let drift = try engine.verify(tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("without its table an engine's delta fails by name, and a resync builds all")
  func lostTable() throws {
    try inNode { findings in
      var tables = KernelTests.tables()
      var engine = try NFTablesEngine(ownership: .shared)
      _ = try engine.resync(tables)
      try Self.nft("delete table ip sluice")
      let delta = tables.change {
        $0.clusterIP(9, "10.96.0.9")
        $0.set(9, backends: (0..<7).map { at("10.244.2.\(1 + $0)", 80) })
      }
      do throws(NFTablesError) {
        _ = try engine.apply(delta, tables: tables)
        findings.expect(false, "accepted")
      } catch {
        findings.expect(error.errno == ENOENT && error.object.contains("balance-7"), "\(error)")
      }
      _ = try engine.resync(tables)
      let drift = try engine.verify(tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  @Test("without privileges every call fails with the operation's name")
  func withoutPrivileges() throws {
    try inNode { findings in
      // The namespace's thread ends with the test: its capabilities end with it.
      let header: [UInt32] = [0x2008_0522, 0]  // _LINUX_CAPABILITY_VERSION_3, this thread
      let none = [UInt32](repeating: 0, count: 6)
      let dropped = header.withUnsafeBytes { header in
        none.withUnsafeBytes { none in
          capset(header.baseAddress, none.baseAddress)
        }
      }
      guard dropped == 0 else {
        findings.expect(false, "capabilities were not dropped")
        return
      }
      var engine = try NFTablesEngine()
      do throws(NFTablesError) {
        _ = try engine.resync(KernelTests.tables())
        findings.expect(false, "accepted")
      } catch {
        findings.expect(error.errno == EPERM && !error.operation.isEmpty, "\(error)")
      }
    }
  }
}

/// capset(2), which Glibc's module does not carry; it changes the calling thread only.
@_silgen_name("capset")
private func capset(_ header: UnsafeRawPointer?, _ data: UnsafeRawPointer?) -> CInt
