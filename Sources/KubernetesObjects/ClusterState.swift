import NetworkTypes

/// Everything the agent knows about the cluster, indexed by what it is asked for.

/// What one or several changes touched: keys to look up again, in the order they were touched, some perhaps twice.
public struct ChangeEffect: Hashable, Sendable {
  /// Services that changed, or whose EndpointSlices did; also keys that have slices and no Service (yet).
  public var services: [ObjectKey] = []
  public var nodes: [String] = []
  /// The node this agent runs on is among `nodes`.
  public var ownNodeChanged = false
  public var pods: [ObjectKey] = []
  public var namespaces: [String] = []
  public var networkPolicies: [ObjectKey] = []
  public var serviceCIDRsChanged = false

  public init() {}

  /// Nothing changed: the object was already held as it is, or was not there to be deleted.
  public var isEmpty: Bool { self == ChangeEffect() }

  public mutating func formUnion(_ other: ChangeEffect) {
    services += other.services
    nodes += other.nodes
    ownNodeChanged = ownNodeChanged || other.ownNodeChanged
    pods += other.pods
    namespaces += other.namespaces
    networkPolicies += other.networkPolicies
    serviceCIDRsChanged = serviceCIDRsChanged || other.serviceCIDRsChanged
  }
}

/// A class that is not Sendable, so that it has one owner and no mutation ever copies a collection of the cluster's
/// size. Every operation costs what the object in hand costs.
public final class ClusterState {
  /// The node this agent runs on.
  public let ownNodeName: String

  public private(set) var services: [ObjectKey: Service] = [:]
  public private(set) var nodes: [String: Node] = [:]
  public private(set) var pods: [ObjectKey: Pod] = [:]
  public private(set) var namespaces: [String: Namespace] = [:]
  public private(set) var networkPolicies: [ObjectKey: NetworkPolicy] = [:]
  public private(set) var serviceCIDRs: [String: ServiceCIDR] = [:]

  /// By Service, sorted by name; the Service itself may not exist. Slices of no Service are not held.
  private var slicesByService: [ObjectKey: [EndpointSlice]] = [:]
  /// The Service's name for each slice held: where to look when the slice's label changes or the slice goes.
  private var serviceNameOfSlice: [ObjectKey: String] = [:]
  /// The pods and namespaces by their labels; what it is asked for stands in PodGroups.swift.
  private(set) var groupIndex = PodGroupIndex()

  public init(ownNodeName: String) { self.ownNodeName = ownNodeName }

  // MARK: Looking up

  public func service(_ key: ObjectKey) -> Service? { services[key] }
  public func node(named name: String) -> Node? { nodes[name] }
  public var ownNode: Node? { nodes[ownNodeName] }
  public func pod(_ key: ObjectKey) -> Pod? { pods[key] }
  public func namespace(named name: String) -> Namespace? { namespaces[name] }
  public func networkPolicy(_ key: ObjectKey) -> NetworkPolicy? { networkPolicies[key] }

  /// The slices labelled with the Service's name, in its namespace, sorted by name, whatever their family.
  public func slices(ofService key: ObjectKey) -> [EndpointSlice] { slicesByService[key] ?? [] }

  /// Keys that have slices, with or without a Service.
  public var servicesWithSlices: some Sequence<ObjectKey> { slicesByService.keys }

  public var endpointSliceCount: Int { serviceNameOfSlice.count }

  // MARK: Changing

  @discardableResult
  public func apply(_ change: ObjectChange) -> ChangeEffect {
    var effect = ChangeEffect()
    switch change {
    case .upsert(let object): upsert(object, &effect)
    case .delete(let kind, let key): delete(kind, key, &effect)
    }
    return effect
  }

  private func upsert(_ object: ClusterObject, _ effect: inout ChangeEffect) {
    switch object {
    case .service(let service):
      if services.replace(service.key, by: service) { effect.services = [service.key] }
    case .endpointSlice(let slice): upsert(slice, &effect)
    case .node(let node):
      if nodes.replace(node.name, by: node) { effect.touch(node: node.name, own: ownNodeName) }
    case .pod(let pod): upsert(pod, &effect)
    case .namespace(let namespace):
      if namespaces.replace(namespace.name, by: namespace) {
        groupIndex.upsert(namespace)
        effect.namespaces = [namespace.name]
      }
    case .networkPolicy(let policy):
      if networkPolicies.replace(policy.key, by: policy) { effect.networkPolicies = [policy.key] }
    case .serviceCIDR(let range):
      effect.serviceCIDRsChanged = serviceCIDRs.replace(range.name, by: range)
    }
  }

  private func delete(_ kind: ObjectKind, _ key: ObjectKey, _ effect: inout ChangeEffect) {
    switch kind {
    case .service:
      if services.removeValue(forKey: key) != nil { effect.services = [key] }
    case .endpointSlice: remove(slice: key, &effect)
    case .node:
      if nodes.removeValue(forKey: key.name) != nil { effect.touch(node: key.name, own: ownNodeName) }
    case .pod:
      if let pod = pods.removeValue(forKey: key) {
        groupIndex.remove(pod)
        effect.pods = [key]
      }
    case .namespace:
      if namespaces.removeValue(forKey: key.name) != nil {
        groupIndex.removeNamespace(key.name)
        effect.namespaces = [key.name]
      }
    case .networkPolicy:
      if networkPolicies.removeValue(forKey: key) != nil { effect.networkPolicies = [key] }
    case .serviceCIDR:
      effect.serviceCIDRsChanged = serviceCIDRs.removeValue(forKey: key.name) != nil
    }
  }

  private func upsert(_ pod: Pod, _ effect: inout ChangeEffect) {
    let old = pods[pod.key]
    guard old != pod else { return }
    var new = pod
    groupIndex.replace(old, by: &new)
    pods[pod.key] = new
    effect.pods = [pod.key]
  }

  private func upsert(_ slice: EndpointSlice, _ effect: inout ChangeEffect) {
    guard let service = slice.serviceKey else { return remove(slice: slice.key, &effect) }
    if serviceNameOfSlice[slice.key] != service.name {
      remove(slice: slice.key, &effect)
      serviceNameOfSlice[slice.key] = service.name
    }
    // The subscript with a default mutates the array where it lies.
    let changed = Self.place(slice, in: &slicesByService[service, default: []])
    if changed { effect.services.append(service) }
  }

  private static func place(_ slice: EndpointSlice, in slices: inout [EndpointSlice]) -> Bool {
    let index = slices.firstIndex { $0.key.name >= slice.key.name } ?? slices.count
    if index < slices.count, slices[index].key.name == slice.key.name {
      guard slices[index] != slice else { return false }
      slices[index] = slice
      return true
    }
    // Nearly every Service has one slice for each family: no room for more is kept ahead.
    if slices.isEmpty { slices.reserveCapacity(1) }
    slices.insert(slice, at: index)
    return true
  }

  private func remove(slice key: ObjectKey, _ effect: inout ChangeEffect) {
    guard let name = serviceNameOfSlice.removeValue(forKey: key) else { return }
    let service = ObjectKey(namespace: key.namespace, name: name)
    slicesByService[service]?.removeAll { $0.key.name == key.name }
    if slicesByService[service]?.isEmpty == true { slicesByService[service] = nil }
    effect.services.append(service)
  }
}

extension ChangeEffect {
  fileprivate mutating func touch(node: String, own: String) {
    nodes = [node]
    ownNodeChanged = node == own
  }
}

extension Dictionary where Value: Equatable {
  /// Whether the value was not there or another one.
  fileprivate mutating func replace(_ key: Key, by value: Value) -> Bool {
    updateValue(value, forKey: key) != value
  }
}
