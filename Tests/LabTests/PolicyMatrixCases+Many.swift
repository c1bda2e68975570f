// Several policies at once: stacked on one pod, at both ends of a flow, audited, mixed.
import KubernetesObjects
import NetworkTypes

@testable import PolicyWorlds

extension PolicyMatrixCases {
  private static let denyIngress = "{podSelector: {}, policyTypes: [Ingress]}"
  private static let denyBoth = "{podSelector: {}, policyTypes: [Ingress, Egress]}"

  private static func allow(_ direction: Int, _ subject: String, _ peer: String, _ port: String? = nil) -> String {
    let (types, rules, peers) = directions[direction]
    let portText = port.map { ", ports: [\($0)]" } ?? ""
    return "{podSelector: \(subject), policyTypes: [\(types)], \(rules): [{\(peers): [\(peer)]\(portText)}]}"
  }

  /// Policies add up, whatever their names and their order.
  static func stacks() throws -> [PolicyMatrixCase] {
    let x = "{matchLabels: {pod: x}}"
    let fromB = allow(0, "{}", "{namespaceSelector: {matchLabels: {ns: b}}}")
    let fromC80 = allow(0, "{}", "{namespaceSelector: {matchLabels: {ns: c}}}", "{port: 80}")
    let udpFromAll = allow(0, x, "{namespaceSelector: {}}", "{protocol: UDP}")
    return try [
      PolicyMatrixCase("stack: deny, then allow b", yaml: [("a/1", denyIngress), ("a/2", fromB)]),
      PolicyMatrixCase("stack: allow b, then deny", yaml: [("a/1", fromB), ("a/2", denyIngress)]),
      PolicyMatrixCase("stack: b, and c on 80", yaml: [("a/1", fromB), ("a/2", fromC80)]),
      PolicyMatrixCase(
        "stack: three, one of them on x only", yaml: [("a/1", fromB), ("a/2", fromC80), ("a/3", udpFromAll)]),
      PolicyMatrixCase("stack: the same twice", yaml: [("a/1", fromB), ("a/2", fromB)]),
      PolicyMatrixCase(
        "stack: everything beside nothing",
        yaml: [("a/1", denyIngress), ("a/2", "{podSelector: {}, ingress: [{}]}"), ("a/3", denyIngress)]),
      PolicyMatrixCase(
        "stack: blocks of several policies",
        yaml: [
          ("a/1", allow(0, "{}", "{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24]}}")),
          ("a/2", allow(0, x, "{ipBlock: {cidr: 10.244.1.0/25}}", "{port: 81}")),
        ]),
      PolicyMatrixCase(
        "stack: numbers and names of one port",
        yaml: [
          ("a/1", allow(0, "{}", "{namespaceSelector: {}}", "{port: web}")),
          ("a/2", allow(0, x, "{namespaceSelector: {matchLabels: {ns: b}}}", "{port: 81}")),
        ]),
      PolicyMatrixCase(
        "stack: in three namespaces",
        yaml: [("a/1", denyBoth), ("b/1", denyIngress), ("c/1", allow(1, "{}", "{podSelector: {}}"))]),
      PolicyMatrixCase(
        "stack: two rules in one policy",
        yaml: [
          (
            "b/1",
            "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, "
              + "{from: [{namespaceSelector: {matchLabels: {ns: a}}}], ports: [{protocol: UDP, port: 81}]}]}"
          )
        ]),
    ]
  }

  /// Both ends must allow.
  static func twoEnds() throws -> [PolicyMatrixCase] {
    let toB = allow(1, "{}", "{namespaceSelector: {matchLabels: {ns: b}}}")
    let fromA = allow(0, "{}", "{namespaceSelector: {matchLabels: {ns: a}}}")
    let fromC = allow(0, "{}", "{namespaceSelector: {matchLabels: {ns: c}}}")
    return try [
      PolicyMatrixCase("ends: both allow", yaml: [("a/e", toB), ("b/i", fromA)]),
      PolicyMatrixCase("ends: only egress allows", yaml: [("a/e", toB), ("b/i", fromC)]),
      PolicyMatrixCase(
        "ends: only ingress allows",
        yaml: [("a/e", allow(1, "{}", "{namespaceSelector: {matchLabels: {ns: c}}}")), ("b/i", fromA)]),
      PolicyMatrixCase(
        "ends: they allow different ports",
        yaml: [
          ("a/e", allow(1, "{}", "{namespaceSelector: {}}", "{port: 80}, {protocol: UDP}")),
          ("b/i", allow(0, "{}", "{namespaceSelector: {}}", "{port: 81}, {protocol: UDP, port: 80}")),
        ]),
      PolicyMatrixCase(
        "ends: a name on both",
        yaml: [
          ("a/e", allow(1, "{}", "{namespaceSelector: {}}", "{port: web}")),
          ("b/i", allow(0, "{}", "{namespaceSelector: {}}", "{port: admin}")),
        ]),
      PolicyMatrixCase("ends: everything isolated", yaml: [("a/n", denyBoth), ("b/n", denyBoth), ("c/n", denyBoth)]),
      PolicyMatrixCase(
        "ends: everything isolated but within the namespace",
        yaml: ["a", "b", "c"].flatMap { namespace in
          [
            ("\(namespace)/i", allow(0, "{}", "{podSelector: {}}")),
            ("\(namespace)/e", allow(1, "{}", "{podSelector: {}}")),
          ]
        }),
    ]
  }

  /// A policy that audits drops nothing, whatever stands beside it.
  static func audits() throws -> [PolicyMatrixCase] {
    func policy(_ key: String, _ spec: String, audit: Bool = false) throws -> NetworkPolicy {
      try PolicyMatrixCase.policy(key, spec, audit: audit)
    }
    let fromB = allow(0, "{}", "{namespaceSelector: {matchLabels: {ns: b}}}")
    return [
      PolicyMatrixCase("audit: deny", [try policy("a/1", denyBoth, audit: true)]),
      PolicyMatrixCase("audit: the same is enforced", [try policy("a/1", denyBoth)]),
      PolicyMatrixCase("audit: and audited again", [try policy("a/1", denyBoth, audit: true)]),
      PolicyMatrixCase(
        "audit: a rule of an audited policy allows nothing beside an enforced deny",
        [try policy("a/1", denyIngress), try policy("a/2", fromB, audit: true)]),
      PolicyMatrixCase(
        "audit: deny beside an enforced allow",
        [try policy("a/1", denyIngress, audit: true), try policy("a/2", fromB)]),
      PolicyMatrixCase(
        "audit: in one direction, enforced in the other",
        [
          try policy("a/1", denyIngress, audit: true),
          try policy("a/2", allow(1, "{}", "{namespaceSelector: {matchLabels: {ns: c}}}")),
        ]),
      PolicyMatrixCase(
        "audit: two", [try policy("a/1", denyBoth, audit: true), try policy("b/1", denyIngress, audit: true)]),
    ]
  }

  /// Several policies at once, drawn from all parts; always the same ones.
  static func mixtures(count: Int = 40) throws -> [PolicyMatrixCase] {
    var random = SmallRandom(state: 20_261_121)
    return try (1...count).map { number in
      let policies = try (1...Int.random(in: 2...5, using: &random)).map { index in
        try policy("\(pick(PolicyMatrixScene.namespaces, &random))/m\(index)", &random)
      }
      var seen: Set<ObjectKey> = []
      return PolicyMatrixCase("mixture \(number)", policies.filter { seen.insert($0.key).inserted })
    }
  }

  private static func policy(_ key: String, _ random: inout SmallRandom) throws -> NetworkPolicy {
    let types = pick([["Ingress"], ["Egress"], ["Ingress", "Egress"]], &random)
    var fields = [
      "podSelector: \(pick(subjects, &random).yaml)", "policyTypes: [\(types.joined(separator: ", "))]",
    ]
    for direction in directions {
      let rules = (0..<Int.random(in: 0...2, using: &random)).map { _ in
        let from = (0..<pick([0, 1, 1, 2], &random)).map { _ in pick(peers, &random).yaml }
        let open = (0..<pick([0, 0, 1, 2], &random)).map { _ in pick(ports, &random).yaml }
        return "{\(direction.peers): [\(from.joined(separator: ", "))], ports: [\(open.joined(separator: ", "))]}"
      }
      fields.append("\(direction.rules): [\(rules.joined(separator: ", "))]")
    }
    return try PolicyMatrixCase.policy(
      key, "{\(fields.joined(separator: ", "))}", audit: Int.random(in: 0..<8, using: &random) == 0)
  }

  private static func pick<Element>(_ elements: [Element], _ random: inout SmallRandom) -> Element {
    elements[Int.random(in: 0..<elements.count, using: &random)]
  }
}

/// SplitMix64: the same numbers on every machine.
struct SmallRandom: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
