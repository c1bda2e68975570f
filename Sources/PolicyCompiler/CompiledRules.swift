import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Where the rules of a pod's direction come from, in the order in which tiers decide. There is one tier so far:
/// NetworkPolicies, of which every rule allows, and which deny by default what no rule allows.
struct CompiledRule: Sendable {
  enum Ports: Sendable, Hashable {
    case range(ClosedRange<PortKey>)
    case named(NamedPort)
  }
  var reference: RuleReference
  var isAudit: Bool
  /// nil: any peer.
  var peers: [Peer]?
  /// nil: every port and protocol.
  var ports: [Ports]?

  init(_ rule: NetworkPolicyRule, index: Int, of policy: NetworkPolicy) {
    reference = RuleReference(policy: PolicyReference(policy.key), index: index)
    isAudit = policy.mode == .audit
    peers = rule.peers.isEmpty ? nil : rule.peers.map { Peer($0, of: policy.key.namespace) }
    ports =
      rule.ports.isEmpty
      ? nil
      : rule.ports.map { port in
        switch port.port {
        case .any:
          .range(PortKey(proto: port.proto.rawValue, port: 0)...PortKey(proto: port.proto.rawValue, port: .max))
        case .range(let range):
          .range(PortKey(port.proto, range.lowerBound)...PortKey(port.proto, range.upperBound))
        case .named(let name): .named(NamedPort(name: name, proto: port.proto))
        }
      }
  }

  var namedPorts: [NamedPort] {
    (ports ?? []).compactMap { if case .named(let port) = $0 { port } else { nil } }
  }
}

extension PolicyReference {
  init(_ key: ObjectKey) { self.init(namespace: key.namespace, name: key.name) }
}

extension NetworkPolicy {
  func isolates(_ direction: PolicyDirection) -> Bool {
    direction == .ingress ? isolatesIngress : isolatesEgress
  }

  func rules(_ direction: PolicyDirection) -> [CompiledRule] {
    (direction == .ingress ? ingress : egress).enumerated().map { CompiledRule($1, index: $0, of: self) }
  }

  /// What the policy says about one direction, as a number: the pod selector apart, which only says about whom.
  func contentHash(_ direction: PolicyDirection) -> UInt64 {
    var hash = ContentHash()
    hash.add("\(key)")
    hash.add(mode.rawValue)
    for rule in direction == .ingress ? ingress : egress {
      // Every list with its length and every choice with a number: no two policies read alike.
      hash.add(rule.peers.count)
      hash.add(rule.ports.count)
      for peer in rule.peers {
        switch peer {
        case .pods(let pods, let namespaces):
          hash.add(UInt8(pods == nil ? 0 : 1) | UInt8(namespaces == nil ? 0 : 2))
          pods?.add(to: &hash)
          namespaces?.add(to: &hash)
        case .ipBlock(let block):
          hash.add(UInt8(4))
          hash.add(block.except.count)
          for cidr in [block.cidr] + block.except {
            hash.add(cidr.address)
            hash.add(UInt8(truncatingIfNeeded: cidr.prefixLength))
          }
        }
      }
      for port in rule.ports {
        hash.add(port.proto.rawValue)
        switch port.port {
        case .any: hash.add(UInt8(0))
        case .range(let range):
          hash.add(UInt8(1))
          hash.add(range.lowerBound.number)
          hash.add(range.upperBound.number)
        case .named(let name):
          hash.add(UInt8(2))
          hash.add(name)
        }
      }
    }
    return hash.wide
  }
}

extension LabelSelector {
  fileprivate func add(to hash: inout ContentHash) {
    hash.add(matchLabels.pairs.count)
    for pair in matchLabels.pairs {
      hash.add(pair.key)
      hash.add(pair.value)
    }
    hash.add(matchExpressions.count)
    for requirement in matchExpressions {
      hash.add(requirement.values.count)
      hash.add(requirement.key)
      hash.add(requirement.comparison.rawValue)
      for value in requirement.values { hash.add(value) }
    }
  }
}
