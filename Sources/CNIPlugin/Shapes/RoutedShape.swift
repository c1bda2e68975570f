import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// The routed shape of an attachment: a veth pair, one route per pod address on the node, and in the pod a gateway that
/// exists only as a permanent neighbour entry. No bridge, no ARP, no neighbour discovery between pod and node.
struct RoutedShape {
  let name: AttachmentName
  var podInterface: String { name.interfaceName }
  let hostInterface: String
  let hostMAC: MACAddress
  let podMAC: MACAddress

  /// The node as the pod sees it. Link-local, the same in every pod, and on no interface: the neighbour entry alone
  /// leads packets to the host end of the veth.
  static func gateway(_ family: IPFamily) -> IPAddress {
    switch family {
    case .v4: IPAddress(v4: 0xa9fe_0101)  // 169.254.1.1
    case .v6: IPAddress(v6High: 0xfe80 << 48, low: 1) ?? .unspecified(.v6)  // fe80::1
    }
  }

  /// Names and MACs are derived, so that a repeated or killed ADD, and every DEL, mean the same devices.
  init(containerID: String, interfaceName: String, mac: MACAddress? = nil) {
    name = AttachmentName(containerID, interfaceName)
    let digits = name.hash
    hostInterface = name.hostInterface
    hostMAC = Self.mac(digits.dropFirst(12))
    podMAC = mac ?? Self.mac(digits.dropFirst(22))
  }

  /// A MAC from ten hex digits, in the range for local use. One that was set, not drawn by the kernel, is left alone by
  /// udev's MACAddressPolicy.
  private static func mac(_ digits: Substring) -> MACAddress {
    let number = UInt64(digits.prefix(10), radix: 16) ?? 0
    let bytes = [0x0a] + (0..<5).map { UInt8(truncatingIfNeeded: number >> UInt64((4 - $0) * 8)) }
    return MACAddress(bytes: bytes) ?? hostFallback
  }

  private static var hostFallback: MACAddress { MACAddress("0a:00:00:00:00:01") ?? mac("0") }

  // MARK: Attach

  /// Builds everything, and leaves the host end down: nothing gets in or out before `open`. On an error the caller
  /// removes the host end, and with it all the rest.
  ///
  /// - Parameter routes: of the pod, besides the default ones; all lead to the node.
  func attach(
    _ addresses: [IPAddress], routes: [CIDR], mtu: Int, in namespace: NetworkNamespace, node: RouteSocket
  ) throws {
    let descriptor = try namespace.open()
    try createPair(mtu: mtu, peerNamespace: descriptor.number, node: node)
    try configurePod(addresses, routes, in: namespace)
    try configureNode(families: Set(addresses.map(\.family)))
  }

  private func createPair(mtu: Int, peerNamespace: CInt, node: RouteSocket) throws {
    func create() throws(NetlinkError) {
      try node.createVethPair(
        name: hostInterface, mac: hostMAC, mtu: mtu,
        peer: VethPeer(name: podInterface, mac: podMAC, mtu: mtu, namespaceDescriptor: peerNamespace))
    }
    do {
      try create()
    } catch let error where error.errno == EEXIST {
      // The pod was found without the interface, so the host end of this name is from an attempt in a namespace that
      // is on its way out.
      try node.deleteLink(named: hostInterface)
      try create()
    }
  }

  private func configurePod(_ addresses: [IPAddress], _ routes: [CIDR], in namespace: NetworkNamespace) throws {
    let (name, hostMAC) = (podInterface, hostMAC)
    let families = Set(addresses.map(\.family))
    try namespace.run {
      try Self.writeSettings(
        [
          (.v4, "accept_redirects", "0", ["all", name]),
          // Runtimes create sandboxes with IPv6 off.
          (.v6, "disable_ipv6", "0", families.contains(.v6) ? [name] : []),
          // Before the link comes up: its own link-local address is then usable at once.
          (.v6, "accept_dad", "0", [name]), (.v6, "accept_ra", "0", [name]),
          (.v6, "accept_redirects", "0", ["all", name]),
        ], families: families)
      let pod = try RouteSocket()
      if let loopback = try pod.link(named: "lo"), !loopback.isUp {
        try pod.setLink(index: loopback.index, LinkChanges(isUp: true))
      }
      guard let link = try pod.link(named: name) else {
        throw SystemError(operation: "find the pod's interface", object: name, errno: ENODEV)
      }
      try pod.setLink(index: link.index, LinkChanges(isUp: true))
      for address in addresses {
        try pod.addAddress(InterfaceAddress(host: address), interfaceIndex: link.index, withoutDAD: true)
      }
      for family in IPFamily.allCases where addresses.contains(where: { $0.family == family }) {
        let gateway = Self.gateway(family)
        try pod.replaceNeighbour(Neighbour(address: gateway, interfaceIndex: link.index, mac: hostMAC))
        try pod.addRoute(Route(destination: CIDR(host: gateway), interfaceIndex: link.index))
        // Several ways of an IPAM plugin to say the same are one route.
        var known: Set<CIDR> = [CIDR(host: gateway)]
        for destination in [Route.defaultDestination(family)] + routes.filter({ $0.family == family })
        where known.insert(destination).inserted {
          try pod.addRoute(Route(destination: destination, gateway: gateway, interfaceIndex: link.index))
        }
      }
    }
  }

  private func configureNode(families: Set<IPFamily>) throws {
    try Self.writeSettings(
      [
        (.v6, "disable_ipv6", "0", families.contains(.v6) ? [hostInterface] : []),
        // Redirects would teach the pod a next hop it cannot reach.
        (.v4, "send_redirects", "0", [hostInterface]), (.v4, "accept_redirects", "0", [hostInterface]),
        // A pod must not become the node's router.
        (.v6, "accept_ra", "0", [hostInterface]), (.v6, "accept_redirects", "0", [hostInterface]),
        (.v6, "accept_dad", "0", [hostInterface]),
      ], families: families)
  }

  /// Lets packets through, once somebody judges them; returns when the pod can send.
  func open(
    _ addresses: [IPAddress], _ senders: SenderCheck, in namespace: NetworkNamespace, node: RouteSocket
  ) throws {
    guard let link = try node.link(named: hostInterface) else {
      throw SystemError(operation: "find the pod's host end", object: hostInterface, errno: ENODEV)
    }
    try senders.install(at: link.index, node)
    try node.setLink(index: link.index, LinkChanges(isUp: true, alias: "sluice \(name)"))
    for address in addresses {
      try node.replaceNeighbour(Neighbour(address: address, interfaceIndex: link.index, mac: podMAC))
      // Replaced, not added: whoever had the address before is gone, and a route it left behind would catch our packets.
      try node.replaceRoute(Route(destination: CIDR(host: address), interfaceIndex: link.index))
    }
    let name = podInterface
    try namespace.run {
      let pod = try RouteSocket()
      // The kernel looks at carriers in a work queue: mostly it has by now. A pod's first packet is not worth a failure.
      for _ in 0..<Self.carrierPolls {
        if try pod.link(named: name)?.isRunning == true { return }
        usleep(Self.carrierPollMicroseconds)
      }
    }
  }

  private static let carrierPolls = 100
  private static let carrierPollMicroseconds: UInt32 = 200

  /// Writes interface settings of the calling thread's namespace. A kernel without a family has none of its settings,
  /// which matters only where an address of the family is wanted.
  private static func writeSettings(
    _ settings: [(family: IPFamily, key: String, value: String, interfaces: [String])], families: Set<IPFamily>
  ) throws(SystemError) {
    for (family, key, value, interfaces) in settings {
      for interface in interfaces {
        do throws(SystemError) {
          try Sysctl.write(["net", family == .v4 ? "ipv4" : "ipv6", "conf", interface, key], value: value)
        } catch  where error.errno == ENOENT && !families.contains(family) {
        }
      }
    }
  }

  // MARK: Detach

  /// Removes the pair with its routes and neighbours; succeeds also when there is none.
  func detach(node: RouteSocket) throws(NetlinkError) { try node.deleteLink(named: hostInterface) }

  // MARK: Check

  /// What is missing of an attachment, nil when all is there. What later plugins of a chain may have changed (MACs,
  /// more addresses, other routes) is not looked at; `routes` are those the chain's result names.
  func fault(
    _ addresses: [IPAddress], routes: [CIDR], in namespace: NetworkNamespace, node: RouteSocket
  ) throws -> String? {
    guard let host = try node.link(named: hostInterface) else { return "the node has no interface \(hostInterface)" }
    guard host.isUp else { return "the node's interface \(hostInterface) is down" }
    guard try node.checksIngress(of: host.index) else { return "the node does not check who sends by \(hostInterface)" }
    let nodeRoutes = try node.routes(table: Route.mainTable)
    let neighbours = try node.neighbours(interfaceIndex: host.index)
    for address in addresses {
      let destination = CIDR(host: address)
      guard nodeRoutes.contains(where: { $0.destination == destination && $0.interfaceIndex == host.index }) else {
        return "the node has no route to \(address) through \(hostInterface)"
      }
      guard neighbours.contains(where: { $0.address == address && $0.isPermanent }) else {
        return "the node has no permanent neighbour \(address) on \(hostInterface)"
      }
    }
    let name = podInterface
    return try namespace.run { () -> String? in
      let pod = try RouteSocket()
      guard let link = try pod.link(named: name) else { return "the pod has no interface \(name)" }
      guard link.isUp else { return "the pod's interface \(name) is down" }
      let assigned = Set(try pod.addresses(interfaceIndex: link.index).map(\.address.address))
      if let missing = addresses.first(where: { !assigned.contains($0) }) {
        return "the pod's interface \(name) has no address \(missing)"
      }
      let present = Set(try pod.routes().map(\.destination))
      return routes.first { !present.contains($0) }.map { "the pod has no route to \($0)" }
    }
  }
}
