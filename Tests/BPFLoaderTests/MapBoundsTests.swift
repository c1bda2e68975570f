import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader

/// Maps of one generation after those of another.
@Suite("Bounds and generations of BPF maps") struct MapBoundsTests {
  private static func balancer(_ pins: PinFolder, _ bounds: [String: Int] = [:]) throws -> SocketBalancer {
    try SocketBalancer(pins: pins, cgroup: try Surroundings.cgroup, hostCookie: 1, bounds: MapBounds(bounds))
  }

  private static func maximum(_ map: String, _ pins: PinFolder) throws -> [Int] {
    try PinnedMap.all(in: pins).filter { $0.name == map }.map(\.maximum)
  }

  @Test("a bound is set, kept by the next generation, and changed where somebody asks")
  func bounds() throws {
    let pins = try Surroundings.pins("bounds")
    defer { try? SocketBalancer.cleanUp(pins) }
    let tables = Tables()
    for (asked, found) in [
      (["frontends": 200_000, "slots": 1000], [200_000, 1000]), ([:], [200_000, 1 << 19]),
      (["slots": 600_000], [200_000, 600_000]),
      (["frontends": 300], [300, 600_000]), ([:], [1 << 17, 600_000]),
    ] as [([String: Int], [Int])] {
      var balancer = try Self.balancer(pins, asked)
      _ = try balancer.resync(tables)
      // One of each: what another generation had is gone.
      #expect(try Self.maximum("frontends", pins) == [found[0]], "\(asked)")
      #expect(try Self.maximum("slots", pins) == [found[1]], "\(asked)")
      #expect(try balancer.verify(tables).isEmpty)
    }
  }

  @Test("a name that no map has, and a map of a size of its own, are refused by name")
  func refusals() throws {
    let pins = try Surroundings.pins("bounds-refused")
    defer { try? SocketBalancer.cleanUp(pins) }
    for (name, words) in [("flow", "maps are"), ("state", "it has a size of its own"), ("events", "size of its own")] {
      do {
        _ = try Self.balancer(pins, [name: 100])
        Issue.record("\(name) was taken")
      } catch {
        #expect("\(error)".contains("set the bound of \(name)") && "\(error)".contains(words), "\(error)")
      }
    }
    #expect(MapBounds().growing("flows", beyond: 100)?.bounds == ["flows": 200])
    #expect(
      MapBounds(["flows": 1]).growing("flows", beyond: MapBounds.largest - 1)?.bounds == ["flows": MapBounds.largest])
    #expect(MapBounds().growing("flows", beyond: MapBounds.largest) == nil)
  }

  @Test(
    "what programs remember goes along: of shorter values the rest is zero; what is there already stays; another key does not"
  )
  func remembered() throws {
    let pins = try Surroundings.pins("remembered")
    defer { try? SocketBalancer.cleanUp(pins) }
    var told = ConnectionLayout()
    told.told = BackendLayout(SocketAddress(ip("10.96.0.1"), port(80)))
    // As an earlier build had it: only whom the socket was told.
    try Self.makeMap(pins, "connections", keySize: 8, valueSize: 20, [(5, told), (6, told)])
    try Self.makeMap(pins, "told_peers", keySize: 8, valueSize: 20, [(7, told)])
    let balancer = try Self.balancer(pins)
    let connections: BPFMap<UInt64, ConnectionLayout> = try balancer.object.openMap("connections")
    #expect(try connections.elements() == [5: told, 6: told])
    let peers: BPFMap<PeerKeyLayout, BackendLayout> = try balancer.object.openMap("told_peers")
    #expect(try peers.keys().isEmpty)

    // Once more, when programs have been replaced.
    var newer = told
    newer.real = BackendLayout(SocketAddress(ip("10.244.0.9"), port(8080)))
    try connections.set(5, newer)
    try connections.remove(6)
    try MapPins(pins: pins).carryOver(into: balancer.object)
    #expect(try connections.elements() == [5: newer, 6: told])
  }

  private static func makeMap(
    _ pins: PinFolder, _ name: String, keySize: UInt32, valueSize: UInt32, _ elements: [(UInt64, ConnectionLayout)]
  ) throws {
    let descriptor = try check("make map", name) {
      bpf_map_create(BPF_MAP_TYPE_HASH, name, keySize, valueSize, 64, nil)
    }
    defer { close(descriptor) }
    for (key, value) in elements {
      _ = try check("write to", name) {
        withUnsafePointer(to: key) { key in
          withUnsafePointer(to: value) { bpf_map_update_elem(descriptor, key, $0, UInt64(BPF_ANY)) }
        }
      }
    }
    try pins.pin(descriptor, "\(MapPins.prefix)\(name)-\(BPF_MAP_TYPE_HASH.rawValue)-\(keySize)-\(valueSize)-64-0")
  }
}
