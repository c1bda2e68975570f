import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("When classes are cut and merged, few addresses get another number") struct RenumberTests {
  /// A part is what an old class and a new one have in common. One that is the largest of both keeps its number: whoever
  /// else had it would move more.
  @Test("the largest part of what was and of what is keeps its number", arguments: [0, 600], AgreementTests.seeds)
  func largestParts(linger: Int, seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (cuts, merges) = (0, 0)
    for number in 0..<40 {
      var compiled = CompiledWorld(
        RandomWorld.make(using: &random, size: number % 20 == 0 ? .medium : .small), linger: .seconds(linger))
      for step in 0..<20 {
        let before = compiled.tables.identities.addresses
        let changes = compiled.world.changes(random.pick(Self.ofPolicies), using: &random)
        compiled.apply(changes)
        let parts = Parts(before, compiled.tables.identities.addresses)
        cuts += parts.cuts
        merges += parts.merges
        guard let problem = parts.problem else { continue }
        Issue.record("seed \(seed), world \(number), step \(step): \(problem) after \(changes)")
        return
      }
      // What lingers goes at once, for which there is no change.
      let before = compiled.tables.identities.addresses
      let parts = Parts(before, compiled.expired(after: .seconds(linger)).0.tables.identities.addresses)
      merges += parts.merges
      guard let problem = parts.problem else { continue }
      Issue.record("seed \(seed), world \(number): \(problem) when what is idle goes")
      return
    }
    #expect(cuts > 40 && merges > 40, "\(cuts) cuts, \(merges) merges")
  }

  private static let ofPolicies: [PolicyWorld.Mutation] = [
    .policyAdded, .policyRemoved, .policyRulesChanged, .policySelectorChanged, .policyTypesChanged, .policyModeChanged,
  ]

  /// How many addresses each old class gave to each new one.
  private struct Parts {
    var counts: [Change<IdentityID>: Int] = [:]

    init(_ before: [IPAddress: IdentityID], _ after: [IPAddress: IdentityID]) {
      for (address, old) in before { counts[Change(old: old, new: after[address]), default: 0] += 1 }
    }

    /// Parts beyond the first of each old class, and of each new one.
    var cuts: Int { counts.count - Set(counts.keys.map(\.old)).count }
    var merges: Int { counts.count - Set(counts.keys.map(\.new)).count }

    var problem: String? {
      for (part, count) in counts where part.old != part.new {
        let rivals = counts.filter { $0.key != part && ($0.key.old == part.old || $0.key.new == part.new) }
        if rivals.values.allSatisfy({ $0 < count }) {
          return "\(count) addresses went from \(part.old ?? .any) to \(part.new ?? .any), others: \(rivals)"
        }
      }
      return nil
    }
  }
}
