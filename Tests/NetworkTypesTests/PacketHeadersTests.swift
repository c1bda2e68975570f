import NetworkTypes
import Testing

@Suite("Packet headers")
struct PacketHeadersTests {
  @Test("a TCP packet of either family says who, what and how")
  func tcp() throws {
    let transport = Wire.tcp(source: 40_000, destination: 80, flags: 0x02)
    let v4 = try #require(PacketHeaders(Wire.v4(protocolNumber: 6, transport)))
    #expect(v4.family == .v4 && v4.source.description == "10.0.0.5" && v4.destination.description == "10.0.0.9")
    #expect(v4.protocolNumber == 6 && v4.l4Protocol == .tcp && !v4.isFragment && v4.totalLength == 40)
    #expect(v4.sourcePort == 40_000 && v4.destinationPort == 80 && v4.tcpFlags == .syn)
    #expect(v4.icmpType == nil && v4.icmpCode == nil)
    #expect(v4.description == "10.0.0.5:40000 -> 10.0.0.9:80 tcp SYN")
    let v6 = try #require(PacketHeaders(Wire.v6(next: 6, transport)))
    #expect(v6.family == .v6 && v6.protocolNumber == 6 && v6.totalLength == 60)
    #expect(v6.description == "[fd00::5]:40000 -> [fd00::9]:80 tcp SYN")
  }

  @Test("UDP and SCTP have ports and no flags; port 0 is a port", arguments: [UInt8(17), 132])
  func ports(protocolNumber: UInt8) throws {
    let transport: [UInt8] = [0, 0, 0, 53, 0, 8, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff]
    for packet in [Wire.v4(protocolNumber: protocolNumber, transport), Wire.v6(next: protocolNumber, transport)] {
      let headers = try #require(PacketHeaders(packet))
      #expect(headers.sourcePort == 0 && headers.destinationPort == 53 && headers.tcpFlags == nil)
      #expect(headers.protocolNumber == protocolNumber && headers.l4Protocol != nil)
    }
  }

  @Test("ICMP belongs to its family")
  func icmp() throws {
    let echo: [UInt8] = [8, 3, 0, 0]
    let v4 = try #require(PacketHeaders(Wire.v4(protocolNumber: 1, echo)))
    #expect(v4.icmpType == 8 && v4.icmpCode == 3 && v4.sourcePort == nil)
    #expect(v4.description == "10.0.0.5 -> 10.0.0.9 icmp type 8 code 3")
    let v6 = try #require(PacketHeaders(Wire.v6(next: 58, [128, 0, 0, 0])))
    #expect(v6.icmpType == 128 && v6.icmpCode == 0)
    #expect(v6.description == "fd00::5 -> fd00::9 icmpv6 type 128 code 0")
    #expect(PacketHeaders(Wire.v4(protocolNumber: 58, echo))?.description == "10.0.0.5 -> 10.0.0.9 proto 58")
    #expect(PacketHeaders(Wire.v6(next: 1, echo))?.description == "fd00::5 -> fd00::9 proto 1")
  }

  @Test(
    "flags are named as tcpdump's users know them",
    arguments: [
      (0x00, "none"), (0x02, "SYN"), (0x12, "SYN,ACK"), (0x10, "ACK"), (0x14, "RST,ACK"), (0x18, "PSH,ACK"),
      (0x11, "FIN,ACK"), (0xff, "SYN,FIN,RST,PSH,ACK,URG,ECE,CWR"), (0xc2, "SYN,ECE,CWR"),
    ] as [(UInt8, String)])
  func flags(bits: UInt8, text: String) {
    #expect(TCPFlags(rawValue: bits).description == text)
    let packet = Wire.v4(protocolNumber: 6, Wire.tcp(source: 1, destination: 2, flags: bits))
    #expect(PacketHeaders(packet)?.tcpFlags?.rawValue == bits)
  }

  @Test("IPv4 options are skipped")
  func options() {
    let packet = Wire.v4(protocolNumber: 17, options: [1, 1, 1, 1, 0, 0, 0, 0], [0, 7, 0, 9])
    #expect(PacketHeaders(packet)?.description == "10.0.0.5:7 -> 10.0.0.9:9 udp")
  }

  @Test("IPv6 extension headers are skipped, each by its own measure of length")
  func extensionHeaders() throws {
    let chain =
      [43, 1] + [UInt8](repeating: 0xee, count: 14)  // hop by hop: (1 + 1) * 8 bytes
      + [51, 0] + [UInt8](repeating: 0xee, count: 6)  // routing: 8
      + [44, 1] + [UInt8](repeating: 0xee, count: 10)  // authentication: (1 + 2) * 4
      + [60, 0, 0, 1, 1, 2, 3, 4]  // first fragment, more to come
      + [6, 0] + [UInt8](repeating: 0xee, count: 6)  // destination options
    let headers = try #require(
      PacketHeaders(Wire.v6(next: 0, chain + Wire.tcp(source: 9, destination: 10, flags: 0x12))))
    #expect(headers.description == "[fd00::5]:9 -> [fd00::9]:10 tcp SYN,ACK")
    #expect(!headers.isFragment && headers.totalLength == 40 + chain.count + 20)
  }

  @Test("later fragments have a protocol and no ports")
  func fragments() throws {
    let looksLikePorts: [UInt8] = [0, 1, 0, 2, 0, 0, 0, 0]
    let v4 = try #require(PacketHeaders(Wire.v4(protocolNumber: 17, fragment: 0x0001, looksLikePorts)))
    #expect(v4.isFragment && v4.protocolNumber == 17 && v4.sourcePort == nil)
    #expect(v4.description == "10.0.0.5 -> 10.0.0.9 udp fragment")
    // More to come, and "don't fragment": neither makes it a later one.
    for bits: UInt16 in [0x2000, 0x4000] {
      let first = try #require(PacketHeaders(Wire.v4(protocolNumber: 17, fragment: bits, looksLikePorts)))
      #expect(!first.isFragment && first.destinationPort == 2)
    }
    let v6 = try #require(PacketHeaders(Wire.v6(next: 44, [17, 0, 0, 8, 1, 2, 3, 4] + looksLikePorts)))
    #expect(v6.isFragment && v6.protocolNumber == 17 && v6.sourcePort == nil)
    // What follows a later fragment's header is data: an extension header there tells nothing.
    let hidden = try #require(PacketHeaders(Wire.v6(next: 44, [60, 0, 0, 8, 1, 2, 3, 4] + [17, 0, 0, 0, 0, 0, 0, 0])))
    #expect(hidden.isFragment && hidden.protocolNumber == nil)
    #expect(hidden.description == "fd00::5 -> fd00::9 unknown protocol fragment")
  }

  @Test("a chain of extension headers is followed so far and no further")
  func longChain() {
    let option: [UInt8] = [60, 0, 1, 4, 0, 0, 0, 0]
    func packet(_ count: Int) -> [UInt8] {
      var chain = (0..<count).flatMap { _ in option }
      chain[(count - 1) * 8] = 17
      return Wire.v6(next: 60, chain + [0, 1, 0, 2])
    }
    let most = PacketHeaders.maximumExtensionHeaders
    #expect(PacketHeaders(packet(most))?.destinationPort == 2)
    #expect(PacketHeaders(packet(most + 1))?.protocolNumber == .some(nil))
  }

  @Test("what is no IP header is nil")
  func refused() {
    let v4 = Wire.v4(protocolNumber: 6, Wire.tcp(source: 1, destination: 2, flags: 2))
    let v6 = Wire.v6(next: 6, Wire.tcp(source: 1, destination: 2, flags: 2))
    #expect(PacketHeaders([]) == nil)
    #expect(PacketHeaders(Array(v4.prefix(19))) == nil && PacketHeaders(Array(v4.prefix(20))) != nil)
    #expect(PacketHeaders(Array(v6.prefix(39))) == nil && PacketHeaders(Array(v6.prefix(40))) != nil)
    #expect(PacketHeaders([0x44] + v4.dropFirst()) == nil)
    #expect(PacketHeaders([0x50] + v4.dropFirst()) == nil)
    var mapped = v6
    mapped.replaceSubrange(8..<24, with: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1])
    #expect(PacketHeaders(mapped) == nil)
  }

  @Test("padding behind the declared length is not read; a length of 0 is not believed")
  func declaredLength() {
    let ports: [UInt8] = [0, 1, 0, 2]
    var v4 = Wire.v4(protocolNumber: 17, ports)
    var v6 = Wire.v6(next: 17, ports)
    v4[3] -= 1
    v6[5] -= 1
    for packet in [v4, v6] {
      let headers = PacketHeaders(packet)
      #expect(headers?.sourcePort == 1)
      #expect(headers != nil && headers?.destinationPort == nil)
    }
    (v4[2], v4[3], v6[4], v6[5]) = (0, 0, 0, 0)
    #expect(PacketHeaders(v4)?.destinationPort == 2 && PacketHeaders(v4)?.totalLength == 0)
    #expect(PacketHeaders(v6)?.destinationPort == 2 && PacketHeaders(v6)?.totalLength == 40)
  }

  @Test("whatever the bytes: no crash, addresses from their places, and a cut only takes away")
  func fuzz() {
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    let samples = Wire.samples
    var (read, withPorts, fragments, cutShort) = (0, 0, 0, 0)
    // Each round reads two inputs: a packet, and the same cut off somewhere.
    for round in 0..<100_000 {
      var bytes = round % 4 == 0 ? random.packet() : samples[Int.random(in: samples.indices, using: &random)]
      if round % 4 > 1 { random.mutate(&bytes) }
      let cut = Array(bytes.prefix(Int.random(in: 0...bytes.count, using: &random)))
      guard let whole = PacketHeaders(bytes) else {
        #expect(PacketHeaders(cut) == nil, "seed \(seed)")
        continue
      }
      read += 1
      if whole.destinationPort != nil { withPorts += 1 }
      if whole.isFragment { fragments += 1 }
      let (source, destination) = whole.family == .v4 ? (12..<16, 16..<20) : (8..<24, 24..<40)
      let isRight =
        whole.source.bytes == Array(bytes[source]) && whole.destination.bytes == Array(bytes[destination])
        && whole.family.rawValue == bytes[0] >> 4 && !whole.description.isEmpty
        && !(whole.isFragment && (whole.sourcePort != nil || whole.icmpType != nil))
      guard let part = PacketHeaders(cut) else {
        if !isRight || cut.count >= (whole.family == .v4 ? 20 : 40) {
          Issue.record("\(bytes), cut to \(cut.count), seed \(seed)")
        }
        continue
      }
      if part != whole { cutShort += 1 }
      if !isRight || !part.says(noMoreThan: whole) {
        Issue.record("\(bytes): \(whole), cut to \(cut.count): \(part), seed \(seed)")
      }
    }
    #expect(read > 50_000 && withPorts > 10_000 && fragments > 1_000 && cutShort > 5_000, "seed \(seed)")
  }
}

extension PacketHeaders {
  /// Whether everything said here is said by `whole` too.
  fileprivate func says(noMoreThan whole: PacketHeaders) -> Bool {
    func agrees<Value: Equatable>(_ part: Value?, _ other: Value?) -> Bool { part == nil || part == other }
    return source == whole.source && destination == whole.destination && totalLength == whole.totalLength
      && agrees(protocolNumber, whole.protocolNumber) && (!isFragment || whole.isFragment)
      && agrees(sourcePort, whole.sourcePort) && agrees(destinationPort, whole.destinationPort)
      && agrees(tcpFlags, whole.tcpFlags) && agrees(icmpType, whole.icmpType) && agrees(icmpCode, whole.icmpCode)
  }
}

/// Packets byte by byte, 10.0.0.5 to 10.0.0.9 and fd00::5 to fd00::9.
private enum Wire {
  static func v4(
    protocolNumber: UInt8, fragment: UInt16 = 0, options: [UInt8] = [], _ transport: [UInt8]
  ) -> [UInt8] {
    let headerLength = 20 + options.count
    let length = headerLength + transport.count
    return [
      0x40 | UInt8(headerLength / 4), 0, UInt8(length >> 8), UInt8(length & 0xff), 0, 1, UInt8(fragment >> 8),
      UInt8(fragment & 0xff), 64, protocolNumber, 0, 0, 10, 0, 0, 5, 10, 0, 0, 9,
    ] + options + transport
  }

  static func v6(next: UInt8, _ rest: [UInt8]) -> [UInt8] {
    func address(_ last: UInt8) -> [UInt8] { [0xfd] + [UInt8](repeating: 0, count: 14) + [last] }
    return [0x60, 0, 0, 0, UInt8(rest.count >> 8), UInt8(rest.count & 0xff), next, 64] + address(5) + address(9) + rest
  }

  static func tcp(source: UInt16, destination: UInt16, flags: UInt8) -> [UInt8] {
    [
      UInt8(source >> 8), UInt8(source & 0xff), UInt8(destination >> 8), UInt8(destination & 0xff), 0, 0, 0, 0, 0, 0, 0,
      0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0,
    ]
  }

  static let samples: [[UInt8]] = {
    let transport = tcp(source: 40_000, destination: 443, flags: 0x12)
    let option: [UInt8] = [60, 0, 1, 4, 0, 0, 0, 0]
    let lastOption: [UInt8] = [6, 0, 1, 4, 0, 0, 0, 0]
    return [
      v4(protocolNumber: 6, transport), v4(protocolNumber: 17, [0, 1, 0, 2, 0, 8, 0, 0]),
      v4(protocolNumber: 1, [3, 3, 0, 0, 0, 0, 0, 0]), v4(protocolNumber: 132, transport),
      v4(protocolNumber: 17, fragment: 0x00b9, transport), v4(protocolNumber: 6, options: [1, 1, 1, 1], transport),
      v6(next: 6, transport), v6(next: 17, [0, 1, 0, 2, 0, 8, 0, 0]), v6(next: 58, [1, 4, 0, 0, 0, 0, 0, 0]),
      v6(next: 60, option + option + lastOption + transport),
      v6(next: 44, [6, 0, 0, 1, 0, 0, 0, 1] + transport), v6(next: 44, [17, 0, 1, 0, 0, 0, 0, 1] + transport),
      v6(next: 51, [6, 4, 0, 0] + [UInt8](repeating: 0, count: 20) + transport),
      v6(next: 43, [6, 2] + [UInt8](repeating: 1, count: 22) + transport),
    ]
  }()
}

/// A small generator with a seed, so that a failure can be repeated.
private struct SplitMix64: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
    return value ^ value >> 31
  }

  /// Random bytes that begin like an IP packet three times in four.
  mutating func packet() -> [UInt8] {
    var bytes = (0..<Int.random(in: 0...192, using: &self)).map { _ in UInt8(truncatingIfNeeded: next()) }
    guard !bytes.isEmpty else { return bytes }
    switch next() % 4 {
    case 0: bytes[0] = 0x45
    case 1: bytes[0] = 0x60
    case 2: bytes[0] = bytes[0] & 0xf | (next() % 2 == 0 ? 0x40 : 0x60)
    default: break
    }
    if bytes.count > 9, next() % 2 == 0 {
      bytes[6] = [0, 6, 17, 43, 44, 51, 58, 60][Int(next() % 8)]
      bytes[9] = [1, 6, 17, 132][Int(next() % 4)]
    }
    return bytes
  }

  /// One to four changes: a byte altered, removed or doubled.
  mutating func mutate(_ bytes: inout [UInt8]) {
    for _ in 0..<Int.random(in: 1...4, using: &self) where !bytes.isEmpty {
      let place = Int.random(in: bytes.indices, using: &self)
      switch next() % 4 {
      case 0, 1: bytes[place] = UInt8(truncatingIfNeeded: next())
      case 2: bytes.remove(at: place)
      default: bytes.insert(bytes[place], at: place)
      }
    }
  }
}
