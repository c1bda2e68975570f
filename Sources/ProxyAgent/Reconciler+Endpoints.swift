import Glibc
import LocalAPI
import Logging
import Netlink

/// Attachments that the plugin has written down, and what becomes of those that nobody takes down.
extension Reconciler {
  /// Reads the endpoint records that earlier agents and the plugin left; those of dead namespaces are dropped.
  func loadEndpoints() {
    do {
      let listing = try records.list()
      for (path, reason) in listing.unreadable {
        logger.warning("endpoint record ignored", metadata: ["file": "\(path)", "reason": "\(reason)"])
      }
      for record in listing.records {
        // Gone for certain: where the kernel cannot be asked, the pod is taken to be there.
        if case .success(nil) = Result(catching: { try addresses.link(named: record.hostInterface) }) {
          logger.info("endpoint is gone", metadata: ["interface": "\(record.hostInterface)"])
          try? records.remove(
            network: record.network, containerID: record.containerID, interfaceName: record.interfaceName)
          continue
        }
        endpoints[record.fileName] = record
      }
    } catch {
      logger.error("endpoint records cannot be read", metadata: ["error": "\(error)"])
    }
  }

  /// Takes down what is left of pods whose devices are gone: runtimes may kill the plugin at any point, and need not send a
  /// DEL, nor another one after a failure. What another plugin gave an address is told by DEL and GC only.
  ///
  /// The device is the witness, not the namespace's path: an agent in a container does not see that.
  func forgetDeadEndpoints() {
    guard let devices = try? Set(addresses.links().map(\.name)) else { return }
    for record in endpoints.values where !devices.contains(record.hostInterface) {
      logger.info("endpoint is gone", metadata: ["interface": "\(record.hostInterface)"])
      do {
        try unpublish(containerID: record.containerID, interfaceName: record.interfaceName)
        try records.remove(
          network: record.network, containerID: record.containerID, interfaceName: record.interfaceName)
        try removeDevices(ofHash: AttachmentName(record.containerID, record.interfaceName).hash)
      } catch {
        logger.warning("endpoint cannot be taken down", metadata: ["reason": "\(error)"])
      }
    }
    do {
      for record in try records.list().records where endpoints[record.fileName] == nil {
        let name = AttachmentName(record.containerID, record.interfaceName)
        guard isLeft(record.createdAt, device: record.hostInterface, devices) else { continue }
        try records.remove(
          network: record.network, containerID: record.containerID, interfaceName: record.interfaceName)
        try removeDevices(ofHash: name.hash)
      }
      for store in try AddressStore.all(stateDirectory: configuration.stateDir) { try release(store, devices) }
    } catch {
      logger.warning("what dead pods have left cannot be removed", metadata: ["reason": "\(error)"])
    }
  }

  private func release(_ store: AddressStore, _ devices: Set<String>) throws {
    for (hash, reservation) in try store.owners() {
      guard let reservation,
        isLeft(reservation.createdAt, device: AttachmentName.hostInterface(ofHash: hash), devices)
      else { continue }
      try removeDevices(ofHash: hash)
      guard reservation.ipamPlugin == nil else { continue }
      try store.release(ownerName: hash, known: reservation)
      logger.info(
        "addresses released: the pod is gone",
        metadata: ["network": "\(reservation.network)", "container": "\(reservation.containerID)"])
    }
  }

  /// What there was besides the pod's device.
  private func removeDevices(ofHash hash: String) throws {
    try addresses.deleteLink(named: AttachmentName.shaperInterface(ofHash: hash))
    try forgetSender(device: AttachmentName.hostInterface(ofHash: hash))
  }

  /// An ADD reserves first and makes its device a moment later: without a device it was killed, or has just begun. What was made
  /// in the future was made before the clock was set back.
  private func isLeft(_ createdAt: Int64, device: String, _ devices: Set<String>) -> Bool {
    guard !devices.contains(device), abs(time(nil) - Int(createdAt)) > Self.attachmentSeconds else { return false }
    // Asked again: since the devices were listed it may have been made.
    if case .success(nil) = Result(catching: { try addresses.link(named: device) }) { return true }
    return false
  }

  /// Longer than any ADD needs from its reservation to its device.
  private static let attachmentSeconds = 120
}
