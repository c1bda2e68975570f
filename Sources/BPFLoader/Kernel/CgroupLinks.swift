import CLibBPF
import Glibc
import Netlink

/// The programs of one object on one cgroup, by pinned links: they stay when we end, and give way to a new generation in
/// place, without a moment in which none is attached.
struct CgroupLinks {
  let pins: PinFolder
  let cgroup: String

  static let prefix = "link-"
  static func pin(_ program: String) -> String { "\(prefix)\(program)" }

  /// Attaches every program of the object, or puts it into the place of its predecessor.
  func attach(_ object: BPFObject) throws(SystemError) {
    let (folder, number) = try open()
    defer { close(folder) }
    for name in object.programNames {
      let program = try object.descriptor(ofProgram: name)
      if let link = try pins.open(Self.pin(name)) {
        defer { close(link) }
        if try info(link, name).cgroup.cgroup_id == number, bpf_link_update(link, program, nil) == 0 { continue }
      }
      // There is none, or it is on another cgroup: first the new one, so that connections meet one or both.
      let type = try object.attachType(ofProgram: name)
      let link = try check("attach \(name) to", cgroup) { bpf_link_create(program, folder, type, nil) }
      defer { close(link) }
      try pins.removeLink(Self.pin(name))
      try pins.pin(link, Self.pin(name))
    }
  }

  func detach(_ object: BPFObject) throws(SystemError) {
    for name in object.programNames { try pins.removeLink(Self.pin(name)) }
  }

  /// Which of the programs are attached to the cgroup.
  func attached(_ names: [String]) throws(SystemError) -> Set<String> {
    let (folder, number) = try open()
    defer { close(folder) }
    var found: Set<String> = []
    for name in names {
      guard let link = try pins.open(Self.pin(name)) else { continue }
      defer { close(link) }
      if try info(link, name).cgroup.cgroup_id == number { found.insert(name) }
    }
    return found
  }

  /// The cgroup's folder, and its number: the folder's inode.
  private func open() throws(SystemError) -> (descriptor: CInt, number: UInt64) {
    let folder = Glibc.open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard folder >= 0 else { throw SystemError(operation: "open cgroup", object: cgroup, errno: errno) }
    var status = stat()
    guard fstat(folder, &status) == 0 else {
      close(folder)
      throw SystemError(operation: "look at cgroup", object: cgroup, errno: errno)
    }
    return (folder, UInt64(status.st_ino))
  }

  private func info(_ link: CInt, _ name: String) throws(SystemError) -> bpf_link_info {
    var info = bpf_link_info()
    var size = UInt32(MemoryLayout<bpf_link_info>.size)
    try check("ask about link", name) { bpf_obj_get_info_by_fd(link, &info, &size) }
    return info
  }
}
