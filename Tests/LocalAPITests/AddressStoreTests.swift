import Glibc
import NetworkTypes
import Synchronization
import Testing

@testable import LocalAPI

@Suite("Address store")
struct AddressStoreTests {
  private let folder: TemporaryFolder
  private let clock = Clock()

  init() throws { folder = try TemporaryFolder() }

  final class Clock: Sendable {
    let milliseconds = Atomic<Int64>(1_700_000_000_000)
  }

  /// Who holds what, as the threads of one test see it.
  final class Ledger: Sendable {
    let held = Mutex<Set<IPAddress>>([])
    let exhausted = Atomic<Int>(0)
  }

  private func store() -> AddressStore {
    let clock = clock
    return AddressStore(stateDirectory: folder.path, network: "net") {
      clock.milliseconds.load(ordering: .relaxed)
    }
  }

  private func pass(seconds: Int64) { clock.milliseconds.add(seconds * 1000, ordering: .relaxed) }

  private func owner(_ containerID: String) -> AddressReservation {
    AddressReservation(
      network: "net", containerID: containerID, interfaceName: "eth0", netnsPath: "/run/netns/\(containerID)",
      netnsInode: 1, bootID: "b", createdAt: 0)
  }

  private func pool(_ text: String) throws -> AddressPool {
    let cidr = try #require(CIDR(text))
    let range = try #require(AddressPool.usableRange(of: cidr))
    return try #require(AddressPool([range]))
  }

  @Test("takes one address of each pool, lowest first, and remembers whose they are")
  func reserve() throws {
    let pools = [try pool("10.0.0.0/24"), try pool("fd00::/64")]
    #expect(try store().reserve(owner("a"), from: pools).map(\.description) == ["10.0.0.1", "fd00::1"])
    #expect(try store().reserve(owner("b"), from: pools).map(\.description) == ["10.0.0.2", "fd00::2"])
    #expect(
      try store().addresses(containerID: "b", interfaceName: "eth0").map(\.description) == ["10.0.0.2", "fd00::2"])
    #expect(try store().reservations().map(\.owner?.containerID) == ["a", "b", "a", "b"])
    #expect(throws: AddressStoreError.held) { try store().reserve(owner("a"), from: pools) }
    #expect(try store().addresses(containerID: "nobody", interfaceName: "eth0").isEmpty)
  }

  @Test("uses a freed address again only after the others, the one freed longest ago first")
  func oldestFirst() throws {
    let pool = try pool("10.0.0.0/29")
    for name in ["a", "b", "c", "d"] { _ = try store().reserve(owner(name), from: [pool]) }
    for name in ["c", "a", "b"] {
      try store().release(containerID: name, interfaceName: "eth0")
      pass(seconds: 1)
    }
    pass(seconds: 60)
    let order = try ["e", "f", "g", "h", "i"].map { try store().reserve(owner($0), from: [pool])[0].description }
    #expect(order == ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1", "10.0.0.2"])
    #expect(throws: AddressStoreError.exhausted(pool: "10.0.0.1-10.0.0.6")) {
      try store().reserve(owner("j"), from: [pool])
    }
    #expect(try LocalFile.names(in: store().directory + "/released").isEmpty)
  }

  @Test("lets a freed address rest for 30 seconds, unless there is no other")
  func floor() throws {
    let pool = try pool("10.0.0.0/31")
    _ = try store().reserve(owner("a"), from: [pool])
    try store().release(containerID: "a", interfaceName: "eth0")
    #expect(try store().reserve(owner("b"), from: [pool])[0].description == "10.0.0.1")
    // Nothing else is left.
    #expect(try store().reserve(owner("c"), from: [pool])[0].description == "10.0.0.0")
  }

  @Test("uses a large range in turn, and keeps few files of what was freed")
  func window() throws {
    let pool = try pool("fd00::/64")
    for round in 0..<600 {
      let name = "c\(round)"
      let address = try store().reserve(owner(name), from: [pool])[0]
      try store().release(containerID: name, interfaceName: "eth0")
      pass(seconds: 1)
      #expect(address.number & 0xffff == UInt128(round % AddressStore.smallestWindow + 1))
    }
    #expect(try LocalFile.names(in: store().directory + "/released").count <= AddressStore.smallestWindow)
  }

  @Test("gives a requested address or none")
  func requested() throws {
    let pools = [try pool("10.0.0.0/24"), try pool("fd00::/64")]
    let wish = try #require(IPAddress("10.0.0.77"))
    #expect(
      try store().reserve(owner("a"), from: pools, requested: [wish]).map(\.description) == ["10.0.0.77", "fd00::1"])
    #expect(throws: AddressStoreError.taken(wish, by: owner("a"))) {
      try store().reserve(owner("b"), from: pools, requested: [wish])
    }
    // Nothing of the failed attempt is left.
    #expect(!store().holds(containerID: "b", interfaceName: "eth0"))
    #expect(try store().reservations().count == 2)
    let outside = try #require(IPAddress("10.0.1.1"))
    #expect(throws: AddressStoreError.outside(outside)) {
      try store().reserve(owner("b"), from: pools, requested: [outside])
    }
  }

  @Test("a failure in the second pool gives the first pool's address back")
  func secondPoolExhausted() throws {
    let single = try pool("fd00::1/128")
    let pools = [try pool("10.0.0.0/24"), single]
    _ = try store().reserve(owner("a"), from: pools)
    #expect(throws: AddressStoreError.self) { try store().reserve(owner("b"), from: pools) }
    #expect(try store().reservations().count == 2)
  }

  @Test("takes back only what the caller says is dead, and unreadable files as well")
  func reclaim() throws {
    let pool = try pool("10.0.0.0/30")
    for name in ["dead", "living"] { _ = try store().reserve(owner(name), from: [pool]) }
    var asked: [String?] = []
    let address = try store().reserve(owner("new"), from: [pool]) { _, owner in
      asked.append(owner?.containerID)
      return owner?.containerID == "dead"
    }
    #expect(address.map(\.description) == ["10.0.0.1"])
    #expect(Set(asked) == ["dead", "living"])
    #expect(!store().holds(containerID: "dead", interfaceName: "eth0"))

    let directory = store().directory + "/addresses"
    try store().release(containerID: "new", interfaceName: "eth0")
    try LocalFile.create("\(directory)/10.0.0.1", with: [])
    let next = try store().reserve(owner("next"), from: [pool]) { _, owner in owner == nil }
    #expect(next.map(\.description) == ["10.0.0.1"])
  }

  @Test("an address that another has taken back meanwhile is that one's", arguments: [false, true])
  func reclaimedTwice(isWanted: Bool) throws {
    let pool = try pool("10.0.0.0/32")
    let address = try #require(try store().reserve(owner("dead"), from: [pool]).first)
    #expect(throws: AddressStoreError.self) {
      try store().reserve(owner("late"), from: [pool], requested: isWanted ? [address] : []) { _, owner in
        guard owner?.containerID == "dead" else { return false }
        // Between the look at the owner and the release of what it held.
        let taken = try? store().reserve(self.owner("quick"), from: [pool]) { _, _ in true }
        #expect(taken == [address])
        return true
      }
    }
    #expect(try store().reservations().map(\.owner?.containerID) == ["quick"])
    #expect(!store().holds(containerID: "late", interfaceName: "eth0"))
  }

  @Test("what a killed process left, at any step, is gone with a release")
  func leftovers() throws {
    let pools = [try pool("10.0.0.0/24"), try pool("fd00::/64")]
    let directory = store().directory
    _ = try store().reserve(owner("a"), from: pools)
    // Killed between the first and the second address.
    #expect(unlink("\(directory)/addresses/fd00::1") == 0)
    try store().release(containerID: "a", interfaceName: "eth0")
    #expect(try store().reservations().isEmpty)
    #expect(try LocalFile.names(in: "\(directory)/owners").isEmpty)
    // Killed before any address: only the owner's name.
    _ = try store().reserve(owner("b"), from: [])
    #expect(store().holds(containerID: "b", interfaceName: "eth0"))
    try store().release(containerID: "b", interfaceName: "eth0")
    #expect(!store().holds(containerID: "b", interfaceName: "eth0"))
    // A temporary file, once it is old.
    let leftover = "\(directory)/.new.1.1"
    try LocalFile.create(leftover, with: [])
    var times = [timeval(tv_sec: 1, tv_usec: 0), timeval(tv_sec: 1, tv_usec: 0)]
    #expect(utimes(leftover, &times) == 0)
    _ = try store().reserve(owner("c"), from: pools)
    #expect(access(leftover, F_OK) != 0)
    try store().release(containerID: "unknown", interfaceName: "eth0")
  }

  @Test("eight threads that reserve from a /28 and free again never hold one address twice")
  func concurrency() async throws {
    let pool = try pool("10.0.0.0/28")
    let store = store()
    let ledger = Ledger()
    try await withThrowingTaskGroup(of: Void.self) { group in
      for thread in 0..<8 {
        group.addTask {
          for round in 0..<100 {
            // Two at a time: 16 wishes for 14 addresses.
            var names: [(String, IPAddress)] = []
            for part in 0..<2 {
              let name = "t\(thread)-\(round)-\(part)"
              do {
                let address = try store.reserve(owner(name), from: [pool])[0]
                #expect(ledger.held.withLock { $0.insert(address).inserted }, "\(address) twice")
                names.append((name, address))
              } catch AddressStoreError.exhausted {
                ledger.exhausted.add(1, ordering: .relaxed)
              }
            }
            for (name, address) in names {
              _ = ledger.held.withLock { $0.remove(address) }
              try store.release(containerID: name, interfaceName: "eth0")
            }
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(try store.reservations().isEmpty)
    #expect(ledger.exhausted.load(ordering: .relaxed) < 1600)
  }
}
