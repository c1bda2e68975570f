import CLinux
import Glibc

/// What a port of a bridge does with frames.
public struct BridgePort: Sendable, Hashable, CustomStringConvertible {
  /// It may send a frame back to where it came from.
  public var isHairpin: Bool
  /// It hands none to other such ports.
  public var isIsolated: Bool

  public init(isHairpin: Bool = false, isIsolated: Bool = false) {
    (self.isHairpin, self.isIsolated) = (isHairpin, isIsolated)
  }

  public var description: String {
    "\(isHairpin ? "with" : "without") hairpin, \(isIsolated ? "isolated" : "not isolated")"
  }
}

extension RouteSocket {
  public func setBridgePort(index: Int, _ port: BridgePort) throws(NetlinkError) {
    var message = NetlinkMessageBuilder(type: RTM_SETLINK)
    message.append(Self.bridgeHeader(index))
    message.nest(IFLA_PROTINFO) {
      $0.attribute(IFLA_BRPORT_MODE, number: UInt8(port.isHairpin ? 1 : 0))
      $0.attribute(IFLA_BRPORT_ISOLATED, number: UInt8(port.isIsolated ? 1 : 0))
    }
    try change(message, "set bridge port", "#\(index)")
  }

  /// nil for what is no port.
  public func bridgePort(index: Int) throws(NetlinkError) -> BridgePort? {
    var message = NetlinkMessageBuilder(type: RTM_GETLINK)
    var header = ifinfomsg()
    header.ifi_index = CInt(clamping: index)
    message.append(header)
    let ports = try Self.decode(
      try socket.request(message, operation: "look up link", object: "#\(index)"), RTM_NEWLINK, "look up link"
    ) { message throws(MalformedNetlink) -> BridgePort? in
      let link = try message.attributes(after: ifinfomsg.self).nested(IFLA_LINKINFO)
      guard link?.string(IFLA_INFO_SLAVE_KIND) == "bridge", let port = try link?.nested(IFLA_INFO_SLAVE_DATA) else {
        return nil
      }
      return BridgePort(
        isHairpin: try port.number(IFLA_BRPORT_MODE, as: UInt8.self) == 1,
        isIsolated: try port.number(IFLA_BRPORT_ISOLATED, as: UInt8.self) == 1)
    }
    return ports.first
  }
}
