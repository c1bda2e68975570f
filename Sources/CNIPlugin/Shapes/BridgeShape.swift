import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// The node's end of each pair is a port of a Linux bridge, which all pods of the network share with the node. What it has of
/// its own (the bridge, its addresses, what masquerades) is the network's and stays when a pod goes.
struct BridgeShape: Shape {
  let devices: PodDevices
  let settings: BridgeSettings
  /// Of the network, from which the bridge's own things have their names.
  let network: String

  /// The first of the subnet where nobody names one, as the reference plugin has it.
  func gateway(of address: PodAddress) -> IPAddress? {
    address.gateway ?? (settings.isGateway ? AddressPool.usableRange(of: address.subnet)?.first : nil)
  }
  func prefixLength(of address: PodAddress) -> Int { address.prefixLength }

  /// Those of the addresses' plugin or ours, and the default ones where the bridge is the way to everywhere.
  func routes(_ network: PodNetwork) -> [(route: PodRoute, gateway: IPAddress?)] {
    IPFamily.allCases.flatMap { family -> [(route: PodRoute, gateway: IPAddress?)] in
      guard let first = network.addresses.first(where: { $0.family == family }) else { return [] }
      var routes = network.routes.filter { $0.destination.family == family }
      let isDefaultGiven = routes.contains { $0.destination.prefixLength == 0 && $0.table == nil }
      if settings.isDefaultGateway, !isDefaultGiven { routes.insert(PodRoute(Route.defaultDestination(family)), at: 0) }
      return routes.map { (route: $0, gateway: ($0.gateway ?? gateway(of: first)) as IPAddress?) }
    }
  }

  func sharedDevices(node: RouteSocket) throws -> (first: [Link], last: [Link]) {
    func links(_ name: String) throws -> [Link] { try node.link(named: name).map { [$0] } ?? [] }
    return (try links(settings.name), settings.hasGatewayDevice ? try links(settings.gatewayDevice) : [])
  }

  // MARK: Attach

  func attach(
    _ network: PodNetwork, mtu: Int, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket
  ) throws {
    let bridge = try Bridge(settings, mtu: mtu, families: network.families, node)
    if settings.isGateway { try bridge.serve(network.addresses.map { ($0, gateway(of: $0)) }, node) }
    if settings.masquerades { try Masquerade(network: self.network).add(Set(network.addresses.map(\.subnet))) }
    try devices.create(mtu: mtu, in: namespace, node: node)
    guard let host = try node.link(named: devices.hostInterface) else {
      throw SystemError(operation: "find the pod's host end", object: devices.hostInterface, errno: ENODEV)
    }
    try PodDevices.writeSettings(
      // The bridge is whom the node talks by.
      [(.v6, "disable_ipv6", "1", [host.name])], families: [])
    try node.setLink(index: host.index, LinkChanges(masterIndex: bridge.index))
    try node.setBridgePort(
      index: host.index, BridgePort(isHairpin: settings.isHairpin, isIsolated: settings.isIsolated))
    try settings.vlans.apply(toPort: host.index, node)

    let link = try devices.openPodEnd(families: network.families, in: namespace, pod: pod)
    for address in network.addresses {
      guard let assigned = InterfaceAddress(address.address, prefixLength: address.prefixLength) else { continue }
      try pod.addAddress(assigned, interfaceIndex: link.index, withoutDAD: true)
    }
    for (route, gateway) in routes(network) {
      try pod.addRoute(route.route(via: gateway, interfaceIndex: link.index))
    }
  }

  func open(
    _ network: PodNetwork, in namespace: NetworkNamespace, pod: RouteSocket, node: RouteSocket
  ) throws {
    try devices.openHostEnd(node: node)
    try devices.waitForCarrier(in: namespace, pod: pod)
    // Whoever had one of these addresses before may still be known by it.
    let (name, mac, addresses) = (devices.podInterface, devices.podMAC, network.addresses.map(\.address))
    try namespace.run { for address in addresses { Announcement(address, of: mac).send(by: name) } }
  }

  // MARK: Check

  func fault(_ addresses: [IPAddress], routes: [CIDR], pod: RouteSocket, node: RouteSocket) throws -> String? {
    let (fault, host) = try devices.hostFault(node: node)
    guard fault == nil, let host else { return fault }
    guard let bridge = try node.link(named: settings.name), bridge.isUp else {
      return "the node has no bridge \(settings.name) that is up"
    }
    guard host.masterIndex == bridge.index else { return "\(host.name) is no port of \(settings.name)" }
    let ports = try node.bridgePort(index: host.index)
    guard ports == BridgePort(isHairpin: settings.isHairpin, isIsolated: settings.isIsolated) else {
      return "\(host.name) is a port with other settings: \(ports.map { "\($0)" } ?? "none")"
    }
    if let fault = try settings.vlans.fault(ofPort: host.index, bridge: bridge.index, node) {
      return "\(host.name) \(fault)"
    }
    if settings.hasGatewayDevice, let port = try node.link(named: Bridge.gatewayPort(of: settings.gatewayDevice)) {
      guard port.masterIndex == bridge.index else { return "\(port.name) is no port of \(bridge.name)" }
      if let fault = try settings.vlans.ofGateway.fault(ofPort: port.index, bridge: bridge.index, node) {
        return "\(port.name) \(fault)"
      }
    }
    if settings.isGateway {
      guard let gateway = try node.link(named: settings.gatewayDevice), gateway.isUp else {
        return "the node has no \(settings.gatewayDevice) that is up"
      }
      let subnets = try node.addresses(interfaceIndex: gateway.index).compactMap {
        CIDR($0.address.address, prefixLength: $0.address.prefixLength)
      }
      if let lonely = addresses.first(where: { address in !subnets.contains { $0.contains(address) } }) {
        return "\(settings.gatewayDevice) has no gateway address for \(lonely)"
      }
    }
    if settings.masquerades, try !Masquerade(network: network).isThere(Set(addresses.map(\.family))) {
      return "nothing masquerades network \(network)"
    }
    return try devices.podFault(addresses, routes: routes, pod: pod)
  }
}
