import LocalAPI
import Netlink
import NetworkTypes
import PodFilters

/// GC: removes everything of this network that the runtime does not name: what killed runtimes and lost DELs left.
enum GarbageCollection {
  /// As the specification has it since 1.1, and as runtimes sent it before.
  private static let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"]

  static func run(_ config: Config) throws(CNIError) {
    guard config.version >= .v1_1_0 else {
      throw CNIError(.incompatibleVersion, "cniVersion \(config.version.rawValue) has no GC")
    }
    guard let valid = try validAttachments(config) else {
      return Command.note("GC: the runtime names no attachments, so nothing is removed")
    }
    // One that cannot be removed is no reason to keep the others.
    var failures: [String] = []
    func attempt(_ what: String, _ body: () throws(CNIError) -> Void) {
      do throws(CNIError) {
        try body()
      } catch {
        failures.append("\(what): \(error.message)")
      }
    }
    let node = try Attachment.kernel { try RouteSocket() }
    for stale in try known(config) where !valid.contains(stale) {
      attempt(stale.description) { () throws(CNIError) in
        try Attachment.remove(stale.containerID, stale.interfaceName, config, node)
      }
    }
    attempt("unreadable reservations") { () throws(CNIError) in try removeUnreadable(except: valid, config, node) }
    attempt("table \(SenderChains.table)") { () throws(CNIError) in
      try Attachment.kernel { try removeOrphans(node) }
    }
    attempt("ipMasq") { () throws(CNIError) in
      // One that the runtime names may have lost what is known of it.
      if valid.isEmpty { try removeMasquerade(config) }
    }
    if let type = config.ipamPlugin {
      attempt("ipam.type") { () throws(CNIError) in try IPAMPlugin(type, config).collectGarbage() }
    }
    guard failures.isEmpty else {
      throw CNIError(.leftBehind, "network \(config.name): \(failures.joined(separator: "; "))")
    }
  }

  /// Since Linux 6.16 a chain outlives its device.
  private static func removeOrphans(_ node: RouteSocket) throws {
    // Has no link to remove: it keeps the sockets until all chains are gone, so that the kernel is waited for once.
    var removal = LinkRemoval(node)
    do {
      let chains = try SenderChains()
      for device in try chains.devices() where try node.link(named: device) == nil { try chains.remove(device: device) }
      for device in try HostPorts.devices() where try node.link(named: device) == nil {
        try HostPorts(of: device).close(addresses: [], &removal)
      }
    } catch {
      guard FilterSocket.meansMissing(error) else { throw error }
    }
  }

  /// What the network's pods share goes with the last of them; but the bridge, which others may use as well.
  private static func removeMasquerade(_ config: Config) throws(CNIError) {
    guard try known(config).isEmpty else { return }
    try Attachment.kernel { try Masquerade(network: config.name).remove() }
  }

  /// nil where the runtime says nothing about them; none where it says that there are none.
  private static func validAttachments(_ config: Config) throws(CNIError) -> Set<AttachmentName>? {
    guard let key = keys.first(where: { config.json[$0] != nil }), let list = config.json[key] else { return nil }
    if list.isNull { return [] }
    guard let elements = list.arrayValue else { throw .config(key, "is no array") }
    var names: Set<AttachmentName> = []
    for (index, element) in elements.enumerated() {
      // Whatever is not understood here would cost a pod its network.
      guard let container = element.objectValue?.valueIgnoringCase("containerID")?.stringValue,
        let interface = element.objectValue?.valueIgnoringCase("ifname")?.stringValue
      else { throw .config("\(key)[\(index)]", "has no containerID and ifname") }
      names.insert(AttachmentName(container, interface))
    }
    return names
  }

  /// Every attachment of this network that has left a trace which can be read.
  private static func known(_ config: Config) throws(CNIError) -> Set<AttachmentName> {
    do throws(FileError) {
      let owners = try config.addresses.owners().compactMap(\.reservation)
      let records = try config.endpoints.list().records.filter { $0.network == config.name }
      return Set(owners.map { AttachmentName($0.containerID, $0.interfaceName) })
        .union(records.map { AttachmentName($0.containerID, $0.interfaceName) })
    } catch {
      throw CNIError(.io, "\(error)")
    }
  }

  /// A reservation that a full disk or a power cut has spoilt still has its attachment's hash for a name, and so has the device.
  private static func removeUnreadable(
    except valid: Set<AttachmentName>, _ config: Config, _ node: RouteSocket
  ) throws(CNIError) {
    let names = Set(valid.map(\.hash))
    do {
      for owner in try config.addresses.owners() where owner.reservation == nil && !names.contains(owner.name) {
        try node.deleteLink(named: AttachmentName.hostInterface(ofHash: owner.name))
        try node.deleteLink(named: AttachmentName.shaperInterface(ofHash: owner.name))
        try config.addresses.release(ownerName: owner.name, known: nil)
      }
    } catch {
      throw CNIError(.leftBehind, "\(error)")
    }
  }
}
