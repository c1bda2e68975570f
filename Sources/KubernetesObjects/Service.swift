import NetworkTypes

/// A Service with the fields Sluice acts on, the API server's defaults filled in.

/// Which endpoints a frontend may use: all of them, or those on this node.
public enum TrafficPolicy: String, Sendable, Hashable, CaseIterable {
  case cluster = "Cluster"
  case local = "Local"
}

public enum ServiceType: String, Sendable, Hashable, CaseIterable {
  case clusterIP = "ClusterIP"
  case nodePort = "NodePort"
  case loadBalancer = "LoadBalancer"
  case externalName = "ExternalName"
}

public struct ServicePort: Hashable, Sendable {
  /// "" where the port has no name.
  public var name: String
  public var proto: L4Protocol
  public var port: Port
  public var nodePort: Port?

  public init(name: String = "", proto: L4Protocol = .tcp, port: Port, nodePort: Port? = nil) {
    self.name = name
    self.proto = proto
    self.port = port
    self.nodePort = nodePort
  }
}

/// How a new flow's endpoint is chosen.
public enum LoadBalancing: String, Hashable, Sendable, CaseIterable {
  case random
  /// By a hash of the client's address and port: the same on every node, and nearly so when endpoints come and go.
  case maglev
}

public struct Service: Hashable, Sendable {
  public var key: ObjectKey
  /// Unix time in seconds, 0 where it is not known.
  public var creationTimestamp: Int64 = 0
  public var type = ServiceType.clusterIP
  /// `clusterIP: None`: the name resolves to the endpoints themselves, nothing is balanced.
  public var isHeadless = false
  public var externalTrafficPolicy = TrafficPolicy.cluster
  public var internalTrafficPolicy = TrafficPolicy.cluster
  public var publishNotReadyAddresses = false
  /// Only with type LoadBalancer and externalTrafficPolicy Local.
  public var healthCheckNodePort: Port?
  /// Seconds, 1...86400; nil where sessionAffinity is None.
  public var affinityTimeoutSeconds: Int?
  /// Annotation `sluice.dev/load-balancing`.
  public var loadBalancing = LoadBalancing.random
  /// Label `service.kubernetes.io/service-proxy-name`: another proxy's Service where it is set.
  public var proxyName: String?
  /// At most one of each family; empty for headless and ExternalName Services and where none is allocated.
  public var clusterIPs: [IPAddress] = []
  public var ports: [ServicePort] = []
  public var selector = Labels()
  public var externalIPs: [IPAddress] = []
  /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none.
  public var loadBalancerIPs: [IPAddress] = []
  /// Both families together, as written.
  public var loadBalancerSourceRanges: [CIDR] = []

  public init(key: ObjectKey) { self.key = key }
}
