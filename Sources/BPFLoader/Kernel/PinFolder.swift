import CLibBPF
import Glibc
import Netlink

/// Our folder in a BPF file system. What is pinned there lives on without us.
///
/// A map's layout is part of its pin's name, so that a build with another layout makes its own and leaves the old one to
/// the programs that still use it.
public struct PinFolder: Sendable {
  public let path: String

  /// - Parameter path: a folder in a mounted BPF file system, made where it is not there.
  public init(_ path: String) throws(SystemError) {
    self.path = path
    var made = ""
    for part in path.split(separator: "/") {
      made += "/\(part)"
      guard mkdir(made, 0o700) == 0 || errno == EEXIST else {
        throw SystemError(operation: "make folder", object: made, errno: errno)
      }
    }
    guard BPFFileSystem.isMounted(path) else {
      throw SystemError(
        operation: "use", object: path, errno: EINVAL, detail: "it is in no BPF file system: mount -t bpf bpf FOLDER")
    }
  }

  init(unchecked path: String) { self.path = path }

  func path(_ name: String) -> String { "\(path)/\(name)" }

  /// nil where nothing is pinned by that name.
  func open(_ name: String, forReading isReadOnly: Bool = false) throws(SystemError) -> CInt? {
    var options = bpf_obj_get_opts()
    // Not what the compiler pads it with: libbpf wants zeros there.
    options.sz = 12
    options.file_flags = isReadOnly ? 1 << 3 : 0  // BPF_F_RDONLY
    let descriptor = bpf_obj_get_opts(path(name), &options)
    if descriptor == -ENOENT { return nil }
    return try check("open pin", path(name)) { descriptor }
  }

  func pin(_ descriptor: CInt, _ name: String) throws(SystemError) {
    try check("pin", path(name)) { bpf_obj_pin(descriptor, path(name)) }
  }

  func remove(_ name: String) throws(SystemError) {
    guard unlink(path(name)) == 0 || errno == ENOENT else {
      throw SystemError(operation: "remove pin", object: path(name), errno: errno)
    }
  }

  /// Detaches a link and removes its pin. Of a pin that is only removed, the kernel detaches the link some time later.
  func removeLink(_ name: String) throws(SystemError) {
    if let link = try open(name) {
      // It may be detached already, as its device or cgroup has gone.
      _ = bpf_link_detach(link)
      close(link)
    }
    try remove(name)
  }

  public var names: [String] {
    guard let folder = opendir(path) else { return [] }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  func removeFolder() { rmdir(path) }
}
