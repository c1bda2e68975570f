import DataplaneModel
import Netlink
import NetworkTypes

/// The structures of bpf/include/tables.h that packets meet. See ServiceLayouts.swift.

/// Six bytes as on the wire.
public struct MACLayout: MapLayout {
  private var word0: UInt16 = 0
  private var word1: UInt16 = 0
  private var word2: UInt16 = 0

  public init() {}
  public init(_ mac: MACAddress) {
    func word(_ shift: UInt64) -> UInt16 { UInt16(truncatingIfNeeded: mac.number >> shift).bigEndian }
    (word0, word1, word2) = (word(32), word(16), word(0))
  }
}

/// `struct endpoint`.
public struct EndpointLayout: MapLayout {
  var ingress: UInt32 = 0
  var egress: UInt32 = 0
  var flags: UInt32 = 0
  var mac = MACLayout()
  var pad: UInt16 = 0
  var v4 = AddressLayout()
  var v6 = AddressLayout()

  static let isKnown: UInt32 = 1
  /// Its packets wait at its device: none may go past it.
  static let isShaped: UInt32 = 2

  public init() {}
  public init(_ endpoint: LocalEndpoint) {
    ingress = endpoint.subjects?.ingress.rawValue ?? 0
    egress = endpoint.subjects?.egress.rawValue ?? 0
    flags = (endpoint.subjects == nil ? 0 : Self.isKnown) | (endpoint.isShaped ? Self.isShaped : 0)
    mac = MACLayout(endpoint.mac)
    func first(_ family: IPFamily) -> AddressLayout {
      endpoint.addresses.first { $0.family == family }.map { AddressLayout($0) } ?? AddressLayout()
    }
    (v4, v6) = (first(.v4), first(.v6))
  }
}

/// `struct pod_device`.
public struct PodDeviceLayout: MapLayout {
  var device: UInt32 = 0
  var flags: UInt32 = 0
  var mac = MACLayout()
  var gatewayMAC = MACLayout()

  public init() {}
  /// - Parameter device: the node's end.
  init(_ endpoint: LocalEndpoint, _ device: Device) {
    self.device = device.index
    flags = endpoint.isShaped ? EndpointLayout.isShaped : 0
    (mac, gatewayMAC) = (MACLayout(endpoint.mac), MACLayout(device.mac))
  }
}

/// `ADDRESS_…`.
public struct AddressFlags: OptionSet, Sendable, Hashable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  static let own = Self(rawValue: 1)
  static let service = Self(rawValue: 2)
  static let anothers = Self(rawValue: 4)
  static let nodes = Self(rawValue: 8)
}

/// `struct range_key`.
public struct RangeKeyLayout: MapLayout {
  var prefixLength: UInt32 = 0
  var table: UInt32 = 0
  var address = AddressLayout()

  /// `enum range_kind`.
  static let (cluster, service, pod): (UInt32, UInt32, UInt32) = (1, 2, 3)

  public init() {}
  public init(table: UInt32, _ range: CIDR) {
    let key = SourceKeyLayout(list: table, range)
    (prefixLength, self.table, address) = (key.prefixLength, table, key.address)
  }

  /// nil where it is no prefix of an address.
  var range: CIDR? {
    guard let address = address.address, prefixLength >= 32 else { return nil }
    let length = Int(prefixLength) - 32 - (address.family == .v4 ? 96 : 0)
    return CIDR(address, prefixLength: length)
  }
}

/// `struct pair_key`.
public struct PairKeyLayout: MapLayout {
  var subject: UInt32 = 0
  var identity: UInt32 = 0

  public init() {}
  public init(_ key: PairKey) { (subject, identity) = (key.subject.rawValue, key.identity.rawValue) }
}

/// `struct pair`.
public struct PairLayout: MapLayout {
  var portSet: UInt32 = 0
  var attribution: UInt32 = 0

  public init() {}
  public init(_ value: PairValue) { (portSet, attribution) = (value.portSet.rawValue, value.attribution.rawValue) }
}

/// `struct port_key`.
public struct PortKeyLayout: MapLayout {
  var prefixLength: UInt32 = 0
  var portSet: UInt32 = 0
  var proto: UInt8 = 0
  var portHigh: UInt8 = 0
  var portLow: UInt8 = 0
  var pad: UInt8 = 0

  public init() {}
  /// - Parameter length: how many of the 24 bits of protocol and port count.
  public init(_ set: PortSetID, _ ports: PortKey, length: UInt32 = 24) {
    prefixLength = 32 + length
    portSet = set.rawValue
    proto = ports.proto
    (portHigh, portLow) = (UInt8(ports.port >> 8), UInt8(truncatingIfNeeded: ports.port))
  }
}

/// `struct clause_key`.
public struct ClauseKeyLayout: MapLayout {
  var attribution: UInt32 = 0
  var clause: UInt32 = 0

  public init() {}
  public init(_ key: ClauseKey) { (attribution, clause) = (key.attribution.rawValue, key.clause.rawValue) }
}

/// `struct counter`.
public struct CounterLayout: MapLayout {
  public var packets: UInt64 = 0
  public var bytes: UInt64 = 0

  public init() {}
}

/// `struct uplink`.
public struct UplinkLayout: MapLayout {
  var v4 = AddressLayout()
  var v6 = AddressLayout()
  var headerLength: UInt32 = 0

  public init() {}
  public init(_ uplink: Uplink) {
    v4 = uplink.v4.map { AddressLayout($0) } ?? AddressLayout()
    v6 = uplink.v6.map { AddressLayout($0) } ?? AddressLayout()
    headerLength = uplink.hasEthernetHeader ? 14 : 0
  }
}

/// `struct tuple`.
public struct TupleLayout: MapLayout {
  var source = AddressLayout()
  var destination = AddressLayout()
  /// Big-endian.
  var sourcePort: UInt16 = 0
  var destinationPort: UInt16 = 0
  var proto: UInt8 = 0
  var step: UInt8 = 0
  var pad: UInt16 = 0

  public init() {}

  init(_ tuple: ConntrackTuple, step: UInt8 = 0) {
    (source, destination) = (AddressLayout(tuple.source), AddressLayout(tuple.destination))
    (sourcePort, destinationPort) = (tuple.sourcePort.bigEndian, tuple.destinationPort.bigEndian)
    (proto, self.step) = (tuple.protocolNumber, step)
  }

  /// `enum step`.
  static let (destinationStep, sourceStep): (UInt8, UInt8) = (1, 2)

  func at(_ step: UInt8) -> TupleLayout {
    var copy = self
    copy.step = step
    return copy
  }

  var reversed: TupleLayout {
    var copy = self
    (copy.source, copy.destination) = (destination, source)
    (copy.sourcePort, copy.destinationPort) = (destinationPort, sourcePort)
    copy.step = 0
    return copy
  }

  /// What the flow is known by, and whether `source` is its second end (`order` in bpf/include/flows.h).
  var ordered: (key: TupleLayout, isFromSecond: Bool) {
    let isSecond =
      source == destination ? sourcePort > destinationPort : source.comes(after: destination)
    return isSecond ? (reversed, true) : (at(0), false)
  }

  var conntrackTuple: ConntrackTuple? {
    guard let source = source.address, let destination = destination.address else { return nil }
    return ConntrackTuple(
      source: source, destination: destination, protocolNumber: proto, sourcePort: UInt16(bigEndian: sourcePort),
      destinationPort: UInt16(bigEndian: destinationPort))
  }

  var first: BackendLayout { BackendLayout(source, sourcePort) }
  var second: BackendLayout { BackendLayout(destination, destinationPort) }
}

/// `struct flow`.
public struct FlowLayout: MapLayout {
  /// Nanoseconds of the monotonic clock.
  var seen: UInt64 = 0
  var revision: UInt32 = 0
  var state: UInt8 = 0
  var flags: UInt8 = 0
  var closed: UInt8 = 0
  var pad: UInt8 = 0

  /// `FLOW_…`.
  static let (fromSecond, fromHost, balanced, masqueraded): (UInt8, UInt8, UInt8, UInt8) = (1, 2, 4, 8)

  public init() {}
}

/// `struct translation`.
public struct TranslationLayout: MapLayout {
  var to = TupleLayout()
  var set = SetKeyLayout()
  var isMasquerade: UInt32 = 0

  public init() {}
}

/// `struct fragment_key`.
public struct FragmentKeyLayout: MapLayout {
  var source = AddressLayout()
  var destination = AddressLayout()
  var id: UInt32 = 0

  public init() {}
}

/// `struct fragment`.
public struct FragmentLayout: MapLayout {
  /// Big-endian.
  var sourcePort: UInt16 = 0
  var destinationPort: UInt16 = 0
  var proto: UInt8 = 0
  var pad1: UInt8 = 0
  var pad2: UInt16 = 0

  public init() {}
}

/// `struct event`.
public struct EventLayout: MapLayout {
  var time: UInt64 = 0
  var kind: UInt8 = 0
  var reason: UInt8 = 0
  var file: UInt8 = 0
  var direction: UInt8 = 0
  var line: UInt32 = 0
  var attribution: UInt32 = 0
  var clause: UInt32 = 0
  var revision: UInt32 = 0
  var identity: UInt32 = 0
  var device: UInt32 = 0
  var length: UInt32 = 0
  var tuple = TupleLayout()
  var other = TupleLayout()
  var tcpFlags: UInt8 = 0
  var icmpType: UInt8 = 0
  var isAnswer: UInt8 = 0
  var pad1: UInt8 = 0
  var pad2: UInt32 = 0

  public init() {}
}
