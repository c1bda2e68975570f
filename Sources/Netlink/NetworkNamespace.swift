import CLinux
import Glibc

/// A network namespace by the path of its file: `/run/netns/x`, `/proc/PID/ns/net`.
///
/// A namespace belongs to a thread. It is therefore only ever entered on a thread made for the purpose, which then ends:
/// entering it on a thread of a pool would leave later tasks in the wrong place. Sockets opened inside stay inside and
/// can be used from anywhere.
public struct NetworkNamespace: Sendable, Hashable, CustomStringConvertible {
  public let path: String

  public init(path: String) { self.path = path }

  /// The calling thread's own.
  public static let current = NetworkNamespace(path: "/proc/thread-self/ns/net")

  public var description: String { path }

  /// Opens the namespace; a path that is something else fails with EINVAL.
  public func open() throws(SystemError) -> FileDescriptor {
    let descriptor = try FileDescriptor.open(path)
    guard try SystemCalls.isNamespace(descriptor.number, path: path) else {
      throw SystemError(operation: "open", object: path, errno: EINVAL, detail: "is no namespace")
    }
    return descriptor
  }

  /// The namespace's identity while it lives; a later one may get the same number.
  public func inode() throws(SystemError) -> UInt64 {
    let descriptor = try open()
    return try SystemCalls.inode(of: descriptor.number, path: path)
  }

  /// The kernel's number for it, never used again until the next boot: how BPF programs know a socket's namespace.
  public func cookie() throws -> UInt64 {
    try run { try SystemCalls.namespaceCookie() }
  }

  /// Runs `body` inside, on a thread of its own, and waits for it; with `mountNamespace` (a path) inside that as well,
  /// so that it sees that namespace's files.
  public func run<Result: Sendable>(
    mountNamespace: String? = nil, _ body: @escaping @Sendable () throws -> Result
  ) throws -> Result {
    // Opened here, not in the new thread: `thread-self` must mean the caller.
    let network = try open()
    let mount = try mountNamespace.map { path throws(SystemError) in try SystemCalls.open(path, O_RDONLY) } ?? -1
    defer { if mount >= 0 { close(mount) } }
    let (networkNumber, path) = (network.number, path)
    return try DedicatedThread.run {
      try SystemCalls.setns(networkNumber, CLONE_NEWNET, path: path)
      if mount >= 0 {
        // A thread that shares its root and working directory may not change its mount namespace.
        try SystemCalls.unshare(CLONE_FS, "file system attributes")
        try SystemCalls.setns(mount, CLONE_NEWNS, path: mountNamespace ?? "")
      }
      return try body()
    }
  }

  /// Creates an empty namespace and keeps it alive by a bind mount at `path`, as `ip netns add` does; the file must not
  /// exist yet.
  public static func create(at path: String) throws -> NetworkNamespace {
    close(try SystemCalls.open(path, O_RDONLY | O_CREAT | O_EXCL))
    do {
      try DedicatedThread.run {
        try SystemCalls.unshare(CLONE_NEWNET, "network namespace")
        try SystemCalls.mountBind("/proc/thread-self/ns/net", onto: path)
      }
    } catch {
      unlink(path)
      throw error
    }
    return NetworkNamespace(path: path)
  }

  /// Undoes `create(at:)`: the namespace ends with its last user. Succeeds also when it is gone already.
  public static func remove(at path: String) throws(SystemError) {
    do throws(SystemError) {
      try SystemCalls.unmountLazily(path)
    } catch  where error.errno == EINVAL || error.errno == ENOENT {
    }
    guard unlink(path) == 0 || errno == ENOENT else {
      throw SystemError(operation: "remove", object: path, errno: errno)
    }
  }
}

/// A new network namespace without a name: it ends when this object and its last user are gone, also after a crash.
public final class AnonymousNetworkNamespace: Sendable {
  private let descriptor: FileDescriptor

  public init() throws {
    let number = try DedicatedThread.run {
      try SystemCalls.unshare(CLONE_NEWNET, "network namespace")
      return try SystemCalls.open(NetworkNamespace.current.path, O_RDONLY)
    }
    descriptor = FileDescriptor(owning: number)
  }

  /// Reached through this process, so that other programs can open it too. Valid while this object lives.
  public var namespace: NetworkNamespace { NetworkNamespace(path: "/proc/\(getpid())/fd/\(descriptor.number)") }

  public var descriptorNumber: CInt { descriptor.number }
}

/// Threads that may be put into another namespace, because they end afterwards.
enum DedicatedThread {
  private final class Job<Value> {
    let body: () throws -> Value
    var result: Swift.Result<Value, any Error>?

    init(_ body: @escaping () throws -> Value) { self.body = body }
  }

  /// Runs `body` on a new thread and waits for it.
  static func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
    let job = Job<Value>(body)
    // The box erases the generic type: a C function pointer cannot capture it.
    let box = ThreadBody { job.result = Swift.Result { try job.body() } }
    let pointer = Unmanaged.passRetained(box).toOpaque()
    var thread = pthread_t()
    let code = pthread_create(
      &thread, nil,
      { pointer in
        if let pointer { Unmanaged<ThreadBody>.fromOpaque(pointer).takeRetainedValue().run() }
        return nil
      }, pointer)
    guard code == 0 else {
      Unmanaged<ThreadBody>.fromOpaque(pointer).release()
      throw SystemError(operation: "create thread", object: "", errno: code)
    }
    pthread_join(thread, nil)
    guard let result = job.result else { throw SystemError(operation: "run thread", object: "", errno: ECANCELED) }
    return try result.get()
  }

  private final class ThreadBody {
    let run: () -> Void

    init(_ run: @escaping () -> Void) { self.run = run }
  }
}
