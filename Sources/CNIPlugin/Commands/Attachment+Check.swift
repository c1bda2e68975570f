import LocalAPI
import Netlink
import NetworkTypes
import PodFilters

extension Attachment {
  static func check(_ invocation: Invocation, _ config: Config) throws(CNIError) {
    guard config.version >= .v0_4_0 else {
      throw CNIError(.incompatibleVersion, "cniVersion \(config.version.rawValue) has no CHECK")
    }
    guard let previous = config.previousResult else { throw .config("prevResult", "is missing: CHECK needs it") }
    let target = try Target(invocation)
    let devices = PodDevices(containerID: invocation.containerID, interfaceName: invocation.interfaceName)
    let mode = try AttachmentConfig.mode(ConfigFields(config.json))
    let shape = mode.shape(devices, network: config.name)
    let interfaces = previous["interfaces"]?.arrayValue ?? []
    guard interfaces.contains(where: { $0["name"]?.stringValue == devices.podInterface }) else {
      throw .config("prevResult.interfaces", "has no \(devices.podInterface)")
    }
    let addresses = try requireReservation(invocation, config, previous, devices)
    let routes = (previous["routes"]?.arrayValue ?? []).compactMap { $0["dst"]?.stringValue.flatMap { CIDR($0) } }
    let runtime = RuntimeConfig(try ConfigFields(config.json).object("runtimeConfig") ?? JSONObject())
    if let limit = try runtime.bandwidth() {
      let fault = try kernel { try limit.fault(of: devices.name, RouteSocket()) }
      if let fault { throw CNIError(.checkFailed, fault) }
    }
    // An agent that lives looks after it, each engine in its own way.
    if mode.isBridge || !config.requiresAgent && !Status.hasAgent(config) {
      let isChecked = try kernel { try SenderChains().devices().contains(devices.hostInterface) }
      guard isChecked else {
        throw CNIError(.checkFailed, "table \(SenderChains.table) has no chain \(devices.hostInterface)")
      }
    }
    let fault = try kernel {
      try shape.fault(addresses, routes: routes, pod: RouteSocket(in: target.namespace), node: RouteSocket())
    }
    if let fault { throw CNIError(.checkFailed, fault) }
  }

  /// - Returns: the addresses that our interface has to have.
  private static func requireReservation(
    _ invocation: Invocation, _ config: Config, _ previous: JSONObject, _ devices: PodDevices
  ) throws(CNIError) -> [IPAddress] {
    let announced = (previous["ips"]?.arrayValue ?? []).filter { isOurs($0, in: previous, devices) }
      .compactMap { $0["address"]?.stringValue }
    guard config.addresses.holds(containerID: invocation.containerID, interfaceName: invocation.interfaceName) else {
      throw CNIError(
        .unknownContainer, "container \(invocation.containerID) has no reservation in network \(config.name)")
    }
    guard !announced.isEmpty else {
      throw CNIError(.checkFailed, "prevResult.ips has no address of \(devices.podInterface)")
    }
    if let type = config.ipamPlugin {
      try IPAMPlugin(type, config).check()
      return announced.compactMap { $0.split(separator: "/").first.flatMap { IPAddress($0) } }
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
    let told = Set(announced.compactMap { $0.split(separator: "/").first.flatMap { IPAddress($0) } })
    for address in addresses where !told.contains(address) {
      throw CNIError(.checkFailed, "prevResult.ips has no \(InterfaceText.host(address)), which is reserved")
    }
    let reserved = Set(addresses.map(InterfaceText.host))
    for text in announced where !reserved.contains(text) && (text.hasSuffix("/32") || text.hasSuffix("/128")) {
      throw CNIError(.checkFailed, "address \(text) is not reserved for container \(invocation.containerID)")
    }
    return addresses
  }

  /// Whether an address of the chain's result is on our interface.
  private static func isOurs(_ ip: JSONValue, in result: JSONObject, _ devices: PodDevices) -> Bool {
    let interfaces = result["interfaces"]?.arrayValue ?? []
    guard let index = ip["interface"]?.intValue, interfaces.indices.contains(Int(index)) else { return false }
    return interfaces[Int(index)]["name"]?.stringValue == devices.podInterface
  }
}
