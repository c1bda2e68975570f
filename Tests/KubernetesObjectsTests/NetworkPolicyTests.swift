import KubernetesObjects
import NetworkTypes
import Testing

@Suite("Decoding NetworkPolicies") struct NetworkPolicyTests {
  @Test("policyTypes that are not given are Ingress, and Egress where there is an egress rule")
  func policyTypes() throws {
    func isolation(_ spec: ManifestNode) throws -> [Bool] {
      let policy = try decodedPolicy(spec)
      return [policy.isolatesIngress, policy.isolatesEgress]
    }
    #expect(try isolation([:]) == [true, false])
    #expect(try isolation(["egress": []]) == [true, false])
    #expect(try isolation(["egress": [[:]]]) == [true, true])
    #expect(try isolation(["policyTypes": [], "egress": [[:]]]) == [true, true])
    #expect(try isolation(["policyTypes": ["Egress"], "ingress": [[:]]]) == [false, true])
    #expect(try isolation(["policyTypes": ["Ingress"], "egress": [[:]]]) == [true, false])
    #expect(try isolation(["policyTypes": ["Egress", "Ingress"]]) == [true, true])
  }

  @Test("a missing, null or empty podSelector selects everything; an empty rule allows everything, none nothing")
  func emptiness() throws {
    for selector in [nil, [:]] as [ManifestNode] {
      #expect(try decodedPolicy(["podSelector": selector]).podSelector.isEmpty)
    }
    #expect(try decodedPolicy(["ingress": []]).ingress.isEmpty)
    #expect(try decodedPolicy(["ingress": [[:], nil]]).ingress == [NetworkPolicyRule(), NetworkPolicyRule()])
  }

  @Test("peers are selectors of pods and namespaces, or a block of addresses")
  func peers() throws {
    let app = LabelSelector(matchLabels: ["app": "a"])
    let rules = try decodedPolicy([
      "ingress": [
        [
          "from": [
            ["podSelector": ["matchLabels": ["app": "a"]]], ["namespaceSelector": [:]],
            ["podSelector": ["matchLabels": ["app": "a"]], "namespaceSelector": [:]],
            ["ipBlock": ["cidr": "010.0.0.1/8", "except": ["10.1.0.0/16"]]],
          ]
        ]
      ]
    ]).ingress
    #expect(
      rules == [
        NetworkPolicyRule(peers: [
          .pods(app, namespaces: nil), .pods(nil, namespaces: LabelSelector()),
          .pods(app, namespaces: LabelSelector()),
          .ipBlock(IPBlock(cidr: CIDR("10.0.0.0/8")!, except: [CIDR("10.1.0.0/16")!])),
        ])
      ])
  }

  @Test("ports are of TCP unless said, and a number, a range, a name or all")
  func ports() throws {
    let rules = try decodedPolicy([
      "egress": [
        [
          "ports": [
            [:], ["protocol": "UDP"], ["port": 80], ["port": 80, "endPort": 90], ["port": "http", "protocol": "SCTP"],
          ]
        ]
      ]
    ]).egress
    #expect(
      rules == [
        NetworkPolicyRule(ports: [
          NetworkPolicyPort(), NetworkPolicyPort(proto: .udp), NetworkPolicyPort(port: .range(Port(80)!...Port(80)!)),
          NetworkPolicyPort(port: .range(Port(80)!...Port(90)!)), NetworkPolicyPort(proto: .sctp, port: .named("http")),
        ])
      ])
  }

  @Test("the mode is an annotation: enforce, which is the default, or audit")
  func mode() throws {
    func mode(_ annotations: ManifestNode) throws -> NetworkPolicy.Mode? {
      let object = try decoded(Manifests.policy.with(["metadata": ["annotations": annotations]])).object
      guard case .networkPolicy(let policy) = object else { return nil }
      return policy.mode
    }
    for absent in [nil, [:], ["example.com/mode": "audit"]] as [ManifestNode] { #expect(try mode(absent) == .enforce) }
    #expect(try mode(["a": "b", "sluice.dev/mode": "audit"]) == .audit)
    #expect(try mode(["sluice.dev/mode": "enforce"]) == .enforce)
    #expect(try mode(["sluice.dev/mode": .plain("audit")]) == .audit)
    for (value, text) in [("Audit", "\"Audit\""), ("", "\"\""), (nil, "\"\""), ("off", "\"off\"")]
      as [(ManifestNode, String)]
    {
      #expect(
        try problem(Manifests.policy.with(["metadata": ["annotations": ["sluice.dev/mode": value]]]))
          == "NetworkPolicy shop/np: metadata.annotations[sluice.dev/mode]: must be one of enforce, audit, is \(text)")
    }
    #expect(
      try problem(Manifests.policy.with(["metadata": ["annotations": ["sluice.dev/mode": true]]])).contains(
        "metadata.annotations[sluice.dev/mode]: must be text, is the boolean true"))
  }

  static let wrong: [(ManifestNode, String)] = [
    (["policyTypes": ["Both"]], "spec.policyTypes[0]: must be one of Ingress, Egress, is \"Both\""),
    (["ingress": [["from": [[:]]]]], "spec.ingress[0].from[0]: must have podSelector, namespaceSelector or ipBlock"),
    (
      ["egress": [["to": [["podSelector": [:], "ipBlock": ["cidr": "10.0.0.0/8"]]]]]],
      "spec.egress[0].to[0].ipBlock: must not stand beside podSelector or namespaceSelector"
    ),
    (["ingress": [["from": [["ipBlock": [:]]]]]], "spec.ingress[0].from[0].ipBlock.cidr: is missing"),
    (
      ["ingress": [["from": [["ipBlock": ["cidr": "::ffff:10.0.0.0/96"]]]]]],
      "spec.ingress[0].from[0].ipBlock.cidr: must be an address range such as 10.0.0.0/8 or fd00::/64, is "
        + "\"::ffff:10.0.0.0/96\""
    ),
    (
      ["ingress": [["from": [["ipBlock": ["cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]]]]]]],
      "spec.ingress[0].from[0].ipBlock.except[0]: must lie within 10.0.0.0/8 and be smaller, is 11.0.0.0/16"
    ),
    (
      ["ingress": [["from": [["ipBlock": ["cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]]]]]]],
      "spec.ingress[0].from[0].ipBlock.except[0]: must lie within 10.0.0.0/8 and be smaller, is 10.0.0.0/8"
    ),
    (["ingress": [["ports": [["endPort": 90]]]]], "spec.ingress[0].ports[0].endPort: needs port"),
    (
      ["ingress": [["ports": [["port": "http", "endPort": 90]]]]],
      "spec.ingress[0].ports[0].endPort: needs a port that is a number"
    ),
    (
      ["ingress": [["ports": [["port": 90, "endPort": 80]]]]],
      "spec.ingress[0].ports[0].endPort: must be at least port, which is 90, is 80"
    ),
    (
      ["ingress": [["ports": [["port": "80"]]]]],
      "spec.ingress[0].ports[0].port: must be a number from 1 to 65535 or a port's name, is \"80\""
    ),
    (
      ["podSelector": ["matchExpressions": [["key": "a", "operator": "In"]]]],
      "spec.podSelector.matchExpressions[0].values: is missing: In needs at least one"
    ),
    (
      ["podSelector": ["matchExpressions": [["key": "a", "operator": "Exists", "values": ["b"]]]]],
      "spec.podSelector.matchExpressions[0].values: must be empty with Exists"
    ),
    (
      ["podSelector": ["matchExpressions": [["key": "a", "operator": "Equals"]]]],
      "spec.podSelector.matchExpressions[0].operator: must be one of In, NotIn, Exists, DoesNotExist, is \"Equals\""
    ),
  ]

  @Test("a wrong field is named", arguments: wrong.indices)
  func wrongFields(index: Int) throws {
    #expect(
      try problem(Manifests.policy.with(["spec": Self.wrong[index].0]))
        == "NetworkPolicy shop/np: \(Self.wrong[index].1)")
  }

  @Test("selectors match as the API says: NotIn and DoesNotExist where the key is absent, an empty value only itself")
  func matching() {
    func matches(_ comparison: LabelSelector.Operator, _ values: [String], _ labels: Labels) -> Bool {
      LabelSelector(matchExpressions: [.init(key: "a", comparison: comparison, values: values)]).matches(labels)
    }
    #expect(matches(.isIn, ["x"], ["a": "x"]) && !matches(.isIn, ["x"], ["a": "y"]) && !matches(.isIn, ["x"], [:]))
    #expect(!matches(.isNotIn, ["x"], ["a": "x"]) && matches(.isNotIn, ["x"], ["a": "y"]))
    #expect(matches(.isNotIn, ["x"], [:]))
    #expect(matches(.exists, [], ["a": ""]) && !matches(.exists, [], ["b": "x"]))
    #expect(!matches(.doesNotExist, [], ["a": ""]) && matches(.doesNotExist, [], [:]))
    let empty = LabelSelector(matchLabels: ["a": ""])
    #expect(empty.matches(["a": ""]) && !empty.matches(["a": "x"]) && !empty.matches([:]))
    #expect(LabelSelector().matches([:]) && LabelSelector().matches(["a": "x"]))
  }
}
