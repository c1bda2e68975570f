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
  func attach(_ object: BPFObject) throws(BPFError) {
    let folder = Glibc.open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard folder >= 0 else { throw BPFError(operation: "open cgroup", object: cgroup, errno: errno) }
    defer { close(folder) }
    for name in object.programNames {
      let program = try object.descriptor(ofProgram: name)
      if let link = try pins.open(Self.pin(name)) {
        defer { close(link) }
        if bpf_link_update(link, program, nil) == 0 { continue }
        // A link whose cgroup is gone has nothing to update: another cgroup, another link.
        try pins.remove(Self.pin(name))
      }
      let type = try object.attachType(ofProgram: name)
      let link = try check("attach \(name) to", cgroup) { bpf_link_create(program, folder, type, nil) }
      defer { close(link) }
      try pins.pin(link, Self.pin(name))
    }
  }

  /// Ids of the programs that are attached, by name; those that are not are missing.
  func attached(_ names: [String]) throws(BPFError) -> [String: UInt32] {
    var found: [String: UInt32] = [:]
    for name in names {
      guard let link = try pins.open(Self.pin(name)) else { continue }
      defer { close(link) }
      var info = bpf_link_info()
      var size = UInt32(MemoryLayout<bpf_link_info>.size)
      try check("ask about link", name) { bpf_obj_get_info_by_fd(link, &info, &size) }
      // The cgroup's number is 0 once it is gone.
      if info.cgroup.cgroup_id != 0 { found[name] = info.prog_id }
    }
    return found
  }
}
