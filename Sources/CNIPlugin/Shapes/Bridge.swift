import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// The bridge of a network, made by its first pod.
struct Bridge {
  let name: String
  let index: Int
  private let forcesAddress: Bool

  init(_ settings: BridgeSettings, mtu: Int, families: Set<IPFamily>, _ node: RouteSocket) throws {
    name = settings.name
    forcesAddress = settings.forcesAddress
    var link = try node.link(named: name)
    if link == nil {
      // Its own, or it would take another whenever a port with a smaller one comes or goes.
      let mac = PodDevices.mac(StableHash.hex128("bridge\0\(name)")[...])
      do throws(NetlinkError) {
        try node.createBridge(name: name, mac: mac, mtu: mtu)
      } catch {
        // Another pod's ADD was quicker.
        guard error.errno == EEXIST else { throw error }
      }
      link = try node.link(named: name)
    }
    guard let link else { throw SystemError(operation: "find bridge", object: name, errno: ENODEV) }
    guard link.kind == "bridge" else { throw CNIError.config("bridge", "\(name) exists and is no bridge") }
    index = link.index
    try PodDevices.writeSettings(
      [
        (.v6, "disable_ipv6", "0", families.contains(.v6) ? [name] : []), (.v6, "accept_ra", "0", [name]),
        (.v6, "accept_dad", "0", [name]), (.v6, "accept_redirects", "0", [name]),
        (.v4, "accept_redirects", "0", [name]),
      ], families: families)
    if !link.isUp || settings.isPromiscuous {
      try node.setLink(index: index, LinkChanges(isUp: true, isPromiscuous: settings.isPromiscuous ? true : nil))
    }
  }

  /// Gives it the gateway addresses of the pods' subnets, and has the node forward.
  func serve(_ addresses: [(of: PodAddress, gateway: IPAddress?)], _ node: RouteSocket) throws {
    let present = try node.addresses(interfaceIndex: index).filter { $0.scope == 0 }.map(\.address)
    for (address, gateway) in addresses {
      guard let gateway,
        let wanted = InterfaceAddress(gateway, prefixLength: address.prefixLength)
      else { continue }
      if !present.contains(wanted) {
        for other in present where address.subnet.contains(other.address) {
          guard forcesAddress else {
            throw CNIError.config("bridge", "\(name) has \(other) already, not \(wanted); see forceAddress")
          }
          try node.deleteAddress(other, interfaceIndex: index)
        }
        do throws(NetlinkError) {
          try node.addAddress(wanted, interfaceIndex: index, withoutDAD: true)
        } catch {
          guard error.errno == EEXIST else { throw error }
        }
      }
      Self.forward(address.family)
    }
  }

  private static func forward(_ family: IPFamily) {
    let path = family == .v4 ? ["net", "ipv4", "ip_forward"] : ["net", "ipv6", "conf", "all", "forwarding"]
    do throws(SystemError) {
      if try Sysctl.read(path) != "1" { try Sysctl.write(path, value: "1") }
    } catch {
      Command.note("the node forwards no \(family) packets: \(error)")
    }
  }
}
