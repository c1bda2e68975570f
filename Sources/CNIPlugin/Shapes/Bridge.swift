import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// The bridge of a network, made by its first pod.
struct Bridge {
  let index: Int
  private let settings: BridgeSettings
  private let families: Set<IPFamily>
  private let mtu: Int
  private var name: String { settings.name }

  init(_ settings: BridgeSettings, mtu: Int, families: Set<IPFamily>, _ node: RouteSocket) throws {
    (self.settings, self.mtu, self.families) = (settings, mtu, families)
    let name = settings.name
    let mac = PodDevices.mac(StableHash.hex128("bridge\0\(name)")[...])
    var link = try node.link(named: name)
    if link == nil {
      // Its own, or it would take another whenever a port with a smaller one comes or goes.
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
    if !settings.vlans.isEmpty { try Self.filterVLANs(link, isOurs: link.mac == mac, node) }
    try Self.prepare(name, families)
    if !link.isUp || settings.isPromiscuous {
      try node.setLink(index: index, LinkChanges(isUp: true, isPromiscuous: settings.isPromiscuous ? true : nil))
    }
  }

  /// Before a device that the node talks by comes up.
  private static func prepare(_ name: String, _ families: Set<IPFamily>) throws {
    try PodDevices.writeSettings(
      [
        (.v6, "disable_ipv6", "0", families.contains(.v6) ? [name] : []), (.v6, "accept_ra", "0", [name]),
        (.v6, "accept_dad", "0", [name]), (.v6, "accept_redirects", "0", [name]),
        (.v4, "accept_redirects", "0", [name]),
      ], families: families)
  }

  /// Without it pods of different VLANs would reach each other. In a bridge of others it would cut off whoever has tags there: they
  /// have to want it.
  private static func filterVLANs(_ bridge: Link, isOurs: Bool, _ node: RouteSocket) throws {
    guard let vlans = try node.bridgeVLANs(index: bridge.index) else {
      throw CNIError(
        .unsupportedField,
        "network configuration: vlan and vlanTrunk: this kernel's bridges do not keep VLANs apart "
          + "(CONFIG_BRIDGE_VLAN_FILTERING)")
    }
    guard vlans.tagType == PortVLAN.tagType else {
      throw CNIError.config("bridge", "\(bridge.name) has VLANs of another protocol than 802.1Q")
    }
    if vlans.isFiltering { return }
    guard isOurs else {
      throw CNIError.config(
        "bridge",
        "\(bridge.name) was made by others and does not keep VLANs apart: ip link set \(bridge.name) type bridge vlan_filtering 1"
      )
    }
    try node.filterVLANs(bridgeIndex: bridge.index)
  }

  /// The port of the pair that leads into a VLAN.
  static func gatewayPort(of device: String) -> String { "slv" + digits(of: device).prefix(12) }

  private static func digits(of device: String) -> String { StableHash.hex128("vlan\0\(device)") }

  /// The node's way into a VLAN: one end of a pair whose other end is a port of it, as the reference plugin makes it and names
  /// it. What others have made by that name is taken as it is.
  private func gatewayDevice(_ node: RouteSocket) throws -> Int {
    let device = settings.gatewayDevice
    let (port, digits) = (Self.gatewayPort(of: device), Self.digits(of: device))
    if try node.link(named: device) == nil {
      do throws(NetlinkError) {
        try node.createVethPair(
          name: device, mac: PodDevices.mac(digits.dropFirst(12)), mtu: mtu,
          peer: VethPeer(name: port, mac: PodDevices.mac(digits.dropFirst(22)), mtu: mtu))
      } catch {
        guard error.errno == EEXIST else { throw error }
      }
    }
    guard let link = try node.link(named: device) else {
      throw SystemError(operation: "find the VLAN's device", object: device, errno: ENODEV)
    }
    try Self.prepare(device, families)
    if !link.isUp { try node.setLink(index: link.index, LinkChanges(isUp: true)) }
    // Who made the pair may be at it still, or was killed: what comes last tells.
    if let end = try node.link(named: port), !end.isUp || end.masterIndex != index {
      try PodDevices.writeSettings([(.v6, "disable_ipv6", "1", [port])], families: [])
      try node.setLink(index: end.index, LinkChanges(masterIndex: index))
      try settings.vlans.ofGateway.apply(toPort: end.index, node)
      try node.setLink(index: end.index, LinkChanges(isUp: true))
    }
    return link.index
  }

  /// Gives the node the gateway addresses of the pods' subnets, and has it forward.
  func serve(_ addresses: [(of: PodAddress, gateway: IPAddress?)], _ node: RouteSocket) throws {
    let name = settings.gatewayDevice
    let index = settings.hasGatewayDevice ? try gatewayDevice(node) : index
    let present = try node.addresses(interfaceIndex: index).filter { $0.scope == 0 }.map(\.address)
    for (address, gateway) in addresses {
      guard let gateway,
        let wanted = InterfaceAddress(gateway, prefixLength: address.prefixLength)
      else { continue }
      if !present.contains(wanted) {
        for other in present where address.subnet.contains(other.address) {
          guard settings.forcesAddress else {
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
