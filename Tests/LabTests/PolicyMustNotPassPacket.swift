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

  /// struct sockaddr_in or sockaddr_in6.
  private let address: [UInt8]
  private let isTCP: Bool
  private let headerBytes: Int
  private let sourcePorts: UInt32
  private var bytes: [UInt8]
  /// Of everything that stays the same.
  private var constantSum: UInt32 = 0

  /// - Parameter sourcePorts: how many there are; a packet whose port was not used for long begins a flow.
  init(from source: IPAddress, to destination: IPAddress, isTCP: Bool, lane: Int, sourcePorts: UInt32) {
    address = withSockaddr(destination, 0) { pointer, length in
      Array(UnsafeRawBufferPointer(start: pointer, count: Int(length)))
    }
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

  /// Sends the packet of a tick; whether the kernel took it. It adds IPv4's checksum itself.
  mutating func send(tick: UInt32, by socket: RawSocket) -> Bool {
    // Emulated machines are slow: nothing here is computed twice.
    let port = Self.firstSourcePort + tick / UInt32(MustNotPassProber.kinds) % sourcePorts
    let end = bytes.count
    put(port, 2, at: headerBytes)
    put(tick, 4, at: end - 4)
    // The number may begin at an odd place of the transport's bytes.
    let isOdd = (end - 4 - headerBytes) % 2 == 1
    let number =
      isOdd ? tick >> 24 + tick >> 8 & 0xffff + (tick & 0xff) << 8 : tick >> 16 + tick & 0xffff
    let checksum = Self.folded(constantSum + port + number)
    put(UInt32(checksum == 0 ? 0xffff : checksum), 2, at: headerBytes + (isTCP ? 16 : 6))
    let sent = bytes.withUnsafeBytes { packet in
      address.withUnsafeBytes { address in
        address.withMemoryRebound(to: sockaddr.self) {
          sendto(
            socket.descriptor, packet.baseAddress, end, Int32(MSG_DONTWAIT), $0.baseAddress, socklen_t(address.count))
        }
      }
    }
    return sent == end
  }

  private mutating func put(_ value: UInt32, _ count: Int, at place: Int) {
    for index in 0..<count {
      bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt32((count - 1 - index) * 8))
    }
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
