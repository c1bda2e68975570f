import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// What an API server would refuse in a world, or what no cluster could have. (That its manifests decode is tested with
/// WorldYAML.)
func problems(of world: PolicyWorld) -> [String] {
  var problems: [String] = []
  func check(_ holds: Bool, _ what: @autoclosure () -> String) { if !holds { problems.append(what()) } }
  let ids = world.objects.map(\.id)
  check(Set(ids).count == ids.count, "two objects of one name")
  check(world.nodes.contains { $0.name == world.ownNode }, "no own node")
  for key in world.pods.map(\.key) + world.policies.map(\.key) {
    check(world.namespaces.contains { $0.name == key.namespace }, "\(key): no namespace")
  }
  for namespace in world.namespaces {
    check(namespace.labels[WellKnown.namespaceName] == namespace.name, "\(namespace.name): no name label")
  }
  for pod in world.pods {
    check(Set(pod.podIPs.map(\.family)).count == pod.podIPs.count, "\(pod.key): two addresses of one family")
    check(pod.podIPs.isEmpty || world.nodes.contains { $0.name == pod.nodeName }, "\(pod.key): address, but no node")
  }
  let local = world.localPods.filter(\.isPolicyPod).flatMap(\.podIPs)
  check(Set(local).count == local.count, "two local pods with one address")
  for policy in world.policies {
    check(policy.isolatesIngress || policy.isolatesEgress, "\(policy.key): no policy type")
    for case .ipBlock(let block) in (policy.ingress + policy.egress).flatMap(\.peers) {
      for part in block.except {
        check(block.cidr.contains(part) && part != block.cidr, "\(policy.key): \(part) not within \(block.cidr)")
      }
    }
  }
  return problems
}

@Suite("Random worlds") struct RandomWorldTests {
  private static func worlds(_ count: UInt64 = 200, _ body: (inout WorldRandom, PolicyWorld, UInt64) -> Void) {
    for seed in 0..<count {
      var random = WorldRandom(seed: seed)
      let world = RandomWorld.make(using: &random)
      body(&random, world, seed)
    }
  }

  @Test("one seed is one world, and worlds and their changes are what an API server could hold")
  func validity() {
    Self.worlds(100) { random, world, seed in
      var again = WorldRandom(seed: seed)
      #expect(RandomWorld.make(using: &again) == world)
      #expect(problems(of: world) == [], "seed \(seed)")
      var world = world
      for step in 0..<30 {
        world.mutate(using: &random)
        #expect(problems(of: world) == [], "seed \(seed), step \(step)")
      }
    }
    var random = WorldRandom(seed: 1)
    #expect(problems(of: RandomWorld.make(using: &random, size: .medium)) == [])
  }

  @Test("every verdict occurs, and of isolated ends a good part is allowed and a good part denied")
  func distribution() {
    var counts: [String: Int] = [:]
    Self.worlds { random, world, _ in
      for _ in 0..<40 {
        let verdict = PolicyOracle(world).judge(world.flow(using: &random))
        for (end, direction) in [("egress", verdict.egress), ("ingress", verdict.ingress)] {
          let kind =
            switch direction.verdict {
            case .notApplicable: "not applicable"
            case .exempt: "exempt"
            case .notIsolated: "not isolated"
            case .allowed: "allowed"
            case .denied: "denied"
            }
          counts["\(end) \(kind)", default: 0] += 1
          if direction.auditDenial != nil { counts["\(end) audit", default: 0] += 1 }
        }
      }
    }
    for end in ["egress", "ingress"] {
      for kind in ["not applicable", "exempt", "not isolated", "allowed", "denied", "audit"] {
        #expect(counts["\(end) \(kind)", default: 0] >= 80, "\(end) \(kind): \(counts)")
      }
      let allowed = counts["\(end) allowed", default: 0]
      let isolated = allowed + counts["\(end) denied", default: 0]
      #expect((isolated / 5...isolated * 4 / 5).contains(allowed), "\(end): \(counts)")
    }
  }

  @Test("worlds have every feature that a compiler could get wrong")
  func features() {
    var missing = Set(Feature.all.keys)
    Self.worlds { _, world, _ in missing = missing.filter { Feature.all[$0]?(world) != true } }
    #expect(missing == [])
  }

  @Test(
    "flows meet the edges: beside, first and last address of blocks, ports of policies and beside, unknown addresses")
  func flows() {
    var seen: [String: Int] = [:]
    Self.worlds { random, world, seed in
      let blocks = world.blockCIDRs
      let ranges = world.rules.flatMap(\.ports).compactMap { port -> ClosedRange<Port>? in
        if case .range(let range) = port.port { range } else { nil }
      }
      let held = Set(world.pods.filter(\.isPolicyPod).flatMap(\.podIPs))
      for _ in 0..<40 {
        let flow = world.flow(using: &random)
        #expect(flow.source.family == flow.destination.family, "seed \(seed)")
        if case .localPod(let key) = flow.origin {
          #expect(world.pod(at: flow.source)?.key == key, "seed \(seed)")
        }
        let far = flow.origin == .wire ? flow.source : flow.destination
        func note(_ what: String, _ holds: Bool) { if holds { seen[what, default: 0] += 1 } }
        note("host", flow.origin == .host)
        note("first", blocks.contains { $0.first == far })
        note("last", blocks.contains { $0.last == far })
        note("before", blocks.contains { $0.first.family == far.family && $0.first.number == far.number &+ 1 })
        note("behind", blocks.contains { $0.last.family == far.family && $0.last.number &+ 1 == far.number })
        let inRange = world.nodes.contains { $0.podCIDRs.contains { $0.contains(far) } }
        note("unknown", inRange && !held.contains(far))
        note("finished", world.pods.contains { !$0.isPolicyPod && !$0.hostNetwork && $0.podIPs.contains(far) })
        note("own node", world.nodes.contains { $0.name == world.ownNode && $0.internalIPs.contains(far) })
        note("other node", world.nodes.contains { $0.name != world.ownNode && $0.internalIPs.contains(far) })
        note("itself", flow.source == flow.destination)
        note("IPv6", far.family == .v6)
        note("icmp", flow.proto == .icmpEcho)
        if case .other = flow.proto { note("other protocol", true) }
        if case .tcp(let port) = flow.proto {
          note("first port", ranges.contains { $0.lowerBound.number == port })
          note("last port", ranges.contains { $0.upperBound.number == port && $0.lowerBound < $0.upperBound })
          note("port behind", ranges.contains { $0.upperBound.number &+ 1 == port })
          note("port zero", port == 0)
        }
      }
    }
    for what in [
      "host", "first", "last", "before", "behind", "unknown", "finished", "own node", "other node", "itself", "IPv6",
      "icmp", "other protocol", "first port", "last port", "port behind", "port zero",
    ] {
      #expect(seen[what, default: 0] >= 8, "\(what): \(seen)")
    }
  }

  @Test("each kind of change occurs, changes the world, and is reported so that a state following it is the same")
  func mutations() {
    for mutation in PolicyWorld.Mutation.allCases {
      var count = 0
      Self.worlds(30) { random, world, _ in
        var changed = world
        for change in world.changes(mutation, using: &random) { changed.apply(change) }
        if changed != world { count += 1 }
      }
      #expect(count > 0, "\(mutation)")
    }
    Self.worlds(40) { random, world, seed in
      var world = world
      let state = world.state()
      for step in 0..<30 {
        let before = world
        for change in world.mutate(using: &random) { state.apply(change) }
        #expect(world != before, "seed \(seed), step \(step)")
      }
      let fresh = world.state()
      #expect(state.nodes == fresh.nodes && state.namespaces == fresh.namespaces, "seed \(seed)")
      #expect(state.pods == fresh.pods && state.networkPolicies == fresh.networkPolicies, "seed \(seed)")
    }
  }
}

private enum Feature {
  typealias Predicate = @Sendable (PolicyWorld) -> Bool

  private static func peer(_ holds: @escaping @Sendable (NetworkPolicyPeer) -> Bool) -> Predicate {
    { world in world.rules.flatMap(\.peers).contains(where: holds) }
  }

  private static func block(_ holds: @escaping @Sendable (PolicyWorld, IPBlock) -> Bool) -> Predicate {
    { world in
      peer { if case .ipBlock(let block) = $0 { holds(world, block) } else { false } }(world)
    }
  }

  private static func operation(_ wanted: LabelSelector.Operator) -> Predicate {
    peer {
      if case .pods(let pods?, _) = $0 { pods.matchExpressions.contains { $0.comparison == wanted } } else { false }
    }
  }

  private static func pod(_ holds: @escaping @Sendable (Pod) -> Bool) -> Predicate {
    { $0.pods.contains(where: holds) }
  }

  private static func port(_ holds: @escaping @Sendable (NetworkPolicyPort.Number) -> Bool) -> Predicate {
    { world in
      world.rules.flatMap(\.ports).contains { holds($0.port) }
    }
  }

  private static func policy(_ holds: @escaping @Sendable (NetworkPolicy) -> Bool) -> Predicate {
    { $0.policies.contains(where: holds) }
  }

  private static func isSubset(_ block: CIDR, of others: [CIDR]) -> Bool {
    others.contains { $0.contains(block) || block.contains($0) }
  }

  static let all: [String: Predicate] = [
    "In": operation(.isIn), "NotIn": operation(.isNotIn), "Exists": operation(.exists),
    "DoesNotExist": operation(.doesNotExist),
    "empty value": pod { pod in pod.labels.pairs.contains { $0.value.isEmpty } },
    "no labels": pod(\.labels.isEmpty),
    "pods only": peer { if case .pods(_?, nil) = $0 { true } else { false } },
    "namespaces only": peer { if case .pods(nil, _?) = $0 { true } else { false } },
    "both selectors": peer { if case .pods(_?, _?) = $0 { true } else { false } },
    "everything IPv4": block { $1.cidr == CIDR("0.0.0.0/0") }, "everything IPv6": block { $1.cidr == CIDR("::/0") },
    "one address": block { $1.cidr.prefixLength == $1.cidr.family.addressBits },
    "overlapping exceptions": block { _, block in
      block.except.indices.contains { isSubset(block.except[$0], of: Array(block.except[..<$0])) }
    },
    "block over pods": block { world, block in world.pods.contains { $0.podIPs.contains(where: block.cidr.contains) } },
    "exception over pods": block { world, block in
      block.except.contains { part in world.pods.contains { $0.podIPs.contains(where: part.contains) } }
    },
    "block over a node": block { world, block in
      world.nodes.contains { $0.internalIPs.contains(where: block.cidr.contains) }
    },
    "any port": port { $0 == .any },
    "port range": port { if case .range(let range) = $0 { range.lowerBound < range.upperBound } else { false } },
    "named port": port { if case .named = $0 { true } else { false } },
    "one name, several numbers": pod { pod in
      pod.containerPorts.contains { one in
        pod.containerPorts.contains { $0.name == one.name && $0.proto == one.proto && $0.port != one.port }
      }
    },
    "one name, several protocols": pod { pod in
      pod.containerPorts.contains { one in
        pod.containerPorts.contains { $0.name == one.name && $0.proto != one.proto }
      }
    },
    "one name, another number in another pod": { world in
      let all = world.pods.map { Set($0.containerPorts.filter { $0.name == "http" && $0.proto == .tcp }.map(\.port)) }
      return Set(all.filter { !$0.isEmpty }).count > 1
    },
    "equal labels": { world in Set(world.pods.map(\.labels)).count < world.pods.count / 2 },
    "namespaces with equal labels": { world in
      let labels = world.namespaces.map { namespace in
        Labels(namespace.labels.pairs.filter { $0.key != WellKnown.namespaceName }.map { ($0.key, $0.value) })
      }
      return Set(labels).count < labels.count
    },
    "local hostNetwork": { world in world.pods.contains { $0.hostNetwork && $0.nodeName == world.ownNode } },
    "terminating": pod(\.isTerminating), "pending with address": pod { $0.phase == .pending && !$0.podIPs.isEmpty },
    "pending without node": pod { $0.nodeName == nil }, "unknown phase": pod { $0.phase == .unknown },
    "finished, address reused": { world in
      world.pods.contains { !$0.isPolicyPod && !$0.hostNetwork && $0.podIPs.contains { world.pod(at: $0) != nil } }
    },
    "finished, address unused": { world in
      world.pods.contains { !$0.isPolicyPod && !$0.hostNetwork && $0.podIPs.contains { world.pod(at: $0) == nil } }
    },
    "address claimed twice": { world in
      let addresses = world.pods.filter(\.isPolicyPod).flatMap(\.podIPs)
      return Set(addresses).count < addresses.count
    },
    "IPv4 only": pod { $0.podIPs.map(\.family) == [.v4] }, "IPv6 only": pod { $0.podIPs.map(\.family) == [.v6] },
    "dual stack": pod { $0.podIPs.count == 2 },
    "audit": policy { $0.mode == .audit }, "no rules": policy { $0.ingress.isEmpty && $0.isolatesIngress },
    "inert ingress": policy { !$0.isolatesIngress && !$0.ingress.isEmpty },
    "inert egress": policy { !$0.isolatesEgress && !$0.egress.isEmpty },
    "empty rule": policy { $0.ingress.contains(NetworkPolicyRule()) },
    "selects all": policy(\.podSelector.isEmpty), "both directions": policy { $0.isolatesIngress && $0.isolatesEgress },
  ]
}
