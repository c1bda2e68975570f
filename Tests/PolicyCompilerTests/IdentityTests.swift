import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("Identities are the classes that policies in force tell apart") struct IdentityTests {
  @Test("no more and no fewer, compiled at once or change by change", arguments: AgreementTests.seeds)
  func minimal(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    for number in 0..<40 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random, size: number % 20 == 0 ? .medium : .small))
      for step in 0..<15 {
        let problems = compiled.expired(after: .zero).0.partitionProblems()
        guard problems.isEmpty else {
          Issue.record(
            """
            seed \(seed), world \(number), step \(step): \(problems.prefix(5).joined(separator: "; "))
            \(WorldYAML.documents(compiled.world))
            """)
          return
        }
        var next = compiled.world
        compiled.apply(next.mutate(using: &random))
      }
    }
  }
}
