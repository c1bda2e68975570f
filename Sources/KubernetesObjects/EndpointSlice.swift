import NetworkTypes

/// An EndpointSlice: one family's endpoints of one Service, or some of them.

public struct EndpointPort: Hashable, Sendable {
  /// "" where the port has no name; it belongs to the Service port of the same name.
  public var name: String
  public var proto: L4Protocol
  public var port: Port

  public init(name: String = "", proto: L4Protocol = .tcp, port: Port) {
    self.name = name
    self.proto = proto
    self.port = port
  }
}

/// One endpoint. There are 100,000 of these: three flags share a byte, and strings and arrays of hints are shared by
/// the decoder.
public struct Endpoint: Hashable, Sendable {
  struct Conditions: OptionSet, Hashable, Sendable {
    let rawValue: UInt8
    static let ready = Conditions(rawValue: 1)
    static let serving = Conditions(rawValue: 2)
    static let terminating = Conditions(rawValue: 4)
  }

  /// `addresses[0]`.
  public var address: IPAddress
  public var nodeName: String?
  /// `hints.forZones[].name`.
  public var zoneHints: [String]
  /// `hints.forNodes[].name`.
  public var nodeHints: [String]
  var conditions: Conditions

  /// The defaults are what the API means by conditions that are not given.
  public init(
    address: IPAddress, ready: Bool = true, serving: Bool = true, terminating: Bool = false,
    nodeName: String? = nil, zoneHints: [String] = [], nodeHints: [String] = []
  ) {
    self.address = address
    self.nodeName = nodeName
    self.zoneHints = zoneHints
    self.nodeHints = nodeHints
    conditions = []
    self.ready = ready
    self.serving = serving
    self.terminating = terminating
  }

  public var ready: Bool {
    get { conditions.contains(.ready) }
    set { set(.ready, newValue) }
  }
  public var serving: Bool {
    get { conditions.contains(.serving) }
    set { set(.serving, newValue) }
  }
  public var terminating: Bool {
    get { conditions.contains(.terminating) }
    set { set(.terminating, newValue) }
  }

  private mutating func set(_ condition: Conditions, _ holds: Bool) {
    if holds { conditions.insert(condition) } else { conditions.remove(condition) }
  }
}

public struct EndpointSlice: Hashable, Sendable {
  public var key: ObjectKey
  /// Label `kubernetes.io/service-name`; the Service is in the slice's own namespace.
  public var serviceName: String?
  /// Label `service.kubernetes.io/headless`, whatever its value.
  public var isHeadless = false
  /// nil for FQDN slices, which have no endpoints here.
  public var family: IPFamily?
  /// Ports without a number ("all ports", or 0) are left out: they cannot be balanced.
  public var ports: [EndpointPort] = []
  public var endpoints: [Endpoint] = []
  /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, unix time in milliseconds.
  public var lastChangeTriggerTime: Int64?

  public init(key: ObjectKey) { self.key = key }

  public var serviceKey: ObjectKey? { serviceName.map { ObjectKey(namespace: key.namespace, name: $0) } }
}
