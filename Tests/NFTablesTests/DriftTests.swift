import DataplaneModel
import NetworkTypes
import Testing

@testable import NFTables

@Suite("Which differences are policy's") struct DriftTests {
  @Test("those in its maps and chains, and in what all share")
  func ours() {
    for map in [MapName.pairs, .verdicts, .identities, .blocks, .egressSubjects, .hairpin, .podRanges] {
      #expect(NFTablesEngine.isAboutPolicy(Drift(.missing, "map ip \(map.rawValue)")), "\(map)")
    }
    let element = MapEntry.pair(
      .v6, PairKey(SubjectID(rawValue: 1), IdentityID(rawValue: 2)),
      PairValue(portSet: PortSetID(rawValue: 3), attribution: AttributionID(rawValue: 4)))
    #expect(NFTablesEngine.isAboutPolicy(Drift(.different, "\(element), should be \(element)")))
    for family in IPFamily.allCases {
      let layout = Layout(family: family, internalAddress: nil)
      for chain in layout.policyChains {
        #expect(NFTablesEngine.isAboutPolicy(Drift(.different, "chain ip6 \(chain.name)")), "\(chain.name)")
      }
    }
    #expect(NFTablesEngine.isAboutPolicy(Drift(.missing, "table ip sluice")))
    #expect(NFTablesEngine.isAboutPolicy(Drift(.different, "table ip6 sluice: map pairs")))
  }

  @Test("not those in what balances Services")
  func others() {
    for map in [MapName.frontends, .sets, .backends, .affinity, .serviceRanges] {
      #expect(!NFTablesEngine.isAboutPolicy(Drift(.missing, "map ip \(map.rawValue)")), "\(map)")
    }
    let element = MapEntry.set(.v4, key: 1, code: 2)
    #expect(!NFTablesEngine.isAboutPolicy(Drift(.extra, "\(element)")))
    for chain in ["services", "balance-2", "postrouting"] {
      #expect(!NFTablesEngine.isAboutPolicy(Drift(.extra, "chain ip \(chain)")), "\(chain)")
    }
  }
}
