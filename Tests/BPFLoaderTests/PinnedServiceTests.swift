import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab

/// Pinned maps compared with each other: what somebody took out of one is missed by another.
@Suite("Services from pins") struct PinnedServiceTests {
  private static func tables() -> Tables {
    var delta = TableDelta()
    for family in IPFamily.allCases {
      let (cluster, other) = (SocketScene.vip(family).address, family == .v4 ? ip("198.51.100.7") : ip("2001:db8::7"))
      delta.frontends[SocketScene.key(family, .tcp)] = Change(old: nil, new: SocketScene.frontend(1))
      delta.sets[SocketScene.set(1, family)] = Change(old: nil, new: SocketScene.set(family, [2, 3]))
      delta.serviceAddresses.added.insert(cluster)
      // A second port of it that everybody may reach by this node, and few by a load balancer.
      delta.frontends[FrontendKey(.address(cluster), .tcp, port(443))] = Change(old: nil, new: SocketScene.frontend(2))
      delta.frontends[FrontendKey(.node(family), .tcp, port(30443))] = Change(
        old: nil, new: SocketScene.frontend(2, .nodePort))
      var frontend = SocketScene.frontend(2, .loadBalancer)
      frontend.sourceRanges = [AddressRange(CIDR(family == .v4 ? "192.0.2.0/24" : "2001:db8:1::/48").unsafelyUnwrapped)]
      delta.frontends[FrontendKey(.address(other), .tcp, port(443))] = Change(old: nil, new: frontend)
      delta.sets[SocketScene.set(2, family)] = Change(old: nil, new: SocketScene.set(family, [4]))
    }
    delta.endpoints["slc0"] = Change(
      old: nil,
      new: LocalEndpoint(interface: "slc0", mac: podMAC, addresses: RandomServices.podAddresses, netnsCookie: 7))
    var tables = Tables()
    tables.apply(delta)
    return tables
  }

  @Test("an element taken out of any map by hand is missed, one too many is seen, and a program that was taken off")
  func damage() throws {
    let network = try AnonymousNetworkNamespace()
    let pins = try Surroundings.pins("damage")
    let damaged = try network.namespace.run { try Self.damageAll(pins) }
    #expect(damaged == ["addresses": 2, "frontends": 6, "members": 6, "sets": 4, "slots": 6, "sources": 2])
  }

  private static func damageAll(_ pins: PinFolder) throws -> [String: Int] {
    let runner = try PacketRunner(tables(), pins: pins)
    defer { try? runner.engine.cleanUp() }
    func differences() throws -> [String] {
      try PinnedServices(pins: pins) { $0 == 1 ? "shop/web:http/TCP" : nil }.differences().map(\.description)
    }
    #expect(try differences() == [])
    var damaged: [String: Int] = [:]
    for name in ["frontends", "sets", "slots", "members", "sources", "addresses"] {
      let map = try #require(try PinnedMap.all(in: pins).first { $0.name == name })
      let writable = try #require(try pins.open(map.pin))
      defer { close(writable) }
      var elements: [(key: [UInt8], value: [UInt8])] = []
      try map.forEach { key, value in
        elements.append((Array(key), Array(value)))
        return true
      }
      let words = try #require(MapWords.of(map))
      for var (key, value) in elements {
        let text = key.withUnsafeBytes { words.key($0).text }
        // Nothing else names it.
        if name == "frontends", text.contains("198.51.100.7") || text.contains("2001:db8::7") { continue }
        #expect(bpf_map_delete_elem(writable, &key) == 0)
        let found = try differences()
        #expect(found.contains { $0.contains("map \(name): ") }, "\(name), \(text): \(found)")
        #expect(bpf_map_update_elem(writable, &key, &value, 0) == 0)
        #expect(try differences() == [], "\(name), \(text) is back")
        damaged[name, default: 0] += 1
      }
    }
    var stranger = SlotKeyLayout(SocketScene.set(1, .v4), 7)
    let pin = try #require(pins.names.first { $0.hasPrefix("map-slots-") })
    let slots = try #require(try pins.open(pin))
    defer { close(slots) }
    var backend = BackendLayout(SocketScene.backend(.v4, 9))
    #expect(bpf_map_update_elem(slots, &stranger, &backend, 0) == 0)
    #expect(
      try differences() == [
        "extra: map slots: service=1 scope=cluster family=IPv4 slot=7 -> address=10.244.2.9 port=8080 (shop/web:http/TCP)"
      ])
    #expect(bpf_map_delete_elem(slots, &stranger) == 0)
    try DeviceLinks(pins: pins).detach("to_pod", from: runner.device("slc0"), .egress)
    #expect(try differences() == ["missing: program to_pod at device \(runner.device("slc0"))"])
    return damaged
  }
}
