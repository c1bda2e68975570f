import NetworkTypes

/// Pods that no selector can tell apart, and how selectors find them.

/// A group's number. It is not used again within a process (before four billion others), not even for a group that was
/// forgotten and came back: what was derived from it is never mistaken for something else.
public struct PodGroupID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32

  init(_ rawValue: UInt32) { self.rawValue = rawValue }

  public static func < (left: PodGroupID, right: PodGroupID) -> Bool { left.rawValue < right.rawValue }

  /// `pod-group-7`.
  public var description: String { "pod-group-\(rawValue)" }
}

/// The pods of one namespace with the same labels and the same named container ports.
public struct PodGroup: Hashable, Sendable {
  /// What distinguishes one group from another.
  public struct Key: Hashable, Sendable {
    public let namespace: String
    public let labels: Labels
    /// Sorted by name, protocol and number, none twice: their order within the pod means nothing.
    public let containerPorts: [NamedContainerPort]

    public init(namespace: String, labels: Labels = Labels(), containerPorts: [NamedContainerPort] = []) {
      self.namespace = namespace
      self.labels = labels
      self.containerPorts = containerPorts.inOneOrder
    }

    init(_ pod: Pod) {
      self.init(namespace: pod.key.namespace, labels: pod.labels, containerPorts: pod.containerPorts)
    }
  }

  public let id: PodGroupID
  public let key: Key
  /// Never empty. Who keeps it across a change makes that change copy it.
  public internal(set) var members: Set<ObjectKey>

  public var namespace: String { key.namespace }
  public var labels: Labels { key.labels }
  /// Sorted by name, protocol and number, none twice.
  public var containerPorts: [NamedContainerPort] { key.containerPorts }
}

extension Pod {
  /// Selectors see the pod. A hostNetwork pod is its node's address, and the address of one that ended may already be
  /// another pod's: neither is ever a subject or a peer.
  public var isSelectable: Bool { !hostNetwork && phase != .succeeded && phase != .failed }
}

extension [NamedContainerPort] {
  fileprivate var inOneOrder: [NamedContainerPort] {
    func isBefore(_ left: NamedContainerPort, _ right: NamedContainerPort) -> Bool {
      (left.name, left.proto, left.port) < (right.name, right.proto, right.port)
    }
    if zip(self, dropFirst()).allSatisfy(isBefore) { return self }
    return sorted(by: isBefore).reduce(into: []) { if $0.last != $1 { $0.append($1) } }
  }
}

// MARK: Looking up

extension ClusterState {
  /// nil for a pod that is not known, or not selectable.
  public func groupID(ofPod key: ObjectKey) -> PodGroupID? { pods[key].flatMap(groupIndex.id(of:)) }

  /// nil for a group whose last member left.
  public func group(_ id: PodGroupID) -> PodGroup? { groupIndex.groups[id] }

  /// Of all groups, in no order.
  public var groupIDs: some Collection<PodGroupID> { groupIndex.groups.keys }

  /// The groups whose pods match (`pods` nil: all pods) in the namespaces in scope, in ascending order.
  ///
  /// Costs about as much as there are groups in scope, or groups with the rarest of the labels asked for, whichever
  /// are fewer.
  public func groups(matching pods: LabelSelector?, inNamespaces scope: NamespaceScope) -> [PodGroupID] {
    var visits = 0
    return groupIndex.groups(matching: pods ?? LabelSelector(), in: scope, visits: &visits)
  }

  /// The groups whose pods have a container port of that name and protocol, in ascending order.
  public func groups(withPortNamed name: String, _ proto: L4Protocol) -> [PodGroupID] {
    groupIndex.groups(withPortNamed: name, proto)
  }

  /// The namespaces that match, sorted: those that exist as objects, and those that merely have pods in groups.
  public func namespaces(matching selector: LabelSelector) -> [String] {
    var visits = 0
    return groupIndex.namespaces(matching: selector, visits: &visits)
  }

  /// A namespace without an object, as it is while its pods are known before it, has the one label that every
  /// namespace has, its name.
  public func labels(ofNamespace name: String) -> Labels { groupIndex.labels(ofNamespace: name) }
}

// MARK: The index

/// All groups. `visits` counts the groups and namespaces that a query looked at one by one: its cost, without a clock.
struct PodGroupIndex {
  private struct PortName: Hashable {
    var name: String
    var proto: L4Protocol

    init(name: String, proto: L4Protocol) { (self.name, self.proto) = (name, proto) }
    init(_ port: NamedContainerPort) { self.init(name: port.name, proto: port.proto) }
  }

  private struct NamespaceEntry {
    /// As they are indexed.
    var labels: Labels
    var isObject = false
    /// In ascending order.
    var groups: [PodGroupID] = []
  }

  private(set) var groups: [PodGroupID: PodGroup] = [:]
  private var ids: [PodGroup.Key: PodGroupID] = [:]
  private var groupsByLabel = LabelIndex<PodGroupID>()
  /// In ascending order.
  private var groupsByPort: [PortName: [PodGroupID]] = [:]
  /// Those that are objects or have groups.
  private var namespaces: [String: NamespaceEntry] = [:]
  private var namespacesByLabel = LabelIndex<String>()
  private var lastID: UInt32 = 0

  /// No trace is left of what was removed.
  var holdsNothing: Bool {
    groups.isEmpty && ids.isEmpty && namespaces.isEmpty && groupsByPort.isEmpty && groupsByLabel.holdsNothing
      && namespacesByLabel.holdsNothing
  }

  func id(of pod: Pod) -> PodGroupID? { pod.isSelectable ? ids[PodGroup.Key(pod)] : nil }

  func labels(ofNamespace name: String) -> Labels { namespaces[name]?.labels ?? Self.defaultLabels(name) }

  private static func defaultLabels(_ namespace: String) -> Labels { [WellKnown.namespaceName: namespace] }

  // MARK: Pods

  /// Takes the new state of a pod. Its labels and ports come back as the group's own, so that all members share one
  /// storage.
  mutating func replace(_ old: Pod?, by new: inout Pod) {
    if let old, old.labels == new.labels, old.containerPorts == new.containerPorts {
      new.labels = old.labels
      new.containerPorts = old.containerPorts
      if old.isSelectable == new.isSelectable { return }
    }
    // Joining first: a group that the pod does not leave is never without members.
    let joined = new.isSelectable ? join(&new) : nil
    if let old, let left = id(of: old), left != joined { leave(old.key, left) }
  }

  mutating func remove(_ pod: Pod) {
    if let id = id(of: pod) { leave(pod.key, id) }
  }

  private mutating func join(_ pod: inout Pod) -> PodGroupID {
    let key = PodGroup.Key(pod)
    let id = ids[key] ?? create(key)
    groups[id]?.members.insert(pod.key)
    if let shared = groups[id]?.key {
      pod.labels = shared.labels
      if pod.containerPorts == shared.containerPorts { pod.containerPorts = shared.containerPorts }
    }
    return id
  }

  private mutating func create(_ key: PodGroup.Key) -> PodGroupID {
    repeat { lastID &+= 1 } while groups[PodGroupID(lastID)] != nil
    let id = PodGroupID(lastID)
    ids[key] = id
    groups[id] = PodGroup(id: id, key: key, members: [])
    groupsByLabel.insert(id, key.labels)
    for port in key.containerPorts { groupsByPort[PortName(port), default: []].insertSorted(id) }
    if namespaces[key.namespace] == nil { insertNamespace(key.namespace, Self.defaultLabels(key.namespace)) }
    namespaces[key.namespace]?.groups.insertSorted(id)
    return id
  }

  private mutating func leave(_ pod: ObjectKey, _ id: PodGroupID) {
    groups[id]?.members.remove(pod)
    guard let group = groups[id], group.members.isEmpty else { return }
    groups[id] = nil
    ids[group.key] = nil
    groupsByLabel.remove(id, group.labels)
    for port in group.containerPorts {
      guard let index = groupsByPort.index(forKey: PortName(port)) else { continue }
      groupsByPort.values[index].removeSorted(id)
      if groupsByPort.values[index].isEmpty { groupsByPort.remove(at: index) }
    }
    namespaces[group.namespace]?.groups.removeSorted(id)
    forgetNamespaceIfUnused(group.namespace)
  }

  // MARK: Namespaces

  mutating func upsert(_ namespace: Namespace) {
    setLabels(namespace.labels, ofNamespace: namespace.name)
    namespaces[namespace.name]?.isObject = true
  }

  mutating func removeNamespace(_ name: String) {
    setLabels(Self.defaultLabels(name), ofNamespace: name)
    namespaces[name]?.isObject = false
    forgetNamespaceIfUnused(name)
  }

  private mutating func insertNamespace(_ name: String, _ labels: Labels) {
    namespaces[name] = NamespaceEntry(labels: labels)
    namespacesByLabel.insert(name, labels)
  }

  private mutating func setLabels(_ labels: Labels, ofNamespace name: String) {
    guard let old = namespaces[name]?.labels else { return insertNamespace(name, labels) }
    guard old != labels else { return }
    namespacesByLabel.remove(name, old)
    namespacesByLabel.insert(name, labels)
    namespaces[name]?.labels = labels
  }

  private mutating func forgetNamespaceIfUnused(_ name: String) {
    guard let entry = namespaces[name], !entry.isObject, entry.groups.isEmpty else { return }
    namespaces[name] = nil
    namespacesByLabel.remove(name, entry.labels)
  }

  // MARK: Queries

  func groups(withPortNamed name: String, _ proto: L4Protocol) -> [PodGroupID] {
    groupsByPort[PortName(name: name, proto: proto)] ?? []
  }

  func namespaces(matching selector: LabelSelector, visits: inout Int) -> [String] {
    namespacesByLabel.matching(selector, visits: &visits)
  }

  func groups(matching pods: LabelSelector, in scope: NamespaceScope, visits: inout Int) -> [PodGroupID] {
    switch scope {
    case .own(let name):
      guard let own = namespaces[name]?.groups else { return [] }
      return groupsByLabel.matching(pods, among: own, visits: &visits)
    case .selected(let selector):
      if selector.isEmpty { return groupsByLabel.matching(pods, visits: &visits) }
      return groups(matching: pods, inNamespaces: selector, visits: &visits)
    }
  }

  private func groups(
    matching pods: LabelSelector, inNamespaces selector: LabelSelector, visits: inout Int
  ) -> [PodGroupID] {
    // Few groups can match: the namespace of each is looked at, and no list of namespaces is needed.
    let bound = groupsByLabel.bound(for: pods)
    if bound <= namespaces.count {
      let candidates = groupsByLabel.matching(pods, visits: &visits)
      visits += candidates.count
      return candidates.filter { selector.matches(labels(ofNamespace: groups[$0]?.namespace ?? "")) }
    }
    let names = namespaces(matching: selector, visits: &visits)
    let lists = names.compactMap { namespaces[$0]?.groups }
    if lists.reduce(0, { $0 + $1.count }) <= bound {
      return groupsByLabel.matching(pods, among: lists.flatMap { $0 }.sorted(), visits: &visits)
    }
    let candidates = groupsByLabel.matching(pods, visits: &visits)
    let selected = Set(names)
    visits += candidates.count
    return candidates.filter { selected.contains(groups[$0]?.namespace ?? "") }
  }
}
