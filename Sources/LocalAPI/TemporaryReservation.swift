import Glibc

/// A written file that has no name of the store yet. It vanishes with its owner, or with the process: it has no name at
/// all where the file system allows that (`O_TMPFILE`), elsewhere a hidden one that a later reservation removes.
struct TemporaryReservation: ~Copyable {
  /// A hidden name begins with this.
  static let prefix = ".new."

  /// Negative where the file has a name.
  private let descriptor: CInt
  /// What link(2) is told: the descriptor or the hidden name.
  private let source: String

  init(in directory: String, _ content: [UInt8]) throws(FileError) {
    let unnamed = open(directory, 0o20000000 | O_DIRECTORY | O_WRONLY | O_CLOEXEC, 0o600)  // O_TMPFILE
    let path = "\(directory)/\(Self.prefix)\(getpid()).\(pthread_self())"
    if unnamed >= 0 {
      let count = content.withUnsafeBytes { write(unnamed, $0.baseAddress, $0.count) }
      guard count == content.count else {
        let code = errno
        close(unnamed)
        throw FileError(path: directory, operation: "write", errno: code)
      }
    } else {
      try LocalFile.create(path, with: content, flags: O_TRUNC, sync: false)
    }
    descriptor = unnamed
    source = unnamed >= 0 ? "/proc/self/fd/\(unnamed)" : path
  }

  deinit {
    if descriptor >= 0 { close(descriptor) } else { unlink(source) }
  }

  /// False where the name is taken.
  func link(to target: String) throws(AddressStoreError) -> Bool {
    if linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW) == 0 { return true }
    guard errno == EEXIST else { throw .file(FileError(path: target, operation: "link", errno: errno)) }
    return false
  }
}
