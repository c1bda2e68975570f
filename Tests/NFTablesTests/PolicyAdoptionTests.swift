import DataplaneModel
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// An upgrade: what an earlier build left has other rules and lacks maps.
@Suite struct PolicyAdoptionTests {
  @Test(
    "an agent that starts over the tables of another build: nothing allowed is lost, and then nothing denied passes")
  func adoptionOfOtherRules() throws {
    try inNode { findings in
      var stage = try PolicyMakeBeforeBreakTests.stage(&findings)
      // Many ports, so that filling a map takes its time.
      let rules = (0..<200).map {
        "{from: [{podSelector: {matchLabels: {colour: c1}}}], ports: [{protocol: UDP, port: \(10_000 + $0)}]}"
      }
      try stage.node.apply([
        try PolicyMakeBeforeBreakTests.policy(
          "many", "{podSelector: {matchLabels: {app: api}}, ingress: [\(rules.joined(separator: ", "))]}")
      ])
      let returns = [RuleSpec(comment: "", expressions: [.verdict(.return)])]
      for round in 0..<20 {
        // Rules that know of no map but those that every build has, and allow what is allowed.
        for family in IPFamily.allCases {
          let chains = Layout(family: family, internalAddress: nil).judgingChains
          try stage.node.engine.connection.commit(
            chains.map { .replaceRules(family, ChainSpec(name: $0.name, rules: returns)) }
              + [MapName.pairs, .outcomes, .ports, .portRanges].map { .deleteMap(family, $0.rawValue) })
        }
        let counts = try stage.stream.during {
          let (_, drift) = try stage.node.restart()
          findings.expect(!drift.isEmpty, "not noticed")
        }
        let lost = counts.filter { $0.lost > 0 }.failures
        findings.expect(lost == [], "round \(round): \(lost)")
        let adopted = try stage.stream.during {}
        findings.expect(adopted.failures == [], "round \(round), adopted: \(adopted.failures)")
      }
    }
  }
}
