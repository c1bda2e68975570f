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

  func path(_ name: String) -> String { "\(path)/\(name)" }

  /// nil where nothing is pinned by that name.
  func open(_ name: String) throws(SystemError) -> CInt? {
    let descriptor = bpf_obj_get(path(name))
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
