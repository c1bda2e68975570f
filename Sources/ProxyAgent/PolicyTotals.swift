import DataplaneModel
import KubernetesObjects
import NFTables

/// What the kernel counted for policies, by name: clauses of one rule, or of the same isolating policies, added up.
struct PolicyTotals {
  struct RuleKey: Hashable {
    var direction: PolicyDirection
    var rule: RuleReference
  }
  /// Default denials, which all isolating policies have part in.
  struct DenialKey: Hashable {
    var direction: PolicyDirection
    var policies: [PolicyReference]
  }
  var rules: [RuleKey: TrafficCount] = [:]
  var denied: [DenialKey: TrafficCount] = [:]
  /// By audit policies.
  var wouldDeny: [DenialKey: TrafficCount] = [:]

  /// - Parameter meaning: nil for a clause that nobody remembers.
  init(_ counters: PolicyCounters, meaning: (ClauseKey) -> ClauseHistory.Meaning?) {
    for (key, count) in counters.clauses {
      guard let meaning = meaning(key) else { continue }
      let attribution = meaning.attribution
      let policies = attribution.policies(of: meaning.clause)
      switch meaning.clause.kind {
      case .allow:
        guard let rule = attribution.rule(of: meaning.clause) else { continue }
        rules[RuleKey(direction: attribution.direction, rule: rule), default: TrafficCount()] += count
      case .defaultDeny, .overLimit:
        denied[DenialKey(direction: attribution.direction, policies: policies), default: TrafficCount()] += count
      case .auditDeny:
        wouldDeny[DenialKey(direction: attribution.direction, policies: policies), default: TrafficCount()] += count
      case .notIsolated: break
      }
    }
  }

  /// The denials that a policy has part in.
  func denied(by policy: PolicyReference, _ direction: PolicyDirection) -> TrafficCount {
    Self.sum(denied, policy, direction)
  }
  func wouldDeny(by policy: PolicyReference, _ direction: PolicyDirection) -> TrafficCount {
    Self.sum(wouldDeny, policy, direction)
  }

  private static func sum(
    _ counts: [DenialKey: TrafficCount], _ policy: PolicyReference, _ direction: PolicyDirection
  ) -> TrafficCount {
    var sum = TrafficCount()
    for (key, count) in counts where key.direction == direction && key.policies.contains(policy) { sum += count }
    return sum
  }

  /// For `/metrics`. Series of policies that no longer exist are left out, and come back as they were if the policies do.
  func samples(exists: (PolicyReference) -> Bool) -> [AgentMetrics.Sample] {
    var samples: [AgentMetrics.Sample] = []
    func add(_ direction: PolicyDirection, _ policy: String, _ rule: String, _ verdict: String, _ count: TrafficCount) {
      samples.append(
        AgentMetrics.Sample(
          labels: [
            ("direction", direction.description), ("policy", policy), ("rule", rule), ("verdict", verdict),
          ], value: count.packets))
    }
    for (key, count) in rules where exists(key.rule.policy) {
      add(key.direction, key.rule.policy.description, "\(key.rule.index)", "allow", count)
    }
    for (counts, verdict) in [(denied, "deny"), (wouldDeny, "would-deny")] {
      for (key, count) in counts where key.policies.allSatisfy(exists) {
        add(key.direction, key.policies.map(\.description).joined(separator: ","), "", verdict, count)
      }
    }
    return samples.sorted { $0.labels.map(\.1).lexicographicallyPrecedes($1.labels.map(\.1)) }
  }
}
