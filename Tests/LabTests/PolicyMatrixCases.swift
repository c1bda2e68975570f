// What truth tables are made of: the kinds of subject, peer and port, each with the words a failing test is named by.
import KubernetesObjects
import NetworkTypes

enum PolicyMatrixCases {
  /// Words, and the flow-style YAML that they stand for.
  typealias Part = (words: String, yaml: String)

  static let subjects: [Part] = [
    ("all pods, {}", "{}"), ("all pods, null", "null"), ("pod x", "{matchLabels: {pod: x}}"),
    ("pods In x y", "{matchExpressions: [{key: pod, operator: In, values: [x, y]}]}"),
    ("pods NotIn x", "{matchExpressions: [{key: pod, operator: NotIn, values: [x]}]}"),
    ("pods with key pod", "{matchExpressions: [{key: pod, operator: Exists}]}"),
    ("pods without key tier", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}"),
    ("tier NotIn gold, which nobody has", "{matchExpressions: [{key: tier, operator: NotIn, values: [gold]}]}"),
    ("tier empty, which nobody has", "{matchLabels: {tier: ''}}"),
    ("pod x and NotIn x", "{matchLabels: {pod: x}, matchExpressions: [{key: pod, operator: NotIn, values: [x]}]}"),
  ]

  static let peers: [Part] = [
    ("own namespace", "{podSelector: {}}"), ("pod x of the own namespace", "{podSelector: {matchLabels: {pod: x}}}"),
    ("own namespace but y", "{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [y]}]}}"),
    ("all namespaces", "{namespaceSelector: {}}"), ("namespace b", "{namespaceSelector: {matchLabels: {ns: b}}}"),
    ("namespace c by its name", "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: c}}}"),
    ("namespaces NotIn a", "{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [a]}]}}"),
    ("namespaces without key team", "{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}"),
    ("namespaces with key team", "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}"),
    ("pod x of namespace b", "{namespaceSelector: {matchLabels: {ns: b}}, podSelector: {matchLabels: {pod: x}}}"),
    ("pod y of every namespace", "{namespaceSelector: {}, podSelector: {matchLabels: {pod: y}}}"),
    ("every IPv4 address", "{ipBlock: {cidr: 0.0.0.0/0}}"), ("every IPv6 address", "{ipBlock: {cidr: '::/0'}}"),
    ("node1's pods by address", "{ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 'fd00:10:244:1::/64'}}"),
    ("all pods but node2's", "{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}"),
    (
      "except, allowed again",
      "{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/16]}}, {ipBlock: {cidr: 10.244.2.0/24}}"
    ),
    ("everything but the cluster", "{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/16, 192.168.100.0/26]}}"),
    ("the nodes", "{ipBlock: {cidr: 192.168.100.8/29}}, {ipBlock: {cidr: 'fd00:100::/124'}}"),
    ("node2", "{ipBlock: {cidr: 192.168.100.12/32}}"),
    ("the client outside", "{ipBlock: {cidr: 192.168.100.200/32}}, {ipBlock: {cidr: 'fd00:100::200/128'}}"),
    ("a host bit set", "{ipBlock: {cidr: 10.244.2.77/24}}"),
    ("Service addresses, which packets no longer have", "{ipBlock: {cidr: 10.96.0.0/16}}"),
    ("namespace b or IPv4 of node1", "{namespaceSelector: {matchLabels: {ns: b}}}, {ipBlock: {cidr: 10.244.1.0/24}}"),
  ]

  static let ports: [Part] = [
    ("TCP 80", "{protocol: TCP, port: 80}"), ("UDP 81", "{protocol: UDP, port: 81}"),
    ("80 without protocol", "{port: 80}"),
    ("{}", "{}"), ("every UDP port", "{protocol: UDP}"), ("SCTP 80", "{protocol: SCTP, port: 80}"),
    ("TCP 80 to 81", "{protocol: TCP, port: 80, endPort: 81}"),
    ("TCP 1 to 80", "{protocol: TCP, port: 1, endPort: 80}"),
    ("UDP 81 to 65535", "{protocol: UDP, port: 81, endPort: 65535}"), ("TCP 82 to 90", "{port: 82, endPort: 90}"),
    ("TCP web", "{port: web}"), ("UDP web, which is TCP", "{protocol: UDP, port: web}"),
    ("UDP dns", "{protocol: UDP, port: dns}"), ("UDP admin", "{protocol: UDP, port: admin}"),
    ("a name nobody has", "{port: nowhere}"), ("TCP 80 and UDP 81", "{port: 80}, {protocol: UDP, port: 81}"),
    ("TCP web and UDP 80", "{port: web}, {protocol: UDP, port: 80}"),
    ("ranges that overlap", "{port: 70, endPort: 80}, {port: 80, endPort: 90}, {protocol: UDP, port: 1, endPort: 100}"),
    ("a Service's port", "{port: 1080}, {protocol: UDP, port: 1080}"),
  ]

  /// The two directions, with the words of their fields.
  static let directions = [
    (types: "Ingress", rules: "ingress", peers: "from"), (types: "Egress", rules: "egress", peers: "to"),
  ]

  static func all() throws -> [PolicyMatrixCase] {
    try [PolicyMatrixCase("no policy")] + denials() + peerRules() + portRules() + bothParts() + types() + stacks()
      + twoEnds() + changes() + audits() + mixtures(count: 30)
  }

  // MARK: One policy

  /// Isolation without any rule, of every kind of subject.
  static func denials() throws -> [PolicyMatrixCase] {
    let types = ["Ingress", "Egress", "Ingress, Egress"]
    return try types.flatMap { types in
      try subjects.map { subject in
        try PolicyMatrixCase(
          "isolated for \(types): \(subject.words)",
          yaml: [("a/np", "{podSelector: \(subject.yaml), policyTypes: [\(types)]}")])
      }
    }
  }

  static func peerRules() throws -> [PolicyMatrixCase] {
    try directions.flatMap { direction in
      try peers.map { peer in
        try PolicyMatrixCase(
          "\(direction.rules) of namespace a: \(peer.words)",
          yaml: [
            (
              "a/np",
              "{podSelector: {}, policyTypes: [\(direction.types)], "
                + "\(direction.rules): [{\(direction.peers): [\(peer.yaml)]}]}"
            )
          ])
      }
    }
  }

  static func portRules() throws -> [PolicyMatrixCase] {
    try directions.flatMap { direction in
      try ports.map { port in
        try PolicyMatrixCase(
          "\(direction.rules) of namespace b: \(port.words)",
          yaml: [
            (
              "b/np",
              "{podSelector: {}, policyTypes: [\(direction.types)], \(direction.rules): [{ports: [\(port.yaml)]}]}"
            )
          ])
      }
    }
  }

  /// Peers and ports together: both must match. Every third peer with a port in turn.
  static func bothParts() throws -> [PolicyMatrixCase] {
    try directions.flatMap { direction in
      try stride(from: 0, to: peers.count, by: 3).map { index in
        let (peer, port) = (peers[index], ports[index % ports.count])
        return try PolicyMatrixCase(
          "\(direction.rules) of pod y in c: \(peer.words), \(port.words)",
          yaml: [
            (
              "c/np",
              "{podSelector: {matchLabels: {pod: y}}, policyTypes: [\(direction.types)], "
                + "\(direction.rules): [{\(direction.peers): [\(peer.yaml)], ports: [\(port.yaml)]}]}"
            )
          ])
      }
    }
  }

  /// `policyTypes`, missing and given, with and without rules.
  static func types() throws -> [PolicyMatrixCase] {
    let egress = "egress: [{to: [{namespaceSelector: {matchLabels: {ns: b}}}]}]"
    let ingress = "ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]"
    let specs: [Part] = [
      ("no types, no rules", "{podSelector: {}}"), ("no types, ingress rule", "{podSelector: {}, \(ingress)}"),
      ("no types, egress rule", "{podSelector: {}, \(egress)}"),
      ("no types, empty egress", "{podSelector: {}, egress: []}"),
      ("no types, rules of both", "{podSelector: {}, \(ingress), \(egress)}"),
      ("Ingress, egress rule inert", "{podSelector: {}, policyTypes: [Ingress], \(egress)}"),
      ("Egress, ingress rule inert", "{podSelector: {}, policyTypes: [Egress], \(ingress)}"),
      ("Egress, rules of both", "{podSelector: {}, policyTypes: [Egress], \(ingress), \(egress)}"),
      ("both, rule of one", "{podSelector: {}, policyTypes: [Ingress, Egress], \(egress)}"),
      ("no podSelector", "{policyTypes: [Ingress]}"), ("rule {}", "{podSelector: {}, ingress: [{}]}"),
      ("egress rule {}", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}"),
      ("ingress null", "{podSelector: {}, ingress: null}"),
    ]
    return try specs.map { try PolicyMatrixCase("policyTypes: \($0.words)", yaml: [("a/np", $0.yaml)]) }
  }
}
