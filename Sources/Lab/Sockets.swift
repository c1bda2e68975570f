// Sockets for the traffic tools: an owner that closes, addresses in and out of sockaddr, and epoll.
import CLinux
import Glibc
import NetworkTypes

/// The text of an errno value.
func errorText(_ code: Int32) -> String {
  guard let text = strerror(code) else { return "errno \(code)" }
  return String(cString: text)
}

/// CLOCK_MONOTONIC in nanoseconds.
public func monotonicNanoseconds() -> UInt64 {
  var now = timespec()
  clock_gettime(CLOCK_MONOTONIC, &now)
  return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

/// A socket, closed with its last reference. It stays in the network namespace of the thread that made it.
final class Socket {
  let descriptor: Int32

  init(owning descriptor: Int32) { self.descriptor = descriptor }

  /// A non-blocking, close-on-exec stream or datagram socket. An IPv6 socket never carries IPv4.
  init(_ family: IPFamily, _ type: __socket_type) throws(LabError) {
    let flags = Int32(SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
    descriptor = socket(Int32(family.linuxFamily), Int32(type.rawValue) | flags, 0)
    guard descriptor >= 0 else { throw .system(operation: "socket", object: "\(family)", errno: errno) }
    if family == .v6 { set(Int32(IPPROTO_IPV6), IPV6_V6ONLY, 1) }
  }

  deinit { close(descriptor) }

  func set(_ level: Int32, _ option: Int32, _ value: Int32) {
    var value = value
    setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
  }

  /// Makes close(2) reset the connection: no TIME_WAIT, so that the ephemeral port is free again at once.
  func resetOnClose() {
    var value = linger(l_onoff: 1, l_linger: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &value, socklen_t(MemoryLayout<linger>.size))
  }

  /// Binds; port 0 lets the kernel choose. Returns 0 or errno.
  func bind(_ address: IPAddress, port: UInt16) -> Int32 {
    let result = withSockaddr(address, port) { Glibc.bind(descriptor, $0, $1) }
    return result == 0 ? 0 : errno
  }

  /// Connects. Returns 0 or errno, EINPROGRESS among them.
  func connect(_ target: SocketAddress) -> Int32 {
    let result = withSockaddr(target.address, target.port.number) { Glibc.connect(descriptor, $0, $1) }
    return result == 0 ? 0 : errno
  }

  /// Reads and clears the pending error: 0 or errno.
  func pendingError() -> Int32 {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &value, &length)
    return value
  }

  /// Bytes sent, or minus errno.
  func send(_ bytes: some Collection<UInt8>) -> Int {
    let flags = Int32(MSG_NOSIGNAL | MSG_DONTWAIT)
    let result =
      bytes.withContiguousStorageIfAvailable { Glibc.send(descriptor, $0.baseAddress, $0.count, flags) }
      ?? Array(bytes).withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, flags) }
    guard result < 0 else { return result }
    // The kernel misses the peer first: where it was taken from a connected socket, the error left there tells why.
    let code = errno
    let reason = code == EDESTADDRREQ ? pendingError() : 0
    return -Int(reason == 0 ? code : reason)
  }

  /// Bytes received into `buffer`, 0 at the end of the stream, or minus errno.
  func receive(_ buffer: inout [UInt8]) -> Int {
    let result = buffer.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT)) }
    return result >= 0 ? result : -Int(errno)
  }
}

/// Calls `body` with the address as the kernel wants it.
func withSockaddr<Result>(
  _ address: IPAddress, _ port: UInt16, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
) -> Result {
  switch address.family {
  case .v4:
    var value = sockaddr_in()
    value.sin_family = sa_family_t(AF_INET)
    value.sin_port = port.bigEndian
    withUnsafeMutableBytes(of: &value.sin_addr) { $0.copyBytes(from: address.bytes) }
    return withUnsafePointer(to: &value) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
    }
  case .v6:
    var value = sockaddr_in6()
    value.sin6_family = sa_family_t(AF_INET6)
    value.sin6_port = port.bigEndian
    withUnsafeMutableBytes(of: &value.sin6_addr) { $0.copyBytes(from: address.bytes) }
    return withUnsafePointer(to: &value) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in6>.size)) }
    }
  }
}

/// An address as the kernel filled it in.
struct SocketAddressBuffer {
  var storage = sockaddr_storage()
  var length = socklen_t(MemoryLayout<sockaddr_storage>.size)

  mutating func withPointer<Result>(_ body: (UnsafeMutablePointer<sockaddr>, inout socklen_t) -> Result) -> Result {
    length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    return withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, &length) }
    }
  }

  /// nil for families other than IPv4 and IPv6, and for port 0.
  var address: SocketAddress? {
    withUnsafeBytes(of: storage) { bytes in
      let port = UInt16(bytes[2]) << 8 | UInt16(bytes[3])
      let range = storage.ss_family == sa_family_t(AF_INET) ? 4..<8 : 8..<24
      guard storage.ss_family == sa_family_t(AF_INET) || storage.ss_family == sa_family_t(AF_INET6),
        let address = IPAddress(bytes: bytes[range]), let port = Port(port)
      else { return nil }
      return SocketAddress(address, port)
    }
  }
}

/// One epoll instance.
final class Poller {
  struct Interest: OptionSet {
    let rawValue: UInt32
    static let read = Interest(rawValue: EPOLLIN.rawValue)
    static let write = Interest(rawValue: EPOLLOUT.rawValue)
    static let error = Interest(rawValue: EPOLLERR.rawValue)
    static let hangUp = Interest(rawValue: EPOLLHUP.rawValue)
    static let edge = Interest(rawValue: EPOLLET.rawValue)
  }

  private let descriptor: Int32
  private var events = [epoll_event](repeating: epoll_event(), count: 256)

  init() throws(LabError) {
    descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw .system(operation: "epoll_create1", object: "", errno: errno) }
  }

  deinit { close(descriptor) }

  func add(_ socket: Socket, _ interest: Interest, token: UInt64) throws(LabError) {
    try control(EPOLL_CTL_ADD, socket, interest, token)
  }

  func change(_ socket: Socket, _ interest: Interest, token: UInt64) throws(LabError) {
    try control(EPOLL_CTL_MOD, socket, interest, token)
  }

  private func control(
    _ operation: Int32, _ socket: Socket, _ interest: Interest, _ token: UInt64
  ) throws(LabError) {
    var event = epoll_event()
    event.events = interest.rawValue
    event.data.u64 = token
    guard epoll_ctl(descriptor, operation, socket.descriptor, &event) == 0 else {
      throw .system(operation: "epoll_ctl", object: "descriptor \(socket.descriptor)", errno: errno)
    }
  }

  /// Waits at most that long (nil: for ever) and reports (token, what is possible now).
  func wait(milliseconds: Int?) -> [(token: UInt64, ready: Interest)] {
    let count = epoll_wait(descriptor, &events, Int32(events.count), milliseconds.map(Int32.init(clamping:)) ?? -1)
    return events.prefix(max(0, Int(count))).map { ($0.data.u64, Interest(rawValue: $0.events)) }
  }
}
