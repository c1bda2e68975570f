import NetworkTypes

/// A NetworkPolicy as the API server stores it: `policyTypes` and protocols filled in.

public struct NetworkPolicy: Hashable, Sendable {
  public var key: ObjectKey
  /// Pods of the policy's own namespace; the empty selector is all of them.
  public var podSelector = LabelSelector()
  /// The selected pods are isolated for ingress; without it the ingress rules are inert.
  public var isolatesIngress = false
  /// The selected pods are isolated for egress; without it the egress rules are inert.
  public var isolatesEgress = false
  /// What may reach the selected pods. None: nothing may.
  public var ingress: [NetworkPolicyRule] = []
  /// What the selected pods may reach. None: nothing.
  public var egress: [NetworkPolicyRule] = []
  public var mode = Mode.enforce

  /// Annotation `sluice.dev/mode`.
  public enum Mode: String, Hashable, Sendable, CaseIterable {
    case enforce
    /// Drops nothing: what the policy would drop, were it enforced beside the others, is counted and shown.
    case audit
  }

  public init(key: ObjectKey) { self.key = key }
}

/// Allows traffic that matches one of the peers *and* one of the ports.
public struct NetworkPolicyRule: Hashable, Sendable {
  /// `from` or `to`. Empty: any peer, inside the cluster or not.
  public var peers: [NetworkPolicyPeer]
  /// Empty: every port and protocol.
  public var ports: [NetworkPolicyPort]

  public init(peers: [NetworkPolicyPeer] = [], ports: [NetworkPolicyPort] = []) {
    self.peers = peers
    self.ports = ports
  }
}

public enum NetworkPolicyPeer: Hashable, Sendable {
  /// Pods that `pods` matches (nil: all) in the namespaces that `namespaces` matches (nil: the policy's own). At least
  /// one is not nil.
  case pods(LabelSelector?, namespaces: LabelSelector?)
  case ipBlock(IPBlock)
}

public struct IPBlock: Hashable, Sendable {
  public var cidr: CIDR
  /// Each lies within `cidr`; subtracts from this block only.
  public var except: [CIDR]

  public init(cidr: CIDR, except: [CIDR] = []) {
    self.cidr = cidr
    self.except = except
  }
}

public struct NetworkPolicyPort: Hashable, Sendable {
  public enum Number: Hashable, Sendable {
    /// Every port of the protocol.
    case any
    /// `port`, or `port` to `endPort` inclusive.
    case range(ClosedRange<Port>)
    /// A container port's name.
    case named(String)
  }

  public var proto: L4Protocol
  public var port: Number

  public init(proto: L4Protocol = .tcp, port: Number = .any) {
    self.proto = proto
    self.port = port
  }
}
