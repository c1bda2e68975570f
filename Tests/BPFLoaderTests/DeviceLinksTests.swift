import BPFPrograms
import Netlink
import Testing

@testable import BPFLoader

/// Programs at devices, by tcx links and as kernels before 6.6 have them.
@Suite("Programs at devices") struct DeviceLinksTests {
  private static let places = [("from_pod", DeviceHook.ingress), ("to_pod", .egress)]

  /// nil: as this kernel has it.
  @Test("they come, are replaced, and go with what is no longer ours", arguments: [nil, false])
  func life(hasLinks: Bool?) throws {
    let pins = try Surroundings.pins("devices-\(hasLinks.map { "\($0)" } ?? "own")")
    let network = try AnonymousNetworkNamespace()
    try network.namespace.run {
      let links = DeviceLinks(pins: pins, hasLinks: hasLinks)
      let routes = try RouteSocket()
      try routes.createVethPair(name: "kept", peer: VethPeer(name: "left"))
      try routes.createVethPair(name: "gone", peer: VethPeer(name: "gone2"))
      func device(_ name: String) throws -> UInt32 { UInt32(try #require(try routes.link(named: name)).index) }
      let (kept, left, gone) = (try device("kept"), try device("left"), try device("gone"))
      func attached(_ device: UInt32) throws -> [Bool] {
        try Self.places.map { try links.isAttached($0.0, to: device, $0.1) }
      }
      #expect(try [kept, left].map(attached) == [[false, false], [false, false]])

      // Twice: the second generation takes the first one's place.
      for _ in 0..<2 {
        let object = try BPFObject(.endpoint)
        try object.load()
        for (program, hook) in Self.places {
          for device in [kept, left] { try links.attach(program, of: object, to: device, hook) }
        }
        #expect(try [kept, left].map(attached) == [[true, true], [true, true]])
        try routes.deleteLinkIfPresent("gone")
        try links.attach("from_pod", of: object, to: gone, .ingress)
        #expect(try attached(gone) == [false, false])
      }

      try links.removeOthers(than: [kept], of: [kept, left])
      #expect(try [kept, left].map(attached) == [[true, true], [false, false]])
      try links.detach("from_pod", from: kept, .ingress)
      #expect(try attached(kept) == [false, true])
      try links.detach("to_pod", from: kept, .egress)
      #expect(try attached(kept) == [false, false])
      #expect(pins.names == [])
    }
    pins.removeFolder()
  }
}

extension RouteSocket {
  fileprivate func deleteLinkIfPresent(_ name: String) throws {
    if try link(named: name) != nil { try deleteLink(named: name) }
  }
}
