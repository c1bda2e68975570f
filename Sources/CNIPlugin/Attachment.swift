import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// ADD, DEL and CHECK.
///
/// ADD may be killed at any point and is then repeated, followed by DEL, or forgotten. So the reservation comes before
/// all kernel work, every name is derived from container and interface, and an address is freed only when the device
/// that had it is gone.
enum Attachment {
  // MARK: ADD

  static func add(_ invocation: Invocation, _ config: Config) throws(CNIError) -> JSONValue {
    let settings = try AttachmentConfig(config)
    let target = try Target(invocation)
    let shape = RoutedShape(
      containerID: invocation.containerID, interfaceName: invocation.interfaceName, mac: settings.mac)
    let node: RouteSocket = try kernel { try RouteSocket() }
    guard try kernel({ try target.namespace.run { try RouteSocket().link(named: shape.podInterface) } }) == nil else {
      throw CNIError(
        .interfaceExists, "CNI_NETNS \(target.path) has an interface \(shape.podInterface) already")
    }
    let mtu = try mtu(settings, config, node)
    let bootID = try bootID()

    let owner = AddressReservation(
      network: config.name, containerID: invocation.containerID, interfaceName: invocation.interfaceName,
      netnsPath: target.path, netnsInode: target.inode, bootID: bootID, createdAt: Int64(time(nil)))
    let addresses = try reserve(owner, settings, config, shape, node)
    do throws(CNIError) {
      try kernel { try shape.attach(addresses, mtu: mtu, in: target.namespace, node: node) }
      // A kernel before 5.14 has no cookies: then the pod's connections are balanced by packets.
      let cookie = try? target.namespace.cookie()
      let record = EndpointRecord(
        network: config.name, containerID: invocation.containerID, interfaceName: invocation.interfaceName,
        hostInterface: shape.hostInterface, mac: shape.podMAC, addresses: addresses, netnsPath: target.path,
        netnsInode: target.inode, netnsCookie: cookie, bootID: bootID,
        podNamespace: invocation.podNamespace,
        podName: invocation.podName, podUID: invocation.podUID, createdAt: owner.createdAt)
      try translating { () throws(FileError) in
        try config.endpoints.write(record)
      } _: {
        CNIError(.io, "\($0)")
      }
      try publish(record, config)
      try kernel { try shape.open(addresses, in: target.namespace, node: node) }
    } catch {
      do throws(CNIError) {
        try remove(invocation.containerID, invocation.interfaceName, shape, config, node)
      } catch let leftover {
        Command.note("undoing a failed ADD: \(leftover.message)")
      }
      throw error
    }
    return AttachmentResult(
      hostInterface: shape.hostInterface, hostMAC: shape.hostMAC, podInterface: shape.podInterface,
      podMAC: shape.podMAC, sandbox: target.path, mtu: mtu, addresses: addresses, dns: settings.dns
    ).json(version: config.version, previous: config.previousResult)
  }

  /// The pod's namespace, which must exist and must not be the node's own.
  private struct Target {
    let path: String
    let namespace: NetworkNamespace
    let inode: UInt64

    init(_ invocation: Invocation) throws(CNIError) {
      path = invocation.netnsPath ?? ""
      namespace = NetworkNamespace(path: path)
      let (path, namespace) = (path, namespace)
      let (own, inode) = try translating { () throws(SystemError) in
        (try NetworkNamespace.current.inode(), try namespace.inode())
      } _: {
        .environment("CNI_NETNS", "\(path) cannot be used: \($0)")
      }
      guard inode != own || invocation.allowsHostNetns else {
        throw .environment("CNI_NETNS", "\(path) is the node's own namespace")
      }
      self.inode = inode
    }
  }

  private static func reserve(
    _ owner: AddressReservation, _ settings: AttachmentConfig, _ config: Config, _ shape: RoutedShape,
    _ node: RouteSocket
  ) throws(CNIError) -> [IPAddress] {
    let store = config.addresses
    if store.holds(containerID: owner.containerID, interfaceName: owner.interfaceName) {
      // The pod does not have the interface, so this is what a killed ADD or DEL, an earlier boot or a namespace that
      // is gone has left. But another living namespace's attachment is not ours to tear down.
      if let held = store.reservation(containerID: owner.containerID, interfaceName: owner.interfaceName),
        held.netnsInode != owner.netnsInode, isAlive(held, bootID: owner.bootID),
        try kernel({ try node.link(named: shape.hostInterface) }) != nil
      {
        throw CNIError(
          .alreadyAttached, "container \(owner.containerID) has \(owner.interfaceName) in \(held.netnsPath) already")
      }
      try remove(owner.containerID, owner.interfaceName, shape, config, node)
    }
    do throws(AddressStoreError) {
      return try store.reserve(owner, from: settings.pools, requested: settings.requestedAddresses) {
        reclaim($0, $1, bootID: owner.bootID, config, node)
      }
    } catch {
      switch error {
      case .exhausted: throw CNIError(.tryAgainLater, "network \(config.name): \(error)")
      case .taken, .outside, .requestedTwice: throw CNIError(.addressUnavailable, "network \(config.name): \(error)")
      case .held: throw CNIError(.tryAgainLater, "container \(owner.containerID): another ADD is running")
      case .file: throw CNIError(.io, "\(error)")
      }
    }
  }

  /// Whether the namespace a reservation was made for still exists.
  static func isAlive(_ owner: AddressReservation, bootID: String) -> Bool {
    guard owner.bootID == bootID else { return false }
    return (try? NetworkNamespace(path: owner.netnsPath).inode()) == owner.netnsInode
  }

  /// Whether a reserved address may be taken back; removes what could still use it.
  private static func reclaim(
    _ address: IPAddress, _ owner: AddressReservation?, bootID: String, _ config: Config, _ node: RouteSocket
  ) -> Bool {
    guard let owner else {
      // Unreadable: the disk's fault, or a power cut's. The kernel knows whether the address is in use.
      guard let routes = try? node.routes(table: Route.mainTable, family: address.family) else { return false }
      return !routes.contains { $0.destination == CIDR(host: address) }
    }
    guard !isAlive(owner, bootID: bootID) else { return false }
    let shape = RoutedShape(containerID: owner.containerID, interfaceName: owner.interfaceName)
    do {
      try shape.detach(node: node)
      try config.endpoints.remove(
        network: owner.network, containerID: owner.containerID, interfaceName: owner.interfaceName)
      Command.note("address \(address) of \(owner.containerID), whose namespace is gone, is taken back")
      return true
    } catch {
      Command.note("address \(address) of \(owner.containerID) cannot be taken back: \(error)")
      return false
    }
  }

  private static func mtu(_ settings: AttachmentConfig, _ config: Config, _ node: RouteSocket) throws(CNIError) -> Int {
    if let mtu = settings.mtu { return mtu }
    if let mtu = try config.nodeFacts()?.mtu, mtu > 0 { return mtu }
    return try kernel {
      for family in IPFamily.allCases {
        let destination = Route.defaultDestination(family)
        let route = try node.routes(table: Route.mainTable, family: family).first { $0.destination == destination }
        if let index = route?.interfaceIndex, let link = try node.link(index: index) { return link.mtu }
      }
      return 1500
    }
  }

  /// Tells the agent and waits until the pod's packets are dealt with.
  private static func publish(_ record: EndpointRecord, _ config: Config) throws(CNIError) {
    let fault: String
    do throws(LocalAPIError) {
      let answer = try config.agent(timeoutMilliseconds: config.agentTimeout)
        .request("POST", AgentPath.endpoints, body: record.json)
      let programmed = (try? JSONValue(parsing: answer.body))?["programmed"]?.boolValue ?? false
      if answer.status == 200, programmed { return }
      fault = "status \(answer.status): \(UnixHTTPClient.message(in: answer.body))"
    } catch {
      fault = error.description
    }
    guard config.requiresAgent else { return Command.note("going on without the agent: \(fault)") }
    throw CNIError(.tryAgainLater, "the agent has not programmed the endpoint: \(fault)")
  }

  // MARK: DEL

  static func delete(_ invocation: Invocation, _ config: Config) throws(CNIError) {
    let shape = RoutedShape(containerID: invocation.containerID, interfaceName: invocation.interfaceName)
    let node: RouteSocket = try kernel { try RouteSocket() }
    try remove(invocation.containerID, invocation.interfaceName, shape, config, node)
  }

  /// How long a DEL waits for an agent that does not answer; it finds out by itself when it is back.
  private static let farewellMilliseconds = 2_000

  /// Removes an attachment or what is left of one. Fails only where the kernel keeps the device: its address must then
  /// stay reserved. State that cannot be removed is told and left to be reclaimed.
  private static func remove(
    _ containerID: String, _ interfaceName: String, _ shape: RoutedShape, _ config: Config, _ node: RouteSocket
  ) throws(CNIError) {
    try kernel { try shape.detach(node: node) }
    let path = AgentPath.endpoint(containerID: containerID, interfaceName: interfaceName)
    do throws(LocalAPIError) {
      _ = try config.agent(timeoutMilliseconds: min(config.agentTimeout, farewellMilliseconds)).request("DELETE", path)
    } catch {
      if config.requiresAgent { Command.note("the agent was not told of the removal: \(error)") }
    }
    do throws(FileError) {
      // The record first: of two records the agent must never find one address in both.
      try config.endpoints.remove(network: config.name, containerID: containerID, interfaceName: interfaceName)
      try config.addresses.release(containerID: containerID, interfaceName: interfaceName)
    } catch {
      Command.note("left behind: \(error)")
    }
  }

  // MARK: CHECK

  static func check(_ invocation: Invocation, _ config: Config) throws(CNIError) {
    guard config.version >= .v0_4_0 else {
      throw CNIError(.incompatibleVersion, "cniVersion \(config.version.rawValue) has no CHECK")
    }
    guard let previous = config.previousResult else { throw .config("prevResult", "is missing: CHECK needs it") }
    let target = try Target(invocation)
    let shape = RoutedShape(containerID: invocation.containerID, interfaceName: invocation.interfaceName)
    let interfaces = previous["interfaces"]?.arrayValue ?? []
    guard interfaces.contains(where: { $0["name"]?.stringValue == shape.podInterface }) else {
      throw .config("prevResult.interfaces", "has no \(shape.podInterface)")
    }
    let addresses = try translating { () throws(FileError) in
      try config.addresses.addresses(containerID: invocation.containerID, interfaceName: invocation.interfaceName)
    } _: {
      CNIError(.io, "\($0)")
    }
    guard !addresses.isEmpty else {
      throw CNIError(
        .unknownContainer, "container \(invocation.containerID) has no reservation in network \(config.name)")
    }
    let announced = (previous["ips"]?.arrayValue ?? []).compactMap { $0["address"]?.stringValue }
    for address in addresses where !announced.contains(InterfaceText.host(address)) {
      throw CNIError(.checkFailed, "prevResult.ips has no \(InterfaceText.host(address)), which is reserved")
    }
    let reserved = Set(addresses.map(InterfaceText.host))
    for text in announced where text.hasSuffix("/32") || text.hasSuffix("/128") {
      if !reserved.contains(text), isOurs(text, in: previous, shape) {
        throw CNIError(.checkFailed, "address \(text) is not reserved for container \(invocation.containerID)")
      }
    }
    let routes = (previous["routes"]?.arrayValue ?? []).compactMap { $0["dst"]?.stringValue.flatMap { CIDR($0) } }
    let fault = try kernel { try shape.fault(addresses, routes: routes, in: target.namespace, node: RouteSocket()) }
    if let fault { throw CNIError(.checkFailed, fault) }
  }

  /// Whether an address of the chain's result is on our interface.
  private static func isOurs(_ address: String, in result: JSONObject, _ shape: RoutedShape) -> Bool {
    let interfaces = result["interfaces"]?.arrayValue ?? []
    guard let ip = result["ips"]?.arrayValue?.first(where: { $0["address"]?.stringValue == address }),
      let index = ip["interface"]?.intValue, interfaces.indices.contains(Int(index))
    else { return false }
    return interfaces[Int(index)]["name"]?.stringValue == shape.podInterface
  }

  // MARK: Shared

  /// Tells what was made before a reboot from what was made after.
  static func bootID() throws(CNIError) -> String {
    try translating { () throws(SystemError) in
      try Sysctl.read("kernel", "random", "boot_id")
    } _: {
      CNIError(.io, "\($0)")
    }
  }

  /// Runs kernel work; its refusals become error 100 with the kernel's words.
  private static func kernel<Value>(_ body: () throws -> Value) throws(CNIError) -> Value {
    do {
      return try body()
    } catch let error as CNIError {
      throw error
    } catch {
      throw CNIError(.kernel, "\(error)")
    }
  }
}
