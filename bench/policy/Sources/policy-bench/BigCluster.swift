import KubernetesObjects
import NetworkTypes

/// A large cluster that is the same in every run: NAMESPACES of 100 pods and 10 policies each, on as many nodes, with 300
/// distinct label sets (100 apps in three tiers), of which a namespace has 20.
///
/// A tenth of the namespaces have a pod on `node-0`, a tenth of those another one.
struct BigCluster {
  let namespaceCount: Int
  let podsPerNamespace = 100
  static let ownNode = "node-0"
  static let tiers = ["front", "middle", "back"]

  init(namespaces: Int) { namespaceCount = namespaces }

  // MARK: Objects

  /// In the order of a source that lists kind by kind.
  var objects: [ClusterObject] { nodes + namespaces + pods + policies }

  var nodes: [ClusterObject] {
    (0..<namespaceCount).map { number in
      var node = Node(name: "node-\(number)")
      node.podCIDRs = [IPFamily.v4, .v6].compactMap {
        CIDR(Self.podAddress($0, node: number, host: 0), prefixLength: $0 == .v4 ? 24 : 64)
      }
      node.internalIPs = [IPAddress(v4: 0xac12_0000 + UInt32(number) + 1)]
      if let v6 = IPAddress(v6High: 0xfd00_0172_0018_0000, low: UInt64(number) + 1) { node.internalIPs.append(v6) }
      return .node(node)
    }
  }

  /// Each belongs to one of 50 teams.
  var namespaces: [ClusterObject] {
    (0..<namespaceCount).map {
      .namespace(
        Namespace(name: Self.namespace($0), labels: ["team": "team-\($0 % 50)", "half": $0 % 2 == 0 ? "even" : "odd"]))
    }
  }

  var pods: [ClusterObject] {
    (0..<namespaceCount).flatMap { namespace in
      (0..<podsPerNamespace).map { .pod(pod($0, in: namespace)) }
    }
  }

  /// Pod number 0 of each tenth namespace is local, number 1 of each hundredth too; the others run somewhere else.
  func pod(_ number: Int, in namespace: Int) -> Pod {
    let isLocal = namespace % 10 == 0 && (number == 0 || number == 1 && namespace % 100 == 0)
    let all = namespace * podsPerNamespace + number
    return pod(
      "pod-\(number)", in: namespace, labels: Self.labels(number % 20, in: namespace),
      node: isLocal ? 0 : 1 + all % (namespaceCount - 1),
      host: isLocal ? 2 + namespace / 10 + (number == 0 ? 0 : 120) : 2 + all / (namespaceCount - 1))
  }

  func pod(_ name: String, in namespace: Int, labels: Labels, node: Int, host: Int) -> Pod {
    var pod = Pod(key: ObjectKey(namespace: Self.namespace(namespace), name: name))
    pod.uid = "uid-\(namespace)-\(name)"
    pod.nodeName = "node-\(node)"
    pod.labels = labels
    pod.phase = .running
    pod.podIPs = [Self.podAddress(.v4, node: node, host: host), Self.podAddress(.v6, node: node, host: host)]
    pod.containerPorts = Port(8080).map { [NamedContainerPort(name: "http", port: $0)] } ?? []
    return pod
  }

  /// 10.0.0.0/24 and fd00:10::/64 and so on, by node.
  static func podAddress(_ family: IPFamily, node: Int, host: Int) -> IPAddress {
    switch family {
    case .v4: IPAddress(v4: 0x0a00_0000 + UInt32(node) << 8 + UInt32(host))
    case .v6: IPAddress(v6High: 0xfd00_0010_0000_0000 + UInt64(node), low: UInt64(host)) ?? .unspecified(.v6)
    }
  }

  /// The `number`th of the 20 label sets of a namespace.
  static func labels(_ number: Int, in namespace: Int) -> Labels {
    let set = (namespace * 7 + number * 13) % 300
    return ["app": "app-\(set % 100)", "tier": tiers[set / 100], "pod-template-hash": "h\(set)"]
  }

  /// One more, `new`, of a label set that the namespace has.
  func newPod(in namespace: Int, isLocal: Bool = false) -> ObjectChange {
    .upsert(.pod(pod("new", in: namespace, labels: Self.labels(0, in: namespace), node: isLocal ? 0 : 1, host: 251)))
  }

  static func key(_ namespace: Int, _ name: String) -> ObjectKey {
    ObjectKey(namespace: Self.namespace(namespace), name: name)
  }

  static func namespace(_ number: Int) -> String { "ns-\(number)" }

  // MARK: Policies

  var policies: [ClusterObject] { (0..<namespaceCount).flatMap { policies(of: $0).map { .networkPolicy($0) } } }

  /// What namespaces commonly have: a default deny, DNS, the namespace itself, the internet, monitoring, neighbours, and
  /// single applications.
  private func policies(of number: Int) -> [NetworkPolicy] {
    let labels = (0..<20).map { Self.labels($0, in: number) }
    func own(_ index: Int) -> LabelSelector { LabelSelector(matchLabels: ["app": labels[index]["app"] ?? ""]) }
    let internet = CIDR(.unspecified(.v4), prefixLength: 0).map { all in
      NetworkPolicyPeer.ipBlock(IPBlock(cidr: all, except: ["10.0.0.0/8", "172.16.0.0/12"].compactMap { CIDR($0) }))
    }
    let neighbours = LabelSelector(matchLabels: ["team": "team-\(number % 50)"])
    let monitoring = LabelSelector(matchLabels: [WellKnown.namespaceName: Self.namespace(1)])
    let dns = LabelSelector(matchLabels: [WellKnown.namespaceName: Self.namespace(2)])
    let rules: [(LabelSelector, ingress: [NetworkPolicyRule]?, egress: [NetworkPolicyRule]?)] = [
      (LabelSelector(), [], []),
      (
        LabelSelector(), nil,
        [
          NetworkPolicyRule(
            peers: [.pods(LabelSelector(matchLabels: ["tier": "front"]), namespaces: dns)],
            ports: [Self.port(.udp, 53), Self.port(.tcp, 53)])
        ]
      ),
      (LabelSelector(), [NetworkPolicyRule(peers: [.pods(LabelSelector(), namespaces: nil)])], nil),
      (LabelSelector(), nil, [NetworkPolicyRule(peers: [internet].compactMap { $0 }, ports: [Self.port(.tcp, 443)])]),
      (
        LabelSelector(),
        [
          NetworkPolicyRule(
            peers: [.pods(nil, namespaces: monitoring)], ports: [NetworkPolicyPort(port: .named("http"))])
        ], nil
      ),
      (
        LabelSelector(),
        [
          NetworkPolicyRule(
            peers: [.pods(LabelSelector(matchLabels: ["tier": "front"]), namespaces: neighbours)],
            ports: [Self.port(.tcp, 8080)])
        ], nil
      ),
      (own(0), [NetworkPolicyRule(peers: [.pods(own(1), namespaces: nil)], ports: [Self.port(.tcp, 9000)])], nil),
      (own(0), nil, [NetworkPolicyRule(peers: [.pods(own(2), namespaces: nil)], ports: [Self.port(.tcp, 5432)])]),
      (own(1), [NetworkPolicyRule(peers: [.pods(own(3), namespaces: nil)], ports: [Self.port(.tcp, 9001)])], nil),
      (own(2), nil, [NetworkPolicyRule(peers: [.pods(own(4), namespaces: neighbours)])]),
    ]
    return rules.enumerated().map { index, rule in
      Self.policy("np-\(index)", in: number, selecting: rule.0, ingress: rule.ingress, egress: rule.egress)
    }
  }

  static func policy(
    _ name: String, in namespace: Int, selecting pods: LabelSelector = LabelSelector(),
    ingress: [NetworkPolicyRule]? = nil, egress: [NetworkPolicyRule]? = nil
  ) -> NetworkPolicy {
    var policy = NetworkPolicy(key: ObjectKey(namespace: Self.namespace(namespace), name: name))
    policy.podSelector = pods
    (policy.isolatesIngress, policy.ingress) = (ingress != nil, ingress ?? [])
    (policy.isolatesEgress, policy.egress) = (egress != nil, egress ?? [])
    return policy
  }

  static func port(_ proto: L4Protocol, _ number: UInt16) -> NetworkPolicyPort {
    NetworkPolicyPort(proto: proto, port: Port(number).map { .range($0...$0) } ?? .any)
  }

  /// Ten blocks for each namespace with a local pod, over the pods' range: a /20 to /24 each, without ten small ones.
  var blockPolicies: [NetworkPolicy] {
    stride(from: 0, to: namespaceCount, by: 10).flatMap { namespace in
      (0..<10).compactMap { index -> NetworkPolicy? in
        // Spread by multiplication with odd numbers: the same in every run.
        let number = UInt32(namespace + index)
        let length = 20 + index % 5
        let spread = number &* 0x9e37_79b1 & 0x0003_ffff
        guard let cidr = CIDR(IPAddress(v4: 0x0a00_0000 | spread), prefixLength: length) else { return nil }
        let excepts = (0..<UInt32(10)).compactMap { hole in
          CIDR(
            IPAddress(
              v4: UInt32(truncatingIfNeeded: cidr.first.number) + (hole &* 0x85eb_ca6b ^ spread)
                % (1 << UInt32(32 - length))),
            prefixLength: 28 + Int(hole) % 3)
        }
        let rule = NetworkPolicyRule(peers: [.ipBlock(IPBlock(cidr: cidr, except: excepts))])
        return Self.policy("block-\(index)", in: namespace, egress: [rule])
      }
    }
  }
}
