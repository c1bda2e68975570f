import Netlink
import NetworkTypes

/// A device by which packets leave this node.
public struct Uplink: Sendable, Hashable {
  /// The source of masqueraded packets that leave by it; nil: they keep theirs.
  public var v4: IPAddress?
  public var v6: IPAddress?
  public var hasEthernetHeader: Bool

  public init(v4: IPAddress? = nil, v6: IPAddress? = nil, hasEthernetHeader: Bool = true) {
    (self.v4, self.v6, self.hasEthernetHeader) = (v4, v6, hasEthernetHeader)
  }
}

/// A device as programs know it.
struct Device: Sendable, Hashable {
  var index: UInt32
  var mac: MACAddress
}

/// Devices of this node by name: tables name them, maps have their numbers.
struct DeviceDirectory: Sendable {
  /// Those that were found; a number outlives its device here, so that what was written under it can be removed.
  private(set) var devices: [String: Device] = [:]

  subscript(name: String) -> Device? { devices[name] }

  /// Looks again at one device. nil: there is none now.
  mutating func find(_ name: String, _ socket: RouteSocket) throws(SystemError) -> Device? {
    let link: Link?
    do throws(NetlinkError) {
      link = try socket.link(named: name)
    } catch {
      throw SystemError(operation: "find device", object: name, errno: error.errno ?? 5, detail: "\(error)")
    }
    guard let link else {
      devices[name] = nil
      return nil
    }
    let device = Device(
      index: UInt32(link.index), mac: link.mac ?? MACAddress(bytes: [0, 0, 0, 0, 0, 0]).unsafelyUnwrapped)
    devices[name] = device
    return device
  }

  mutating func forget(_ name: String) { devices[name] = nil }
}
