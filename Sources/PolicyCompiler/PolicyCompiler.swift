import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// A pod attached to this node, as its endpoint record says.
public struct LocalPod: Sendable, Hashable {
  public var interface: String
  /// nil: attached by nobody who speaks of Kubernetes. No policy is about it.
  public var pod: ObjectKey?
  /// nil or "": any pod of that name is meant.
  public var uid: String?
  public var addresses: [IPAddress]

  public init(interface: String, pod: ObjectKey?, uid: String?, addresses: [IPAddress]) {
    self.interface = interface
    self.pod = pod
    self.uid = uid
    self.addresses = addresses
  }
}

/// Turns NetworkPolicies, Pods and Namespaces into changes of the identity and policy tables.
///
/// A policy is in force when it selects a pod of this node, and for some time after. Everything else is indexed, not
/// compiled. One owner; deltas must be applied to the tables in the order in which they are made.
public struct PolicyCompiler {
  var policies = SelectorIndex<ObjectKey>()
  var contentHashes: [ObjectKey: [PolicyDirection: UInt64]] = [:]
  var locals: [String: LocalPod] = [:]
  var interfacesOfPod: [ObjectKey: Set<String>] = [:]
  private var interfacesOfNamespace: [String: Set<String>] = [:]
  /// Whose local address it is, for claims.
  var localAddresses: [IPAddress: Set<ObjectKey>] = [:]
  var subjectsOf: [String: Subjects] = [:]

  var subjects: [SubjectID: Subject] = [:]
  var subjectNumbers = Interner<SubjectKey>()
  var subjectsOfPeer: [PeerID: Set<SubjectID>] = [:]
  var subjectsOfPort: [NamedPort: Set<SubjectID>] = [:]
  /// Subjects that no pod has any more, and since when.
  var idle: [SubjectID: ContinuousClock.Instant] = [:]

  var registry = PeerRegistry()
  /// Those that classes know of.
  var namedPortsInForce: Set<NamedPort> = []
  var classes: ClassTable
  /// What of each pod is in the identity table.
  var placed: [ObjectKey: Placement] = [:]
  /// Who says that an address is theirs: mostly one.
  var claims: [IPAddress: [ObjectKey]] = [:]
  var nodeAddresses: Set<IPAddress> = []
  /// The pod that had each address last, as a number: whoever has it next must not inherit its flows.
  var lastOwners: [IPAddress: Int] = [:]
  var reused: Set<IPAddress> = []
  var hasNewReuse = false
  /// Before the first round is through no address has a place: the peers in force come first, so that each class is made
  /// once and takes the number it has in the kernel.
  var hasStarted = false
  var isGathering = false
  var podRanges: Set<CIDR> = []
  var blockTables: [IPFamily: BlockTable] = [:]

  var values = PairValues()
  /// Pairs in the tables, wildcards apart.
  public internal(set) var pairCount = 0
  /// Subjects that would have more pairs than there is room for, and how many those were.
  var closed: [SubjectKey: Int] = [:]

  /// Pairs on this node above which a subject is closed.
  public let pairLimit: Int
  /// How long a policy stays in force after the last pod it selects is gone: the next one starts sooner.
  public let linger: Duration

  struct Placement {
    var group: PodGroupID
    /// Stands for the pod's name and UID.
    var owner: Int
    var addresses: [IPAddress]
  }

  public init(
    inForce: IdentitiesInForce = IdentitiesInForce(), pairLimit: Int = 1_000_000, linger: Duration = .seconds(600)
  ) {
    classes = ClassTable(inForce: inForce)
    self.pairLimit = pairLimit
    self.linger = linger
  }

  // MARK: Looking up

  /// nil: the pod is not known, so that nothing may get in or out.
  public func subjects(of interface: String) -> Subjects? { subjectsOf[interface] }

  public var identityCount: Int { classes.classCount }
  public var addressCount: Int { classes.addressCount }
  public var subjectCount: Int { subjects.count }
  public var portSetCount: Int { values.portSetCount }
  public var atomCount: Int { blockTables.values.reduce(0) { $0 + $1.atoms.count } }
  /// Subjects that are closed because of the limit, by the policies that select them.
  public var closedSubjects: [[ObjectKey]] { closed.keys.map { $0.policies.map(\.key) } }

  // MARK: Compiling

  /// What the changes mean for the tables.
  ///
  /// - Parameters:
  ///   - endpoints: local pods that are new or changed, and nil for those that are gone, by interface.
  ///   - tables: what all earlier deltas made.
  ///   - now: for what stays in force for some time.
  public mutating func compile(
    _ effect: ChangeEffect, endpoints: [String: LocalPod?] = [:], in state: ClusterState,
    tables: borrowing Tables, now: ContinuousClock.Instant = .now
  ) -> TableDelta {
    var delta = TableDelta()
    var dirty: Set<String> = []
    for key in Set(effect.networkPolicies) {
      if let policy = state.networkPolicy(key) {
        policies.insert(key, pods: policy.podSelector, scope: .own(key.namespace))
      } else {
        policies.remove(key)
      }
      contentHashes[key] = nil
      dirty.formUnion(interfacesOfNamespace[key.namespace] ?? [])
    }
    for (interface, pod) in endpoints {
      if let known = locals[interface], let pod, known.pod != pod.pod || known.uid != pod.uid {
        // Another pod's now: what was said of the first one says nothing of it.
        if let old = subjectsOf.removeValue(forKey: interface) {
          for direction in PolicyDirection.allCases { release(old[direction], now) }
        }
      }
      setLocal(interface, pod, state)
      dirty.insert(interface)
    }
    for key in Set(effect.pods) {
      place(key, state)
      dirty.formUnion(interfacesOfPod[key] ?? [])
    }
    for name in Set(effect.namespaces) { relabel(namespace: name, state) }
    if !effect.nodes.isEmpty { updateNodes(state, &delta) }

    var fresh: [SubjectID] = []
    var work = RegistryWork()
    // Of earlier rounds: what this one replaces stays until the next, so that addresses which get another identity now
    // have it for the replaced subjects too.
    retire(now, &work, tables, &delta)
    dirty.formUnion(reopen())
    for interface in dirty.sorted() { updateSubjects(of: interface, state, now, &fresh, &work, &delta) }
    follow(work, state, &delta)
    if !hasStarted {
      hasStarted = true
      // Each address once, when all claims to it are known.
      isGathering = true
      for key in Set(effect.pods).union(interfacesOfPod.keys) { place(key, state) }
      isGathering = false
      for address in nodeAddresses.union(claims.keys).sorted() { settle(address, state) }
      classes.forgetInherited()
    }
    let changes = classes.takeChanges()
    for id in fresh.sorted() { compilePairs(of: id, now, tables, &delta) }
    follow(changes, now, tables, &delta)
    // Flows of the pod that had the address before are not the new one's.
    if hasNewReuse { delta.rejudgesFlows = true }
    hasNewReuse = false
    return delta
  }

  /// Puts policies out of force that nothing has used for `linger`, and opens subjects for which there is room again. nil:
  /// there was nothing to do.
  public mutating func expire(
    in state: ClusterState, tables: borrowing Tables, now: ContinuousClock.Instant = .now
  ) -> TableDelta? {
    guard
      idle.contains(where: { isOver($0.key, since: $0.value, now) })
        || closed.values.contains(where: { pairCount + $0 <= pairLimit })
    else { return nil }
    return compile(ChangeEffect(), in: state, tables: tables, now: now)
  }

  // MARK: Local pods

  private mutating func setLocal(_ interface: String, _ pod: LocalPod?, _ state: ClusterState) {
    var affected: Set<IPAddress> = []
    var pods: Set<ObjectKey> = []
    if let old = locals[interface] {
      for address in old.addresses {
        if let key = old.pod { localAddresses[address]?.remove(key) }
        if localAddresses[address]?.isEmpty == true { localAddresses[address] = nil }
      }
      affected.formUnion(old.addresses)
      if let key = old.pod {
        interfacesOfPod[key]?.remove(interface)
        if interfacesOfPod[key]?.isEmpty == true { interfacesOfPod[key] = nil }
        interfacesOfNamespace[key.namespace]?.remove(interface)
        if interfacesOfNamespace[key.namespace]?.isEmpty == true { interfacesOfNamespace[key.namespace] = nil }
        pods.insert(key)
      }
    }
    locals[interface] = pod
    if let pod {
      affected.formUnion(pod.addresses)
      if let key = pod.pod {
        for address in pod.addresses { localAddresses[address, default: []].insert(key) }
        interfacesOfPod[key, default: []].insert(interface)
        interfacesOfNamespace[key.namespace, default: []].insert(interface)
        pods.insert(key)
      }
    }
    for key in pods { place(key, state) }
    for address in affected { settle(address, state) }
  }

  /// The Pod object that an endpoint is the sandbox of.
  func object(of local: LocalPod, _ state: ClusterState) -> Pod? {
    guard let key = local.pod, let pod = state.pod(key), pod.isSelectable else { return nil }
    guard let uid = local.uid, !uid.isEmpty, !pod.uid.isEmpty else { return pod }
    return pod.uid == uid ? pod : nil
  }
}
