// The switch, its ports, and what every host of the lab has: links, addresses, default routes, settings.
import Glibc
import Netlink
import NetworkTypes

struct LabNetwork {
  /// Routes of ours must not look like the agent's own: it removes those it does not know.
  private static let staticProtocol: UInt8 = 4

  var switchNamespace: NetworkNamespace

  /// Makes the switch, with an address on it: the nodes' default gateway, behind which there is nothing.
  func createSwitch() throws {
    try Self.applySettings(in: switchNamespace, forwards: false)
    let route = try RouteSocket(in: switchNamespace)
    try Self.bringUpLoopback(route)
    try route.createBridge(name: "br0")
    let bridge = try Self.index(of: "br0", route)
    try route.setLink(index: bridge, LinkChanges(isUp: true))
    try Self.assign(LabAddresses.gateway, to: bridge, route)
  }

  /// Joins a host to the switch: its end is `eth0`, the switch's end is named by `port`.
  func connect(
    _ host: NetworkNamespace, port: Int, addresses: [IPAddress], hasDefaultRoute: Bool, forwards: Bool
  ) throws {
    try Self.applySettings(in: host, forwards: forwards)
    let switchRoute = try RouteSocket(in: switchNamespace)
    let hostRoute = try RouteSocket(in: host)
    let descriptor = try host.open()
    let portName = "port\(port)"
    try switchRoute.createVethPair(
      name: portName, peer: VethPeer(name: "eth0", namespaceDescriptor: descriptor.number))
    try switchRoute.setLink(
      index: try Self.index(of: portName, switchRoute),
      LinkChanges(isUp: true, masterIndex: try Self.index(of: "br0", switchRoute)))

    try Self.bringUpLoopback(hostRoute)
    let uplink = try Self.index(of: "eth0", hostRoute)
    try hostRoute.setLink(index: uplink, LinkChanges(isUp: true))
    try Self.assign(addresses, to: uplink, hostRoute)
    guard hasDefaultRoute else { return }
    for gateway in LabAddresses.gateway {
      try hostRoute.replaceRoute(
        Route(
          destination: Route.defaultDestination(gateway.family), gateway: gateway, interfaceIndex: uplink,
          routeProtocol: Self.staticProtocol))
    }
  }

  static func bringUpLoopback(_ route: RouteSocket) throws {
    try route.setLink(index: try index(of: "lo", route), LinkChanges(isUp: true))
  }

  private static func assign(_ addresses: [IPAddress], to index: Int, _ route: RouteSocket) throws {
    for address in addresses {
      guard let cidr = LabAddresses.nodeCIDRs.first(where: { $0.contains(address) }),
        let assigned = InterfaceAddress(address, prefixLength: cidr.prefixLength)
      else { continue }
      try route.addAddress(assigned, interfaceIndex: index, withoutDAD: true)
    }
  }

  private static func index(of name: String, _ route: RouteSocket) throws -> Int {
    guard let link = try route.link(named: name) else { throw LabError.unknown(kind: "link", name: name) }
    return link.index
  }

  /// New namespaces take the machine's IPv4 settings over; here they are the same on every machine.
  private static func applySettings(in namespace: NetworkNamespace, forwards: Bool) throws {
    try namespace.run {
      for device in ["all", "default"] {
        try Sysctl.write("net", "ipv4", "conf", device, "rp_filter", value: 0)
        try Sysctl.write("net", "ipv6", "conf", device, "disable_ipv6", value: 0)
        // An address is usable at once: nobody else in the lab can have it.
        try Sysctl.write("net", "ipv6", "conf", device, "accept_dad", value: 0)
        try Sysctl.write("net", "ipv6", "conf", device, "accept_ra", value: 0)
      }
      // Kubernetes asks for forwarding on every node before anything of the cluster starts.
      try Sysctl.write("net", "ipv4", "ip_forward", value: forwards ? 1 : 0)
      try Sysctl.write("net", "ipv6", "conf", "all", "forwarding", value: forwards ? 1 : 0)
    }
  }
}
