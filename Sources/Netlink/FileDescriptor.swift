import Glibc

/// An open file descriptor with one owner; closed when the owner lets go.
public struct FileDescriptor: ~Copyable, Sendable {
  /// Valid while this value lives. Lend it, never close it.
  public let number: CInt

  /// Takes over `number`, which must be open and belong to nobody else.
  public init(owning number: CInt) { self.number = number }

  deinit { close(number) }

  /// Gives the descriptor away without closing it.
  public consuming func release() -> CInt {
    let number = number
    discard self
    return number
  }

  /// Opens a file, always close-on-exec.
  public static func open(_ path: String, _ flags: CInt = O_RDONLY) throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try SystemCalls.open(path, flags))
  }
}
