import KubernetesObjects
import NetworkTypes

/// The specification of NetworkPolicy, read plainly: no tables, no index, no memory, every question asked of all objects.
/// It shares nothing with the compiler, the comparison of labels and addresses included, so that both can only agree
/// where both are right.

struct OracleVerdict: Hashable, Sendable {
  /// What one end of the flow says.
  struct Direction: Hashable, Sendable {
    var verdict: DirectionVerdict
    /// Not nil where `verdict` allows, but would deny if the audit policies were enforced beside the others: the audit
    /// policies that isolate the pod in this direction, sorted.
    var auditDenial: [ObjectKey]?

    init(_ verdict: DirectionVerdict, auditDenial: [ObjectKey]? = nil) {
      self.verdict = verdict
      self.auditDenial = auditDenial
    }
  }

  /// Of the local pod that sends.
  var egress: Direction
  /// Of the local pod that is sent to.
  var ingress: Direction

  /// Both ends allow, as far as they are on this node.
  var isAllowed: Bool { egress.verdict.allows && ingress.verdict.allows }
}

enum DirectionVerdict: Hashable, Sendable {
  /// No local pod is at this end.
  case notApplicable
  /// Allowed whatever the policies say: a pod to itself, the node to its pod.
  case exempt
  /// No enforced policy isolates the pod in this direction.
  case notIsolated
  /// The first rule that allows, in the order of policy and index.
  case allowed(policy: ObjectKey, rule: Int)
  /// No rule of any enforced policy that isolates the pod in this direction allows; these are the policies, sorted.
  case denied(isolatedBy: [ObjectKey])

  var allows: Bool {
    if case .denied = self { return false }
    return true
  }
}

struct PolicyOracle {
  let world: PolicyWorld

  init(_ world: PolicyWorld) { self.world = world }

  /// Judges a flow that this node would carry at all. Forged sources and the ICMP messages that belong to neighbour
  /// discovery, multicast membership or another flow are none; they have rules of their own.
  func judge(_ flow: PolicyFlow) -> OracleVerdict {
    OracleVerdict(egress: egress(flow), ingress: ingress(flow))
  }

  // MARK: The two ends

  private func egress(_ flow: PolicyFlow) -> OracleVerdict.Direction {
    guard case .localPod(let key) = flow.origin, let pod = world.localPods.first(where: { $0.key == key }),
      pod.isPolicyPod
    else { return .init(.notApplicable) }
    if isToItself(flow) { return .init(.exempt) }
    let target = world.pod(at: flow.destination)
    return judge(pod, isolation: \.isolatesEgress) { policy in
      policy.egress.firstIndex { allows($0, of: policy, peer: flow.destination, flow, portsOf: target) }
    }
  }

  private func ingress(_ flow: PolicyFlow) -> OracleVerdict.Direction {
    guard let pod = world.pod(at: flow.destination), pod.nodeName == world.ownNode
    else { return .init(.notApplicable) }
    if isToItself(flow) || flow.origin == .host { return .init(.exempt) }
    return judge(pod, isolation: \.isolatesIngress) { policy in
      policy.ingress.firstIndex { allows($0, of: policy, peer: flow.source, flow, portsOf: pod) }
    }
  }

  private func isToItself(_ flow: PolicyFlow) -> Bool {
    guard case .localPod(let key) = flow.origin else { return false }
    return flow.destination.isLoopback || world.pod(at: flow.destination)?.key == key
  }

  /// - Parameter allowingRule: the first rule of a policy that allows the flow.
  private func judge(
    _ pod: Pod, isolation: KeyPath<NetworkPolicy, Bool>, allowingRule: (NetworkPolicy) -> Int?
  ) -> OracleVerdict.Direction {
    let isolating = world.policies.filter { $0[keyPath: isolation] && selects($0, pod) }.sorted { $0.key < $1.key }

    func verdict(enforcing policies: [NetworkPolicy]) -> DirectionVerdict {
      if policies.isEmpty { return .notIsolated }
      for policy in policies {
        if let rule = allowingRule(policy) { return .allowed(policy: policy.key, rule: rule) }
      }
      return .denied(isolatedBy: policies.map(\.key))
    }

    let enforced = verdict(enforcing: isolating.filter { $0.mode == .enforce })
    let withAudit = verdict(enforcing: isolating)
    guard enforced.allows, !withAudit.allows else { return .init(enforced) }
    return .init(enforced, auditDenial: isolating.filter { $0.mode == .audit }.map(\.key))
  }

  // MARK: Selection

  private func selects(_ policy: NetworkPolicy, _ pod: Pod) -> Bool {
    policy.key.namespace == pod.key.namespace && matches(policy.podSelector, pod.labels)
  }

  private func matches(_ selector: LabelSelector, _ labels: Labels) -> Bool {
    for wanted in selector.matchLabels.pairs {
      guard let value = value(wanted.key, labels), value == wanted.value else { return false }
    }
    for requirement in selector.matchExpressions {
      let value = value(requirement.key, labels)
      let isMet =
        switch (requirement.comparison, value) {
        case (.isIn, let value?): requirement.values.contains(value)
        case (.isIn, nil): false
        case (.isNotIn, let value?): !requirement.values.contains(value)
        case (.isNotIn, nil): true
        case (.exists, _): value != nil
        case (.doesNotExist, _): value == nil
        }
      guard isMet else { return false }
    }
    return true
  }

  private func value(_ key: String, _ labels: Labels) -> String? {
    for pair in labels.pairs where pair.key == key { return pair.value }
    return nil
  }

  // MARK: Rules

  /// - Parameter portsOf: whose container ports a name means: the selected pod's for ingress, the destination's for
  ///   egress; nil where the destination is no pod.
  private func allows(
    _ rule: NetworkPolicyRule, of policy: NetworkPolicy, peer address: IPAddress, _ flow: PolicyFlow, portsOf pod: Pod?
  ) -> Bool {
    let peerMatches = rule.peers.isEmpty || rule.peers.contains { matches($0, of: policy, address) }
    let portMatches = rule.ports.isEmpty || rule.ports.contains { matches($0, flow.proto, pod) }
    return peerMatches && portMatches
  }

  private func matches(_ peer: NetworkPolicyPeer, of policy: NetworkPolicy, _ address: IPAddress) -> Bool {
    switch peer {
    case .ipBlock(let block):
      return lies(address, in: block.cidr) && !block.except.contains { lies(address, in: $0) }
    case .pods(let pods, let namespaces):
      guard let pod = world.pod(at: address) else { return false }
      if let pods, !matches(pods, pod.labels) { return false }
      guard let namespaces else { return pod.key.namespace == policy.key.namespace }
      // Of a Namespace that was never seen nothing is known: no selector matches it, so that nothing is allowed that
      // its labels may forbid.
      guard let namespace = world.namespaces.first(where: { $0.name == pod.key.namespace }) else { return false }
      return matches(namespaces, namespace.labels)
    }
  }

  private func lies(_ address: IPAddress, in cidr: CIDR) -> Bool {
    guard address.family == cidr.family else { return false }
    let hostBits = UInt128(cidr.family.addressBits - cidr.prefixLength)
    return address.number >> hostBits == cidr.address.number >> hostBits
  }

  private func matches(_ port: NetworkPolicyPort, _ proto: FlowProtocol, _ pod: Pod?) -> Bool {
    let number: UInt16
    switch (proto, port.proto) {
    case (.tcp(let destination), .tcp), (.udp(let destination), .udp), (.sctp(let destination), .sctp):
      number = destination
    default: return false
    }
    switch port.port {
    case .any: return true
    case .range(let range): return range.lowerBound.number <= number && number <= range.upperBound.number
    case .named(let name):
      guard let pod else { return false }
      return pod.containerPorts.contains { $0.name == name && $0.proto == port.proto && $0.port.number == number }
    }
  }
}

// MARK: Text for failures

extension DirectionVerdict: CustomStringConvertible {
  var description: String {
    switch self {
    case .notApplicable: "not applicable"
    case .exempt: "exempt"
    case .notIsolated: "not isolated"
    case .allowed(let policy, let rule): "allowed by \(policy) rule \(rule)"
    case .denied(let policies): "denied, isolated by \(policies.map(\.description).joined(separator: ", "))"
    }
  }
}

extension OracleVerdict: CustomStringConvertible {
  var description: String { "egress \(egress); ingress \(ingress)" }
}

extension OracleVerdict.Direction: CustomStringConvertible {
  var description: String {
    guard let auditDenial else { return "\(verdict)" }
    return "\(verdict), would be denied by audit of \(auditDenial.map(\.description).joined(separator: ", "))"
  }
}

extension DirectionVerdict {
  /// For counting.
  var kind: String {
    switch self {
    case .notApplicable: "none"
    case .exempt: "exempt"
    case .notIsolated: "open"
    case .allowed: "allowed"
    case .denied: "denied"
    }
  }
}
