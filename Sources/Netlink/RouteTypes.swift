import CLinux
import NetworkTypes

/// A network device.
public struct Link: Sendable, Hashable {
  public var index: Int
  public var name: String
  /// nil for devices without Ethernet addresses.
  public var mac: MACAddress?
  /// Bytes.
  public var mtu: Int
  /// `IFF_…` bits.
  public var flags: UInt32
  /// The bridge or bond it belongs to.
  public var masterIndex: Int?
  /// A veth's other end: an index in the namespace `peerNamespaceID` names, or in this one where that is nil.
  public var peerIndex: Int?
  /// The kernel's number for the other end's namespace, as seen from here.
  public var peerNamespaceID: Int?
  /// "veth", "bridge", "dummy"…; nil for hardware.
  public var kind: String?
  public var alias: String?

  public var isUp: Bool { flags & 1 != 0 }
  public var isLoopback: Bool { flags & 8 != 0 }
  /// Up, with a carrier, and the kernel has noticed it: what is sent before that is lost.
  public var isRunning: Bool { flags & 0x40 != 0 }
}

/// An address of an interface with the prefix it is on: host bits stay.
public struct InterfaceAddress: Sendable, Hashable, CustomStringConvertible {
  public var address: IPAddress
  public var prefixLength: Int

  /// nil where the length does not fit the family.
  public init?(_ address: IPAddress, prefixLength: Int) {
    guard (0...address.family.addressBits).contains(prefixLength) else { return nil }
    self.address = address
    self.prefixLength = prefixLength
  }

  /// A /32 or /128.
  public init(host address: IPAddress) {
    self.address = address
    prefixLength = address.family.addressBits
  }

  public var description: String { "\(address)/\(prefixLength)" }
}

/// An address together with the interface that has it.
public struct AssignedAddress: Sendable, Hashable {
  public var address: InterfaceAddress
  public var interfaceIndex: Int
  public var scope: UInt8
  /// `IFA_F_…` bits.
  public var flags: UInt32

  /// Not usable yet: duplicate address detection has not ended.
  public var isTentative: Bool { flags & UInt32(IFA_F_TENTATIVE) != 0 }
}

/// An entry of a routing table. Of a multipath route only what all next hops share is here.
public struct Route: Sendable, Hashable, CustomStringConvertible {
  public var destination: CIDR
  public var gateway: IPAddress?
  public var interfaceIndex: Int?
  public var preferredSource: IPAddress?
  public var table: UInt32
  /// `RT_SCOPE_…`; IPv6 knows only universe.
  public var scope: UInt8
  /// Who made the route.
  public var routeProtocol: UInt8
  /// The gateway counts as reachable through the interface, without a route that says so.
  public var isOnLink: Bool
  /// Bytes; nil: the interface's.
  public var mtu: Int?
  /// Bytes of a TCP segment, as it is announced; nil: what fits the MTU.
  public var segmentSize: Int?
  /// `RTN_UNICAST`, `RTN_LOCAL`, `RTN_BLACKHOLE`…
  public var type: UInt8
  /// Lower wins; nil: the kernel's default (0 for IPv4, 1024 for IPv6).
  public var priority: UInt32?

  public static let mainTable: UInt32 = 254
  /// The number by which our routes are known as ours; `sluice` in /etc/iproute2/rt_protos where an operator adds it.
  public static let sluiceProtocol: UInt8 = 160
  public static let universeScope: UInt8 = 0
  public static let linkScope: UInt8 = 253
  public static let unicast: UInt8 = 1

  /// Without a `scope` it is what `ip route` would choose: link for an IPv4 route without gateway, else universe.
  public init(
    destination: CIDR, gateway: IPAddress? = nil, interfaceIndex: Int? = nil, preferredSource: IPAddress? = nil,
    table: UInt32 = Route.mainTable, scope: UInt8? = nil, routeProtocol: UInt8 = Route.sluiceProtocol,
    isOnLink: Bool = false, mtu: Int? = nil, type: UInt8 = Route.unicast, priority: UInt32? = nil
  ) {
    self.destination = destination
    self.gateway = gateway
    self.interfaceIndex = interfaceIndex
    self.preferredSource = preferredSource
    self.table = table
    let isDirect = destination.family == .v4 && gateway == nil && type == Route.unicast
    self.scope = scope ?? (isDirect ? Route.linkScope : Route.universeScope)
    self.routeProtocol = routeProtocol
    self.isOnLink = isOnLink
    self.mtu = mtu
    self.type = type
    self.priority = priority
  }

  public static func defaultDestination(_ family: IPFamily) -> CIDR {
    CIDR(.unspecified(family), prefixLength: 0) ?? CIDR(host: .unspecified(family))
  }

  public var description: String {
    var text = "\(destination)"
    if let gateway { text += " via \(gateway)" }
    if let interfaceIndex { text += " dev #\(interfaceIndex)" }
    return table == Route.mainTable ? text : "\(text) table \(table)"
  }
}

/// A policy rule: which table is asked for which packets.
public struct RoutingRule: Sendable, Hashable {
  public var family: IPFamily
  public var priority: UInt32
  public var table: UInt32
  public var source: CIDR?
  public var destination: CIDR?
  public var mark: UInt32?
  public var markMask: UInt32?
  /// `FR_ACT_…`: 1 is "look the table up".
  public var action: UInt8
  public var inputInterface: String?
}

/// An entry of the neighbour table: ARP and neighbour discovery.
public struct Neighbour: Sendable, Hashable {
  public var address: IPAddress
  public var interfaceIndex: Int
  /// nil while unresolved.
  public var mac: MACAddress?
  /// `NUD_…` bits.
  public var state: UInt16

  public var isPermanent: Bool { state & UInt16(NUD_PERMANENT) != 0 }

  public init(address: IPAddress, interfaceIndex: Int, mac: MACAddress?, state: UInt16 = UInt16(NUD_PERMANENT)) {
    self.address = address
    self.interfaceIndex = interfaceIndex
    self.mac = mac
    self.state = state
  }
}
