import CLinux
import Glibc
import Netlink
import NetworkTypes

@testable import BPFLoader
@testable import Lab

/// A network namespace in which every address of 10.0.0.0/8 and fd00::/8 is its own, with servers on some ports of all of
/// them: wherever a connection goes, it arrives, and the server knows where that is.
final class Everywhere: Sendable {
  static let ports: [UInt16] = [53, 80, 443, 8080, 30080]

  private let network: AnonymousNetworkNamespace
  let cookie: UInt64
  private let listeners: [Key: Int32]
  private let receivers: [Key: Int32]

  private struct Key: Hashable {
    var family: IPFamily
    var port: UInt16
  }

  init() throws {
    let network = try AnonymousNetworkNamespace()
    self.network = network
    cookie = try NamespaceCookie.of(network.namespace)
    (listeners, receivers) = try network.namespace.run {
      let routes = try RouteSocket()
      let loopback = try routes.link(named: "lo")?.index ?? 1
      try routes.setLink(index: loopback, LinkChanges(isUp: true))
      for text in ["10.0.0.0/8", "fd00::/8"] {
        guard let prefix = CIDR(text) else { continue }
        try routes.addRoute(
          Route(destination: prefix, interfaceIndex: loopback, table: 255, scope: 254, type: 2))
      }
      var (listeners, receivers): ([Key: Int32], [Key: Int32]) = ([:], [:])
      for family in IPFamily.allCases {
        for port in Self.ports {
          listeners[Key(family: family, port: port)] = try Self.server(family, port, SOCK_STREAM)
          receivers[Key(family: family, port: port)] = try Self.server(family, port, SOCK_DGRAM)
        }
      }
      return (listeners, receivers)
    }
  }

  deinit { for descriptor in Array(listeners.values) + Array(receivers.values) { close(descriptor) } }

  private static func server(_ family: IPFamily, _ port: UInt16, _ type: __socket_type) throws -> Int32 {
    let descriptor = try open(family, type)
    var on: Int32 = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, 4)
    if family == .v6 { setsockopt(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, 4) }
    // Where a datagram was sent to.
    if type == SOCK_DGRAM {
      if family == .v4 { setsockopt(descriptor, Int32(IPPROTO_IP), IP_PKTINFO, &on, 4) }
      if family == .v6 {
        setsockopt(descriptor, Int32(IPPROTO_IPV6), 49, &on, 4)  // IPV6_RECVPKTINFO
        // It may answer from an address that is only a route's.
        setsockopt(descriptor, Int32(IPPROTO_IPV6), 78, &on, 4)  // IPV6_FREEBIND
      }
    }
    guard withSockaddr(.unspecified(family), port, { bind(descriptor, $0, $1) }) == 0,
      type == SOCK_DGRAM || listen(descriptor, 512) == 0
    else { throw SystemError(operation: "bind", object: "\(family) \(port)", errno: errno) }
    return descriptor
  }

  private static func open(_ family: IPFamily, _ type: __socket_type) throws -> Int32 {
    let descriptor = Glibc.socket(Int32(family.linuxFamily), Int32(type.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw SystemError(operation: "open", object: "socket", errno: errno) }
    return descriptor
  }

  // MARK: Clients

  /// A client's socket in here, of the kind that a program has. IPv6 sockets may talk IPv4.
  func socket(_ family: IPFamily, _ type: __socket_type) throws -> Client {
    let raw = Int32(type.rawValue)
    return Client(
      owning: try network.namespace.run { try Self.open(family, __socket_type(UInt32(raw))) }, type: type)
  }

  /// Runs in here; sockets that it opens stay.
  func run<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
    try network.namespace.run(body)
  }

  /// What becomes of a connection to `to`: where it arrives, or the error.
  func connect(to: SocketAddress, _ proto: L4Protocol) throws -> Arrival {
    let client = try socket(to.address.family, proto == .tcp ? SOCK_STREAM : SOCK_DGRAM)
    let error = client.connect(to)
    guard error == 0 else { return .refused(error) }
    guard proto == .udp else { return try arrival(ofConnectionTo: to.address.family) }
    client.send("x", to: nil)
    return try arrival(ofDatagram: to.address.family).place
  }

  /// What becomes of a datagram to `to` by a socket that is not connected.
  func send(to: SocketAddress) throws -> Arrival {
    let client = try socket(to.address.family, SOCK_DGRAM)
    let error = client.send("x", to: to)
    return error == 0 ? try arrival(ofDatagram: to.address.family).place : .refused(error)
  }

  /// Accepts one connection on any port; it is there already.
  func arrival(ofConnectionTo family: IPFamily) throws -> Arrival {
    let accepted = try next(listeners, family) { descriptor in
      let accepted = accept(descriptor, nil, nil)
      return accepted < 0 ? Int32?.none : accepted
    }
    defer { close(accepted) }
    var buffer = SocketAddressBuffer()
    _ = buffer.withPointer { getsockname(accepted, $0, &$1) }
    // Closed by reset: thousands of connections leave nothing behind.
    var lingering = linger(l_onoff: 1, l_linger: 0)
    setsockopt(accepted, SOL_SOCKET, SO_LINGER, &lingering, socklen_t(MemoryLayout<linger>.size))
    guard let address = buffer.address else { throw Missing() }
    return .at(address)
  }

  /// Takes one datagram and says where it was sent; `answer` sends one back from there.
  func arrival(ofDatagram family: IPFamily, answer: String? = nil) throws -> (place: Arrival, text: String) {
    try next(receivers, family) { descriptor in
      var text = [UInt8](repeating: 0, count: 64)
      var control = [UInt8](repeating: 0, count: 128)
      var from = SocketAddressBuffer()
      return from.withPointer { name, length -> (Arrival, String)? in
        let size = length
        return text.withUnsafeMutableBytes { text in
          control.withUnsafeMutableBytes { control in
            var vector = iovec(iov_base: text.baseAddress, iov_len: text.count)
            return withUnsafeMutablePointer(to: &vector) { vector in
              var message = msghdr(
                msg_name: name, msg_namelen: size, msg_iov: vector, msg_iovlen: 1, msg_control: control.baseAddress,
                msg_controllen: control.count, msg_flags: 0)
              let count = recvmsg(descriptor, &message, Int32(MSG_DONTWAIT))
              guard count > 0 else { return nil }
              // One control message: its header has 16 bytes; IPv4's destination is the third word behind.
              let offset = family == .v4 ? 24 : 16
              let bytes = Array(control[offset..<offset + family.addressBytes])
              var own = SocketAddressBuffer()
              _ = own.withPointer { getsockname(descriptor, $0, &$1) }
              guard let address = IPAddress(bytes: bytes), let port = own.address?.port else { return nil }
              if let answer {
                // From where it was sent to: the control message says so.
                let reply = Array(answer.utf8)
                reply.withUnsafeBytes { bytes in
                  vector.pointee = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                  if family == .v4 { control.storeBytes(of: 0, toByteOffset: 16, as: UInt32.self) }
                  _ = sendmsg(descriptor, &message, 0)
                }
              }
              return (.at(SocketAddress(address, port)), String(decoding: text.prefix(count), as: UTF8.self))
            }
          }
        }
      }
    }
  }

  private struct Missing: Error {}

  private func next<Result>(
    _ servers: [Key: Int32], _ family: IPFamily, _ take: (Int32) throws -> Result?
  ) throws -> Result {
    let own = servers.filter { $0.key.family == family }.map(\.value)
    var polls = own.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    guard poll(&polls, UInt(polls.count), 20_000) > 0 else { throw Missing() }
    for ready in polls where ready.revents & Int16(POLLIN) != 0 {
      if let result = try take(ready.fd) { return result }
    }
    throw Missing()
  }
}

enum Arrival: Hashable, CustomStringConvertible {
  case at(SocketAddress)
  case refused(Int32)

  var description: String {
    switch self {
    case .at(let address): "at \(address)"
    case .refused(let error): "refused: \(String(cString: strerror(error)))"
    }
  }
}

/// A socket as programs have them.
final class Client {
  let descriptor: Int32

  init(owning descriptor: Int32, type: __socket_type) {
    self.descriptor = descriptor
    var time = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    guard type == SOCK_STREAM else { return }
    var lingering = linger(l_onoff: 1, l_linger: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &lingering, socklen_t(MemoryLayout<linger>.size))
  }

  deinit { close(descriptor) }

  /// 0 or errno.
  func connect(_ to: SocketAddress) -> Int32 {
    withSockaddr(to.address, to.port.number) { Glibc.connect(descriptor, $0, $1) } == 0 ? 0 : errno
  }

  /// 0 or errno. nil: to whom it is connected.
  @discardableResult
  func send(_ text: String, to: SocketAddress?) -> Int32 {
    let bytes = Array(text.utf8)
    guard let to else { return Glibc.send(descriptor, bytes, bytes.count, 0) >= 0 ? 0 : errno }
    let sent = withSockaddr(to.address, to.port.number) { sendto(descriptor, bytes, bytes.count, 0, $0, $1) }
    return sent >= 0 ? 0 : errno
  }

  /// The text and from whom, as the program is told.
  func receive() -> (text: String, from: SocketAddress?)? {
    var bytes = [UInt8](repeating: 0, count: 64)
    var from = SocketAddressBuffer()
    let count = from.withPointer { recvfrom(descriptor, &bytes, bytes.count, 0, $0, &$1) }
    guard count >= 0 else { return nil }
    return (String(decoding: bytes.prefix(count), as: UTF8.self), from.address)
  }

  /// IPv4 by an IPv6 socket: ::ffff:a.b.c.d.
  private func withMapped<Result>(
    _ to: SocketAddress, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result {
    var value = sockaddr_in6()
    value.sin6_family = sa_family_t(AF_INET6)
    value.sin6_port = to.port.number.bigEndian
    withUnsafeMutableBytes(of: &value.sin6_addr) {
      $0.copyBytes(from: [UInt8](repeating: 0, count: 10) + [0xff, 0xff] + to.address.bytes)
    }
    return withUnsafePointer(to: &value) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in6>.size)) }
    }
  }

  func connect(mapped to: SocketAddress) -> Int32 {
    withMapped(to) { Glibc.connect(descriptor, $0, $1) } == 0 ? 0 : errno
  }

  func send(_ text: String, mapped to: SocketAddress) -> Int32 {
    let bytes = Array(text.utf8)
    return withMapped(to) { sendto(descriptor, bytes, bytes.count, 0, $0, $1) } >= 0 ? 0 : errno
  }

  /// Bytes of the mapped peer's IPv4 address; nil where it is none.
  var mappedPeer: IPAddress? {
    var name = sockaddr_in6()
    var length = socklen_t(MemoryLayout<sockaddr_in6>.size)
    let result = withUnsafeMutablePointer(to: &name) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getpeername(descriptor, $0, &length) }
    }
    return result == 0 ? Self.unmapped(name) : nil
  }

  /// The sender of the next datagram, as the program is told.
  func receiveMapped() -> IPAddress? {
    var bytes = [UInt8](repeating: 0, count: 64)
    var name = sockaddr_in6()
    var length = socklen_t(MemoryLayout<sockaddr_in6>.size)
    let result = withUnsafeMutablePointer(to: &name) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        recvfrom(descriptor, &bytes, bytes.count, 0, $0, &length)
      }
    }
    return result >= 0 ? Self.unmapped(name) : nil
  }

  private static func unmapped(_ name: sockaddr_in6) -> IPAddress? {
    let bytes = withUnsafeBytes(of: name.sin6_addr) { Array($0) }
    guard bytes.prefix(12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] else { return nil }
    return IPAddress(bytes: bytes.suffix(4))
  }

  var peer: SocketAddress? {
    var buffer = SocketAddressBuffer()
    guard buffer.withPointer({ getpeername(descriptor, $0, &$1) }) == 0 else { return nil }
    return buffer.address
  }
}
