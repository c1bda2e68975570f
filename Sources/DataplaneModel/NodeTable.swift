import NetworkTypes

/// A local pod as the packet path knows it: its host-side device and its addresses.
public struct LocalEndpoint: Sendable, Hashable {
  /// The device on the node that the pod's packets come in by.
  public var interface: String
  /// The pod's own hardware address.
  public var mac: MACAddress
  public var addresses: [IPAddress]

  public init(interface: String, mac: MACAddress, addresses: [IPAddress]) {
    self.interface = interface
    self.mac = mac
    self.addresses = addresses
  }
}

/// What the packet path has to know of this node and of the cluster's addresses.
public struct NodeTable: Sendable, Equatable {
  /// Local pods by device name.
  public internal(set) var endpoints: [String: LocalEndpoint] = [:]
  /// The node's addresses that NodePorts listen on.
  public internal(set) var nodePortAddresses: Set<IPAddress> = []
  /// The source of masqueraded flows towards local pods, per family (the Node's InternalIP).
  public internal(set) var internalAddresses: [IPFamily: IPAddress] = [:]
  /// Pod traffic to anything outside these ranges is masqueraded; empty for a family: nothing is.
  public internal(set) var clusterRanges: Set<CIDR> = []

  public init() {}

  public func isLocalPod(_ address: IPAddress) -> Bool {
    endpoints.values.contains { $0.addresses.contains(address) }
  }
}
