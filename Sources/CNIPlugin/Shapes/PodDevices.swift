import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import PodFilters

/// The pair of devices by which a pod is joined to its node, whatever the node's end is joined to.
struct PodDevices {
  let name: AttachmentName
  var podInterface: String { name.interfaceName }
  let hostInterface: String
  let hostMAC: MACAddress
  let podMAC: MACAddress

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
  static func mac(_ digits: Substring) -> MACAddress {
    let number = UInt64(digits.prefix(10), radix: 16) ?? 0
    let bytes = [0x0a] + (0..<5).map { UInt8(truncatingIfNeeded: number >> UInt64((4 - $0) * 8)) }
    return MACAddress(bytes: bytes) ?? hostFallback
  }

  private static var hostFallback: MACAddress { MACAddress("0a:00:00:00:00:01") ?? mac("0") }

  // MARK: Making

  /// Makes both ends, down.
  func create(mtu: Int, in namespace: NetworkNamespace, node: RouteSocket) throws {
    let descriptor = try namespace.open()
    try createPair(mtu: mtu, peerNamespace: descriptor.number, node: node)
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

  /// Brings the pod's end and its loopback up.
  ///
  /// - Returns: the pod's end.
  func openPodEnd(families: Set<IPFamily>, in namespace: NetworkNamespace, pod: RouteSocket) throws -> Link {
    let name = podInterface
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
    }
    if let loopback = try pod.link(named: "lo"), !loopback.isUp {
      try pod.setLink(index: loopback.index, LinkChanges(isUp: true))
    }
    guard let link = try pod.link(named: name) else {
      throw SystemError(operation: "find the pod's interface", object: name, errno: ENODEV)
    }
    try pod.setLink(index: link.index, LinkChanges(isUp: true))
    return link
  }

  /// Lets packets through, once somebody judges them.
  ///
  /// - Returns: the node's end.
  @discardableResult
  func openHostEnd(node: RouteSocket) throws -> Link {
    guard let link = try node.link(named: hostInterface) else {
      throw SystemError(operation: "find the pod's host end", object: hostInterface, errno: ENODEV)
    }
    try node.setLink(index: link.index, LinkChanges(isUp: true, alias: "sluice \(name)"))
    return link
  }

  /// Returns when the pod can send: until the kernel's work queue has looked at the carriers, what is sent is dropped, and
  /// announcements with it. Mostly it has by now. A pod's first packet is not worth a failure.
  func waitForCarrier(in namespace: NetworkNamespace, pod: RouteSocket) throws {
    func hasCarrier() throws -> Bool { try pod.link(named: podInterface)?.isRunning == true }
    if try hasCarrier() { return }
    let monitor = try RouteMonitor([.links], in: namespace)
    let end = ContinuousClock.now + Self.carrierPatience
    while try !hasCarrier() {
      let left = Int((end - .now) / .milliseconds(1))
      guard left > 0 else { return }
      _ = try monitor.next(timeoutMilliseconds: left)
    }
  }

  /// The queue is not looked into more than once a second in some cases, and waits as others do for the lock of all devices.
  private static let carrierPatience = Duration.seconds(2)

  /// Writes interface settings of the calling thread's namespace. A kernel without a family has none of its settings,
  /// which matters only where an address of the family is wanted.
  static func writeSettings(
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

  // MARK: Removing, looking

  /// Removes the pair with all that hangs on it; succeeds also when there is none.
  func remove(by removal: LinkRemoval) throws { try removal.remove(named: [hostInterface, name.shaperInterface]) }

  /// Removes the pair, and then the chain that asked who sends: as long as anything can come in, somebody asks.
  func removeWithCheck(by removal: LinkRemoval) throws {
    var removal = removal
    let filter = try FilterSocket.whereThereIs()
    // Open before, so that whoever waits for the kernel has the socket too.
    if let filter { removal.hold(filter) }
    try remove(by: removal)
    try removeCheck(by: filter)
  }

  /// Removes the chain of a device that is gone.
  func removeCheck() throws { try removeCheck(by: FilterSocket.whereThereIs()) }

  private func removeCheck(by filter: FilterSocket?) throws {
    guard let filter else { return }
    do {
      try SenderChains(filter).remove(device: hostInterface)
    } catch {
      guard FilterSocket.meansMissing(error) else { throw error }
    }
  }

  /// What is missing of the node's end, nil when all is there.
  func hostFault(node: RouteSocket) throws -> (fault: String?, link: Link?) {
    guard let host = try node.link(named: hostInterface) else {
      return ("the node has no interface \(hostInterface)", nil)
    }
    guard host.isUp else { return ("the node's interface \(hostInterface) is down", host) }
    return (nil, host)
  }

  /// What is missing in the pod. What later plugins of a chain may have changed (MACs, more addresses, other routes) is
  /// not looked at.
  func podFault(_ addresses: [IPAddress], routes: [CIDR], pod: RouteSocket) throws -> String? {
    guard let link = try pod.link(named: podInterface) else { return "the pod has no interface \(podInterface)" }
    guard link.isUp else { return "the pod's interface \(podInterface) is down" }
    let assigned = Set(try pod.addresses(interfaceIndex: link.index).map(\.address.address))
    if let missing = addresses.first(where: { !assigned.contains($0) }) {
      return "the pod's interface \(podInterface) has no address \(missing)"
    }
    let present = Set(try pod.routes().map(\.destination))
    return routes.first { !present.contains($0) }.map { "the pod has no route to \($0)" }
  }
}
