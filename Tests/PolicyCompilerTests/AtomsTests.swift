import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@Suite("Address spaces and their indexes") struct AtomsTests {
  @Test("an index of addresses finds by address and by range what a list finds", arguments: IPFamily.allCases)
  func index(family: IPFamily) throws {
    var index = AddressIndex(family)
    var truth: [IPAddress: CellID] = [:]
    var random = SystemRandomNumberGenerator()
    let base = try #require(IPAddress(family == .v4 ? "10.0.0.0" : "fd00::")).number
    // Few pages, the last one of the space among them.
    let end = UInt128.max >> UInt128(128 - family.addressBits)
    func address() -> IPAddress? {
      let number = UInt128.random(in: 0..<700, using: &random)
      return IPAddress(family: family, number: Bool.random(using: &random) ? base + number : end - number)
    }
    for step in 0..<3000 {
      let changed = try #require(address())
      if Int.random(in: 0..<3, using: &random) == 0 {
        index.remove(changed)
        truth[changed] = nil
      } else {
        let cell = CellID(rawValue: Int32.random(in: 0..<50, using: &random))
        index.set(changed, cell)
        truth[changed] = cell
      }
      #expect(index.count == truth.count && index[changed] == truth[changed])
      guard step % 10 == 0 else { continue }
      let (one, other) = (try #require(address()), try #require(address()))
      let range = try #require(AddressRange(first: min(one, other), last: max(one, other)))
      let expected = truth.filter { range.contains($0.key) }
      var found: [IPAddress: CellID] = [:]
      index.forEach(in: range) { found[$0] = $1 }
      #expect(found == expected && index.count(in: range) == expected.count, "\(range)")
    }
    for address in truth.keys { index.remove(address) }
    #expect(index.count == 0)
  }

  /// ::ffff:0:0/96 is no part of IPv6: a block that begins or ends there ends before or begins behind.
  @Test(
    "a block at the edge of the IPv4-mapped range leaves no hole",
    arguments: ["::/80", "::/0 without ::/80", "::1:0:0:0/80", "::fffe:0:0/95"])
  func mapped(text: String) throws {
    let parts = text.split(separator: " ").compactMap { CIDR($0) }
    let block = IPBlock(cidr: try #require(parts.first), except: Array(parts.dropFirst()))
    var cluster = SmallCluster()
    cluster.apply(cluster.pod("shop/api", isHere: true))
    for _ in 0..<2 {
      cluster.apply(SmallCluster.policy("shop/p", egress: [NetworkPolicyRule(peers: [.ipBlock(block)])]))
      let local = try #require(cluster.address("shop/api", .v6))
      for peer in ["::1", "::fffe:ffff:ffff", "::1:0:0:0", "::2:0:0:0", "2001:db8::1"].compactMap({ IPAddress($0) }) {
        let isIn = block.cidr.contains(peer) && !block.except.contains { $0.contains(peer) }
        let packet = PolicyPacket(origin: .pod, source: local, destination: peer, proto: 6, destinationPort: 80)
        #expect(cluster.tables.identities.identity(of: peer) != nil, "\(peer)")
        #expect(cluster.tables.judge(packet).isAllowed == isIn, "\(peer)")
      }
      cluster.delete(.networkPolicy, "shop/p")
      cluster.wait(.zero)
      // fd00:1::/64 and fd00:2::/64, and what is beside them.
      #expect(cluster.tables.identities.blocks[.v6]?.atoms.count == 5)
    }
  }
}
