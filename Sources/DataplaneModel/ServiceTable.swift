import NetworkTypes

/// The number of one service port (namespace, service, port name, protocol). It keeps its meaning for life and is never
/// re-used, so that a restarted agent finds its own numbers in the kernel.
public struct ServicePortID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  /// 28 bits: engines keep flags above them.
  public static let maximum: UInt32 = 1 << 28 - 1

  /// nil for 0 and for numbers above `maximum`.
  public init?(_ rawValue: some BinaryInteger) {
    guard let number = UInt32(exactly: rawValue), (1...Self.maximum).contains(number) else { return nil }
    self.rawValue = number
  }

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { "\(rawValue)" }
}

/// Which endpoints of a service port: all that Kubernetes says are usable, or those on this node.
public enum BackendScope: UInt8, Sendable, Hashable, CaseIterable, CustomStringConvertible {
  case cluster
  case local
  public var description: String { self == .cluster ? "cluster" : "local" }
}

/// Names one backend set. Frontends of one service port share its sets: at most one per scope and family.
public struct BackendSetID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var service: ServicePortID
  public var scope: BackendScope
  public var family: IPFamily

  public init(service: ServicePortID, scope: BackendScope, family: IPFamily) {
    self.service = service
    self.scope = scope
    self.family = family
  }

  public static func < (left: Self, right: Self) -> Bool {
    (left.service, left.family, left.scope.rawValue) < (right.service, right.family, right.scope.rawValue)
  }
  public var description: String { "\(service)/\(scope)/\(family)" }
}

/// What happens to a new flow whose backend set has no slot.
public enum EmptyAction: UInt8, Sendable, Hashable {
  /// No endpoint exists anywhere: the client is told at once.
  case reject
  /// Endpoints exist, but none that the traffic policy permits here.
  case drop
}

/// The backends a new flow is spread over: uniformly at random, or by a hash of its client's address and port.
public struct BackendSet: Sendable, Hashable {
  public private(set) var backends: [SocketAddress]
  /// Whose the slots are; nil: a flow's slot is chosen at random, and a backend's index is its slot.
  public private(set) var maglev: MaglevTable?
  public var emptyAction: EmptyAction
  /// Seconds a client sticks to a backend, 1...86400; nil: no affinity.
  public var affinityTimeout: UInt32?
  /// Backends that take no new flow but still serve what they have (UDP only: TCP flows are never touched).
  public var draining: [SocketAddress]

  public init(
    backends: [SocketAddress], emptyAction: EmptyAction, affinityTimeout: UInt32? = nil,
    draining: [SocketAddress] = [], isHashed: Bool = false
  ) {
    // All nodes have to make the same table of the same backends.
    self.backends = isHashed ? backends.sorted() : backends
    maglev = isHashed ? MaglevTable(self.backends) : nil
    self.emptyAction = emptyAction
    self.affinityTimeout = affinityTimeout
    self.draining = draining
  }

  /// Whose each slot is.
  public var slots: [SocketAddress] { maglev?.owners.map { backends[Int($0)] } ?? backends }
  public func backend(ofSlot slot: Int) -> SocketAddress {
    backends[maglev.map { Int($0.owners[slot]) } ?? slot]
  }
  public var slotCount: Int { maglev?.owners.count ?? backends.count }

  /// The same members in an order that changes as few slots as can be: a leaving backend's slot is taken over by one
  /// from the end, a new one is appended. `previous` is the order in force.
  public func withSlots(following previous: [SocketAddress]) -> BackendSet {
    guard !previous.isEmpty, previous != backends, maglev == nil else { return self }
    var result = self
    var wanted = Set(backends)
    var slots: [SocketAddress?] = previous.map { wanted.remove($0) }
    var fresh = backends.filter { wanted.contains($0) }[...]
    // Fill holes, first with new members, then with members from the end.
    for index in slots.indices {
      guard index < slots.count, slots[index] == nil else { continue }
      if let next = fresh.popFirst() {
        slots[index] = next
      } else {
        while slots.count > index, slots[slots.count - 1] == nil { slots.removeLast() }
        guard slots.count > index else { break }
        slots[index] = slots.removeLast()
      }
    }
    result.backends = slots.compactMap { $0 } + fresh
    return result
  }
}

/// Where a frontend listens: one address, or whatever addresses of this node serve NodePorts.
public enum FrontendAddress: Sendable, Hashable, CustomStringConvertible {
  case address(IPAddress)
  case node(IPFamily)

  public var family: IPFamily {
    switch self {
    case .address(let address): address.family
    case .node(let family): family
    }
  }
  public var description: String {
    switch self {
    case .address(let address): "\(address)"
    case .node(let family): "node/\(family)"
    }
  }
}

public struct FrontendKey: Sendable, Hashable, CustomStringConvertible {
  public var destination: FrontendAddress
  public var proto: L4Protocol
  public var port: Port

  public init(_ destination: FrontendAddress, _ proto: L4Protocol, _ port: Port) {
    self.destination = destination
    self.proto = proto
    self.port = port
  }
  public var description: String { "\(destination) \(proto)/\(port)" }
}

/// In the order in which claims to one address and port win.
public enum FrontendKind: UInt8, Sendable, Hashable, Comparable, CaseIterable, CustomStringConvertible {
  case clusterIP
  case nodePort
  case loadBalancer
  case externalIP
  case hostPort

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String {
    switch self {
    case .clusterIP: "ClusterIP"
    case .nodePort: "NodePort"
    case .loadBalancer: "LoadBalancer"
    case .externalIP: "ExternalIP"
    case .hostPort: "HostPort"
    }
  }
}

/// Whose flows through a frontend get this node's address as their source. Hairpin flows always do.
public enum MasqueradeRule: UInt8, Sendable, Hashable {
  /// ClusterIP: everyone but this node's pods.
  case exceptPods
  /// externalTrafficPolicy Cluster: everyone.
  case always
  /// externalTrafficPolicy Local, and host ports: the node's own processes only; clients keep their address.
  case hostOnly
}

public struct Frontend: Sendable, Hashable {
  public var service: ServicePortID
  public var kind: FrontendKind
  /// The set for traffic from this node's pods and processes.
  public var nodeScope: BackendScope
  /// The set for traffic that arrives from elsewhere.
  public var outsideScope: BackendScope
  public var masquerade: MasqueradeRule
  /// Whether clients stick to a backend; the timeout is the backend set's.
  public var hasAffinity: Bool
  /// Sources that may use this frontend, disjoint and sorted; nil: anyone.
  public var sourceRanges: [AddressRange]?

  public init(
    service: ServicePortID, kind: FrontendKind, nodeScope: BackendScope, outsideScope: BackendScope,
    masquerade: MasqueradeRule, hasAffinity: Bool = false, sourceRanges: [AddressRange]? = nil
  ) {
    self.service = service
    self.kind = kind
    self.nodeScope = nodeScope
    self.outsideScope = outsideScope
    self.masquerade = masquerade
    self.hasAffinity = hasAffinity
    self.sourceRanges = sourceRanges
  }
}

/// Every Service this node balances.
///
/// Invariants: a frontend's sets exist for its family and both its scopes, and have an affinity timeout exactly where the
/// frontend has affinity; `serviceAddresses` are the cluster addresses
/// whose undefined ports are rejected.
public struct ServiceTable: Sendable, Equatable {
  public internal(set) var frontends: [FrontendKey: Frontend] = [:]
  public internal(set) var sets: [BackendSetID: BackendSet] = [:]
  public internal(set) var serviceAddresses: Set<IPAddress> = []
  /// Cluster addresses of Services that another proxy serves: left alone.
  public internal(set) var otherAddresses: Set<IPAddress> = []
  /// Ranges cluster addresses are allocated from: an address in them that nobody has is dropped.
  public internal(set) var serviceRanges: Set<CIDR> = []

  public init() {}
}
