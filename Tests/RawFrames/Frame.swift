import CLinux
import Glibc
import NetworkTypes

/// An Ethernet frame as a pod with CAP_NET_RAW can send it, byte by byte.
public struct Frame: Sendable, CustomStringConvertible {
  public let description: String
  public let bytes: [UInt8]

  /// By which a counter tells them from what the pod's kernel sends: whom a frame is for changes nothing here.
  public static let destination = "0a:74:65:73:74:00"

  public init(_ description: String, from mac: MACAddress, type: UInt16, _ payload: [UInt8]) {
    self.description = description
    let destination = MACAddress(Self.destination)?.bytes ?? []
    bytes = destination + mac.bytes + Self.bytes(type) + payload
  }

  /// Sends it out of `interface` of the calling thread's namespace.
  public func send(by interface: String) -> Bool { send(by: interface, upTo: 1) == 1 }

  /// Sends it again and again, until that is refused.
  ///
  /// - Returns: how often that was not so.
  public func send(by interface: String, upTo limit: Int) -> Int {
    let descriptor = socket(AF_PACKET, CInt(SOCK_RAW.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return 0 }
    defer { close(descriptor) }
    var address = sockaddr_ll()
    address.sll_family = sa_family_t(AF_PACKET)
    address.sll_ifindex = CInt(if_nametoindex(interface))
    address.sll_halen = 6
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
        let size = socklen_t(MemoryLayout<sockaddr_ll>.size)
        for count in 0..<limit where sendto(descriptor, bytes, bytes.count, 0, address, size) != bytes.count {
          return count
        }
        return limit
      }
    }
  }

  // MARK: Payloads

  public static func bytes(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(truncatingIfNeeded: number)] }

  /// UDP, to a port where nobody listens.
  public static func datagram(from source: IPAddress, to destination: IPAddress) -> [UInt8] {
    packet(17, from: source, to: destination, bytes(40_000) + bytes(9) + bytes(12) + [0, 0] + Array("away".utf8))
  }

  public static func packet(
    _ number: UInt8, hops: UInt8 = 64, from source: IPAddress, to destination: IPAddress, _ payload: [UInt8]
  ) -> [UInt8] {
    let header: [UInt8]
    switch source.family {
    case .v4:
      let start = [0x45, 0] + bytes(UInt16(20 + payload.count)) + [0, 0, 0, 0, hops, number]
      let sum = checksum(start + [0, 0] + source.bytes + destination.bytes)
      header = start + bytes(sum)
    case .v6: header = [0x60, 0, 0, 0] + bytes(UInt16(payload.count)) + [number, hops]
    }
    return header + source.bytes + destination.bytes + payload
  }

  public enum ARP: UInt8, Sendable {
    case request = 1, reply
  }

  public static func arp(_ operation: ARP, _ mac: MACAddress, _ address: IPAddress, for target: IPAddress) -> [UInt8] {
    [0, 1, 8, 0, 6, 4, 0, operation.rawValue] + mac.bytes + address.bytes + [0, 0, 0, 0, 0, 0] + target.bytes
  }

  /// Router (133, 134) and neighbour (135, 136) messages, with an option of eight bytes where `option` has its type.
  public static func discovery(
    _ type: UInt8, from source: IPAddress, to destination: IPAddress, target: IPAddress?, option: UInt8? = nil,
    _ mac: MACAddress? = nil, before headers: [UInt8] = []
  ) -> [UInt8] {
    var message = [type, 0, 0, 0, 0, 0, 0, 0] + (type == 134 ? [UInt8](repeating: 0, count: 8) : [])
    message += target?.bytes ?? []
    if let option { message += [option, 1] + (mac?.bytes ?? [1, 2, 3, 4, 5, 6]) }
    let pseudo = source.bytes + destination.bytes + [0, 0] + bytes(UInt16(message.count)) + [0, 0, 0, 58]
    message.replaceSubrange(2..<4, with: bytes(checksum(pseudo + message)))
    let next: UInt8 = headers.isEmpty ? 58 : 0
    return packet(next, hops: 255, from: source, to: destination, headers + message)
  }

  public static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 + (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
    }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return ~UInt16(truncatingIfNeeded: sum)
  }
}
