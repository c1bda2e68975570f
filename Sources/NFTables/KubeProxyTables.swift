import CLibMNL
import CLibNFTNL
import Glibc
import NetworkTypes

/// What kube-proxy has in nf_tables of the network namespace this was made in: tables of its own in its nftables mode, chains
/// in the tables of iptables-nft in its iptables mode.
public struct KubeProxyTables: ~Copyable {
  private let connection: Connection

  public init() throws(NFTablesError) { connection = try Connection() }

  public struct Remains: Sendable, Equatable {
    fileprivate var tables: [IPFamily] = []
    fileprivate var chains: [Chain] = []
    /// Rules in chains of others that lead to those.
    fileprivate var rules: [Rule] = []

    public var isEmpty: Bool { tables.isEmpty && chains.isEmpty }

    /// What stands for the rest, by name: `table ip kube-proxy`, `chain ip nat KUBE-SERVICES`.
    public var names: [String] {
      tables.map { "table \($0.tableFamily) \(KubeProxyTables.tableName)" }
        + chains.filter { KubeProxyChain.isRoot($0.name) }.map(\.description)
    }
  }

  fileprivate struct Chain: Sendable, Equatable, CustomStringConvertible {
    var family: IPFamily
    var table: String
    var name: String
    var description: String { "chain \(family.tableFamily) \(table) \(name)" }
  }

  fileprivate struct Rule: Sendable, Equatable {
    var chain: Chain
    var handle: UInt64
  }

  fileprivate static let tableName = "kube-proxy"

  /// Finds all of it.
  public func find() throws(NFTablesError) -> Remains {
    var remains = Remains()
    for family in IPFamily.allCases {
      if try connection.tableNames(family).contains(Self.tableName) { remains.tables.append(family) }
      remains.chains += try chains(family)
    }
    // Nobody's rules are read where nobody has such chains.
    for family in Set(remains.chains.map(\.family)) { remains.rules += try leadingRules(family) }
    return remains
  }

  /// Removes it in one transaction. What conntrack knows of its flows goes on for as long as anybody has a nat chain.
  public func remove(_ remains: Remains) throws(NFTablesError) {
    guard !remains.isEmpty else { return }
    try connection.commit { batch in batch.remove(remains) }
  }

  private func chains(_ family: IPFamily) throws(NFTablesError) -> [Chain] {
    var chains: [Chain] = []
    try connection.request(Int(NFT_MSG_GETCHAIN.rawValue), family: family.nfproto, dump: true, attributes: []) {
      message in
      guard let object = nftnl_chain_alloc() else { return }
      defer { nftnl_chain_free(object) }
      guard nftnl_chain_nlmsg_parse(message.header, object) == 0,
        let table = nftnl_chain_get_str(object, UInt16(NFTNL_CHAIN_TABLE.rawValue)),
        let name = nftnl_chain_get_str(object, UInt16(NFTNL_CHAIN_NAME.rawValue))
      else { return }
      let chain = Chain(family: family, table: String(cString: table), name: String(cString: name))
      // In its own table none is called so.
      if KubeProxyChain.isOne(chain.name) { chains.append(chain) }
    }
    return chains
  }

  private func leadingRules(_ family: IPFamily) throws(NFTablesError) -> [Rule] {
    var rules: [Rule] = []
    try connection.request(Int(NFT_MSG_GETRULE.rawValue), family: family.nfproto, dump: true, attributes: []) {
      message in
      guard let rule = nftnl_rule_alloc() else { return }
      defer { nftnl_rule_free(rule) }
      guard nftnl_rule_nlmsg_parse(message.header, rule) == 0,
        let table = nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_TABLE.rawValue)),
        let name = nftnl_rule_get_str(rule, UInt16(NFTNL_RULE_CHAIN.rawValue)),
        !KubeProxyChain.isOne(String(cString: name)), Self.targets(of: rule).contains(where: KubeProxyChain.isOne)
      else { return }
      let chain = Chain(family: family, table: String(cString: table), name: String(cString: name))
      rules.append(Rule(chain: chain, handle: nftnl_rule_get_u64(rule, UInt16(NFTNL_RULE_HANDLE.rawValue))))
    }
    return rules
  }

  /// The chains that a rule jumps or goes to.
  private static func targets(of rule: OpaquePointer) -> [String] {
    guard let iterator = nftnl_expr_iter_create(rule) else { return [] }
    defer { nftnl_expr_iter_destroy(iterator) }
    var targets: [String] = []
    while let expression = nftnl_expr_iter_next(iterator) {
      guard let name = nftnl_expr_get_str(expression, UInt16(NFTNL_EXPR_NAME)),
        String(cString: name) == "immediate", nftnl_expr_is_set(expression, UInt16(NFTNL_EXPR_IMM_CHAIN)),
        let chain = nftnl_expr_get_str(expression, UInt16(NFTNL_EXPR_IMM_CHAIN))
      else { continue }
      targets.append(String(cString: chain))
    }
    return targets
  }
}

/// The names that kube-proxy's chains have in its iptables mode, by nf_tables or not
/// (kubernetes/kubernetes, pkg/proxy/iptables). The kubelet's are others: KUBE-FIREWALL, KUBE-KUBELET-CANARY.
public enum KubeProxyChain {
  /// Where packets come in.
  private static let roots: Set<String> = ["KUBE-SERVICES", "KUBE-NODEPORTS"]
  private static let names: Set<String> = roots.union([
    "KUBE-EXTERNAL-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
  ])
  /// Of a port's Service: its backends, those of this node, who comes from outside, source ranges; of a backend.
  private static let prefixes = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-"]

  public static func isRoot(_ name: String) -> Bool { roots.contains(name) }

  public static func isOne(_ name: String) -> Bool { names.contains(name) || prefixes.contains { name.hasPrefix($0) } }
}

extension Batch {
  fileprivate mutating func remove(_ remains: KubeProxyTables.Remains) {
    for family in remains.tables {
      let name = KubeProxyTables.tableName
      message(
        Int(NFT_MSG_DELTABLE.rawValue), family: family, flags: 0, object: "table \(family.tableFamily) \(name)"
      ) { mnl_attr_put_strz($0, UInt16(NFTA_TABLE_NAME.rawValue), name) }
    }
    // What leads to a chain goes first, then what chains have of one another.
    for rule in remains.rules { deleteRules(rule.chain, handle: rule.handle) }
    for chain in remains.chains { deleteRules(chain, handle: nil) }
    for chain in remains.chains {
      message(Int(NFT_MSG_DELCHAIN.rawValue), family: chain.family, flags: 0, object: "\(chain)") { header in
        mnl_attr_put_strz(header, UInt16(NFTA_CHAIN_TABLE.rawValue), chain.table)
        mnl_attr_put_strz(header, UInt16(NFTA_CHAIN_NAME.rawValue), chain.name)
      }
    }
  }

  /// One rule of a chain, or all.
  private mutating func deleteRules(_ chain: KubeProxyTables.Chain, handle: UInt64?) {
    message(Int(NFT_MSG_DELRULE.rawValue), family: chain.family, flags: 0, object: "rules of \(chain)") { header in
      mnl_attr_put_strz(header, UInt16(NFTA_RULE_TABLE.rawValue), chain.table)
      mnl_attr_put_strz(header, UInt16(NFTA_RULE_CHAIN.rawValue), chain.name)
      if let handle { mnl_attr_put_u64(header, UInt16(NFTA_RULE_HANDLE.rawValue), handle.bigEndian) }
    }
  }
}
