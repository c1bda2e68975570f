import NetworkTypes

/// A local pod as the packet path knows it: its host-side device and its addresses.
public struct LocalEndpoint: Sendable, Hashable {
  /// The device on the node that the pod's packets come in by.
  public var interface: String
  /// The pod's own hardware address.
  public var mac: MACAddress
  public var addresses: [IPAddress]
  /// What policy says about it; nil: not known yet, nothing gets in or out.
  public var subjects: Subjects?
  /// The kernel's number of the pod's network namespace, by which its sockets are known; nil: not known.
  public var netnsCookie: UInt64?
  /// Its device holds packets back: no engine may lead them past it.
  public var isShaped: Bool

  public init(
    interface: String, mac: MACAddress, addresses: [IPAddress], subjects: Subjects? = .unrestricted,
    netnsCookie: UInt64? = nil, isShaped: Bool = false
  ) {
    self.isShaped = isShaped
    self.netnsCookie = netnsCookie
    self.interface = interface
    self.mac = mac
    self.addresses = addresses
    self.subjects = subjects
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
  /// Every address of this node, whatever its device: nobody else may send from one.
  public internal(set) var ownAddresses: Set<IPAddress> = []

  public init() {}

  public func isLocalPod(_ address: IPAddress) -> Bool { endpoint(with: address) != nil }

  /// Two have one address where a finished pod's sandbox outlives it: the one that policy knows is meant, and of two such
  /// the first by its device's name.
  public func endpoint(with address: IPAddress) -> LocalEndpoint? {
    let all = endpoints.values.filter { $0.addresses.contains(address) }
    let known = all.filter { $0.subjects != nil }
    return (known.isEmpty ? all : known).min { $0.interface < $1.interface }
  }
}
