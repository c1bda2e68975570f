import Glibc

/// A system call or a netlink request that the kernel refused.
public struct SystemError: Error, Sendable, Hashable, CustomStringConvertible {
  /// What was tried: "add route".
  public let operation: String
  /// On what: "10.0.1.5/32 dev sl1234".
  public let object: String
  public let errno: CInt
  /// The kernel's own words (netlink extended ack), where it gave any.
  public let detail: String?

  public init(operation: String, object: String, errno: CInt, detail: String? = nil) {
    self.operation = operation
    self.object = object
    self.errno = errno
    self.detail = detail
  }

  public var description: String {
    let subject = object.isEmpty ? operation : "\(operation) \(object)"
    let reason = String(cString: strerror(errno))
    return detail.map { "\(subject): \(reason) (\($0))" } ?? "\(subject): \(reason)"
  }
}

/// What can go wrong between a netlink request and its answer.
public enum NetlinkError: Error, Sendable, Hashable, CustomStringConvertible {
  case system(SystemError)
  /// The receive buffer overflowed (ENOBUFS): answers were lost; read the whole state again.
  case overrun(operation: String)
  /// A dump met changes (`NLM_F_DUMP_INTR`) in every one of `attempts` tries: no consistent picture.
  case interrupted(operation: String, attempts: Int)
  /// The kernel's answer does not follow the format.
  case malformed(operation: String, MalformedNetlink)

  /// The kernel's error number, nil for what is no refusal.
  public var errno: CInt? {
    if case .system(let error) = self { error.errno } else { nil }
  }

  public var description: String {
    switch self {
    case .system(let error): error.description
    case .overrun(let operation): "\(operation): netlink messages were lost (receive buffer overflow)"
    case .interrupted(let operation, let attempts): "\(operation): the tables changed during each of \(attempts) dumps"
    case .malformed(let operation, let reason): "\(operation): malformed netlink message: \(reason)"
    }
  }
}

/// Bytes that are not what netlink's format promises.
public struct MalformedNetlink: Error, Sendable, Hashable, CustomStringConvertible {
  /// Bytes from the start of the part that was read.
  public let offset: Int
  public let reason: String

  public init(offset: Int, reason: String) {
    self.offset = offset
    self.reason = reason
  }

  public var description: String { "\(reason) at byte \(offset)" }
}
