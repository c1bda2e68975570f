/// Any object, and a change of one.

/// Indirect, so that an array of changes holds a pointer for each and not room for the largest kind.
public indirect enum ClusterObject: Hashable, Sendable {
  case service(Service)
  case endpointSlice(EndpointSlice)
  case node(Node)
  case pod(Pod)
  case namespace(Namespace)
  case networkPolicy(NetworkPolicy)
  case serviceCIDR(ServiceCIDR)

  public var kind: ObjectKind {
    switch self {
    case .service: .service
    case .endpointSlice: .endpointSlice
    case .node: .node
    case .pod: .pod
    case .namespace: .namespace
    case .networkPolicy: .networkPolicy
    case .serviceCIDR: .serviceCIDR
    }
  }

  public var key: ObjectKey {
    switch self {
    case .service(let service): service.key
    case .endpointSlice(let slice): slice.key
    case .node(let node): ObjectKey(namespace: "", name: node.name)
    case .pod(let pod): pod.key
    case .namespace(let namespace): ObjectKey(namespace: "", name: namespace.name)
    case .networkPolicy(let policy): policy.key
    case .serviceCIDR(let range): ObjectKey(namespace: "", name: range.name)
    }
  }

  public var id: ObjectID { ObjectID(kind, key) }
}

public enum ObjectChange: Hashable, Sendable {
  /// The object is new, or replaces the one of the same kind and key.
  case upsert(ClusterObject)
  case delete(ObjectKind, ObjectKey)

  public var id: ObjectID {
    switch self {
    case .upsert(let object): object.id
    case .delete(let kind, let key): ObjectID(kind, key)
    }
  }
}
