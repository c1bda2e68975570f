@testable import DataplaneModel
import NetworkTypes
import Testing

/// Which backend's slot a client's flow falls into.
@Suite("Maglev tables")
struct MaglevTableTests {
  private static func backends(_ numbers: some Sequence<Int>) throws -> [SocketAddress] {
    try numbers.map { SocketAddress(IPAddress(v4: 0x0af4_0000 + UInt32($0)), try port(8080)) }
  }

  /// Whose the slots are, by the backends' last numbers.
  private static func owners(_ numbers: some Sequence<Int>) throws -> [Int] {
    let set = BackendSet(backends: try backends(numbers), emptyAction: .reject, isHashed: true)
    return set.slots.map { Int($0.address.number & 0xffff) }
  }

  // By another implementation of lookup3; that of the kernel speaks in the engines' tests.
  @Test("the hash of words is lookup3's")
  func hash() {
    #expect(JenkinsHash.hash([], seed: 0) == 0xdead_beef)
    #expect(JenkinsHash.hash([1], seed: 0) == 0x72a8_2a9b)
    #expect(JenkinsHash.hash([1, 2, 3], seed: 7) == 0xfbd6_12ad)
    #expect(JenkinsHash.hash([1, 2, 3, 4, 5], seed: 0x534c_5543) == 0xaf75_1a82)
  }

  @Test("every backend has its share of slots, within two per cent", arguments: [1, 2, 3, 7, 20, 40])
  func shares(_ count: Int) throws {
    let owners = try Self.owners(0..<count)
    #expect(owners.count == 4093)
    let shares = Dictionary(grouping: owners, by: { $0 }).mapValues(\.count)
    #expect(shares.count == count)
    // Each takes a slot in turn: they differ by one.
    #expect((shares.values.max() ?? 0) - (shares.values.min() ?? 0) <= 1, "\(shares)")
  }

  @Test("a table is of its members, in whatever order they are told")
  func order() throws {
    #expect(try Self.owners([3, 1, 2, 9]) == Self.owners([9, 2, 3, 1]))
    let set = BackendSet(backends: try Self.backends([3, 1, 2]), emptyAction: .reject, isHashed: true)
    #expect(set.withSlots(following: try Self.backends([1, 2, 3, 4])) == set)
    #expect(set.slots.indices.allSatisfy { set.backend(ofSlot: $0) == set.slots[$0] })
  }

  @Test("where one of 20 goes, of the others' slots few move", arguments: 0..<20)
  func disruption(_ leaving: Int) throws {
    let before = try Self.owners(0..<20)
    let after = try Self.owners((0..<20).filter { $0 != leaving })
    let others = zip(before, after).filter { $0.0 != leaving }
    let moved = others.count { $0.0 != $0.1 }
    #expect(Double(moved) / Double(others.count) < 0.05, "\(moved) of \(others.count)")
  }

  @Test("clients spread over the slots, in both families")
  func clients() throws {
    for text in ["192.0.2.1", "2001:db8::1"] {
      let client = try #require(IPAddress(text))
      var counts = [Int](repeating: 0, count: 16)
      for port in UInt16(1024)...65000 {
        let slot = MaglevTable.slot(client: client, port: port)
        try #require((0..<MaglevTable.size).contains(slot))
        counts[slot * 16 / MaglevTable.size] += 1
      }
      #expect(counts.allSatisfy { (3700...4300).contains($0) }, "\(counts)")
    }
  }

  @Test("sets without a backend, or with more than slots, have no table")
  func bounds() throws {
    #expect(BackendSet(backends: [], emptyAction: .drop, isHashed: true).maglev == nil)
    let many = BackendSet(backends: try Self.backends(0..<4094), emptyAction: .drop, isHashed: true)
    #expect(many.maglev == nil && many.slotCount == 4094)
    let most = BackendSet(backends: try Self.backends(0..<4093), emptyAction: .drop, isHashed: true)
    #expect(Set(most.slots).count == 4093)
  }
}
