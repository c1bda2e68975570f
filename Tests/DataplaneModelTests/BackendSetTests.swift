import DataplaneModel
import NetworkTypes
import Testing

/// Which slot a backend takes when a set changes: what decides how many kernel entries, and flows, a change touches.
@Suite("Slots of a backend set")
struct BackendSetTests {
  private static func addresses(_ numbers: some Sequence<Int>) throws -> [SocketAddress] {
    try numbers.map { SocketAddress(IPAddress(v4: 0x0af4_0000 + UInt32($0)), try port(8080)) }
  }

  private static func slots(_ wanted: [Int], following previous: [Int]) throws -> [Int] {
    let set = BackendSet(backends: try addresses(wanted), emptyAction: .reject)
    return try set.withSlots(following: addresses(previous)).backends.map { Int($0.address.number & 0xffff) }
  }

  @Test(
    "a leaving backend's slot goes to a new one, else to one from the end",
    arguments: [
      (wanted: [1, 2, 3], previous: [Int](), expected: [1, 2, 3]),
      ([1, 2, 3], [3, 1, 2], [3, 1, 2]),
      ([1, 2, 3, 4], [3, 1, 2], [3, 1, 2, 4]),
      ([0, 1, 2, 3], [3, 1, 2], [3, 1, 2, 0]),
      ([2, 3, 4], [1, 2, 3, 4], [4, 2, 3]),
      ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3]),
      ([1, 4], [1, 2, 3, 4], [1, 4]),
      ([1], [1, 2, 3, 4], [1]),
      ([4], [1, 2, 3, 4], [4]),
      ([], [1, 2], []),
      ([1, 3, 9], [1, 2, 3], [1, 9, 3]),
      ([7, 8, 9], [1, 2, 3], [7, 8, 9]),
      ([7, 8, 9], [1], [7, 8, 9]),
      ([9], [1, 2, 3], [9]),
    ])
  func examples(_ wanted: [Int], _ previous: [Int], _ expected: [Int]) throws {
    #expect(try Self.slots(wanted, following: previous) == expected)
  }

  @Test(
    "no member is lost or doubled, and exactly the slots of those that left change",
    arguments: [1, UInt64.random(in: 0 ... .max)])
  func properties(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    for round in 0..<2000 {
      let pool = Array(0..<Int.random(in: 1...12, using: &random))
      func some() -> [Int] {
        Array(pool.shuffled(using: &random).prefix(Int.random(in: 0...pool.count, using: &random)))
      }
      let (previous, wanted) = (some(), some())
      let result = try Self.slots(wanted, following: previous)
      let about: Comment = "seed \(seed), round \(round): \(wanted) following \(previous) became \(result)"
      #expect(result.sorted() == wanted.sorted(), about)
      for (slot, (old, new)) in zip(previous, result).enumerated() {
        // Neither more nor fewer: who stays where there still is a slot keeps it.
        #expect((old != new) == !wanted.contains(old), "slot \(slot), \(about)")
      }
    }
  }

  @Test("everything but the order stays as it is")
  func otherFields() throws {
    func set(_ numbers: [Int]) throws -> BackendSet {
      BackendSet(
        backends: try Self.addresses(numbers), emptyAction: .drop, affinityTimeout: 77,
        draining: try Self.addresses([5]))
    }
    let (set, expected) = (try set([1, 2]), try set([2, 1]))
    #expect(try set.withSlots(following: Self.addresses([2, 3, 1])) != set)
    #expect(try set.withSlots(following: Self.addresses([2, 1])) == expected)
  }

  @Test(
    "service numbers are 1 to 2^28 - 1",
    arguments: [(0, false), (1, true), (0xfff_ffff, true), (0x1000_0000, false), (-1, false)])
  func numbers(_ number: Int, _ isValid: Bool) {
    #expect((ServicePortID(number) != nil) == isValid)
  }
}
