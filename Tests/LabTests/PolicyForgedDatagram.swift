import Glibc
import NetworkTypes
import RawFrames

@testable import Lab

/// A UDP datagram with whatever source address, sent as it is: what a pod with CAP_NET_RAW or a machine on the wire can.
struct ForgedDatagram: Sendable {
  var source: IPAddress
  var destination: SocketAddress

  /// Sends it from the calling thread's network namespace.
  func send() throws(LabError) {
    let family = destination.address.family
    // IPPROTO_RAW: the packet brings its own header, in both families.
    let descriptor = socket(
      Int32(family.linuxFamily), Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_RAW))
    guard descriptor >= 0 else { throw .system(operation: "socket", object: "raw \(family)", errno: errno) }
    defer { close(descriptor) }
    let bytes = packet
    let sent = withSockaddr(destination.address, 0) { address, length in
      bytes.withUnsafeBytes { sendto(descriptor, $0.baseAddress, $0.count, 0, address, length) }
    }
    guard sent == bytes.count else { throw .system(operation: "send", object: "\(self)", errno: errno) }
  }

  var packet: [UInt8] {
    let payload = Array("probe\n".utf8)
    let length = Frame.bytes(UInt16(8 + payload.count))
    var datagram = Frame.bytes(40_000) + Frame.bytes(destination.port.number) + length + [0, 0] + payload
    // Sum over the addresses, the length, the protocol and the datagram.
    let checksum = Frame.checksum(source.bytes + destination.address.bytes + length + Frame.bytes(17) + datagram)
    datagram.replaceSubrange(6..<8, with: Frame.bytes(checksum == 0 ? 0xffff : checksum))
    return Frame.packet(17, from: source, to: destination.address, datagram)
  }
}
