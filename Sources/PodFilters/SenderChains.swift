import Netlink

/// The chains of `SenderCheck`s: one for each pod's device, in a table of their own that both the plugin and the agent write to.
/// Who has an agent leaves them to it: it has the socket open all the time.
public struct SenderChains: Sendable {
  public static let table = FilterTable(.netdev, "sluice-cni")

  public let filter: FilterSocket

  /// Throws where the kernel has no netfilter: see `FilterSocket.meansMissing`.
  public init() throws(SystemError) { filter = try FilterSocket() }

  public init(_ filter: FilterSocket) { self.filter = filter }

  /// - Returns: by how many transactions.
  @discardableResult
  public func install(_ check: SenderCheck) throws(NetlinkError) -> Int {
    // Before chains of others at this device, as these could change what is asked for.
    let hook = FilterHook(.filter, number: FilterHook.deviceIngress, priority: -500, device: check.device)
    return try filter.replaceChain(check.device, in: Self.table, hook: hook, rules: check.rules)
  }

  /// Succeeds also where there is none.
  ///
  /// - Returns: by how many transactions.
  @discardableResult
  public func remove(device: String) throws(NetlinkError) -> Int { try filter.removeChain(device, in: Self.table) }

  /// Those that have one.
  public func devices() throws(NetlinkError) -> Set<String> { Set(try filter.chains(in: Self.table)) }
}
