import CLinux
import NetworkTypes
import Testing

@testable import Netlink

@Suite("Reading netlink messages")
struct NetlinkParsingTests {
  @Test("attributes are found by type, without their flag bits, the last of a type first")
  func attributes() throws {
    var builder = NetlinkMessageBuilder(type: RTM_NEWLINK)
    builder.attribute(IFLA_MTU, number: UInt32(1))
    builder.attribute(IFLA_MTU, number: UInt32(1500))
    builder.attribute(IFLA_IFNAME, string: "eth0")
    builder.nest(IFLA_LINKINFO) { $0.attribute(IFLA_INFO_KIND, string: "veth") }
    let attributes = try NetlinkAttributes(builder.bytes[16...])
    #expect(attributes.count == 4)
    #expect(try attributes.number(IFLA_MTU, as: UInt32.self) == 1500)
    #expect(attributes.string(IFLA_IFNAME) == "eth0")
    #expect(try attributes.nested(IFLA_LINKINFO)?.string(IFLA_INFO_KIND) == "veth")
    #expect(try attributes.number(99, as: UInt32.self) == nil)
    #expect(throws: MalformedNetlink.self) { try attributes.number(IFLA_MTU, as: UInt16.self) }
  }

  @Test(
    "lengths that do not fit are errors",
    arguments: [
      [4, 0, 0], [3, 0, 1, 0], [0, 0, 0, 0], [8, 0, 1, 0, 1], [255, 255, 1, 0, 1, 2, 3, 4], [4, 0, 1, 0, 9],
    ] as [[UInt8]])
  func badLengths(bytes: [UInt8]) {
    #expect(throws: MalformedNetlink.self) { try NetlinkAttributes(bytes[...]) }
  }

  @Test("an attribute that is not padded at the end is read")
  func unpadded() throws {
    #expect(try NetlinkAttributes([5, 0, 1, 0, 9]).last(1)?.number(as: UInt8.self) == 9)
    #expect(try NetlinkAttributes([]).isEmpty)
  }

  /// Real answers of this kernel, to be damaged.
  private static func samples() throws -> [[UInt8]] {
    let namespace = try AnonymousNetworkNamespace()
    return try namespace.namespace.run {
      let socket = try RouteSocket()
      try socket.createVethPair(name: "a", peer: VethPeer(name: "b"))
      let link = try socket.link(named: "a")
      let index = link?.index ?? 0
      try socket.setLink(index: index, LinkChanges(isUp: true))
      for text in ["10.0.0.1", "fd00::1"] {
        guard let address = IPAddress(text) else { continue }
        try socket.addAddress(InterfaceAddress(host: address), interfaceIndex: index)
        try socket.replaceNeighbour(Neighbour(address: address, interfaceIndex: index, mac: link?.mac))
      }
      var samples: [[UInt8]] = []
      let requests: [(Int, Int)] = [
        (RTM_GETLINK, 16), (RTM_GETADDR, 8), (RTM_GETROUTE, 12), (RTM_GETNEIGH, 12), (RTM_GETRULE, 12),
      ]
      for (type, length) in requests {
        for family in IPFamily.allCases {
          var message = NetlinkMessageBuilder(type: type)
          // All these structs start with the family and are a multiple of four bytes long.
          message.append(UInt32(type == RTM_GETLINK ? 0 : family.linuxFamily))
          for _ in 1..<(length / 4) { message.append(UInt32(0)) }
          for answer in try socket.socket.dump(message, operation: "sample") { samples.append(Array(answer.encoded)) }
        }
      }
      return samples
    }
  }

  @Test("damaged answers are read or refused, never read past their end")
  func fuzz() throws {
    let samples = try Self.samples()
    try #require(samples.count > 15)
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    var refused = 0
    for _ in 0..<20_000 {
      let sample = samples[Int.random(in: samples.indices, using: &random)]
      let bytes = random.mutate(sample)
      do {
        for message in try NetlinkMessage.parse(bytes[...]) {
          _ = try RouteMonitor.event(message)
          _ = try Neighbour(message: message)
          _ = try RoutingRule(message: message)
          _ = try ConntrackEntry(message: message)
        }
      } catch {
        refused += 1
      }
    }
    #expect(refused > 100, "seed \(seed)")
    for sample in samples {
      for length in 0..<sample.count where length > 0 {
        #expect(throws: MalformedNetlink.self) { try NetlinkMessage.parse(sample[..<length]) }
      }
    }
  }
}

extension NetlinkMessage {
  /// The bytes it was read from.
  var encoded: [UInt8] {
    var bytes: [UInt8] = []
    withUnsafeBytes(of: UInt32(payload.count + 16)) { bytes += $0 }
    withUnsafeBytes(of: type) { bytes += $0 }
    withUnsafeBytes(of: flags) { bytes += $0 }
    withUnsafeBytes(of: sequence) { bytes += $0 }
    withUnsafeBytes(of: portID) { bytes += $0 }
    return bytes + payload
  }
}

/// A small generator with a seed, so that a failure can be repeated.
struct SplitMix64: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
    return value ^ value >> 31
  }

  /// One to four changes: a byte altered, removed, doubled, or the end cut off.
  mutating func mutate(_ bytes: [UInt8]) -> [UInt8] {
    var bytes = bytes
    for _ in 0..<Int.random(in: 1...4, using: &self) where !bytes.isEmpty {
      let place = Int.random(in: bytes.indices, using: &self)
      switch Int.random(in: 0..<5, using: &self) {
      case 0, 1: bytes[place] = UInt8.random(in: .min ... .max, using: &self)
      case 2: bytes.remove(at: place)
      case 3: bytes.insert(bytes[place], at: place)
      default: bytes.removeLast(bytes.count - place)
      }
    }
    return bytes
  }
}
