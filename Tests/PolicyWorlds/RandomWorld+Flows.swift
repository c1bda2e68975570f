import KubernetesObjects
import NetworkTypes

/// Flows that are worth asking about: a local pod at one end, and at the other what rules cut between.
extension PolicyWorld {
  /// A flow that the node under test would carry: no forged source, no loopback, no multicast. Local pods that have
  /// finished send none, but are sent to.
  func flow(using random: inout some RandomNumberGenerator) -> PolicyFlow {
    let ends = self.ends
    let local = ends.filter { $0.pod.nodeName == ownNode }
    guard !local.isEmpty else { return flowBetweenStrangers(using: &random) }
    if random.chance(60), let flow = flowAtRule(local, ends, using: &random) { return flow }
    let near = random.pick(local)
    let isOutward = random.chance(50)
    let others = ends.filter { $0.pod.key != near.pod.key }
    let far =
      random.chance(6)
      ? near.address : farAddress(near.address.family, isOutward: isOutward, others, using: &random)
    let proto = proto(to: isOutward ? far : near.address, using: &random)
    return flow(near, isOutward: isOutward, far, proto, local)
  }

  /// A pod that may run, by one of its addresses.
  private struct End {
    var pod: Pod
    var address: IPAddress
  }

  private var ends: [End] {
    let claims = pods.filter(\.isPolicyPod).flatMap { pod in pod.podIPs.map { End(pod: pod, address: $0) } }
    guard Set(claims.map(\.address)).count < claims.count else { return claims }
    return claims.filter { pod(at: $0.address)?.key == $0.pod.key }
  }

  /// Of all policies, inert ones too.
  var rules: [NetworkPolicyRule] { policies.flatMap { $0.ingress + $0.egress } }

  /// What ipBlocks include and except.
  var blockCIDRs: [CIDR] { rules.flatMap(\.peers).flatMap(\.cidrs) }

  // MARK: Putting a flow together

  private func flow(
    _ near: End, isOutward: Bool, _ far: IPAddress, _ proto: FlowProtocol, _ local: [End]
  ) -> PolicyFlow {
    if isOutward {
      return PolicyFlow(origin: .localPod(near.pod.key), source: near.address, destination: far, proto: proto)
    }
    let origin: FlowOrigin
    if let sender = local.first(where: { $0.address == far }) {
      origin = .localPod(sender.pod.key)
    } else if nodes.contains(where: { $0.name == ownNode && $0.internalIPs.contains(far) }) {
      origin = .host
    } else {
      origin = .wire
    }
    return PolicyFlow(origin: origin, source: far, destination: near.address, proto: proto)
  }

  /// A flow to which one rule has something to say: of a pod its policy selects, to or from one of its peers or what
  /// lies beside, with one of its ports or what is mistaken for it. nil where the rule first thought of has none.
  private func flowAtRule(
    _ local: [End], _ ends: [End], using random: inout some RandomNumberGenerator
  ) -> PolicyFlow? {
    guard !policies.isEmpty else { return nil }
    let policy = random.pick(policies)
    let isOutward = policy.isolatesEgress && (!policy.isolatesIngress || random.chance(50))
    let rules = isOutward ? policy.egress : policy.ingress
    // Which pods match is the oracle's question; here it is only a bias.
    let selected = local.filter {
      $0.pod.key.namespace == policy.key.namespace && policy.podSelector.matches($0.pod.labels)
    }
    guard !rules.isEmpty, !selected.isEmpty else { return nil }
    let (rule, near) = (random.pick(rules), random.pick(selected))
    let family = near.address.family
    let others = ends.filter { $0.pod.key != near.pod.key }

    var candidates: [IPAddress] = []
    if !rule.peers.isEmpty, random.chance(90) {
      candidates = addresses(at: random.pick(rule.peers), of: policy, others)
        .filter { isUsable($0, family, isOutward: isOutward) }
    }
    let far =
      candidates.isEmpty
      ? farAddress(family, isOutward: isOutward, others, using: &random) : random.pick(candidates)
    let sender = isOutward ? near.pod : pod(at: far)
    let target = isOutward ? pod(at: far) : near.pod
    let proto =
      rule.ports.isEmpty || random.chance(10)
      ? proto(to: isOutward ? far : near.address, using: &random)
      : proto(asked: random.pick(rule.ports), sender, target, using: &random)
    return flow(near, isOutward: isOutward, far, proto, local)
  }

  /// Without a local pod there is nothing to judge.
  private func flowBetweenStrangers(using random: inout some RandomNumberGenerator) -> PolicyFlow {
    let family = random.pick([IPFamily.v4, .v6])
    let strangers = RandomWorld.outside.filter { isUsable($0, family, isOutward: false) }
    let destination = random.pick(strangers)
    return PolicyFlow(
      origin: .wire, source: random.pick(strangers), destination: destination,
      proto: proto(to: destination, using: &random))
  }

  // MARK: Addresses

  /// An address of which a packet may come or to which it may be routed.
  private func isUsable(_ address: IPAddress, _ family: IPFamily, isOutward: Bool) -> Bool {
    address.family == family && address.isUnicast && (isOutward || !address.isLinkLocal)
  }

  private func farAddress(
    _ family: IPFamily, isOutward: Bool, _ ends: [End], using random: inout some RandomNumberGenerator
  ) -> IPAddress {
    while true {
      let candidates: [IPAddress]
      switch Int.random(in: 0..<100, using: &random) {
      case ..<40: candidates = ends.map(\.address)
      case ..<65: candidates = blockCIDRs.isEmpty ? [] : random.pick(blockCIDRs).edges
      case ..<73: candidates = nodes.flatMap(\.internalIPs)
      case ..<83: candidates = unknownAddresses(using: &random)
      case ..<90: candidates = pods.filter { !$0.isPolicyPod }.flatMap(\.podIPs)
      default: candidates = RandomWorld.outside
      }
      // There are always usable strangers outside.
      let usable = candidates.filter { isUsable($0, family, isOutward: isOutward) }
      if !usable.isEmpty { return random.pick(usable) }
    }
  }

  /// Those the peer means; for a block, its edges, and whoever is inside.
  private func addresses(at peer: NetworkPolicyPeer, of policy: NetworkPolicy, _ ends: [End]) -> [IPAddress] {
    switch peer {
    case .ipBlock(let block):
      return peer.cidrs.flatMap(\.edges) + RandomWorld.landmarks(of: self).filter { block.cidr.contains($0) }
    case .pods(let selector, let namespaces):
      let matching = ends.filter { end in
        let namespace = self.namespaces.first { $0.name == end.pod.key.namespace }
        let isInNamespace =
          namespaces.map { $0.matches(namespace?.labels ?? [:]) } ?? (end.pod.key.namespace == policy.key.namespace)
        return isInNamespace && selector?.matches(end.pod.labels) != false
      }
      return matching.map(\.address)
    }
  }

  private func unknownAddresses(using random: inout some RandomNumberGenerator) -> [IPAddress] {
    let ranges = nodes.flatMap(\.podCIDRs)
    guard !ranges.isEmpty else { return [] }
    let range = random.pick(ranges)
    let offset = UInt128.random(in: 1...60, using: &random)
    let address = IPAddress(family: range.family, number: range.address.number + offset)
    return [address].compactMap { $0 }.filter { pod(at: $0) == nil }
  }

  // MARK: Protocols

  private func proto(
    to destination: IPAddress, using random: inout some RandomNumberGenerator
  ) -> FlowProtocol {
    let target = pod(at: destination)
    let asked = rules.flatMap(\.ports)
    switch Int.random(in: 0..<100, using: &random) {
    case ..<10: return .icmpEcho
    case ..<16: return .other(random.pick([4, 47, 50, 51, 136]))
    case ..<65:
      guard !asked.isEmpty else { break }
      return proto(asked: random.pick(asked), nil, target, using: &random)
    case ..<80:
      guard let ports = target?.containerPorts, !ports.isEmpty else { break }
      let port = random.pick(ports)
      return .transport(port.proto, port.port.number)
    default: break
    }
    return .transport(random.pick(L4Protocol.allCases), random.pick(RandomWorld.portNumbers + [1, 65535]))
  }

  /// A port that the item names or just does not name, of its protocol or, rarely, of another.
  private func proto(
    asked port: NetworkPolicyPort, _ sender: Pod?, _ target: Pod?, using random: inout some RandomNumberGenerator
  ) -> FlowProtocol {
    let proto = random.chance(85) ? port.proto : random.pick(L4Protocol.allCases)
    switch port.port {
    case .any: return .transport(proto, random.pick(RandomWorld.portNumbers + [0, 65535]))
    case .range(let range):
      let (first, last) = (range.lowerBound.number, range.upperBound.number)
      return .transport(proto, random.pick([first, first, last, last, first - 1, last == .max ? last : last + 1]))
    case .named(let name):
      // Every one of the target's own numbers; and the mistakes: those of another protocol, and of another pod.
      let named = (target?.containerPorts ?? []).filter { $0.name == name }
      let own = named.filter { $0.proto == port.proto }
      let others = (sender?.containerPorts ?? pods.flatMap(\.containerPorts)).filter { $0.name == name }
      let choices = [own, own, named, others].filter { !$0.isEmpty }
      return .transport(proto, choices.isEmpty ? 80 : random.pick(random.pick(choices)).port.number)
    }
  }
}

extension FlowProtocol {
  static func transport(_ proto: L4Protocol, _ port: UInt16) -> FlowProtocol {
    switch proto {
    case .tcp: .tcp(port)
    case .udp: .udp(port)
    case .sctp: .sctp(port)
    }
  }
}

extension NetworkPolicyPeer {
  /// What an ipBlock includes and excepts.
  fileprivate var cidrs: [CIDR] {
    guard case .ipBlock(let block) = self else { return [] }
    return [block.cidr] + block.except
  }
}

extension CIDR {
  /// The first and last address, and those beside them where there are any.
  fileprivate var edges: [IPAddress] {
    let before = first.number == 0 ? nil : IPAddress(family: family, number: first.number - 1)
    let behind = last.number == .max ? nil : IPAddress(family: family, number: last.number + 1)
    return [first, last, before, behind].compactMap { $0 }
  }
}

extension IPAddress {
  /// A single machine's, of which packets can be routed: also link-local ones, which clouds use for services.
  fileprivate var isUnicast: Bool {
    let isReserved = family == .v4 && (number >> 28 >= 0xe || number >> 24 == 0)
    return !isReserved && !isUnspecified && !isLoopback && !isMulticast
  }
}
