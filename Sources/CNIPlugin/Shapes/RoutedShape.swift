import LocalAPI
import Netlink
import NetworkTypes

/// One route per pod address on the node, and in the pod a gateway that exists only as a permanent neighbour entry. No bridge,
/// no ARP, no neighbour discovery between pod and node.
struct RoutedShape: Shape {
  let devices: PodDevices

  /// The node as the pod sees it. Link-local, the same in every pod, and on no interface: the neighbour entry alone
  /// leads packets to the host end of the veth.
  static func gateway(_ family: IPFamily) -> IPAddress {
    switch family {
    case .v4: IPAddress(v4: 0xa9fe_0101)  // 169.254.1.1
    case .v6: IPAddress(v6High: 0xfe80 << 48, low: 1) ?? .unspecified(.v6)  // fe80::1
    }
  }

  func gateway(of address: PodAddress) -> IPAddress? { Self.gateway(address.family) }

  /// It has no subnet.
  func prefixLength(of address: PodAddress) -> Int { address.family.addressBits }

  /// The default ones and those of the configuration; all lead to the node.
  func routes(_ network: PodNetwork) -> [(route: PodRoute, gateway: IPAddress?)] {
    IPFamily.allCases.filter(network.families.contains).flatMap { family in
      let gateway = Self.gateway(family)
      // Several ways of an IPAM plugin to say the same are one route.
      var known: Set<String> = ["\(CIDR(host: gateway)) \(Route.mainTable)"]
      let others = network.routes.filter { $0.destination.family == family }
      let isDefaultGiven = others.contains { $0.destination.prefixLength == 0 && $0.table == nil }
      let defaults = isDefaultGiven ? [] : [PodRoute(Route.defaultDestination(family))]
      return (defaults + others).filter { route in
        known.insert("\(route.destination) \(route.table ?? Route.mainTable)").inserted
      }.map { (route: $0, gateway: gateway as IPAddress?) }
    }
  }

  // MARK: Attach

  func attach(
    _ network: PodNetwork, mtu: Int, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket
  ) throws {
    try devices.create(mtu: mtu, in: namespace, node: node)
    let families = network.families
    let link = try devices.openPodEnd(families: families, in: namespace, pod: pod)
    for address in network.addresses {
      try pod.addAddress(InterfaceAddress(host: address.address), interfaceIndex: link.index, withoutDAD: true)
    }
    for family in families {
      let gateway = Self.gateway(family)
      try pod.replaceNeighbour(Neighbour(address: gateway, interfaceIndex: link.index, mac: devices.hostMAC))
      try pod.addRoute(Route(destination: CIDR(host: gateway), interfaceIndex: link.index))
    }
    for (route, gateway) in routes(network) {
      var route = route.route(via: gateway, interfaceIndex: link.index)
      // Of a table that knows no route to the gateway.
      route.isOnLink = route.table != Route.mainTable
      try pod.addRoute(route)
    }
    let hostInterface = devices.hostInterface
    try PodDevices.writeSettings(
      [
        (.v6, "disable_ipv6", "0", families.contains(.v6) ? [hostInterface] : []),
        // Redirects would teach the pod a next hop it cannot reach.
        (.v4, "send_redirects", "0", [hostInterface]), (.v4, "accept_redirects", "0", [hostInterface]),
        // A pod must not become the node's router.
        (.v6, "accept_ra", "0", [hostInterface]), (.v6, "accept_redirects", "0", [hostInterface]),
        (.v6, "accept_dad", "0", [hostInterface]),
      ], families: families)
  }

  func open(
    _ network: PodNetwork, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket
  ) throws {
    let link = try devices.openHostEnd(node: node)
    for address in network.addresses.map(\.address) {
      try node.replaceNeighbour(Neighbour(address: address, interfaceIndex: link.index, mac: devices.podMAC))
      // Replaced, not added: whoever had the address before is gone, and a route it left behind would catch our packets.
      try node.replaceRoute(Route(destination: CIDR(host: address), interfaceIndex: link.index))
    }
    try devices.waitForCarrier(in: namespace, pod: pod)
  }

  // MARK: Check

  func fault(_ addresses: [IPAddress], routes: [CIDR], pod: RouteSocket, node: RouteSocket) throws -> String? {
    let (fault, host) = try devices.hostFault(node: node)
    guard fault == nil, let host else { return fault }
    let nodeRoutes = try node.routes(table: Route.mainTable)
    let neighbours = try node.neighbours(interfaceIndex: host.index)
    for address in addresses {
      let destination = CIDR(host: address)
      guard nodeRoutes.contains(where: { $0.destination == destination && $0.interfaceIndex == host.index }) else {
        return "the node has no route to \(address) through \(host.name)"
      }
      guard neighbours.contains(where: { $0.address == address && $0.isPermanent }) else {
        return "the node has no permanent neighbour \(address) on \(host.name)"
      }
    }
    return try devices.podFault(addresses, routes: routes, pod: pod)
  }
}
