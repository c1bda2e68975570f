import CLinux
import DataplaneModel
import KubernetesObjects
import LocalAPI
import NFTables
import NetworkTypes
import PolicyCompiler

/// What metrics and `dpctl` ask about policies and identities.
extension Reconciler {
  private func totals() throws -> (counters: PolicyCounters, names: PolicyTotals) {
    let counters = try engine.counters()
    // Who looks does not count as work: the metrics of that tell what changes cost.
    _ = engine.takeReport()
    // What the listing took goes back to the kernel at once: scrapes must not raise what the agent holds.
    clinux_malloc_trim()
    let names = PolicyTotals(counters) { key in
      // What is in force has a meaning even if it is older than anybody remembers.
      clauses.meaning(of: key)
        ?? tables.policies.attributions[key.attribution].map { .init(attribution: $0, clause: key.clause) }
    }
    return (counters, names)
  }

  /// Policies with what they do here, by name.
  func policyList(namespace: String?, name: String?) throws -> JSONValue {
    let totals = try totals().names
    let selected = policies.selectedPods
    let inForce = policies.policiesInForce
    func count(_ count: TrafficCount) -> JSONObject {
      ["packets": .int(Int64(clamping: count.packets)), "bytes": .int(Int64(clamping: count.bytes))]
    }
    let wanted = state.networkPolicies.values.filter {
      (namespace == nil || $0.key.namespace == namespace) && (name == nil || $0.key.name == name)
    }
    let items = wanted.sorted { $0.key < $1.key }.map { policy -> JSONValue in
      let reference = PolicyReference(namespace: policy.key.namespace, name: policy.key.name)
      let directions = PolicyDirection.allCases.filter {
        $0 == .ingress ? policy.isolatesIngress : policy.isolatesEgress
      }
      let rules = directions.flatMap { direction in
        (direction == .ingress ? policy.ingress : policy.egress).indices.map { index -> JSONValue in
          let key = PolicyTotals.RuleKey(direction: direction, rule: RuleReference(policy: reference, index: index))
          var row: JSONObject = ["direction": .string(direction.description), "index": .int(Int64(index))]
          for member in count(totals.rules[key] ?? TrafficCount()) { row[member.key] = member.value }
          return .object(row)
        }
      }
      return [
        "namespace": .string(policy.key.namespace), "name": .string(policy.key.name),
        "mode": .string(policy.mode.rawValue), "directions": .array(directions.map { .string($0.description) }),
        "inForce": .bool(inForce.contains(policy.key)),
        "pods": .array((selected[policy.key] ?? []).map { .string($0.description) }), "rules": .array(rules),
        "denied": [
          "ingress": .object(count(totals.denied(by: reference, .ingress))),
          "egress": .object(count(totals.denied(by: reference, .egress))),
        ],
        "wouldDeny": [
          "ingress": .object(count(totals.wouldDeny(by: reference, .ingress))),
          "egress": .object(count(totals.wouldDeny(by: reference, .egress))),
        ],
      ]
    }
    return ["apiVersion": "sluice.dev/v1", "items": .array(items)]
  }

  /// Differences between the objects, the tables and the kernel, in what policy is made of; empty when all three agree.
  func policyDiff() throws -> JSONValue {
    var differences: [JSONValue] = []
    func note(_ where: String, _ kind: String, _ object: String) {
      differences.append(["between": .string(`where`), "kind": .string(kind), "object": .string(object)])
    }
    for object in policies.differences(in: state, from: tables) { note("objects and agent", "different", object) }
    for drift in try engine.verify(tables) where engine.isAboutPolicy(drift) {
      note("agent and kernel", drift.kind.rawValue, drift.object)
    }
    count(engine.takeReport())
    giveMemoryBack()
    return ["apiVersion": "sluice.dev/v1", "differences": .array(differences)]
  }

  /// Every identity in force.
  func identityList() -> JSONValue {
    var pairs: [IdentityID: Int] = [:]
    for pair in tables.policies.pairs.keys { pairs[pair.identity, default: 0] += 1 }
    var ranges: [IdentityID: Int] = [:]
    for table in tables.identities.blocks.values {
      for atom in table.atoms { ranges[atom.identity, default: 0] += 1 }
    }
    let items = policies.identities(in: state).map { facts -> JSONValue in
      let isRange = facts.kind == .world || facts.kind == .unknown
      return [
        "id": .int(Int64(facts.id.rawValue)), "family": .string(facts.id.family?.description ?? ""),
        "kind": .string(facts.kind.description), "namespace": facts.namespace.map { .string($0) } ?? .null,
        "labels": .array(facts.labels.map { .string($0.description) }),
        "addresses": .int(Int64(isRange ? ranges[facts.id] ?? 0 : facts.addressCount)),
        "pairs": .int(Int64(pairs[facts.id] ?? 0)),
      ]
    }
    return ["apiVersion": "sluice.dev/v1", "items": .array(items)]
  }

  /// Policy's part of `/metrics`.
  func addPolicyMetrics(to metrics: inout AgentMetrics) {
    metrics.gauges += [
      ("sluice_identities", "Classes of addresses that policies tell apart.", Double(policies.identityCount)),
      (
        "sluice_identity_addresses", "Addresses of pods and nodes that have an identity.",
        Double(policies.addressCount)
      ),
      (
        "sluice_policy_subjects", "Combinations of policies, by direction, that local pods have or had lately.",
        Double(policies.subjectCount)
      ),
      ("sluice_policy_pairs", "Subjects and the identities that they treat specially.", Double(policies.pairCount)),
      ("sluice_policy_port_sets", "Distinct sets of allowed ports.", Double(policies.portSetCount)),
      (
        "sluice_ipblock_atoms", "Ranges that ipBlocks and pod ranges cut the addresses into.",
        Double(policies.atomCount)
      ),
      (
        "sluice_policies_in_force", "NetworkPolicies that select a pod of this node, or did lately.",
        Double(policies.policiesInForce.count)
      ),
      (
        "sluice_subjects_closed", "Subjects that allow nothing because they have too many pairs.",
        Double(policies.closedSubjects.count)
      ),
      ("sluice_events_followed", "1 while dropped packets can be read from the kernel.", followsLog ? 1 : 0),
    ]
    let events = events.counts
    metrics.families += [
      AgentMetrics.Family(
        name: "sluice_events_total", help: "Events about packets, as dpctl monitor shows them.",
        samples: [PolicyEvent.Kind.drop, .audit].map {
          .init(labels: [("type", $0.rawValue)], value: events.byKind[$0] ?? 0)
        }),
      AgentMetrics.Family(
        name: "sluice_events_lost_total", help: "Events that came too fast to be read.",
        samples: [.init(labels: [], value: events.lost)]),
    ]
    guard let totals = try? totals() else { return }
    metrics.families += [
      AgentMetrics.Family(
        name: "sluice_policy_verdict_packets_total",
        help: "Packets judged: flows' first packets, and those at which a live flow was judged again.",
        samples: totals.names.samples {
          state.networkPolicy(ObjectKey(namespace: $0.namespace, name: $0.name)) != nil
        }),
      AgentMetrics.Family(
        name: "sluice_drop_packets_total", help: "Packets dropped.",
        samples: totals.counters.drops.map { drop, count in
          .init(
            labels: [("reason", drop.reason.rawValue), ("direction", drop.direction?.description ?? "")],
            value: count.packets)
        }.sorted { $0.labels.map(\.1).lexicographicallyPrecedes($1.labels.map(\.1)) }),
    ]
  }
}
