import DataplaneModel
import NetworkTypes

extension NFTablesEngine {
  public func isAboutPolicy(_ drift: Drift) -> Bool { Self.isAboutPolicy(drift) }

  /// Whether a difference that `verify` found is in what policy is made of: its maps and chains, and what all share.
  public static func isAboutPolicy(_ drift: Drift) -> Bool {
    // `ip pairs { ... }`, `map ip pairs`, `chain ip egress`, `table ip sluice: chain forged`.
    let words = drift.object.split(separator: " ", maxSplits: 3).map(String.init)
    guard words.count > 1 else { return true }
    switch words[0] {
    case "map": return words.count < 3 || policyMaps.contains(words[2])
    case "chain": return words.count < 3 || policyChains.contains(words[2])
    case "table": return true
    default: return policyMaps.contains(words[1])
    }
  }

  /// Also those that policy shares: who is a local pod.
  private static let policyMaps: Set<String> = Set(
    [
      MapName.localInterfaces, .podSources, .hairpin, .ownAddresses, .egressSubjects, .ingressSubjects, .identities,
      .blocks, .blockTable, .podRanges, .pairs, .ports, .portRanges, .verdicts, .clauseLabels, .outcomes,
      .revision,
    ].map(\.rawValue))

  private static let policyChains: Set<String> = Set(
    IPFamily.allCases.flatMap { Layout(family: $0, internalAddress: nil).policyChains.map(\.name) } + ["forged"])
}
