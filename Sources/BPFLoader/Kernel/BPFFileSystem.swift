import CLinux
import Glibc
import Netlink

/// Where pins and cgroups are.
public enum BPFFileSystem {
  private static let usual = "/sys/fs/bpf"

  /// Sees to it that `folder` lies in a BPF file system: mounts one on /sys/fs/bpf where the folder is below, else on the
  /// folder itself, unless there is one.
  public static func mount(for folder: String) throws(SystemError) {
    let place = folder == usual || folder.hasPrefix("\(usual)/") ? usual : folder
    if isMounted(place) || isMounted(folder) { return }
    guard mkdir(place, 0o700) == 0 || errno == EEXIST else {
      throw SystemError(operation: "make folder", object: place, errno: errno)
    }
    guard Glibc.mount("bpf", place, "bpf", 0, "mode=0700") == 0 else {
      throw SystemError(operation: "mount BPF file system on", object: place, errno: errno)
    }
  }

  /// Whether the path exists and lies in a BPF file system.
  public static func isMounted(_ path: String) -> Bool {
    var status = statfs()
    guard statfs(path, &status) == 0 else { return false }
    let magic: UInt32 = 0xcafe_4a11  // BPF_FS_MAGIC, linux/magic.h
    return UInt32(truncatingIfNeeded: Int(status.f_type)) == magic
  }

  /// The root of the unified cgroup hierarchy: every process is in it or below.
  public static func cgroupRoot() throws(SystemError) -> String {
    for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
      var status = statfs()
      guard statfs(place, &status) == 0 else { continue }
      let magic: UInt32 = 0x6367_7270  // CGROUP2_SUPER_MAGIC, linux/magic.h
      if UInt32(truncatingIfNeeded: Int(status.f_type)) == magic { return place }
    }
    throw SystemError(
      operation: "find", object: "cgroup2", errno: ENOENT, detail: "mount -t cgroup2 none /sys/fs/cgroup, or name it")
  }
}
