import LocalAPI
import Netlink
import NetworkTypes

// DEL, and what a failed ADD, a repeated one and GC have to undo.
extension Attachment {
  static func delete(_ invocation: Invocation, _ config: Config) throws(CNIError) {
    let node: RouteSocket = try kernel { try RouteSocket() }
    try remove(invocation.containerID, invocation.interfaceName, config, node)
  }

  /// How long a DEL waits for an agent that does not answer; it finds out by itself when it is back.
  private static let farewellMilliseconds = 2_000

  /// Removes an attachment or what is left of one. Fails only where the kernel keeps the device, or another plugin the
  /// addresses: they must then stay reserved. State that cannot be removed is told and left to be reclaimed.
  static func remove(
    _ containerID: String, _ interfaceName: String, _ config: Config, _ node: RouteSocket
  ) throws(CNIError) {
    let devices = PodDevices(containerID: containerID, interfaceName: interfaceName)
    var removal = LinkRemoval(node)
    try closeHostPorts(containerID, interfaceName, config, &removal)
    // Else the agent looks after who sends.
    let isOurs = !config.requiresAgent
    try kernel { isOurs ? try devices.removeWithCheck(by: removal) : try devices.remove(by: removal) }
    let isTold = tellOfRemoval(containerID, interfaceName, config)
    if !isOurs, !isTold { try kernel { try devices.removeCheck() } }
    try releaseElsewhere(containerID, interfaceName, config)
    do throws(FileError) {
      // The record first: of two records the agent must never find one address in both.
      try config.endpoints.remove(network: config.name, containerID: containerID, interfaceName: interfaceName)
      try config.addresses.release(containerID: containerID, interfaceName: interfaceName)
    } catch {
      Command.note("left behind: \(error)")
    }
  }

  /// Those that no agent served.
  private static func closeHostPorts(
    _ containerID: String, _ interfaceName: String, _ config: Config, _ removal: inout LinkRemoval
  ) throws(CNIError) {
    let device = AttachmentName(containerID, interfaceName).hostInterface
    let record: EndpointRecord?
    do {
      record = try config.endpoints.record(
        network: config.name, containerID: containerID, interfaceName: interfaceName)
    } catch {
      // No reason to keep a pod: it is looked for, as where there is none.
      Command.note("record of \(containerID): \(error)")
      record = nil
    }
    // One that lost its record may have had some.
    guard record.map({ !$0.portMappings.isEmpty }) ?? !config.requiresAgent else { return }
    try kernel { try HostPorts(of: device).close(addresses: record?.addresses ?? [], &removal) }
  }

  /// - Returns: whether there is an agent that knows of it now.
  @discardableResult
  static func tellOfRemoval(_ containerID: String, _ interfaceName: String, _ config: Config) -> Bool {
    let path = AgentPath.endpoint(containerID: containerID, interfaceName: interfaceName)
    do throws(LocalAPIError) {
      let agent = config.agent(timeoutMilliseconds: min(config.agentTimeout, farewellMilliseconds))
      return try agent.request("DELETE", path).status == 200
    } catch {
      if config.requiresAgent { Command.note("the agent was not told of the removal: \(error)") }
      return false
    }
  }

  /// Has the plugin that gave the addresses take them back.
  private static func releaseElsewhere(
    _ containerID: String, _ interfaceName: String, _ config: Config
  ) throws(CNIError) {
    let store = config.addresses
    let known = store.reservation(containerID: containerID, interfaceName: interfaceName)
    // What our own store gave is not another's, whatever the configuration says by now.
    guard let type = known.map(\.ipamPlugin) ?? config.ipamPlugin else { return }
    do throws(CNIError) {
      try IPAMPlugin(type, config).delete(containerID: containerID, interfaceName: interfaceName)
    } catch {
      // With the configuration of another it can do nothing; and of what nobody knows there need be nothing.
      if known == nil || type != config.ipamPlugin { return Command.note(error.message) }
      throw error
    }
  }
}
