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

extension Uplink {
  /// Every device that has a global address of its own and is no pod's.
  ///
  /// - Parameter preferred: of several addresses of a device, the one that packets leave with.
  static func all(_ routes: RouteSocket, preferring preferred: Set<IPAddress>) throws(SystemError) -> [String: Uplink] {
    let addresses: [AssignedAddress]
    do throws(NetlinkError) { addresses = try routes.addresses() } catch { throw error.asSystemError("list addresses") }
    var found: [String: Uplink] = [:]
    for (index, link) in try links(routes) {
      // Scope 0 is global. Also those that are still being tried: nobody tells when that is over.
      let own = addresses.filter { $0.interfaceIndex == Int(index) && $0.scope == 0 }
        .map(\.address.address)
      func address(_ family: IPFamily) -> IPAddress? {
        let all = own.filter { $0.family == family }
        return all.first { preferred.contains($0) } ?? all.first
      }
      guard !own.isEmpty else { continue }
      found[link.name] = Uplink(v4: address(.v4), v6: address(.v6), hasEthernetHeader: link.mac != nil)
    }
    return found
  }

  /// Devices that are neither loopback nor a pod's, by number.
  static func links(_ routes: RouteSocket) throws(SystemError) -> [UInt32: Link] {
    Dictionary(
      try allLinks(routes).filter { !$0.isLoopback && !$0.name.hasPrefix(podPrefix) }.map { (UInt32($0.index), $0) },
      uniquingKeysWith: { $1 })
  }

  static func allLinks(_ routes: RouteSocket) throws(SystemError) -> [Link] {
    do throws(NetlinkError) { return try routes.links() } catch { throw error.asSystemError("list devices") }
  }

  /// The CNI plugin's.
  private static let podPrefix = "slc"
}

extension NetlinkError {
  fileprivate func asSystemError(_ operation: String) -> SystemError {
    SystemError(operation: operation, object: "of this node", errno: errno ?? 5, detail: "\(self)")
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
  private var devices: [String: Device] = [:]

  subscript(name: String) -> Device? { devices[name] }

  /// Looks again at one device. nil: there is none now.
  mutating func find(_ name: String, _ socket: RouteSocket) throws(SystemError) -> Device? {
    let link: Link?
    do throws(NetlinkError) {
      link = try socket.link(named: name)
    } catch {
      throw error.asSystemError("find device \(name)")
    }
    guard let link else { return nil }
    let device = Device(
      index: UInt32(link.index), mac: link.mac ?? MACAddress(bytes: [0, 0, 0, 0, 0, 0]).unsafelyUnwrapped)
    devices[name] = device
    return device
  }

  mutating func forget(_ name: String) { devices[name] = nil }

  /// Whose number it is now: a device that has gone may have had it before.
  func names(of index: UInt32) -> [String] { devices.filter { $0.value.index == index }.map(\.key) }
}
