// Small files and folders: what the lab keeps on disk while it is up.
import Glibc
import LocalAPI

enum Files {
  /// Replaces a file in one step. Without a sync to disk: nothing of a lab outlives a reboot.
  static func replace(_ path: String, _ text: String, mode: mode_t = 0o644) throws {
    let slash = path.lastIndex(of: "/") ?? path.startIndex
    // The leading dot keeps the agent's manifest source from reading a half-written file.
    let temporary = "\(path[..<slash])/.\(path[path.index(after: slash)...]).\(getpid())"
    try LocalFile.create(temporary, with: Array(text.utf8), mode: mode, flags: O_TRUNC, sync: false)
    guard rename(temporary, path) == 0 else {
      throw LabError.system(operation: "rename", object: temporary, errno: errno)
    }
  }

  /// Writes into an existing file, as kernel files want it: one write, no truncation.
  static func write(_ text: String, to path: String) throws(LabError) {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw .system(operation: "open", object: path, errno: errno) }
    defer { close(descriptor) }
    let bytes = Array(text.utf8)
    guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count else {
      throw .system(operation: "write \"\(text)\" to", object: path, errno: errno)
    }
  }

  /// The whole text; nil where there is no such file. Kernel files too, which have no size.
  static func text(_ path: String) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    return String(decoding: drain(descriptor), as: UTF8.self)
  }

  /// Reads to the end.
  static func drain(_ descriptor: Int32) -> [UInt8] {
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
      let count = read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return content }
      content += chunk[0..<count]
    }
  }

  static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  static func isDirectory(_ path: String) -> Bool {
    var info = stat()
    return lstat(path, &info) == 0 && info.st_mode & S_IFMT == S_IFDIR
  }

  static func makeDirectories(_ path: String) throws(LabError) {
    var partial = ""
    for part in path.split(separator: "/") {
      partial += "/\(part)"
      guard mkdir(partial, 0o755) == 0 || errno == EEXIST else {
        throw .system(operation: "create folder", object: partial, errno: errno)
      }
    }
  }

  /// The names in a folder, sorted; none where it does not exist.
  static func names(in path: String) -> [String] { (try? LocalFile.names(in: path)) ?? [] }

  /// Removes a file, or a folder with all that is in it. Never follows a link.
  static func removeTree(_ path: String) {
    if isDirectory(path) {
      for name in names(in: path) { removeTree("\(path)/\(name)") }
      rmdir(path)
    } else {
      unlink(path)
    }
  }

  static func copy(_ source: String, to destination: String, mode: mode_t) throws {
    let descriptor = open(source, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw LabError.system(operation: "open", object: source, errno: errno) }
    defer { close(descriptor) }
    let content = drain(descriptor)
    // Never over a running program: written beside it, then renamed.
    let temporary = destination + ".new"
    try LocalFile.create(temporary, with: content, mode: mode, flags: O_TRUNC, sync: false)
    guard chmod(temporary, mode) == 0, rename(temporary, destination) == 0 else {
      throw LabError.system(operation: "install", object: destination, errno: errno)
    }
  }
}

/// A one-way channel to or from a child, both ends close-on-exec and closed with the value.
///
/// A socket pair, since pipe(2) cannot be close-on-exec from the start (pipe2 is a GNU extension that Swift does not see),
/// and a child spawned by another thread in between would hold the channel open.
struct Channel: ~Copyable {
  /// The lab's end.
  private(set) var own: Int32
  /// The child's end.
  private(set) var childs: Int32

  init() throws(LabError) {
    var ends: [Int32] = [-1, -1]
    let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
    guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
      throw .system(operation: "socketpair", object: "", errno: errno)
    }
    (own, childs) = (ends[0], ends[1])
  }

  /// After the child has its copy: only then does the reader see the end.
  mutating func closeChildsEnd() {
    if childs >= 0 { close(childs) }
    childs = -1
  }

  mutating func closeOwnEnd() {
    if own >= 0 { close(own) }
    own = -1
  }

  deinit {
    if own >= 0 { close(own) }
    if childs >= 0 { close(childs) }
  }
}

/// Leaves a folder alone that is still in use.
func rmdirIfEmpty(_ path: String) { rmdir(path) }
