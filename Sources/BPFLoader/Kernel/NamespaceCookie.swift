import BPFPrograms
import CLibBPF
import Glibc
import Netlink

/// How programs know a network namespace: a number that is never used again until the next boot.
public enum NamespaceCookie {
  /// The namespace's, on any kernel that has what the programs need: before 5.14 only a program is told.
  ///
  /// - Throws: what the kernel refuses; where a program is needed also a machine without cgroup2.
  public static func of(_ namespace: NetworkNamespace) throws -> UInt64 {
    do {
      return try namespace.cookie()
    } catch let error as SystemError where error.errno == ENOPROTOOPT {
      return try askProgram(namespace)
    }
  }

  /// Whether whoever is in a namespace may ask for its cookie (5.14): else nobody knows pods' sockets by it.
  public static var isToldToAll: Bool {
    do { _ = try NetworkNamespace.current.cookie() } catch { return (error as? SystemError)?.errno != ENOPROTOOPT }
    return true
  }

  /// `of`, by way of a program.
  static func askProgram(_ namespace: NetworkNamespace) throws -> UInt64 {
    let object = try BPFObject(.cookie)
    try object.load()
    let cookies: BPFMap<UInt64, UInt64> = try object.openMap("namespaces")
    // Of the root, so that this process is below wherever it is.
    let path = try BPFFileSystem.cgroupRoot()
    let folder = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard folder >= 0 else { throw SystemError(operation: "open cgroup", object: path, errno: errno) }
    defer { close(folder) }
    let program = try object.descriptor(ofProgram: "sock_create")
    // It goes with this descriptor.
    let link = try check("attach sock_create to", path) {
      bpf_link_create(program, folder, BPF_CGROUP_INET_SOCK_CREATE, nil)
    }
    defer { close(link) }
    let socket = try namespace.run { try socketCookie() }
    guard let cookie = try cookies[socket] else {
      throw SystemError(
        operation: "ask for", object: "the network namespace's cookie", errno: ENOENT,
        detail: "the program saw no socket; is this process in \(path)?")
    }
    return cookie
  }

  /// Of a new socket in this thread's namespace.
  private static func socketCookie() throws(SystemError) -> UInt64 {
    let descriptor = Glibc.socket(AF_INET, CInt(SOCK_DGRAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else {
      throw SystemError(operation: "open socket", object: "for a namespace cookie", errno: errno)
    }
    defer { close(descriptor) }
    var cookie: UInt64 = 0
    var length = socklen_t(MemoryLayout<UInt64>.size)
    let option: CInt = 57  // SO_COOKIE, asm-generic/socket.h
    guard getsockopt(descriptor, SOL_SOCKET, option, &cookie, &length) == 0 else {
      throw SystemError(operation: "ask for", object: "a socket's cookie", errno: errno)
    }
    return cookie
  }
}
