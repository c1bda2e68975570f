// What the must-not-pass prober sends, byte by byte, and the sockets for it.
import Glibc
import NetworkTypes

@testable import Lab

/// A raw or packet socket; it stays in the network namespace of the thread that made it.
final class RawSocket: Sendable {
  let descriptor: Int32

  init(_ family: Int32, _ type: __socket_type, _ proto: Int32) throws(LabError) {
    descriptor = socket(family, Int32(type.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), proto)
    guard descriptor >= 0 else { throw .system(operation: "socket", object: "family \(family)", errno: errno) }
    // What is not read in time would count as lost, or, worse, as held back.
    var size: Int32 = 64 << 20
    setsockopt(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &size, socklen_t(MemoryLayout<Int32>.size))
  }

  deinit { close(descriptor) }

  /// Sends a packet that brings its own IP header. Returns the bytes sent, or -1.
  func send(_ packet: [UInt8], to destination: IPAddress) -> Int {
    withSockaddr(destination, 0) { address, length in
      packet.withUnsafeBytes { sendto(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT), address, length) }
    }
  }

  /// The next packet, with what struct sockaddr_ll says of its device and kind; nil when none waits.
  func receive(_ buffer: inout [UInt8]) -> (length: Int, device: Int32, kind: UInt8)? {
    var name = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let count = buffer.withUnsafeMutableBytes { bytes in
      withUnsafeMutablePointer(to: &name) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          recvfrom(descriptor, bytes.baseAddress, bytes.count, Int32(MSG_DONTWAIT), $0, &length)
        }
      }
    }
    guard count > 0 else { return nil }
    return withUnsafeBytes(of: name) { (count, $0.loadUnaligned(fromByteOffset: 4, as: Int32.self), $0[10]) }
  }
}

/// A flow's first packet: a UDP datagram, or a TCP SYN with data, so that it too can carry its number.
struct MustNotPassPacket: Sendable {
  static let port: UInt16 = 7000
  private static let magic = Array("must not pass".utf8)
  /// Magic, lane (1 byte), tick (4 bytes).
  private static let payloadBytes = magic.count + 5
  private static let firstSourcePort: UInt32 = 20_000

  let destination: IPAddress
  private let isTCP: Bool
  private let headerBytes: Int
  private let sourcePorts: UInt32
  private var bytes: [UInt8]
  /// Of everything that stays the same.
  private var constantSum: UInt32 = 0

  /// - Parameter sourcePorts: how many there are; a packet whose port was not used for long begins a flow.
  init(from source: IPAddress, to destination: IPAddress, isTCP: Bool, lane: Int, sourcePorts: UInt32) {
    self.destination = destination
    self.isTCP = isTCP
    self.sourcePorts = sourcePorts
    let transport = (isTCP ? 20 : 8) + Self.payloadBytes
    let proto: UInt8 = isTCP ? 6 : 17
    let size = Self.big(UInt16(transport))
    switch destination.family {
    case .v4: bytes = [0x45, 0] + Self.big(UInt16(20 + transport)) + [0, 0, 0, 0, 64, proto, 0, 0]
    case .v6: bytes = [0x60, 0, 0, 0] + size + [proto, 64]
    }
    bytes += source.bytes + destination.bytes
    headerBytes = bytes.count
    bytes += [0, 0] + Self.big(Self.port)
    bytes += isTCP ? [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0] : size + [0, 0]
    bytes += Self.magic + [UInt8(lane), 0, 0, 0, 0]
    constantSum = Self.sum(source.bytes + destination.bytes + size + [0, proto]) + Self.sum(bytes[headerBytes...])
  }

  /// The packet of a tick, ready to be sent. The kernel adds IPv4's checksum.
  mutating func at(tick: UInt32) -> [UInt8] {
    let port = Self.big(UInt16(Self.firstSourcePort + tick / 4 % sourcePorts))
    let number = withUnsafeBytes(of: tick.bigEndian) { Array($0) }
    bytes.replaceSubrange(headerBytes..<headerBytes + 2, with: port)
    bytes.replaceSubrange(bytes.count - 4..<bytes.count, with: number)
    // The number may begin at an odd place of the transport's bytes.
    let isOdd = (bytes.count - 4 - headerBytes) % 2 == 1
    let sum = constantSum + Self.sum(port[...]) + Self.sum((isOdd ? [0] + number : number)[...])
    let checksum = Self.big(Self.folded(sum))
    let place = headerBytes + (isTCP ? 16 : 6)
    bytes.replaceSubrange(place..<place + 2, with: checksum == [0, 0] ? [0xff, 0xff] : checksum)
    return bytes
  }

  /// Lane and tick of a packet of the prober; nil for others, and for errors that quote one.
  static func identify(_ packet: ArraySlice<UInt8>) -> (lane: Int, tick: UInt32)? {
    guard let version = packet.first.map({ $0 >> 4 }), packet.count > 40 else { return nil }
    let (proto, header) = version == 4 ? (packet[packet.startIndex + 9], 20) : (packet[packet.startIndex + 6], 40)
    guard proto == 6 || proto == 17, packet.count == header + (proto == 6 ? 20 : 8) + payloadBytes else { return nil }
    let payload = packet.suffix(payloadBytes)
    guard payload.starts(with: magic) else { return nil }
    let tick = payload.suffix(4).reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    return (Int(payload[payload.endIndex - 5]), tick)
  }

  private static func big(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 0xff)] }

  private static func sum(_ bytes: some Collection<UInt8>) -> UInt32 {
    bytes.enumerated().reduce(0) { $0 + UInt32($1.element) << ($1.offset % 2 == 0 ? 8 : 0) }
  }

  private static func folded(_ sum: UInt32) -> UInt16 {
    var sum = sum
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }
}
