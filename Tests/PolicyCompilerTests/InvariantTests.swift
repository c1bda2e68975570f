import DataplaneModel
import KubernetesObjects
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("Tables keep their promises while a world changes") struct InvariantTests {
  /// Small ones have many changes, medium ones many objects.
  private static let courses: [(size: RandomWorld.Size, worlds: Int, steps: Int)] = [
    (.small, 25, 15), (.medium, 1, 10),
  ]

  /// Calls `body` behind every change of random worlds; ends with the first problem.
  private static func follow(
    seed: UInt64, linger: Duration, _ body: (_ before: Tables, _ after: CompiledWorld) -> [String]
  ) {
    var random = WorldRandom(seed: seed)
    for course in courses {
      for world in 0..<course.worlds {
        var compiled = CompiledWorld(RandomWorld.make(using: &random, size: course.size), linger: linger)
        var before = Tables()
        var changes: [ObjectChange] = []
        for step in 0...course.steps {
          let problems = body(before, compiled)
          guard problems.isEmpty else {
            Issue.record(
              """
              seed \(seed), world \(world), step \(step): \(problems.prefix(5).joined(separator: "; "))
              after \(changes) of
              \(WorldYAML.documents(compiled.world))
              """)
            return
          }
          before = compiled.tables
          var next = compiled.world
          // Every other world changes in batches: what comes together may go by different rules.
          changes = (0..<(world % 2 == 0 ? 1 : Int.random(in: 1...5, using: &random))).flatMap { _ in
            next.mutate(using: &random)
          }
          compiled.apply(changes)
        }
      }
    }
  }

  @Test("every invariant holds", arguments: [0, 600], AgreementTests.seeds)
  func always(linger: Int, seed: UInt64) {
    Self.follow(seed: seed, linger: .seconds(linger)) { _, compiled in TableCheck(compiled).problems() }
  }

  @Test("when the time is over, nothing idle is left", arguments: [0, 600], AgreementTests.seeds)
  func expiry(linger: Int, seed: UInt64) {
    Self.follow(seed: seed, linger: .seconds(linger)) { _, compiled in
      let hadIdle = compiled.compiler.subjects.values.contains { $0.uses == 0 }
      let (check, delta) = compiled.expired(after: .seconds(linger))
      guard hadIdle == (delta != nil) else { return ["idle: \(hadIdle), expired: \(delta != nil)"] }
      let idle = check.compiler.subjects.filter { $0.value.uses == 0 }.keys
      return check.problems() + check.partitionProblems() + idle.map { "subject \($0) is idle" }
        + (delta?.problems(from: compiled.tables, to: check.tables) ?? [])
        + (delta?.rejudgesFlows == true ? ["judges flows again"] : [])
    }
  }

  @Test("a delta says what was there, leads to what is there, and replaces no pair", arguments: AgreementTests.seeds)
  func deltas(seed: UInt64) {
    for linger in [Duration.zero, .seconds(600)] {
      Self.follow(seed: seed, linger: linger) { before, compiled in
        var copy = Tables()
        copy.apply(compiled.tables.asDelta)
        return compiled.lastDelta.problems(from: before, to: compiled.tables)
          + (copy == compiled.tables ? [] : ["asDelta leads elsewhere"])
      }
    }
  }

  @Test("no identity number comes back", arguments: AgreementTests.seeds)
  func numbersServeOnce(seed: UInt64) {
    var gone: Set<IdentityID> = []
    Self.follow(seed: seed, linger: .zero) { before, compiled in
      if before.identities.addresses.isEmpty { gone = [] }
      let (old, new) = (before.identities.inUse, compiled.tables.identities.inUse)
      gone.formUnion(old.subtracting(new))
      return new.intersection(gone).map { "identity \($0) is back" }
    }
  }
}

extension CompiledWorld {
  /// What is left when the time has come that nothing idle stays in force; nil where nothing was idle.
  func expired(after linger: Duration) -> (TableCheck, TableDelta?) {
    var (compiler, tables) = (compiler, tables)
    let delta = compiler.expire(in: state, tables: tables, now: .now + linger)
    if let delta { tables.apply(delta) }
    return (TableCheck(world, compiler, tables), delta)
  }
}

extension IdentityTable {
  /// Every identity that an address or an atom names.
  var inUse: Set<IdentityID> {
    Set(addresses.values).union(blocks.values.flatMap { $0.atoms.map(\.identity) })
  }
}
