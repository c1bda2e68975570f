import Glibc

/// Small files of local state: read whole, replaced whole.
public enum LocalFile {
  /// A state file is a few hundred bytes; more is not ours.
  static let sizeLimit = 1 << 20

  /// nil when the file does not exist.
  public static func read(_ path: String) throws(FileError) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
    guard descriptor >= 0 else {
      if errno == ENOENT || errno == ENOTDIR { return nil }
      throw FileError(path: path, operation: "open", errno: errno)
    }
    defer { close(descriptor) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while true {
      let count = Glibc.read(descriptor, &chunk, chunk.count)
      if count < 0 {
        if errno == EINTR { continue }
        throw FileError(path: path, operation: "read", errno: errno)
      }
      if count == 0 { return content }
      content += chunk[0..<count]
      guard content.count <= sizeLimit else { throw FileError(path: path, operation: "read", errno: EFBIG) }
    }
  }

  /// Writes a file beside `path`, syncs it and renames it over: after a crash there is the old content or the new. Without `sync`
  /// that holds for crashes of programs only.
  public static func replace(
    _ path: String, with content: [UInt8], mode: mode_t = 0o600, sync: Bool = true
  ) throws(FileError) {
    // The dot keeps a half-written file out of every listing; the process id keeps two writers apart.
    let slash = path.utf8.lastIndex(of: UInt8(ascii: "/"))
    let folder = slash.map { String(path[..<$0]) } ?? "."
    let name = slash.map { String(path[path.utf8.index(after: $0)...]) } ?? path
    let temporary = "\(folder)/.\(name).\(getpid()).\(pthread_self())"
    try create(temporary, with: content, mode: mode, flags: O_TRUNC, sync: sync)
    guard rename(temporary, path) == 0 else {
      let code = errno
      unlink(temporary)
      throw FileError(path: path, operation: "rename", errno: code)
    }
    if sync { try syncDirectory(folder) }
  }

  /// Writes `path`. `flags` is `O_TRUNC`, or `O_EXCL` to insist on a new file; `sync` waits for the disk, which only what
  /// must outlive a power cut needs.
  public static func create(
    _ path: String, with content: [UInt8], mode: mode_t = 0o600, flags: CInt = O_EXCL, sync: Bool = true
  ) throws(FileError) {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, mode)
    guard descriptor >= 0 else { throw FileError(path: path, operation: "create", errno: errno) }
    defer { close(descriptor) }
    var written = 0
    while written < content.count {
      let count = content[written...].withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else {
        let code = errno
        unlink(path)
        throw FileError(path: path, operation: "write", errno: code)
      }
      written += count
    }
    guard !sync || fsync(descriptor) == 0 else {
      let code = errno
      unlink(path)
      throw FileError(path: path, operation: "sync", errno: code)
    }
  }

  /// Makes names that were created, linked or removed in `directory` survive a power cut.
  public static func syncDirectory(_ directory: String) throws(FileError) {
    let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError(path: directory, operation: "open", errno: errno) }
    defer { close(descriptor) }
    guard fsync(descriptor) == 0 || errno == EINVAL else {
      throw FileError(path: directory, operation: "sync", errno: errno)
    }
  }

  /// Succeeds also when the file does not exist.
  public static func remove(_ path: String) throws(FileError) {
    guard unlink(path) == 0 || errno == ENOENT || errno == ENOTDIR else {
      throw FileError(path: path, operation: "remove", errno: errno)
    }
  }

  /// Creates the folder and those above it, closed to all but root and its group.
  public static func createDirectories(_ path: String) throws(FileError) {
    if mkdir(path, 0o750) == 0 || errno == EEXIST { return }
    guard errno == ENOENT, let slash = path.utf8.lastIndex(of: UInt8(ascii: "/")), slash != path.startIndex else {
      throw FileError(path: path, operation: "create folder", errno: errno)
    }
    try createDirectories(String(path[..<slash]))
    guard mkdir(path, 0o750) == 0 || errno == EEXIST else {
      throw FileError(path: path, operation: "create folder", errno: errno)
    }
  }

  /// The names in a folder, in no order; none when it does not exist.
  public static func names(in directory: String) throws(FileError) -> [String] {
    guard let stream = opendir(directory) else {
      if errno == ENOENT { return [] }
      throw FileError(path: directory, operation: "list", errno: errno)
    }
    defer { closedir(stream) }
    var names: [String] = []
    while true {
      errno = 0
      guard let entry = readdir(stream) else {
        guard errno == 0 else { throw FileError(path: directory, operation: "list", errno: errno) }
        return names
      }
      let name = withUnsafePointer(to: &entry.pointee.d_name) { tuple in
        tuple.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: tuple.pointee)) {
          String(cString: $0)
        }
      }
      if name != ".", name != ".." { names.append(name) }
    }
  }
}
