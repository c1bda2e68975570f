/// How an object is addressed: its kind, namespace and name; and what is said about one that is wrong.

/// The namespace and name of an object. Cluster-scoped objects (Node, Namespace, ServiceCIDR) have the namespace "".
public struct ObjectKey: Hashable, Sendable, Comparable, CustomStringConvertible {
  public var namespace: String
  public var name: String

  public init(namespace: String, name: String) {
    self.namespace = namespace
    self.name = name
  }

  /// By namespace, then by name.
  public static func < (left: ObjectKey, right: ObjectKey) -> Bool {
    left.namespace != right.namespace ? left.namespace < right.namespace : left.name < right.name
  }

  /// `shop/api`, or `node-1` where there is no namespace.
  public var description: String { namespace.isEmpty ? name : "\(namespace)/\(name)" }
}

/// The kinds of object Sluice reads. The raw value is the API's `kind`.
public enum ObjectKind: String, Sendable, Hashable, CaseIterable, CustomStringConvertible {
  case service = "Service"
  case endpointSlice = "EndpointSlice"
  case node = "Node"
  case pod = "Pod"
  case namespace = "Namespace"
  case networkPolicy = "NetworkPolicy"
  case serviceCIDR = "ServiceCIDR"

  /// The group of the API that serves this kind, "" for the core group.
  public var apiGroup: String {
    switch self {
    case .service, .node, .pod, .namespace: ""
    case .endpointSlice: "discovery.k8s.io"
    case .networkPolicy, .serviceCIDR: "networking.k8s.io"
    }
  }

  /// The one `apiVersion` that is read: `v1` or `discovery.k8s.io/v1`.
  public var apiVersion: String { apiGroup.isEmpty ? "v1" : "\(apiGroup)/v1" }

  public var isNamespaced: Bool {
    switch self {
    case .service, .endpointSlice, .pod, .networkPolicy: true
    case .node, .namespace, .serviceCIDR: false
    }
  }

  public var description: String { rawValue }
}

/// One object among all kinds.
public struct ObjectID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public var kind: ObjectKind
  public var key: ObjectKey

  public init(_ kind: ObjectKind, _ key: ObjectKey) {
    self.kind = kind
    self.key = key
  }

  /// By kind (the API's spelling), then by key.
  public static func < (left: ObjectID, right: ObjectID) -> Bool {
    left.kind != right.kind ? left.kind.rawValue < right.kind.rawValue : left.key < right.key
  }

  /// `Service shop/api`.
  public var description: String { "\(kind) \(key)" }
}

/// What is wrong with an object, and where: a value, never thrown past the source that found it.
public struct ObjectProblem: Error, Hashable, Sendable, CustomStringConvertible {
  /// The file's name; "" where the object came from no file.
  public var file: String
  /// Counted from 1, in the whole file; 0 where the whole file is meant.
  public var line: Int
  /// `Service shop/api`; "" where that could not be read.
  public var object: String
  /// `spec.ports[0].port`; "" where the whole object or document is meant.
  public var field: String
  /// What is wrong and what would be right, without the names above.
  public var message: String

  public init(file: String, line: Int, object: String, field: String, message: String) {
    self.file = file
    self.line = line
    self.object = object
    self.field = field
    self.message = message
  }

  /// One line: `shop.yaml:12: Service shop/api: spec.ports[0].port: must be 1 to 65535, is 70000`.
  public var description: String {
    var parts = [line == 0 ? file : file.isEmpty ? "line \(line)" : "\(file):\(line)"]
    if !object.isEmpty { parts.append(object) }
    if !field.isEmpty { parts.append(field) }
    return (parts + [message]).joined(separator: ": ")
  }
}
