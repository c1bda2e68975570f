import CLinux
import Glibc

/// What a port of a bridge that filters VLANs does with one of them.
public struct PortVLAN: Sendable, Hashable {
  /// 1 to 4094.
  public var id: UInt16
  /// What comes in without a tag is of it.
  public var isDefault: Bool
  /// Its frames leave without a tag.
  public var isUntagged: Bool

  public init(_ id: UInt16, isDefault: Bool = false, isUntagged: Bool = false) {
    (self.id, self.isDefault, self.isUntagged) = (id, isDefault, isUntagged)
  }

  /// All there are.
  public static let ids: ClosedRange<UInt16> = 1...4094
  /// Of IEEE 802.1Q.
  public static let tagType: UInt16 = 0x8100
}

/// What a bridge does with VLANs.
public struct BridgeVLANs: Sendable, Hashable {
  /// It keeps them apart.
  public var isFiltering: Bool
  /// Type of the frames that have a tag.
  public var tagType: UInt16
  /// What ports are of that nobody told otherwise; 0: none.
  public var defaultID: UInt16
}

extension RouteSocket {
  /// nil where the kernel's bridges cannot keep VLANs apart.
  public func bridgeVLANs(index: Int) throws(NetlinkError) -> BridgeVLANs? {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: index)
    message.append(header)
    let operation = "look up bridge"
    return try Self.decode(
      try socket.request(message, operation: operation, object: "#\(index)"), RTM_NEWLINK, operation
    ) { message throws(MalformedNetlink) -> BridgeVLANs? in
      let bridge = try message.attributes(after: ifinfomsg.self).nested(IFLA_LINKINFO)?.nested(IFLA_INFO_DATA)
      // Without CONFIG_BRIDGE_VLAN_FILTERING it says that it does not filter, and takes no notice of who asks for it.
      guard let bridge, let tagType = try bridge.number(IFLA_BR_VLAN_PROTOCOL, as: UInt16.self) else { return nil }
      return BridgeVLANs(
        isFiltering: try bridge.number(IFLA_BR_VLAN_FILTERING, as: UInt8.self) == 1,
        tagType: UInt16(bigEndian: tagType),
        defaultID: try bridge.number(IFLA_BR_VLAN_DEFAULT_PVID, as: UInt16.self) ?? 0)
    }.first
  }

  /// Has a bridge keep VLANs apart. Its ports are all of the default one (1) until they are told otherwise.
  public func filterVLANs(bridgeIndex: Int) throws(NetlinkError) {
    var message = NetlinkMessageBuilder(type: RTM_NEWLINK)
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: bridgeIndex)
    message.append(header)
    message.nest(IFLA_LINKINFO) {
      $0.attribute(IFLA_INFO_KIND, Array("bridge".utf8))
      $0.nest(IFLA_INFO_DATA) { $0.attribute(IFLA_BR_VLAN_FILTERING, number: UInt8(1)) }
    }
    try change(message, "filter VLANs", "#\(bridgeIndex)")
  }

  /// Makes a port one of this VLAN; another that was the default one is that no more where this is.
  public func addVLAN(_ vlan: PortVLAN, portIndex: Int) throws(NetlinkError) {
    var flags = 0
    if vlan.isDefault { flags |= Int(BRIDGE_VLAN_INFO_PVID) }
    if vlan.isUntagged { flags |= Int(BRIDGE_VLAN_INFO_UNTAGGED) }
    try change(
      Self.vlanMessage(RTM_SETLINK, portIndex, [(flags, vlan.id)]), "add VLAN \(vlan.id)", "#\(portIndex)")
  }

  /// Makes a port one of all these VLANs, with tags.
  public func addVLANs(_ ids: ClosedRange<UInt16>, portIndex: Int) throws(NetlinkError) {
    try change(
      Self.vlanMessage(RTM_SETLINK, portIndex, Self.ends(ids)), "add VLANs \(ids.lowerBound)-\(ids.upperBound)",
      "#\(portIndex)")
  }

  /// Succeeds also for those that it is not one of.
  public func removeVLANs(_ ids: ClosedRange<UInt16>, portIndex: Int) throws(NetlinkError) {
    try change(
      Self.vlanMessage(RTM_DELLINK, portIndex, Self.ends(ids)), "remove VLANs \(ids.lowerBound)-\(ids.upperBound)",
      "#\(portIndex)")
  }

  private static func ends(_ ids: ClosedRange<UInt16>) -> [(flags: Int, id: UInt16)] {
    ids.count == 1
      ? [(0, ids.lowerBound)]
      : [(Int(BRIDGE_VLAN_INFO_RANGE_BEGIN), ids.lowerBound), (Int(BRIDGE_VLAN_INFO_RANGE_END), ids.upperBound)]
  }

  private static func vlanMessage(
    _ type: some BinaryInteger, _ portIndex: Int, _ vlans: [(flags: Int, id: UInt16)]
  ) -> NetlinkMessageBuilder {
    var message = NetlinkMessageBuilder(type: type)
    message.append(bridgeHeader(portIndex))
    message.nest(IFLA_AF_SPEC) { message in
      for (flags, id) in vlans {
        let info = bridge_vlan_info(flags: UInt16(truncatingIfNeeded: flags), vid: id)
        message.attribute(IFLA_BRIDGE_VLAN_INFO, withUnsafeBytes(of: info) { Array($0) })
      }
    }
    return message
  }

  static func bridgeHeader(_ index: Int) -> ifinfomsg {
    var header = ifinfomsg()
    header.ifi_family = UInt8(AF_BRIDGE)
    header.ifi_index = CInt(clamping: index)
    return header
  }

  /// The VLANs of a port, by number, whether its bridge keeps them apart or not. The kernel lists those of all ports, and may
  /// leave one out where another goes away meanwhile.
  public func vlans(portIndex: Int) throws(NetlinkError) -> [PortVLAN] {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    message.append(Self.bridgeHeader(0))
    message.attribute(IFLA_EXT_MASK, number: UInt32(RTEXT_FILTER_BRVLAN))
    let ports = try list(message, answers: RTM_NEWLINK, "list VLANs") {
      message throws(MalformedNetlink) -> [PortVLAN]? in
      guard try message.fixed(ifinfomsg.self).ifi_index == CInt(clamping: portIndex) else { return nil }
      guard let vlans = try message.attributes(after: ifinfomsg.self).nested(IFLA_AF_SPEC) else { return [] }
      return vlans.compactMap { attribute -> PortVLAN? in
        // struct bridge_vlan_info
        guard Int(attribute.type) == Int(IFLA_BRIDGE_VLAN_INFO),
          let flags = attribute.content.number(at: 0, as: UInt16.self).map({ Int($0) }),
          let id = attribute.content.number(at: 2, as: UInt16.self)
        else { return nil }
        return PortVLAN(
          id, isDefault: flags & Int(BRIDGE_VLAN_INFO_PVID) != 0,
          isUntagged: flags & Int(BRIDGE_VLAN_INFO_UNTAGGED) != 0)
      }
    }
    return ports.flatMap { $0 }.sorted { $0.id < $1.id }
  }
}
