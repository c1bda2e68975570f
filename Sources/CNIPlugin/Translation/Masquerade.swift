import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// `ipMasq`: what leaves a network's subnets gets the node's address. One chain per subnet in tables of our own, `sluice-cni`;
/// like the bridge they are the network's, and GC removes them with the network's last pod.
struct Masquerade {
  /// Of all the network's chains.
  private let prefix: String

  init(network: String) { prefix = "masquerade-" + StableHash.hex128("network\0\(network)").prefix(12) + "-" }

  static func table(_ family: IPFamily) -> FilterTable {
    FilterTable(family == .v4 ? .ipv4 : .ipv6, "sluice-cni")
  }

  private func chain(_ subnet: CIDR) -> String { prefix + StableHash.hex128("\(subnet)").prefix(8) }

  func add(_ subnets: Set<CIDR>) throws {
    let filter = try FilterSocket()
    let hook = FilterHook(.nat, number: FilterHook.postRouting, priority: 100)
    for subnet in subnets {
      let table = Self.table(subnet.family)
      // Made by an earlier pod.
      if try filter.chains(in: table).contains(chain(subnet)) { continue }
      try filter.replaceChain(chain(subnet), in: table, hook: hook, rules: [Self.rule(subnet)])
    }
  }

  /// But what stays in the subnet, and multicast.
  private static func rule(_ subnet: CIDR) -> [FilterExpression] {
    let isV4 = subnet.family == .v4
    let (source, destination): (UInt32, UInt32) = isV4 ? (12, 16) : (8, 24)
    let (network, bits) = (subnet.address.bytes, mask(subnet))
    return [
      .masked(.network, offset: source, mask: bits, .equal, network),
      .masked(.network, offset: destination, mask: bits, .unequal, network),
      .masked(.network, offset: destination, mask: [isV4 ? 0xf0 : 0xff], .unequal, [isV4 ? 0xe0 : 0xff]), .counter,
      .masquerade,
    ]
  }

  private static func mask(_ subnet: CIDR) -> [UInt8] {
    (0..<subnet.family.addressBytes).map { byte in
      let bits = min(max(subnet.prefixLength - byte * 8, 0), 8)
      return UInt8(truncatingIfNeeded: 0xff00 >> bits)
    }
  }

  /// Whether something masquerades what pods of these families send.
  func isThere(_ families: Set<IPFamily>) throws -> Bool {
    let filter = try FilterSocket()
    return try families.allSatisfy { try filter.chains(in: Self.table($0)).contains { $0.hasPrefix(prefix) } }
  }

  /// Succeeds also where there is none.
  func remove() throws {
    guard let filter = try FilterSocket.whereThereIs() else { return }
    for table in IPFamily.allCases.map(Self.table) {
      for chain in try filter.chains(in: table) where chain.hasPrefix(prefix) {
        try filter.removeChain(chain, in: table)
      }
    }
  }
}
