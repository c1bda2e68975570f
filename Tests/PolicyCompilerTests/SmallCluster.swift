import DataplaneModel
import KubernetesObjects
import NetworkTypes

@testable import PolicyCompiler

@testable import PolicyWorlds

/// A cluster made by hand, and what compiling it in steps does. Pods run on `here`, the node under test, or on `there`,
/// each with an IPv4 and an IPv6 address of its node's range (10.1.0.0/16 or 10.2.0.0/16, and likewise in IPv6).
struct SmallCluster {
  private(set) var world = PolicyWorld(ownNode: "here")
  /// Shared by copies: a copy is for looking, not for other changes.
  let state = ClusterState(ownNodeName: "here")
  private(set) var compiler: PolicyCompiler
  private(set) var tables = Tables()
  private var locals: [String: LocalPod] = [:]
  private var attached: [String: LocalPod?] = [:]
  private var now = ContinuousClock.now
  private var number: UInt128 = 1

  /// - Parameter namespaces: with their labels.
  init(
    _ namespaces: [String: Labels] = ["shop": [:], "bank": [:]], linger: Duration = .zero, pairLimit: Int = 1_000_000,
    inForce: IdentitiesInForce = IdentitiesInForce()
  ) {
    compiler = PolicyCompiler(inForce: inForce, pairLimit: pairLimit, linger: linger)
    var objects = namespaces.map { ClusterObject.namespace(Namespace(name: $0.key, labels: $0.value)) }
    for (index, name) in ["here", "there"].enumerated() {
      var node = Node(name: name)
      node.podCIDRs = ["10.\(index + 1).0.0/16", "fd00:\(index + 1)::/64"].compactMap { CIDR($0) }
      node.internalIPs = ["172.18.0.\(index + 1)", "fd00:172:18::\(index + 1)"].compactMap { IPAddress($0) }
      objects.append(.node(node))
    }
    apply(objects)
  }

  // MARK: Changing

  /// What the changes, compiled together, did to the tables. Local pods are attached as soon as they are known, and
  /// detached when they are not.
  @discardableResult
  mutating func apply(_ objects: ClusterObject...) -> TableDelta { apply(objects) }

  @discardableResult
  mutating func apply(_ objects: [ClusterObject]) -> TableDelta { apply(objects.map { .upsert($0) }) }

  @discardableResult
  mutating func delete(_ kind: ObjectKind, _ names: String...) -> TableDelta {
    apply(names.map { .delete(kind, Self.key($0)) })
  }

  private mutating func apply(_ changes: [ObjectChange]) -> TableDelta {
    var effect = ChangeEffect()
    for change in changes {
      world.apply(change)
      effect.formUnion(state.apply(change))
    }
    let pods = world.localPods.map { pod in
      LocalPod(interface: CompiledWorld.interface(pod.key), pod: pod.key, uid: pod.uid, addresses: pod.podIPs)
    }
    let wanted: [String: LocalPod?] = Dictionary(uniqueKeysWithValues: pods.map { ($0.interface, $0) })
      .merging(attached) { $1 }
    var endpoints: [String: LocalPod?] = [:]
    for name in Set(wanted.keys).union(locals.keys) where (wanted[name] ?? nil) != locals[name] {
      endpoints[name] = .some(wanted[name] ?? nil)
    }
    return compile(effect, endpoints)
  }

  /// What the plugin says of an interface from now on, whatever the objects say; nil: nothing is attached to it.
  @discardableResult
  mutating func attach(_ interface: String, _ pod: LocalPod?) -> TableDelta {
    attached[interface] = .some(pod)
    return compile(ChangeEffect(), [interface: pod])
  }

  private mutating func compile(_ effect: ChangeEffect, _ endpoints: [String: LocalPod?]) -> TableDelta {
    for (name, local) in endpoints { locals[name] = local }
    let delta = compiler.compile(effect, endpoints: endpoints, in: state, tables: tables, now: now)
    return put(delta)
  }

  /// Lets time go by, and puts out of force what has been idle for too long; nil: nothing was.
  @discardableResult
  mutating func wait(_ time: Duration) -> TableDelta? {
    now += time
    return compiler.expire(in: state, tables: tables, now: now).map { put($0) }
  }

  /// The delta with the endpoints' subjects in it, which the agent adds.
  private mutating func put(_ delta: TableDelta) -> TableDelta {
    var delta = delta
    for name in Set(locals.keys).union(tables.node.endpoints.keys) {
      let new = locals[name].flatMap { local in
        MACAddress("02:00:00:00:00:01").map {
          LocalEndpoint(interface: name, mac: $0, addresses: local.addresses, subjects: compiler.subjects(of: name))
        }
      }
      let old = tables.node.endpoints[name]
      if new != old { delta.endpoints[name] = Change(old: old, new: new) }
    }
    tables.apply(delta)
    return delta
  }

  // MARK: Objects

  /// A pod that is not in the cluster yet, with addresses nobody has.
  mutating func pod(
    _ name: String, _ labels: Labels = [:], isHere: Bool = false, ports: [NamedContainerPort] = []
  ) -> ClusterObject {
    var pod = Pod(key: Self.key(name))
    pod.uid = "uid-\(number)"
    pod.nodeName = isHere ? "here" : "there"
    pod.labels = labels
    pod.containerPorts = ports
    pod.phase = .running
    let ranges = world.nodes.first { $0.name == pod.nodeName }?.podCIDRs ?? []
    pod.podIPs = ranges.compactMap { IPAddress(family: $0.family, number: $0.address.number + number) }
    number += 1
    return .pod(pod)
  }

  /// As many pods with the same labels, `shop/web-1` to `shop/web-n`.
  mutating func pods(
    _ count: Int, _ name: String, _ labels: Labels = [:], isHere: Bool = false
  ) -> [ClusterObject] {
    (1...count).map { pod("\(name)-\($0)", labels, isHere: isHere) }
  }

  /// A pod of the cluster, changed.
  func changed(_ name: String, _ body: (inout Pod) -> Void) -> ClusterObject {
    var pod = world.pods.first { $0.key == Self.key(name) } ?? Pod(key: Self.key(name))
    body(&pod)
    return .pod(pod)
  }

  /// Isolates in the directions for which there are rules; nil: not.
  static func policy(
    _ name: String, selecting labels: Labels = [:], ingress: [NetworkPolicyRule]? = nil,
    egress: [NetworkPolicyRule]? = nil
  ) -> ClusterObject {
    var policy = NetworkPolicy(key: key(name))
    policy.podSelector = LabelSelector(matchLabels: labels)
    (policy.isolatesIngress, policy.ingress) = (ingress != nil, ingress ?? [])
    (policy.isolatesEgress, policy.egress) = (egress != nil, egress ?? [])
    return .networkPolicy(policy)
  }

  static func key(_ text: String) -> ObjectKey {
    let parts = text.split(separator: "/").map(String.init)
    return ObjectKey(namespace: parts.count == 2 ? parts[0] : "", name: parts.last ?? "")
  }

  // MARK: Asking

  /// Whether TCP to a port gets from one pod to another, as far as this node's pods decide.
  func allows(_ from: String, _ to: String, port: UInt16 = 80, _ family: IPFamily = .v4) -> Bool {
    guard let source = address(from, family), let destination = address(to, family) else { return false }
    let isLocal = tables.node.isLocalPod(source)
    return tables.judge(
      PolicyPacket(
        origin: isLocal ? .pod : .outside, source: source, destination: destination, proto: 6, destinationPort: port)
    ).isAllowed
  }

  func problems() -> [String] { TableCheck(world, compiler, tables).problems() }

  /// Right only where nothing lingers.
  func partitionProblems() -> [String] {
    var (compiler, tables) = (compiler, tables)
    if let delta = compiler.expire(in: state, tables: tables, now: now + .seconds(100_000)) { tables.apply(delta) }
    return TableCheck(world, compiler, tables).partitionProblems()
  }

  func address(_ pod: String, _ family: IPFamily) -> IPAddress? {
    world.pods.first { $0.key == Self.key(pod) }?.podIPs.first { $0.family == family }
  }

  func identity(_ pod: String, _ family: IPFamily = .v4) -> IdentityID? {
    address(pod, family).flatMap { tables.identities.addresses[$0] }
  }

  func subjects(_ pod: String) -> Subjects? {
    tables.node.endpoints[CompiledWorld.interface(Self.key(pod))]?.subjects
  }
}

extension NetworkPolicyPeer {
  /// Pods of the policy's own namespace.
  static func own(_ labels: Labels = [:]) -> Self { .pods(LabelSelector(matchLabels: labels), namespaces: nil) }

  /// Pods of all namespaces, or of those with these labels.
  static func all(_ labels: Labels = [:], in namespaces: Labels = [:]) -> Self {
    .pods(LabelSelector(matchLabels: labels), namespaces: LabelSelector(matchLabels: namespaces))
  }

  /// nil for what is no CIDR.
  static func block(_ cidr: String, except: [String] = []) -> Self? {
    CIDR(cidr).map { .ipBlock(IPBlock(cidr: $0, except: except.compactMap { CIDR($0) })) }
  }
}

extension NetworkPolicyRule {
  /// From or to these, on every port.
  static func peers(_ peers: NetworkPolicyPeer?...) -> Self { NetworkPolicyRule(peers: peers.compactMap { $0 }) }
}
