import DataplaneModel
import Glibc
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

/// The tables mean what the objects say: compiled worlds against the oracle.
@Suite("Compiled tables and the oracle agree") struct AgreementTests {
  /// The fixed seed finds what it found before, the fresh one what nobody has seen.
  static let seeds: [UInt64] = [
    20_261_121, getenv("SLUICE_SEED").flatMap { UInt64(String(cString: $0)) } ?? .random(in: 1 ... .max),
  ]

  @Test("on 100,000 packets through random worlds that change", arguments: seeds)
  func random(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var kinds: [String: Int] = [:]
    var judged = 0
    while judged < 50_000 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random))
      for _ in 0..<10 {
        let oracle = PolicyOracle(compiled.world)
        for _ in 0..<50 {
          let flow = compiled.world.flow(using: &random)
          let expected = oracle.judge(flow)
          let found = compiled.judge(flow)
          judged += 1
          kinds[expected.egress.verdict.kind + "/" + expected.ingress.verdict.kind, default: 0] += 1
          guard found != .success(expected) else { continue }
          Issue.record(
            "seed \(seed): \(flow)\n  oracle: \(expected)\n  tables: \(found)\n\(Self.shrunk(compiled.world, flow))")
          return
        }
        var next = compiled.world
        let count = Bool.random(using: &random) ? 1 : 4
        compiled.apply((0..<count).flatMap { _ in next.mutate(using: &random) })
      }
    }
    print(
      "policy agreement: seed \(seed): \(judged) packets, \(kinds.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))"
    )
  }

  /// The smallest world that still shows it when compiled at once; the whole one where only its history does.
  private static func shrunk(_ world: PolicyWorld, _ flow: PolicyFlow) -> String {
    func fails(_ world: PolicyWorld) -> Bool {
      // Without its sender a flow means nothing.
      if case .localPod(let key) = flow.origin,
        !world.localPods.contains(where: { $0.key == key && $0.podIPs.contains(flow.source) })
      {
        return false
      }
      return CompiledWorld(world).judge(flow) != .success(PolicyOracle(world).judge(flow))
    }
    guard fails(world) else { return "only after the changes before; the world now:\n\(WorldYAML.documents(world))" }
    return WorldYAML.documents(Shrink.minimal(world, fails: fails))
  }
}
