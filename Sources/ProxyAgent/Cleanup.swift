import ClusterSource
import Glibc
import LocalAPI
import NFTables
import Netlink
import PodFilters

/// `sluice-agent --cleanup`: nothing of Sluice stays on the node. Pods that are attached stay attached.
enum Cleanup {
  /// Throws before anything is removed where an agent runs; else removes what it can, and throws what it could not.
  static func run(stateDir: String, runDir: String, cniConfDir: String?, bpffs: String) throws {
    try AgentLock.expectFree(runDir)
    var failures: [String] = []
    func attempt(_ what: String, _ body: () throws -> Void) {
      do { try body() } catch { failures.append("\(what): \(error)") }
    }
    do {
      var engine = try NFTablesEngine()
      try engine.cleanUp()
    } catch  where error.isAboutOwner {
      // An agent with another run directory.
      throw error
    } catch {
      failures.append("nftables: \(error)")
    }
    attempt("sockets") { try SocketLB.removeLeftOvers(bpffs) }
    attempt("sender checks") { try removeSenderChecks(below: runDir) }
    attempt("routes") {
      var routes = try NodeRoutes()
      failures += routes.removeAll()
    }
    attempt("kernel settings") { try NodeSettings(savedPath: stateDir + "/sysctls.json").restore() }
    var files = [
      (stateDir, "service-numbers"), (stateDir, "sysctls.json"), (runDir, "node.json"), (runDir, "agent.sock"),
      (runDir, "agent.lock"),
    ]
    if let cniConfDir { files.append((cniConfDir, CNIConfigFile.name)) }
    for (directory, name) in files { attempt("\(directory)/\(name)") { try remove(name, in: directory) } }
    let objects = AgentConfiguration.objectFolder(stateDir: stateDir)
    attempt(objects) { try APIServerSource.removeJournals(in: objects) }
    attempt("address reservations") { try removeUnusedNetworks(below: "\(stateDir)/networks") }
    // Only what is empty: reservations and records of pods that still run are the plugin's.
    for directory in ["\(runDir)/endpoints", runDir, "\(stateDir)/networks", objects, stateDir] { rmdir(directory) }
    guard failures.isEmpty else { throw LocalAPIRefusal(failures.joined(separator: "\n")) }
  }

  /// Those of pods that an agent looked after; a bridge's are the plugin's.
  private static func removeSenderChecks(below runDir: String) throws {
    do {
      let chains = try SenderChains()
      let devices = try EndpointRecordStore(directory: "\(runDir)/endpoints").list().records.map(\.hostInterface)
      for device in try chains.devices().intersection(devices) { try chains.remove(device: device) }
    } catch {
      guard FilterSocket.meansMissing(error) else { throw error }
    }
  }

  /// A file, and what an agent that was killed while it replaced the file left beside it.
  private static func remove(_ name: String, in directory: String) throws {
    for found in try LocalFile.names(in: directory) where found == name || found.hasPrefix(".\(name).") {
      try LocalFile.remove("\(directory)/\(found)")
    }
  }

  /// What the plugin remembers of networks in which no address is reserved any more: when which address was freed.
  private static func removeUnusedNetworks(below folder: String) throws {
    for network in try LocalFile.names(in: folder) {
      let (owners, addresses) = ("\(folder)/\(network)/owners", "\(folder)/\(network)/addresses")
      guard try LocalFile.names(in: owners).isEmpty, try LocalFile.names(in: addresses).isEmpty else { continue }
      let released = "\(folder)/\(network)/released"
      for name in try LocalFile.names(in: released) { try LocalFile.remove("\(released)/\(name)") }
      for directory in [owners, addresses, released, "\(folder)/\(network)"] { rmdir(directory) }
    }
  }
}
