import BPFPrograms
import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader

/// Maps read from their pins, as `dpctl` and the agent's gauges do it.
@Suite("Pinned maps") struct PinnedMapTests {
  private static func make(
    _ name: String, _ type: bpf_map_type, key: Int = 4, value: Int = 8, room: Int, flags: UInt32 = 0, in pins: PinFolder
  ) throws -> PinnedMap {
    var options = bpf_map_create_opts()
    options.sz = MemoryLayout<bpf_map_create_opts>.size
    options.map_flags = flags
    let map = bpf_map_create(type, name, UInt32(key), UInt32(value), UInt32(room), &options)
    try #require(map >= 0, "map \(name): \(errno)")
    defer { close(map) }
    let pin = "map-\(name)-\(type.rawValue)-\(key)-\(value)-\(room)-\(flags)"
    try pins.pin(map, pin)
    return try #require(try PinnedMap(pin, in: pins))
  }

  private static func writable(_ map: PinnedMap, in pins: PinFolder) throws -> BPFMap<UInt32, UInt64> {
    try BPFMap(map.name, owning: FileDescriptor(owning: try #require(try pins.open(map.pin))))
  }

  @Test(
    "every element of a hash map is handed out once, however many there are",
    arguments: [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH], [0, 1, 4096, 4097, 50_000])
  func walk(type: bpf_map_type, count: Int) throws {
    let pins = try Surroundings.pins("walk-\(type.rawValue)-\(count)")
    // A cache may forget before it is full.
    let map = try Self.make("walk", type, room: max(count * 2, 16), in: pins)
    try Self.writable(map, in: pins).set((0..<count).map { (UInt32($0), UInt64($0) * 3) })
    var seen: Set<UInt32> = []
    try map.forEach(UInt32.self, UInt64.self) { key, value in
      #expect(seen.insert(key).inserted && value == UInt64(key) * 3)
    }
    #expect(seen.count == count)
    #expect(try map.count() == count)
    #expect(map.kind.forgets == (type == BPF_MAP_TYPE_LRU_HASH))
  }

  @Test("prefixes, arrays and counters of each processor are read; a ring says that it cannot be")
  func otherKinds() throws {
    let pins = try Surroundings.pins("kinds")
    let prefixes = try Self.make("prefixes", BPF_MAP_TYPE_LPM_TRIE, key: 8, room: 10_000, flags: 1, in: pins)
    let descriptor = try #require(try pins.open(prefixes.pin))
    defer { close(descriptor) }
    for number in UInt32(0)..<5000 {
      var key: (UInt32, UInt32) = (32, number.bigEndian)
      var value = UInt64(number)
      #expect(bpf_map_update_elem(descriptor, &key, &value, 0) == 0)
    }
    #expect(try prefixes.count() == 5000)
    let array = try Self.make("array", BPF_MAP_TYPE_ARRAY, room: 3, in: pins)
    var values: [UInt64] = []
    try Self.writable(array, in: pins).set(1, 7)
    try array.forEach(UInt32.self, UInt64.self) { values.append($1) }
    #expect(values == [0, 7, 0])
    let counters = try Self.make(
      "clauses", BPF_MAP_TYPE_PERCPU_HASH, key: 8, value: 16, room: 100, flags: 1, in: pins)
    let opened = try PerProcessorMap<ClauseKeyLayout>(
      "clauses", owning: FileDescriptor(owning: try #require(try pins.open(counters.pin))))
    let clause = ClauseKeyLayout(ClauseKey(AttributionID(rawValue: 7), Clause(.defaultDeny)))
    try opened.add(clause)
    let words = try #require(MapWords.of(counters))
    var texts: [String] = []
    try counters.forEach { key, value in
      texts.append("\(words.key(key).text) -> \(words.value(value).text)")
      return true
    }
    #expect(texts == ["attribution=7 direction=egress verdict=deny clause=default-deny -> packets=0 bytes=0"])
    let ring = try Self.make("events", BPF_MAP_TYPE_RINGBUF, key: 0, value: 0, room: 4096, in: pins)
    #expect(throws: SystemError.self) { try ring.forEach { _, _ in true } }
    #expect(try PinnedMap.all(in: pins).map(\.name) == ["array", "clauses", "events", "prefixes"])
  }

  @Test("a reader cannot write, and makes nothing where nothing is pinned")
  func readingOnly() throws {
    let pins = try Surroundings.pins("reading")
    let map = try Self.make("frontends", BPF_MAP_TYPE_HASH, room: 4, in: pins)
    var (key, value) = (UInt32(1), UInt64(1))
    #expect(bpf_map_update_elem(map.descriptor.number, &key, &value, 0) == -EPERM)
    #expect(MapWords.of(map) == nil, "another layout is not read as ours")
    #expect(map.memory ?? 0 > 0)
    let none = "\(pins.path)-none"
    do {
      _ = try PinFolder(reading: none)
      Issue.record("there is nothing to read")
    } catch {
      #expect(error.errno == ENOENT && "\(error)".contains(none), "\(error)")
    }
    #expect(access(none, F_OK) != 0)
    #expect(throws: SystemError.self) { try PinFolder(reading: "/tmp") }
  }

  @Test("every map of every program can be said in words, or has none to say")
  func wordsForAll() throws {
    for program in [BPFProgram.sock, .endpoint, .uplink] {
      let object = try BPFObject(program)
      for map in object.mapNames where !MapWords.silent.contains(map) {
        let shape = try object.shape(of: map)
        let words = try #require(MapWords.all[map], "map \(map) has no words")
        #expect(words.keySize == shape.keySize && words.valueSize == shape.valueSize, "map \(map)")
      }
    }
  }

  // MARK: Full

  @Test("a map without room is named, with its bound, and keeps what it has")
  func full() throws {
    let pins = try Surroundings.pins("full")
    for (type, flags) in [(BPF_MAP_TYPE_HASH, UInt32(1)), (BPF_MAP_TYPE_HASH, 0)] {
      let pinned = try Self.make("tiny\(flags)", type, room: 4, flags: flags, in: pins)
      let map = try Self.writable(pinned, in: pins)
      try map.set((0..<4).map { (UInt32($0), UInt64($0)) })
      for elements in [[(UInt32(9), UInt64(9))], [(0, 5), (9, 9), (10, 10)]] {
        do {
          try map.set(elements)
          Issue.record("there is no room for \(elements)")
        } catch {
          #expect(error.errno == ENOSPC)
          #expect("\(error)".contains("map tiny\(flags) is full: it has room for 4 elements"), "\(error)")
        }
      }
      #expect(try map.elements() == [0: 5, 1: 1, 2: 2, 3: 3], "what has a place is written")
      #expect(try MapFill.of(pinned)?.percent == 100)
    }
  }

  @Test(
    "an engine whose table has no room left says which one; what was programmed serves on, and what fits comes back")
  func fullTable() throws {
    let scene = try SocketScene("full-table")
    var tables = scene.tables
    let before = try scene.balancer.verify(tables)
    #expect(before == [])
    var delta = TableDelta()
    delta.nodePortAddresses.added = Set((0..<5000).map { IPAddress(v4: 0x0b00_0000 + UInt32($0)) })
    tables.apply(delta)
    let backends = Set([2, 3].map { Arrival.at(SocketScene.backend(.v4, $0)) })
    for resyncs in [false, true] {
      do {
        _ = try resyncs ? scene.balancer.resync(tables).report : scene.balancer.apply(delta, tables: tables)
        Issue.record("there is no room for 5,000 addresses")
      } catch {
        #expect("\(error)".contains("map node_addresses is full: it has room for 4096 elements"), "\(error)")
      }
      #expect(try scene.balancer.verify(scene.tables).filter { $0.kind != .extra } == [])
      #expect(try scene.arrivals(scene.pod, to: SocketScene.vip(.v4), .tcp, 5).isSubset(of: backends))
    }
    _ = try scene.balancer.resync(scene.tables)
    #expect(try scene.balancer.verify(scene.tables) == [])
  }
}
