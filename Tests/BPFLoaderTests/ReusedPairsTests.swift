import DataplaneModel
import NetworkTypes
import Testing

@testable import BPFLoader

/// Which pairs have to go before anything else when an agent finds the maps of another time.
@Suite("Pairs of another time") struct ReusedPairsTests {
  private static func pair(_ subject: UInt32, _ identity: UInt32) -> PairKeyLayout {
    var key = PairKeyLayout()
    (key.subject, key.identity) = (subject, identity)
    return key
  }
  private static let client = AddressLayout(ip("10.244.0.7"))
  private static let block = RangeKeyLayout(table: 3, CIDR("192.0.2.0/24").unsafelyUnwrapped)

  private static func table(_ subject: UInt32, _ identity: UInt32, block number: UInt32 = 9) -> PacketTable {
    var table = PacketTable()
    table.identities[client] = identity
    table.blocks[block] = number
    for other in [identity, number] { table.pairs[pair(subject, other)] = PairLayout() }
    return table
  }

  @Test("not those that a pod's peers are still asked for by: their numbers stand for the same addresses")
  func sameAddresses() {
    // Another policy selects the pod: another subject, whose pairs the pod does not have yet.
    let (found, wanted) = (Self.table(1, 5), Self.table(2, 5))
    #expect(PacketTable.reusedPairs(found, wanted) == [])
    // The same blocks in another table.
    var renumbered = wanted
    renumbered.blocks = [RangeKeyLayout(table: 4, CIDR("192.0.2.0/24").unsafelyUnwrapped): 9]
    #expect(PacketTable.reusedPairs(found, renumbered) == [])
  }

  @Test("those of a number that another address or range gets")
  func otherAddresses() {
    let found = Self.table(1, 5)
    var wanted = Self.table(2, 5)
    wanted.identities[AddressLayout(ip("10.244.0.8"))] = 5
    #expect(PacketTable.reusedPairs(found, wanted) == [Self.pair(1, 5)])
    wanted = Self.table(2, 5)
    wanted.blocks[RangeKeyLayout(table: 3, CIDR("198.51.100.0/24").unsafelyUnwrapped)] = 9
    #expect(PacketTable.reusedPairs(found, wanted) == [Self.pair(1, 9)])
    // What is wanted too stays.
    wanted.pairs[Self.pair(1, 9)] = PairLayout()
    #expect(PacketTable.reusedPairs(found, wanted) == [])
  }
}
