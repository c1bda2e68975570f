import LocalAPI
import Logging
import NFTables
import Netlink
import PodFilters

/// What pods claim by ARP and neighbour discovery. The eBPF engine's programs see each frame, so they look themselves; the nftables
/// engine sees IP packets, so each pod's device has a chain besides.
extension Reconciler {
  /// Before the pod's device comes up.
  func checkSender(of record: EndpointRecord) throws {
    guard configuration.engine == .nftables else { return }
    try changeSenderChains { chains throws(NetlinkError) in
      try chains.install(
        SenderCheck(
          device: record.hostInterface, mac: record.mac, addresses: record.addresses, leavesPacketsToEngine: true))
    }
  }

  /// The engine may have been another when the pod came. Since Linux 6.16 a chain outlives its device.
  func forgetSender(device: String) throws {
    try changeSenderChains { chains throws(NetlinkError) in try chains.remove(device: device) }
  }

  /// Adds what somebody has taken away, or no agent has made yet, and removes what has no device.
  func restoreSenderChecks() {
    do {
      guard let present = try senderChains?.devices() else { return }
      let devices = try Set(addresses.links().map(\.name))
      for device in present where !devices.contains(device) { try forgetSender(device: device) }
      guard configuration.engine == .nftables else { return }
      for record in endpoints.values where !present.contains(record.hostInterface) {
        logger.info("sender check added", metadata: ["interface": "\(record.hostInterface)"])
        try checkSender(of: record)
      }
    } catch {
      logger.warning("claims by ARP and neighbour discovery are not checked", metadata: ["reason": "\(error)"])
    }
  }

  private func changeSenderChains(_ change: (SenderChains) throws(NetlinkError) -> Int) throws {
    guard let senderChains else { return }
    do throws(NetlinkError) {
      // Or the engine would take it for somebody else's change, and look whether its tables are as they were.
      engine.noteOwnTransactions(try change(senderChains))
    } catch {
      guard FilterSocket.meansMissing(error) else { throw error }
      if !senderWarned {
        logger.warning("no chains at devices in this kernel: ARP is not checked", metadata: ["reason": "\(error)"])
      }
      senderWarned = true
    }
  }
}
