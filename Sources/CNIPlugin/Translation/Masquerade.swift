import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// `ipMasq`: what leaves a network's subnets gets the node's address. One chain per network and family in tables of our own,
/// `sluice-cni`; like the bridge it is the network's, and GC removes it with the network's last pod.
struct Masquerade {
  private let chain: String

  init(network: String) { chain = "masquerade-" + StableHash.hex128("network\0\(network)").prefix(12) }

  static func table(_ family: IPFamily) -> FilterTable {
    FilterTable(family == .v4 ? .ipv4 : .ipv6, "sluice-cni")
  }

  func add(_ subnets: Set<CIDR>) throws {
    let filter = try FilterSocket()
    for family in IPFamily.allCases {
      let table = Self.table(family)
      let mine = subnets.filter { $0.family == family }
      // Made by an earlier pod.
      guard !mine.isEmpty, try !filter.chains(in: table).contains(chain) else { continue }
      let multicast: UInt8 = family == .v4 ? 0xe0 : 0xff
      let mask: UInt8 = family == .v4 ? 0xf0 : 0xff
      let (source, destination): (UInt32, UInt32) = family == .v4 ? (12, 16) : (8, 24)
      try filter.replaceChain(
        chain, in: table, hook: FilterHook(.nat, number: FilterHook.postRouting, priority: 100),
        rules: mine.sorted { $0.description < $1.description }.map { subnet in
          let (network, bits) = (subnet.address.bytes, Self.mask(subnet))
          return [
            .masked(.network, offset: source, mask: bits, .equal, network),
            .masked(.network, offset: destination, mask: bits, .unequal, network),
            .masked(.network, offset: destination, mask: [mask], .unequal, [multicast]), .counter, .masquerade,
          ]
        })
    }
  }

  private static func mask(_ subnet: CIDR) -> [UInt8] {
    (0..<subnet.family.addressBytes).map { byte in
      let bits = min(max(subnet.prefixLength - byte * 8, 0), 8)
      return UInt8(truncatingIfNeeded: 0xff00 >> bits)
    }
  }

  func isThere() throws -> Bool {
    let filter = try FilterSocket()
    return try IPFamily.allCases.contains { try filter.chains(in: Self.table($0)).contains(chain) }
  }

  /// Succeeds also where there is none.
  func remove() throws {
    let filter = try FilterSocket()
    for family in IPFamily.allCases where try filter.chains(in: Self.table(family)).contains(chain) {
      try filter.removeChain(chain, in: Self.table(family))
    }
  }
}
