import NetworkTypes

/// Nodes, pods, namespaces and the ranges that Service addresses come from.

public struct Node: Hashable, Sendable {
  public var name: String
  /// `status.addresses` of type InternalIP, in their order.
  public var internalIPs: [IPAddress] = []
  /// At most one of each family.
  public var podCIDRs: [CIDR] = []
  /// Label `topology.kubernetes.io/zone`.
  public var zone: String?
  /// A deletion timestamp is set.
  public var isBeingDeleted = false
  public var taintKeys: [String] = []

  public init(name: String) { self.name = name }
}

public enum PodPhase: String, Sendable, Hashable, CaseIterable {
  case pending = "Pending"
  case running = "Running"
  case succeeded = "Succeeded"
  case failed = "Failed"
  case unknown = "Unknown"
}

/// A container port with a name, which a NetworkPolicy can refer to.
public struct NamedContainerPort: Hashable, Sendable {
  public var name: String
  public var proto: L4Protocol
  public var port: Port

  public init(name: String, proto: L4Protocol = .tcp, port: Port) {
    self.name = name
    self.proto = proto
    self.port = port
  }
}

public struct Pod: Hashable, Sendable {
  public var key: ObjectKey
  public var uid = ""
  public var nodeName: String?
  public var labels = Labels()
  /// `status.podIPs`, at most one of each family.
  public var podIPs: [IPAddress] = []
  public var phase = PodPhase.pending
  public var hostNetwork = false
  /// Named ports of all containers, sidecars (restartable init containers) included.
  public var containerPorts: [NamedContainerPort] = []
  /// A deletion timestamp is set.
  public var isTerminating = false

  public init(key: ObjectKey) { self.key = key }
}

public struct Namespace: Hashable, Sendable {
  public var name: String
  /// With `kubernetes.io/metadata.name`, which the API server adds to every namespace.
  public var labels: Labels

  public init(name: String, labels: Labels = Labels()) {
    self.name = name
    self.labels = labels
    self.labels[WellKnown.namespaceName] = name
  }
}

public struct ServiceCIDR: Hashable, Sendable {
  public var name: String
  /// One or two, one of each family.
  public var cidrs: [CIDR]

  public init(name: String, cidrs: [CIDR]) {
    self.name = name
    self.cidrs = cidrs
  }
}

/// Labels and annotations that mean something to Sluice.
public enum WellKnown {
  public static let serviceProxyName = "service.kubernetes.io/service-proxy-name"
  public static let serviceName = "kubernetes.io/service-name"
  public static let headless = "service.kubernetes.io/headless"
  public static let zone = "topology.kubernetes.io/zone"
  public static let namespaceName = "kubernetes.io/metadata.name"
  public static let mode = "sluice.dev/mode"
  public static let loadBalancing = "sluice.dev/load-balancing"
  public static let lastChangeTriggerTime = "endpoints.kubernetes.io/last-change-trigger-time"
}
