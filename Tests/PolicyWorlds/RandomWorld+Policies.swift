import KubernetesObjects
import NetworkTypes

extension RandomWorld {
  static func policy(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> NetworkPolicy {
    let namespace = random.pick(world.namespaces.map(\.name))
    var number = 0
    func key() -> ObjectKey { ObjectKey(namespace: namespace, name: "np-\(number)") }
    while world.policies.contains(where: { $0.key == key() }) { number += 1 }
    var policy = NetworkPolicy(key: key())
    policy.podSelector = selector(podVocabulary, using: &random)
    isolate(&policy, using: &random)
    policy.ingress = rules(in: world, using: &random)
    policy.egress = rules(in: world, using: &random)
    policy.mode = random.chance(20) ? .audit : .enforce
    return policy
  }

  /// Sets the directions of a policy, at least one: what is left of its rules in the other is inert.
  static func isolate(_ policy: inout NetworkPolicy, using random: inout some RandomNumberGenerator) {
    let (ingress, egress) = random.pick([(true, false), (true, false), (false, true), (true, true), (true, true)])
    policy.isolatesIngress = ingress
    policy.isolatesEgress = egress
  }

  static func rules(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> [NetworkPolicyRule] {
    (0..<random.pick([0, 1, 1, 2, 3])).map { _ in rule(in: world, using: &random) }
  }

  static func rule(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> NetworkPolicyRule {
    NetworkPolicyRule(
      peers: (0..<random.pick([0, 1, 1, 1, 2, 3])).map { _ in peer(in: world, using: &random) },
      ports: (0..<random.pick([0, 0, 1, 1, 2, 3])).map { _ in port(using: &random) })
  }

  // MARK: Peers

  static func peer(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> NetworkPolicyPeer {
    switch Int.random(in: 0..<100, using: &random) {
    case ..<45: .ipBlock(block(in: world, using: &random))
    case ..<65: .pods(selector(podVocabulary, using: &random), namespaces: nil)
    case ..<80: .pods(nil, namespaces: namespaceSelector(in: world, using: &random))
    default:
      .pods(
        selector(podVocabulary, using: &random), namespaces: namespaceSelector(in: world, using: &random))
    }
  }

  static func namespaceSelector(
    in world: PolicyWorld, using random: inout some RandomNumberGenerator
  ) -> LabelSelector {
    let names = world.namespaces.map(\.name) + ["nowhere"]
    return selector(namespaceVocabulary + [(WellKnown.namespaceName, names)], using: &random)
  }

  /// Also asks for a key and for values that nothing has, and for what contradicts itself.
  static func selector(
    _ vocabulary: [(String, [String])], using random: inout some RandomNumberGenerator
  ) -> LabelSelector {
    var selector = LabelSelector()
    guard !random.chance(30) else { return selector }
    for _ in 0..<random.pick([1, 1, 1, 2, 3]) {
      let (key, known) = random.pick(vocabulary + [("ghost", ["boo"])])
      let values = known + ["stranger"]
      switch Int.random(in: 0..<100, using: &random) {
      case ..<35: selector.matchLabels[key] = random.pick(known)
      case ..<55:
        let wanted = (0..<Int.random(in: 1...3, using: &random)).map { _ in random.pick(values) }
        selector.matchExpressions.append(.init(key: key, comparison: .isIn, values: wanted))
      case ..<80:
        let refused = (0..<Int.random(in: 1...2, using: &random)).map { _ in random.pick(values) }
        selector.matchExpressions.append(.init(key: key, comparison: .isNotIn, values: refused))
      case ..<90: selector.matchExpressions.append(.init(key: key, comparison: .exists))
      default: selector.matchExpressions.append(.init(key: key, comparison: .doesNotExist))
      }
    }
    return selector
  }

  // MARK: Blocks

  /// Of machines outside the cluster, one of them where clouds keep their credentials.
  static let outside = [
    "203.0.113.0", "203.0.113.7", "198.51.100.9", "10.245.0.1", "169.254.169.254", "2001:db8::7", "2001:db8:1::9",
    "fd00:10:245::1",
  ].compactMap { IPAddress($0) }

  /// Addresses around which blocks are cut: all that the cluster has, finished pods' too, and strangers.
  static func landmarks(of world: PolicyWorld) -> [IPAddress] {
    world.pods.flatMap(\.podIPs) + world.nodes.flatMap(\.internalIPs)
      + world.nodes.flatMap { $0.podCIDRs.flatMap { [$0.first, $0.last] } } + outside
  }

  static func block(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> IPBlock {
    let landmarks = landmarks(of: world)
    let address = random.pick(landmarks)
    guard let cidr = CIDR(address, prefixLength: random.pick(prefixLengths(address.family))) else {
      return IPBlock(cidr: CIDR(host: address))
    }
    var block = IPBlock(cidr: cidr)
    for _ in 0..<random.pick([0, 0, 1, 1, 2, 3]) {
      if let part = except(in: cidr, around: landmarks, using: &random) { block.except.append(part) }
    }
    return block
  }

  /// A smaller block within; nil where there is none. Several may overlap.
  static func except(
    in cidr: CIDR, around landmarks: [IPAddress], using random: inout some RandomNumberGenerator
  ) -> CIDR? {
    let lengths = prefixLengths(cidr.family).filter { $0 > cidr.prefixLength }
    guard !lengths.isEmpty else { return nil }
    let addresses = landmarks.filter { cidr.contains($0) } + [cidr.first, cidr.last]
    return CIDR(random.pick(addresses), prefixLength: random.pick(lengths))
  }

  /// Everything, the ranges of the cluster, of a node, parts of those, and single addresses.
  private static func prefixLengths(_ family: IPFamily) -> [Int] {
    family == .v4
      ? [0, 1, 8, 16, 24, 24, 25, 27, 28, 30, 31, 32] : [0, 1, 16, 48, 64, 64, 96, 121, 123, 126, 127, 128]
  }

  // MARK: Ports

  static func port(using random: inout some RandomNumberGenerator) -> NetworkPolicyPort {
    let proto = random.pick([L4Protocol.tcp, .tcp, .tcp, .udp, .sctp])
    let number = random.pick(portNumbers)
    switch Int.random(in: 0..<100, using: &random) {
    case ..<12: return NetworkPolicyPort(proto: proto, port: .any)
    case ..<60: return NetworkPolicyPort(proto: proto, port: .named(random.pick(portNames)))
    case ..<80: return NetworkPolicyPort(proto: proto, port: range(number, number))
    default:
      let last = random.pick([number, number + 1, 8080, 8081, 9090, 65535].filter { $0 >= number })
      return NetworkPolicyPort(proto: proto, port: range(random.pick([1, number - 1, number]), last))
    }
  }

  private static func range(_ first: UInt16, _ last: UInt16) -> NetworkPolicyPort.Number {
    guard let first = Port(first), let last = Port(last) else { return .any }
    return .range(first...last)
  }
}
