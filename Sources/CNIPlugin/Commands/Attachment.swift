import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import PodFilters

/// One attachment of a pod to a network: ADD; DEL and CHECK are extensions.
///
/// ADD may be killed at any point and is then repeated, followed by DEL, or forgotten. So the reservation comes before
/// all kernel work, every name is derived from container and interface, and an address is freed only when the device
/// that had it is gone.
enum Attachment {
  static func add(_ invocation: Invocation, _ config: Config) throws(CNIError) -> JSONValue {
    let settings = try AttachmentConfig(config)
    let target = try Target(invocation)
    let devices = PodDevices(
      containerID: invocation.containerID, interfaceName: invocation.interfaceName, mac: settings.mac)
    let shape = settings.mode.shape(devices, network: config.name)
    let node: RouteSocket = try kernel { try RouteSocket() }
    let pod: RouteSocket = try kernel { try RouteSocket(in: target.namespace) }
    guard try kernel({ try pod.link(named: devices.podInterface) }) == nil else {
      throw CNIError(
        .interfaceExists, "CNI_NETNS \(target.path) has an interface \(devices.podInterface) already")
    }
    let mtu = try mtu(settings, config, node)
    let bootID = try bootID()

    let owner = AddressReservation(
      network: config.name, containerID: invocation.containerID, interfaceName: invocation.interfaceName,
      netnsPath: target.path, netnsInode: target.inode, bootID: bootID, ipamPlugin: config.ipamPlugin,
      createdAt: Int64(time(nil)))
    let network = try reserve(owner, settings, config, devices, node)
    let shared: (first: [Link], last: [Link])
    do throws(CNIError) {
      try settings.requireMTU(for: network.families)
      try kernel { try shape.attach(network, mtu: mtu, in: target.namespace, pod: pod, node: node) }
      // Before the agent hears of it, and long before the first packet.
      try kernel { try settings.bandwidth?.apply(to: devices.name, mtu: mtu, node) }
      let addresses = network.addresses.map(\.address)
      var isProgrammed = false
      if !settings.mode.isBridge {
        let record = EndpointRecord(
          network: config.name, containerID: invocation.containerID, interfaceName: invocation.interfaceName,
          hostInterface: devices.hostInterface, mac: devices.podMAC, addresses: addresses, netnsPath: target.path,
          // A kernel before 5.14 has no cookies: then the pod's connections are balanced by packets.
          netnsInode: target.inode, netnsCookie: try? pod.namespaceCookie(), bootID: bootID,
          podNamespace: invocation.podNamespace,
          podName: invocation.podName, podUID: invocation.podUID, portMappings: settings.portMappings,
          isShaped: settings.bandwidth != nil, createdAt: owner.createdAt)
        try translating { () throws(FileError) in
          try config.endpoints.write(record)
        } _: {
          CNIError(.io, "\($0)")
        }
        isProgrammed = try publish(record, config)
      }
      if !isProgrammed {
        try requireFreeHostPorts(settings.portMappings, owner, config, node)
        try kernel { try HostPorts(of: devices.hostInterface).open(settings.portMappings, to: addresses) }
        let check = SenderCheck(
          device: devices.hostInterface, mac: devices.podMAC, addresses: addresses, trunk: settings.mode.trunk,
          leavesPacketsToEngine: false)
        _ = try kernel { try SenderChains().install(check) }
      }
      try kernel { try shape.open(network, in: target.namespace, pod: pod, node: node) }
      shared = try kernel { try shape.sharedDevices(node: node) }
    } catch {
      undo(owner, config, node)
      throw error
    }
    return AttachmentResult(
      shape: shape, sharedDevices: shared, sandbox: target.path, mtu: mtu, network: network,
      dns: settings.dns ?? network.dns
    ).json(version: config.version, previous: config.previousResult)
  }

  /// The pod's namespace, which must exist and must not be the node's own.
  struct Target {
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
    _ owner: AddressReservation, _ settings: AttachmentConfig, _ config: Config, _ devices: PodDevices,
    _ node: RouteSocket
  ) throws(CNIError) -> PodNetwork {
    let store = config.addresses
    if store.holds(containerID: owner.containerID, interfaceName: owner.interfaceName) {
      // The pod does not have the interface, so this is what a killed ADD or DEL, an earlier boot or a namespace that
      // is gone has left. But another living namespace's attachment is not ours to tear down.
      if let held = store.reservation(containerID: owner.containerID, interfaceName: owner.interfaceName),
        held.netnsInode != owner.netnsInode, isAlive(held, bootID: owner.bootID),
        try kernel({ try node.link(named: devices.hostInterface) }) != nil
      {
        throw CNIError(
          .alreadyAttached, "container \(owner.containerID) has \(owner.interfaceName) in \(held.netnsPath) already")
      }
      try remove(owner.containerID, owner.interfaceName, config, node)
    }
    switch settings.addresses {
    case .own(let pools, let requested, let subnets, let routes):
      let addresses = try translated(owner, config) { () throws(AddressStoreError) in
        try store.reserve(owner, from: pools, requested: requested) {
          reclaim($0, $1, bootID: owner.bootID, config, node)
        }
      }
      return AddressPlan.network(addresses, subnets, routes)
    case .plugin(let ipam):
      // Before anything says that it has given us something.
      try ipam.requirePath()
      // So that what is left of this attachment is found by whoever cleans up.
      _ = try translated(owner, config) { () throws(AddressStoreError) in try store.reserve(owner, from: []) }
      do throws(CNIError) {
        return try ipam.add()
      } catch {
        // It may have failed half-way.
        undo(owner, config, node)
        throw error
      }
    }
  }

  private static func undo(_ owner: AddressReservation, _ config: Config, _ node: RouteSocket) {
    do throws(CNIError) {
      try remove(owner.containerID, owner.interfaceName, config, node)
    } catch let leftover {
      Command.note("undoing a failed ADD: \(leftover.message)")
    }
  }

  private static func translated<Value>(
    _ owner: AddressReservation, _ config: Config, _ body: () throws(AddressStoreError) -> Value
  ) throws(CNIError) -> Value {
    do throws(AddressStoreError) {
      return try body()
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
    do throws(SystemError) {
      return try NetworkNamespace(path: owner.netnsPath).inode() == owner.netnsInode
    } catch {
      // There is nothing, or something else. Where it cannot be asked it is taken to live.
      return ![ENOENT, ENOTDIR, EINVAL].contains(error.errno)
    }
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
    let devices = PodDevices(containerID: owner.containerID, interfaceName: owner.interfaceName)
    var removal = LinkRemoval(node)
    do {
      try HostPorts(of: devices.hostInterface).close(addresses: [address], &removal)
      try devices.removeWithCheck(by: removal)
      try config.endpoints.remove(
        network: owner.network, containerID: owner.containerID, interfaceName: owner.interfaceName)
      // Or it would judge whoever gets the address as the pod that had it.
      tellOfRemoval(owner.containerID, owner.interfaceName, config)
      Command.note("address \(address) of \(owner.containerID), whose namespace is gone, is taken back")
      return true
    } catch {
      Command.note("address \(address) of \(owner.containerID) cannot be taken back: \(error)")
      return false
    }
  }

  /// Where no agent does: two pods cannot have one port.
  private static func requireFreeHostPorts(
    _ mappings: [PortMapping], _ owner: AddressReservation, _ config: Config, _ node: RouteSocket
  ) throws(CNIError) {
    guard !mappings.isEmpty else { return }
    let records = try translating { () throws(FileError) in
      try config.endpoints.list().records
    } _: {
      CNIError(.io, "\($0)")
    }
    let own = AttachmentName(owner.containerID, owner.interfaceName).hostInterface
    for other in records where other.hostInterface != own {
      guard let mapping = mappings.first(where: { other.portMappings.contains(where: $0.overlaps) }),
        try kernel({ try node.link(named: other.hostInterface) }) != nil
      else { continue }
      throw CNIError(.addressUnavailable, "host port \(mapping) is container \(other.containerID)'s")
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
  ///
  /// - Returns: whether there is an agent that deals with them.
  private static func publish(_ record: EndpointRecord, _ config: Config) throws(CNIError) -> Bool {
    let fault: String
    do throws(LocalAPIError) {
      let answer = try config.agent(timeoutMilliseconds: config.agentTimeout)
        .request("POST", AgentPath.endpoints, body: record.json)
      let json = try? JSONValue(parsing: answer.body)
      let hostPorts = json?["hostPorts"]?.intValue ?? 0
      if answer.status == 200, json?["programmed"]?.boolValue == true {
        if hostPorts == Int64(record.portMappings.count) { return true }
        fault = "it serves no host ports"
      } else {
        fault = "status \(answer.status): \(UnixHTTPClient.message(in: answer.body))"
      }
    } catch {
      fault = error.description
    }
    guard !config.requiresAgent else {
      throw CNIError(.tryAgainLater, "the agent has not programmed the endpoint: \(fault)")
    }
    Command.note("going on without the agent: \(fault)")
    return false
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
  static func kernel<Value>(_ body: () throws -> Value) throws(CNIError) -> Value {
    do {
      return try body()
    } catch let error as CNIError {
      throw error
    } catch {
      throw CNIError(.kernel, "\(error)")
    }
  }
}
