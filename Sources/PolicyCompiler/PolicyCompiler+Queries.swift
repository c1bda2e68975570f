import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Whose an address is.
public enum AddressOwner: Sendable, Hashable {
  case pod(ObjectKey)
  /// A node's InternalIP.
  case node
}

/// One identity, for people.
public struct IdentityFacts: Sendable, Hashable {
  public var id: IdentityID
  public var kind: IdentityKind
  /// nil for what is no pod.
  public var namespace: String?
  /// Of the pod groups in it, sorted by their text.
  public var labels: [Labels]
  /// Pods' and nodes' addresses that have it.
  public var addressCount: Int
}

/// What metrics, `dpctl` and events ask for; nothing here changes what is in force.
extension PolicyCompiler {
  /// nil: no pod's and no node's, as far as is known.
  public func owner(of address: IPAddress) -> AddressOwner? {
    if nodeAddresses.contains(address) { return .node }
    return claimant(of: address).map { .pod($0) }
  }

  /// The pod that has an address: the local one, else the first by name.
  func claimant(of address: IPAddress) -> ObjectKey? {
    guard let claimants = claims[address] else { return nil }
    if claimants.count == 1 { return claimants[0] }
    let local = localAddresses[address].map { local in claimants.filter(local.contains) } ?? []
    return local.min() ?? claimants.min()
  }

  /// nil for an identity that is not in force.
  public func kind(of identity: IdentityID) -> IdentityKind? { classes.key(of: identity)?.kind }

  /// Every identity in force, by number.
  public func identities(in state: ClusterState) -> [IdentityFacts] {
    classes.allIdentities.sorted().compactMap { id in
      guard let key = classes.key(of: id) else { return nil }
      let labels = classes.groups(of: id).compactMap { state.group($0)?.labels }
      return IdentityFacts(
        id: id, kind: key.kind, namespace: key.kind == .pod ? key.namespace : nil,
        labels: Set(labels).sorted { $0.description < $1.description }, addressCount: classes.addressCount(of: id))
    }
  }

  /// An identity of the world that no ipBlock in force contains: what just any address has.
  public func isAnyWorld(_ identity: IdentityID) -> Bool {
    classes.key(of: identity).map { $0.kind == .world && $0.peers.isEmpty } ?? false
  }

  /// Policies in the tables: those that select a pod of this node, and those that did until lately.
  public var policiesInForce: Set<ObjectKey> { Set(subjects.values.flatMap { $0.key.policies.map(\.key) }) }

  /// The policies that isolate pods with this subject, audit ones among them, sorted.
  public func policies(of subject: SubjectID) -> [ObjectKey] {
    subjects[subject]?.key.policies.map(\.key) ?? []
  }

  /// The local pods that each policy selects, sorted.
  public var selectedPods: [ObjectKey: [ObjectKey]] {
    var pods: [ObjectKey: Set<ObjectKey>] = [:]
    for (interface, subjects) in subjectsOf {
      guard let pod = locals[interface]?.pod else { continue }
      for direction in PolicyDirection.allCases {
        for policy in policies(of: subjects[direction]) { pods[policy, default: []].insert(pod) }
      }
    }
    return pods.mapValues { $0.sorted() }
  }

  /// The pod that a local interface belongs to; nil: attached by nobody who speaks of Kubernetes, or not at all.
  public func pod(ofInterface interface: String) -> ObjectKey? { locals[interface]?.pod }
}
