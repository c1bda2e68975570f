import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler
@testable import PolicyWorlds

@Suite("Differences between objects and tables") struct DifferencesTests {
  @Test("there are none after any changes, however old what lingers", arguments: AgreementTests.seeds)
  func none(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    for _ in 0..<60 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random), linger: .seconds(3600))
      for _ in 0..<10 {
        let found = compiled.compiler.differences(in: compiled.state, from: compiled.tables)
        #expect(found == [], "seed \(seed): \(WorldYAML.documents(compiled.world))")
        guard found.isEmpty else { return }
        var next = compiled.world
        compiled.apply(next.mutate(using: &random))
      }
    }
  }

  @Test(
    "a changed policy, pod or namespace that the compiler was not told of is named", arguments: AgreementTests.seeds)
  func untold(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (told, named) = (0, 0)
    for _ in 0..<200 {
      let compiled = CompiledWorld(RandomWorld.make(using: &random))
      var next = compiled.world
      let changes = next.mutate(using: &random)
      // Only the state learns of it.
      for change in changes { compiled.state.apply(change) }
      let flows = (0..<200).map { _ in next.flow(using: &random) }
      let oracle = PolicyOracle(next)
      let isWrong = flows.contains { flow in
        next.localPods == compiled.world.localPods && compiled.judge(flow) != .success(oracle.judge(flow))
      }
      guard isWrong else { continue }
      told += 1
      if !compiled.compiler.differences(in: compiled.state, from: compiled.tables).isEmpty { named += 1 }
    }
    #expect(told > 5)
    #expect(named == told, "seed \(seed)")
  }

  @Test("what of the tables is damaged is named", arguments: AgreementTests.seeds)
  func damage(seed: UInt64) throws {
    var random = WorldRandom(seed: seed)
    var kinds: [String: Int] = [:]
    for _ in 0..<60 {
      let compiled = CompiledWorld(RandomWorld.make(using: &random))
      func damaged(_ kind: String, _ body: (inout TableDelta) -> Void) {
        var delta = TableDelta()
        body(&delta)
        var tables = compiled.tables
        tables.apply(delta)
        kinds[kind, default: 0] += 1
        #expect(compiled.compiler.differences(in: compiled.state, from: tables) != [], "seed \(seed): \(kind)")
      }
      let tables = compiled.tables
      if let (address, identity) = tables.identities.addresses.min(by: { $0.key < $1.key }) {
        damaged("address") { $0.identities[address] = Change(old: identity, new: nil) }
      }
      if let endpoint = tables.node.endpoints.values.first(where: {
        $0.subjects?.ingress != .unrestricted && $0.subjects != nil
      }) {
        damaged("subject") {
          var open = endpoint
          open.subjects?.ingress = .unrestricted
          $0.endpoints[endpoint.interface] = Change(old: endpoint, new: open)
        }
      }
      let used = Set(tables.node.endpoints.values.compactMap(\.subjects).flatMap { [$0.ingress, $0.egress] })
      if let (key, value) = tables.policies.pairs.filter({ used.contains($0.key.subject) && $0.key.identity == .any })
        .min(by: { $0.key.subject < $1.key.subject })
      {
        damaged("port set") {
          $0.portSets[value.portSet] = Change(
            old: tables.policies.portSets[value.portSet],
            new: PortSet([.init(PortKey.first...PortKey.last, Clause(.allow, 77))]))
        }
        // Where policies name every address there is, nobody is just anybody.
        if tables.identities.inUse.contains(where: { tables.policies.pairs[PairKey(key.subject, $0)] == nil }) {
          damaged("wildcard") { $0.pairs[key] = Change(old: value, new: nil) }
        }
      }
    }
    for kind in ["address", "subject", "port set", "wildcard"] { #expect(kinds[kind] ?? 0 > 5, "\(kinds)") }
  }
}
