import CLinux
import Glibc

/// Chains of nf_tables, for a program that is too small for libnftnl; the engine in NFTables uses that.
///
/// To close it takes as long as the kernel needs to forget chains that were deleted, by whomever: some 20 ms, in which nobody else can
/// change any. See `LinkRemoval`.
public final class FilterSocket: NetlinkClient, Sendable {
  private let socket: NetlinkSocket
  public var descriptorNumber: CInt { socket.descriptorNumber }

  /// In `namespace`, or the caller's own.
  public init(in namespace: NetworkNamespace? = nil) throws(SystemError) {
    socket = try NetlinkSocket(protocol: NETLINK_NETFILTER, in: namespace)
  }

  /// Whether the kernel has refused because it has no nf_tables, or no chains at devices.
  public static func meansMissing(_ error: any Error) -> Bool {
    let errno = (error as? NetlinkError)?.errno ?? (error as? SystemError)?.errno
    return [EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT].contains(errno)
  }

  /// nil where the kernel has no netfilter, and so nothing of it.
  public static func whereThereIs() throws(SystemError) -> FilterSocket? {
    do throws(SystemError) {
      return try FilterSocket()
    } catch {
      guard meansMissing(error) else { throw error }
      return nil
    }
  }

  private static func message(_ type: some BinaryInteger, _ family: FilterTable.Family, flags: CInt = 0)
    -> NetlinkMessageBuilder
  {
    let type = UInt16(truncatingIfNeeded: NFNL_SUBSYS_NFTABLES) << 8 | UInt16(truncatingIfNeeded: type)
    var message = NetlinkMessageBuilder(type: type, flags: flags)
    // struct nfgenmsg
    message.append((family.rawValue, UInt8(NFNETLINK_V0), UInt16(0)))
    return message
  }

  private func transaction(_ messages: [NetlinkMessageBuilder], _ operation: String, _ object: String)
    throws(NetlinkError)
  {
    try socket.transaction(messages, subsystem: NFNL_SUBSYS_NFTABLES, operation: operation, object: object)
  }

  // MARK: Chains

  /// Makes a chain with its rules, and its table where there is none. What a chain of that name had before is gone; for no
  /// packet there is a moment without rules.
  ///
  /// - Returns: by how many transactions.
  @discardableResult
  public func replaceChain(
    _ name: String, in table: FilterTable, hook: FilterHook, rules: [[FilterExpression]]
  ) throws(NetlinkError) -> Int {
    var make = Self.message(NFT_MSG_NEWTABLE.rawValue, table.family, flags: NLM_F_CREATE)
    make.attribute(NFTA_TABLE_NAME.rawValue, string: table.name)
    var chain = Self.chain(NFT_MSG_NEWCHAIN.rawValue, name, table, flags: NLM_F_CREATE | NLM_F_EXCL)
    chain.attribute(NFTA_CHAIN_TYPE.rawValue, string: hook.kind.rawValue)
    chain.nest(NFTA_CHAIN_HOOK.rawValue) {
      $0.attribute(NFTA_HOOK_HOOKNUM.rawValue, bigEndian: hook.number)
      $0.attribute(NFTA_HOOK_PRIORITY.rawValue, bigEndian: hook.priority)
      if let device = hook.device { $0.attribute(NFTA_HOOK_DEV.rawValue, string: device) }
    }
    let rules = rules.map { rule in
      var message = Self.message(NFT_MSG_NEWRULE.rawValue, table.family, flags: NLM_F_CREATE | NLM_F_APPEND)
      message.attribute(NFTA_RULE_TABLE.rawValue, string: table.name)
      message.attribute(NFTA_RULE_CHAIN.rawValue, string: name)
      message.nest(NFTA_RULE_EXPRESSIONS.rawValue) { message in rule.forEach { message.append($0) } }
      return message
    }
    do throws(NetlinkError) {
      try transaction([make, chain] + rules, "add chain", "\(table) \(name)")
    } catch {
      guard error.errno == EEXIST else { throw error }
      let old = Self.chain(NFT_MSG_DELCHAIN.rawValue, name, table)
      try transaction([old, chain] + rules, "replace chain", "\(table) \(name)")
    }
    return 1
  }

  /// Succeeds also where there is none; a table that had nothing else goes with it.
  ///
  /// - Returns: by how many transactions.
  @discardableResult
  public func removeChain(_ name: String, in table: FilterTable) throws(NetlinkError) -> Int {
    // Asked first: before the kernel refuses anything, it waits until it has forgotten what was deleted lately.
    let present = try chains(in: table)
    guard present.contains(name) else { return 0 }
    let chain = Self.chain(NFT_MSG_DELCHAIN.rawValue, name, table)
    let count = try succeeds([chain], "delete chain", "\(table) \(name)", unless: ENOENT)
    guard present.count == 1 else { return count }
    var whole = Self.message(NFT_MSG_DELTABLE.rawValue, table.family, flags: NLM_F_NONREC)
    whole.attribute(NFTA_TABLE_NAME.rawValue, string: table.name)
    return count + (try succeeds([whole], "delete table", "\(table)", unless: ENOENT, EBUSY))
  }

  /// The names of a table's chains; none where there is no table.
  public func chains(in table: FilterTable) throws(NetlinkError) -> [String] {
    let operation = "list chains"
    let dump = Self.message(NFT_MSG_GETCHAIN.rawValue, table.family)
    var names: [String] = []
    for message in try socket.dump(dump, operation: operation, object: "\(table)") {
      do throws(MalformedNetlink) {
        // Behind struct nfgenmsg.
        let attributes = try NetlinkAttributes(message.payload.dropFirst(4))
        guard attributes.string(NFTA_CHAIN_TABLE.rawValue) == table.name,
          let name = attributes.string(NFTA_CHAIN_NAME.rawValue)
        else { continue }
        names.append(name)
      } catch {
        throw .malformed(operation: operation, error)
      }
    }
    return names
  }

  private static func chain(_ type: some BinaryInteger, _ name: String, _ table: FilterTable, flags: CInt = 0)
    -> NetlinkMessageBuilder
  {
    var message = Self.message(type, table.family, flags: flags)
    message.attribute(NFTA_CHAIN_TABLE.rawValue, string: table.name)
    message.attribute(NFTA_CHAIN_NAME.rawValue, string: name)
    return message
  }

  /// - Returns: 0 where the kernel refuses it for one of `reasons`, else 1.
  private func succeeds(
    _ messages: [NetlinkMessageBuilder], _ operation: String, _ object: String, unless reasons: CInt...
  ) throws(NetlinkError) -> Int {
    do throws(NetlinkError) {
      try transaction(messages, operation, object)
      return 1
    } catch {
      guard let errno = error.errno, reasons.contains(errno) else { throw error }
      return 0
    }
  }
}
