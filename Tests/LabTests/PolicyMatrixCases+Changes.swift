// Sequences: each case is reached from the one before it by the change that names it.
import KubernetesObjects
import NetworkTypes

@testable import PolicyWorlds

extension PolicyMatrixCases {
  static func changes() throws -> [PolicyMatrixCase] {
    try podLabels() + namespaceLabels() + namedPorts() + phases() + policyChanges()
  }

  private static func label(_ pod: String, _ key: String, _ value: String?) -> (inout PolicyWorld) -> Void {
    { $0.change(pod: pod) { $0.labels[key] = value } }
  }

  private static func label(namespace: String, _ key: String, _ value: String?) -> (inout PolicyWorld) -> Void {
    { $0.change(namespace: namespace) { $0.labels[key] = value } }
  }

  private static func podLabels() throws -> [PolicyMatrixCase] {
    let subject = try PolicyMatrixCase.policy("a/np", "{podSelector: {matchLabels: {tier: front}}}")
    let peer = try PolicyMatrixCase.policy(
      "b/np",
      "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {tier: front}}}]}]}")
    let target = try PolicyMatrixCase.policy(
      "c/np",
      "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, "
        + "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}], ports: [{port: web}]}]}")
    let policies = [subject, peer, target]
    return [
      PolicyMatrixCase("pod label: nobody is front", policies),
      PolicyMatrixCase("pod label: a/x becomes front", policies, change: label("a/x", "tier", "front")),
      PolicyMatrixCase("pod label: a/x becomes back", policies, change: label("a/x", "tier", "back")),
      PolicyMatrixCase("pod label: a/x has an empty tier", policies, change: label("a/x", "tier", "")),
      PolicyMatrixCase(
        "pod label: b/x, itself isolated, becomes front", policies, change: label("b/x", "tier", "front")),
      PolicyMatrixCase("pod label: the pod of the other node too", policies) { world in
        for pod in ["a/x", "a/y", "c/y"] { label(pod, "tier", "front")(&world) }
      },
      PolicyMatrixCase("pod label: all pods are front", policies) { world in
        for index in world.pods.indices { world.pods[index].labels["tier"] = "front" }
      },
      PolicyMatrixCase("pod label: a/x loses all its labels", policies) { world in
        world.change(pod: "a/x") { $0.labels = Labels() }
      },
      PolicyMatrixCase("pod label: as in the beginning", policies),
    ]
  }

  private static func namespaceLabels() throws -> [PolicyMatrixCase] {
    let policies = [
      try PolicyMatrixCase.policy(
        "a/np", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}"),
      try PolicyMatrixCase.policy(
        "b/np",
        "{podSelector: {matchLabels: {pod: y}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: "
          + "{matchExpressions: [{key: team, operator: DoesNotExist}]}, podSelector: {matchLabels: {pod: x}}}]}]}"),
    ]
    return [
      PolicyMatrixCase("namespace label: no team", policies),
      PolicyMatrixCase("namespace label: b is red", policies, change: label(namespace: "b", "team", "red")),
      PolicyMatrixCase("namespace label: b is blue", policies, change: label(namespace: "b", "team", "blue")),
      PolicyMatrixCase("namespace label: a itself is red", policies, change: label(namespace: "a", "team", "red")),
      PolicyMatrixCase("namespace label: b and c are red", policies) { world in
        for namespace in ["b", "c"] { label(namespace: namespace, "team", "red")(&world) }
      },
      PolicyMatrixCase("namespace label: as in the beginning", policies),
    ]
  }

  private static func namedPorts() throws -> [PolicyMatrixCase] {
    let policies = [
      try PolicyMatrixCase.policy("a/np", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}"),
      try PolicyMatrixCase.policy(
        "b/np",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}]}"),
    ]
    func rename(_ pod: String, _ body: @escaping (inout [NamedContainerPort]) -> Void) -> (inout PolicyWorld) -> Void {
      { $0.change(pod: pod) { body(&$0.containerPorts) } }
    }
    return [
      PolicyMatrixCase("named port: as the pods have it", policies),
      PolicyMatrixCase(
        "named port: a/x and c/x swap web and admin", policies,
        change: { world in
          for pod in ["a/x", "c/x"] {
            rename(pod) { ports in
              for index in ports.indices where ports[index].proto == .tcp {
                ports[index].name = ports[index].name == "web" ? "admin" : "web"
              }
            }(&world)
          }
        }),
      PolicyMatrixCase("named port: c/z has no port any more", policies, change: rename("c/z") { $0 = [] }),
      PolicyMatrixCase(
        "named port: a/y's web is UDP", policies,
        change: rename("a/y") { ports in
          for index in ports.indices where ports[index].name == "web" { ports[index].proto = .udp }
        }),
      PolicyMatrixCase("named port: as in the beginning", policies),
    ]
  }

  private static func phases() throws -> [PolicyMatrixCase] {
    let policies = [
      try PolicyMatrixCase.policy("a/np", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"),
      try PolicyMatrixCase.policy(
        "b/np",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: a}}}]}]}"),
    ]
    func phase(_ pod: String, _ phase: PodPhase) -> (inout PolicyWorld) -> Void {
      { $0.change(pod: pod) { $0.phase = phase } }
    }
    func ended(_ phase: PodPhase) -> (inout PolicyWorld) -> Void {
      { world in
        guard var pod = world.pods.first(where: { $0.key.description == "c/x" }) else { return }
        pod.key = ObjectKey(namespace: "a", name: "ended")
        pod.phase = phase
        world.pods.append(pod)
      }
    }
    return [
      PolicyMatrixCase("phase: all run", policies),
      // The address of one that has ended may be another's already: it is that one's alone.
      PolicyMatrixCase("phase: one of a that had c/x's address has succeeded", policies, change: ended(.succeeded)),
      PolicyMatrixCase("phase: it has failed", policies, change: ended(.failed)),
      PolicyMatrixCase("phase: a/x is pending again", policies, change: phase("a/x", .pending)),
      PolicyMatrixCase("phase: a/x is unknown", policies, change: phase("a/x", .unknown)),
      PolicyMatrixCase("phase: a/x is terminating", policies) { $0.change(pod: "a/x") { $0.isTerminating = true } },
    ]
  }

  private static func policyChanges() throws -> [PolicyMatrixCase] {
    func rule(_ peer: String, _ port: String) throws -> NetworkPolicy {
      try PolicyMatrixCase.policy("a/np", "{podSelector: {}, ingress: [{from: [\(peer)], ports: [\(port)]}]}")
    }
    let b = "{namespaceSelector: {matchLabels: {ns: b}}}"
    let c = "{namespaceSelector: {matchLabels: {ns: c}}}"
    let deny = try PolicyMatrixCase.policy("a/deny", "{podSelector: {}}")
    return [
      PolicyMatrixCase("policy: b on 80", [try rule(b, "{port: 80}")]),
      PolicyMatrixCase("policy: another peer", [try rule(c, "{port: 80}")]),
      PolicyMatrixCase("policy: another port", [try rule(c, "{port: 81}")]),
      PolicyMatrixCase("policy: another protocol", [try rule(c, "{protocol: UDP, port: 81}")]),
      PolicyMatrixCase("policy: a second peer", [try rule("\(b), \(c)", "{protocol: UDP, port: 81}")]),
      PolicyMatrixCase("policy: a range", [try rule(b, "{port: 1, endPort: 80}")]),
      PolicyMatrixCase("policy: a block", [try rule("{ipBlock: {cidr: 10.244.2.0/24}}", "{port: 80}")]),
      PolicyMatrixCase(
        "policy: an exception more",
        [try rule("{ipBlock: {cidr: 10.244.2.0/24, except: [10.244.2.0/31]}}", "{port: 80}")]),
      PolicyMatrixCase("policy: another beside it", [try rule(b, "{port: 80}"), deny]),
      PolicyMatrixCase("policy: the first one is deleted", [deny]),
      PolicyMatrixCase(
        "policy: other pods",
        [
          try PolicyMatrixCase.policy("a/deny", "{podSelector: {matchLabels: {pod: z}}}")
        ]),
      PolicyMatrixCase(
        "policy: the other direction",
        [
          try PolicyMatrixCase.policy("a/deny", "{podSelector: {matchLabels: {pod: z}}, policyTypes: [Egress]}")
        ]),
      PolicyMatrixCase("policy: all are deleted"),
    ]
  }
}
