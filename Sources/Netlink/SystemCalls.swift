import CLinux
import Glibc

/// The raw system calls of this module: each repeated on EINTR, each failing with its name and object.
enum SystemCalls {
  /// Repeats `call` while it is interrupted; a negative result is an error.
  static func retrying(
    _ operation: String, _ object: @autoclosure () -> String, _ call: () -> CInt
  ) throws(SystemError) -> CInt {
    while true {
      let result = call()
      if result >= 0 { return result }
      let code = errno
      if code != EINTR { throw SystemError(operation: operation, object: object(), errno: code) }
    }
  }

  static func open(_ path: String, _ flags: CInt, mode: mode_t = 0o600) throws(SystemError) -> CInt {
    try retrying("open", path) { Glibc.open(path, flags | O_CLOEXEC, mode) }
  }

  /// The inode behind an open descriptor.
  static func inode(of descriptor: CInt, path: String) throws(SystemError) -> UInt64 {
    var status = stat()
    _ = try retrying("stat", path) { fstat(descriptor, &status) }
    return UInt64(status.st_ino)
  }

  static func isNamespace(_ descriptor: CInt, path: String) throws(SystemError) -> Bool {
    var status = statfs()
    _ = try retrying("stat file system of", path) { fstatfs(descriptor, &status) }
    let namespaceMagic = 0x6e73_6673  // NSFS_MAGIC, linux/magic.h
    return Int(status.f_type) == namespaceMagic
  }

  /// In the calling thread's namespace; nil where there is none of this name. Waits for nobody, while to ask by netlink is to
  /// wait for whoever changes any link.
  static func interfaceIndex(of name: String) throws(SystemError) -> Int? {
    let index = if_nametoindex(name)
    guard index == 0 else { return Int(index) }
    let code = errno
    if code == ENODEV { return nil }
    throw SystemError(operation: "look up link", object: name, errno: code)
  }

  static func setns(_ descriptor: CInt, _ type: CInt, path: String) throws(SystemError) {
    _ = try retrying("enter namespace", path) { clinux_setns(descriptor, type) }
  }

  static func unshare(_ flags: CInt, _ what: String) throws(SystemError) {
    _ = try retrying("unshare", what) { clinux_unshare(flags) }
  }

  static func mountBind(_ source: String, onto target: String) throws(SystemError) {
    _ = try retrying("bind mount", target) { mount(source, target, nil, UInt(MS_BIND), nil) }
  }

  /// Detaches at once; whoever still uses it keeps it.
  static func unmountLazily(_ path: String) throws(SystemError) {
    _ = try retrying("unmount", path) { umount2(path, CInt(MNT_DETACH) | 8) }  // 8: UMOUNT_NOFOLLOW
  }

  /// Of the calling thread's network namespace. Since Linux 5.14.
  static func namespaceCookie() throws(SystemError) -> UInt64 {
    let descriptor = try retrying("open socket", "for a namespace cookie") {
      socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    }
    defer { close(descriptor) }
    return try namespaceCookie(of: descriptor)
  }

  /// Of a socket's namespace.
  static func namespaceCookie(of descriptor: CInt) throws(SystemError) -> UInt64 {
    var cookie: UInt64 = 0
    var length = socklen_t(MemoryLayout<UInt64>.size)
    let option: CInt = 71  // SO_NETNS_COOKIE, asm-generic/socket.h
    _ = try retrying("ask for", "the network namespace's cookie") {
      getsockopt(descriptor, SOL_SOCKET, option, &cookie, &length)
    }
    return cookie
  }

  static func netlinkSocket(_ number: CInt) throws(SystemError) -> CInt {
    try retrying("open netlink socket", "protocol \(number)") {
      socket(AF_NETLINK, CInt(SOCK_RAW.rawValue) | CInt(SOCK_CLOEXEC.rawValue), number)
    }
  }

  static func setOption(
    _ descriptor: CInt, _ level: CInt, _ option: CInt, _ value: CInt, _ name: String
  ) throws(SystemError) {
    var value = value
    _ = try retrying("set socket option", name) {
      setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<CInt>.size))
    }
  }

  /// Binds to a port id of the kernel's choice and returns it.
  static func bindNetlink(_ descriptor: CInt) throws(SystemError) -> UInt32 {
    var address = sockaddr_nl()
    address.nl_family = sa_family_t(AF_NETLINK)
    var length = socklen_t(MemoryLayout<sockaddr_nl>.size)
    _ = try retrying("bind", "netlink socket") {
      withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, length) }
      }
    }
    _ = try retrying("get address of", "netlink socket") {
      withUnsafeMutablePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &length) }
      }
    }
    return address.nl_pid
  }

  /// Sends to the kernel; netlink takes a message whole or not at all.
  static func send(_ descriptor: CInt, _ bytes: [UInt8], _ operation: String) throws(SystemError) {
    _ = try retrying("send", operation) {
      bytes.withUnsafeBytes { CInt(truncatingIfNeeded: Glibc.send(descriptor, $0.baseAddress, $0.count, 0)) }
    }
  }

  enum Received {
    case bytes(Int, fromKernel: Bool)
    case nothingYet
    case overrun
  }

  /// Reads one datagram whole, growing `buffer` to its size first.
  static func receive(_ descriptor: CInt, into buffer: inout [UInt8]) throws(SystemError) -> Received {
    while true {
      // Peeking costs a microsecond and means that no datagram, whatever its size, is ever cut.
      let size = recv(descriptor, nil, 0, CInt(MSG_PEEK) | CInt(MSG_TRUNC) | CInt(MSG_DONTWAIT))
      if size < 0 {
        switch errno {
        case EINTR: continue
        case EAGAIN: return .nothingYet
        case ENOBUFS: return .overrun
        default: throw SystemError(operation: "receive", object: "netlink socket", errno: errno)
        }
      }
      if size > buffer.count { buffer = [UInt8](repeating: 0, count: max(size, buffer.count * 2)) }
      var source = sockaddr_nl()
      var length = socklen_t(MemoryLayout<sockaddr_nl>.size)
      let count = withUnsafeMutablePointer(to: &source) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
          buffer.withUnsafeMutableBytes {
            recvfrom(descriptor, $0.baseAddress, $0.count, CInt(MSG_DONTWAIT), address, &length)
          }
        }
      }
      if count >= 0 { return .bytes(count, fromKernel: source.nl_pid == 0) }
      switch errno {
      case EINTR, EAGAIN: continue
      case ENOBUFS: return .overrun
      default: throw SystemError(operation: "receive", object: "netlink socket", errno: errno)
      }
    }
  }

  /// Waits until `descriptor` can be read; false when `milliseconds` (negative: no limit) have passed.
  static func waitReadable(_ descriptor: CInt, milliseconds: Int) throws(SystemError) -> Bool {
    let start = monotonicMilliseconds()
    while true {
      let left = milliseconds < 0 ? -1 : max(0, milliseconds - (monotonicMilliseconds() - start))
      var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      let ready = poll(&request, 1, CInt(clamping: left))
      if ready > 0 { return true }
      if ready == 0 { return false }
      if errno != EINTR { throw SystemError(operation: "poll", object: "netlink socket", errno: errno) }
    }
  }

  static func monotonicMilliseconds() -> Int {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * 1000 + time.tv_nsec / 1_000_000
  }
}
