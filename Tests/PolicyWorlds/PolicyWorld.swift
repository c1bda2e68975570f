import KubernetesObjects
import NetworkTypes

/// A cluster as far as NetworkPolicy is concerned, seen from one of its nodes: the input of the oracle and of what is
/// tested against it.

struct PolicyWorld: Sendable, Equatable {
  /// The node under test.
  var ownNode: String
  var nodes: [Node] = []
  var namespaces: [Namespace] = []
  var pods: [Pod] = []
  var policies: [NetworkPolicy] = []

  func state() -> ClusterState {
    let state = ClusterState(ownNodeName: ownNode)
    for object in objects { state.apply(.upsert(object)) }
    return state
  }

  /// Every object, in an order in which each comes behind those it names.
  var objects: [ClusterObject] {
    nodes.map { .node($0) } + namespaces.map { .namespace($0) } + pods.map { .pod($0) }
      + policies.map { .networkPolicy($0) }
  }

  /// Pods that the node under test has endpoints for, whatever their phase.
  var localPods: [Pod] { pods.filter { $0.nodeName == ownNode && !$0.hostNetwork } }

  /// The pod that an address means: one whose containers may run and that has a network of its own.
  ///
  /// Two such pods with one address are a matter of moments (a status not yet written). A local one wins, for this node
  /// has given it the address; then the key that sorts first.
  func pod(at address: IPAddress) -> Pod? {
    let claims = pods.filter { $0.podIPs.contains(address) && $0.isPolicyPod }
    let local = claims.filter { $0.nodeName == ownNode }
    return (local.isEmpty ? claims : local).min { $0.key < $1.key }
  }
}

extension Pod {
  /// A subject and peer of NetworkPolicies: neither finished nor on its node's network. Terminating pods are, and so are
  /// those whose phase is Pending or Unknown, for they can have an address and a process.
  var isPolicyPod: Bool { phase != .succeeded && phase != .failed && !hostNetwork }
}

/// Where a packet comes from. Never an address: those can be forged.
enum FlowOrigin: Hashable, Sendable {
  /// Generated on the node under test: by a process or a hostNetwork pod.
  case host
  /// Sent by a pod of the node under test.
  case localPod(ObjectKey)
  /// Received from another machine.
  case wire
}

/// What a rule's ports are compared with.
enum FlowProtocol: Hashable, Sendable {
  /// The destination port, 0 included: packets can have it.
  case tcp(UInt16)
  case udp(UInt16)
  case sctp(UInt16)
  case icmpEcho
  /// An IP protocol number; none of the above, and no ICMP, whose messages have rules of their own.
  case other(UInt8)
}

/// The first packet of a flow as the node under test sees it: its destination after Service translation, its source
/// before masquerade. Both addresses are of one family.
struct PolicyFlow: Hashable, Sendable {
  var origin: FlowOrigin
  var source: IPAddress
  var destination: IPAddress
  var proto: FlowProtocol
}

// MARK: Text for failures

extension FlowOrigin: CustomStringConvertible {
  var description: String {
    switch self {
    case .host: "host"
    case .localPod(let key): "pod \(key)"
    case .wire: "wire"
    }
  }
}

extension FlowProtocol: CustomStringConvertible {
  var description: String {
    switch self {
    case .tcp(let port): "tcp \(port)"
    case .udp(let port): "udp \(port)"
    case .sctp(let port): "sctp \(port)"
    case .icmpEcho: "icmp echo"
    case .other(let number): "protocol \(number)"
    }
  }
}

extension PolicyFlow: CustomStringConvertible {
  /// `pod shop/web: 10.244.1.2 -> 10.244.2.3, tcp 80`.
  var description: String { "\(origin): \(source) -> \(destination), \(proto)" }
}
