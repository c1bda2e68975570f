import Logging
import NFTables
import Netlink
import NetworkTypes

/// What kube-proxy left, or has, in the kernel of this node: two proxies on one node answer for the same addresses.
struct KubeProxyRemains {
  let mayBeRemoved: Bool
  let logger: Logger

  struct Found {
    fileprivate var tables: KubeProxyTables.Remains
    /// What stands for it all: `table ip kube-proxy`.
    var names: [String]
    /// Of its IPVS mode, which `remove` does not know.
    var hasVirtualServers: Bool
    var isEmpty: Bool { names.isEmpty }
  }

  /// On which its IPVS mode has the addresses of Services.
  private static let virtualServerDevice = "kube-ipvs0"

  static func find() throws -> Found {
    let tables = try KubeProxyTables().find()
    let legacy = try IPFamily.allCases.flatMap { try LegacyTables(family: $0).kubeProxyChains() }
    let hasDevice = try RouteSocket().links().contains { $0.name == virtualServerDevice }
    return Found(
      tables: tables, names: tables.names + legacy + (hasDevice ? ["device \(virtualServerDevice)"] : []),
      hasVirtualServers: hasDevice)
  }

  /// What there is and may be removed; nil: nothing.
  func removable() throws -> Found? {
    guard mayBeRemoved else { return nil }
    let found = try Self.find()
    return found.isEmpty ? nil : found
  }

  /// Removes its rules. Connections that conntrack translates by them go on. What cannot be removed is told of, and may be
  /// tried again: who serves beside them serves all the same.
  func remove(_ found: Found?) {
    guard let found else { return }
    do {
      try KubeProxyTables().remove(found.tables)
      for family in IPFamily.allCases { try LegacyTables(family: family).removeKubeProxy() }
      logger.notice("rules of kube-proxy removed", metadata: ["objects": "\(found.names.joined(separator: ", "))"])
    } catch {
      logger.error("rules of kube-proxy cannot be removed, it will be tried again", metadata: ["error": "\(error)"])
    }
  }
}
