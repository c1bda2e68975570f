import CLinux
import Glibc
import NetworkTypes

@testable import Netlink

/// A network namespace with loopback, rules made by `nft`, and real senders.
final class PacketLogRig: Sendable {
  private let anonymous: AnonymousNetworkNamespace

  var namespace: NetworkNamespace { anonymous.namespace }

  init(rules: String) throws {
    anonymous = try AnonymousNetworkNamespace()
    try RouteSocket(in: anonymous.namespace).setLink(index: Self.loopback, LinkChanges(isUp: true))
    try anonymous.namespace.nft("table inet test {\n\(rules)\n}")
  }

  /// The index of every namespace's first link.
  static let loopback = 1

  /// Sends one datagram for each text of `contents` and returns the source port.
  @discardableResult
  func send(_ contents: [String], to destination: IPAddress, port: UInt16) throws -> UInt16 {
    try namespace.run {
      try Self.withSocket(SOCK_DGRAM, destination, port) { descriptor, address, length in
        for content in contents {
          let bytes = Array(content.utf8)
          guard sendto(descriptor, bytes, bytes.count, 0, address, length) == bytes.count else {
            throw SystemError(operation: "send", object: "\(destination) port \(port)", errno: errno)
          }
        }
        return try Self.localPort(descriptor)
      }
    }
  }

  /// Sends a SYN and returns the source port; nobody need listen.
  func connect(to destination: IPAddress, port: UInt16) throws -> UInt16 {
    try namespace.run {
      try Self.withSocket(SOCK_STREAM, destination, port) { descriptor, address, length in
        var any = [UInt8](repeating: 0, count: Int(length))
        any.withUnsafeMutableBytes { $0.storeBytes(of: address.pointee.sa_family, as: sa_family_t.self) }
        let bound = any.withUnsafeBytes {
          bind(descriptor, $0.baseAddress?.assumingMemoryBound(to: sockaddr.self), length)
        }
        guard bound == 0 else { throw SystemError(operation: "bind", object: "\(destination)", errno: errno) }
        let source = try Self.localPort(descriptor)
        _ = Glibc.connect(descriptor, address, length)
        return source
      }
    }
  }

  private static func withSocket<Result>(
    _ type: __socket_type, _ destination: IPAddress, _ port: UInt16,
    _ body: (CInt, UnsafePointer<sockaddr>, socklen_t) throws -> Result
  ) throws -> Result {
    let family = CInt(destination.family.linuxFamily)
    let flags = CInt(SOCK_CLOEXEC.rawValue) | CInt(SOCK_NONBLOCK.rawValue)
    let descriptor = FileDescriptor(owning: socket(family, CInt(type.rawValue) | flags, 0))
    guard descriptor.number >= 0 else { throw SystemError(operation: "socket", object: "", errno: errno) }
    // Family (host order), port; then IPv4's address at 4, IPv6's at 8 behind the flow label.
    var address = [UInt8](repeating: 0, count: destination.family == .v4 ? 16 : 28)
    (address[0], address[2], address[3]) = (destination.family.linuxFamily, UInt8(port >> 8), UInt8(port & 0xff))
    let start = destination.family == .v4 ? 4 : 8
    address.replaceSubrange(start..<start + destination.bytes.count, with: destination.bytes)
    return try address.withUnsafeBytes { bytes in
      guard let pointer = bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self) else {
        throw SystemError(operation: "address", object: "\(destination)", errno: EINVAL)
      }
      return try body(descriptor.number, pointer, socklen_t(bytes.count))
    }
  }

  private static func localPort(_ descriptor: CInt) throws -> UInt16 {
    var address = [UInt8](repeating: 0, count: 28)
    var length = socklen_t(address.count)
    let code = address.withUnsafeMutableBytes {
      getsockname(descriptor, $0.baseAddress?.assumingMemoryBound(to: sockaddr.self), &length)
    }
    guard code == 0 else { throw SystemError(operation: "getsockname", object: "", errno: errno) }
    return UInt16(address[2]) << 8 | UInt16(address[3])
  }
}

extension PacketLogSocket {
  /// Reads until `count` messages are there, or none has come for five seconds.
  func collect(_ count: Int) throws -> PacketLogEvents {
    var all = PacketLogEvents(messages: [], lost: 0, hasUncountedLoss: false)
    while all.messages.count < count {
      let events = try next(timeoutMilliseconds: 5_000)
      if events.messages.isEmpty { break }
      (all.lost, all.hasUncountedLoss) = (events.lost, events.hasUncountedLoss)
      all.messages += events.messages
    }
    return all
  }
}

extension NetworkNamespace {
  /// Runs `nft` in it.
  func nft(_ commands: String) throws {
    let path = ["/usr/sbin/nft", "/sbin/nft"].first { (path: String) in access(path, X_OK) == 0 } ?? "nft"
    let status = try run {
      // The child inherits the thread's namespace.
      var processID = pid_t()
      var arguments: [UnsafeMutablePointer<CChar>?] = [strdup(path), strdup(commands), nil]
      var variables: [UnsafeMutablePointer<CChar>?] = [nil]
      defer { for pointer in arguments { free(pointer) } }
      let code = posix_spawn(&processID, path, nil, nil, &arguments, &variables)
      guard code == 0 else { throw SystemError(operation: "start", object: path, errno: code) }
      var status: CInt = 0
      while waitpid(processID, &status, 0) < 0, errno == EINTR {}
      return status
    }
    guard status == 0 else { throw SystemError(operation: "nft", object: commands, errno: EIO) }
  }
}
