import CLinux
import Glibc

/// The process that holds the namespaces of one node, the switch or the client: `dpctl lab hold`, hidden.
///
/// It makes the namespaces and their private folders, reports on a descriptor that it is ready, and then only waits: it
/// ends when the lab's state folder is gone, or with its cgroup.
public struct NamespaceHolder {
  public enum Kind: String, Sendable, CaseIterable {
    /// Network and mount namespace, with private default paths.
    case node
    /// The same without any of Sluice's folders: the switch and the client.
    case host
  }

  /// Where the machine's own folders are found inside a node, below its private `/run`.
  static let hostFolder = "/run/.host"

  public var kind: Kind
  /// `/run/sluice-lab/NAME`: stays visible inside.
  public var stateDirectory: String
  /// The cgroup to live in.
  public var controlGroup: String
  /// Written to once when everything is there.
  public var readyDescriptor: Int32

  public init(kind: Kind, stateDirectory: String, controlGroup: String, readyDescriptor: Int32) {
    self.kind = kind
    self.stateDirectory = stateDirectory
    self.controlGroup = controlGroup
    self.readyDescriptor = readyDescriptor
  }

  /// Never returns normally: throws when something fails, exits when the lab is gone.
  public func run() throws -> Never {
    try Files.write("0", to: ControlGroup(path: controlGroup).procsFile)
    guard clinux_unshare(Self.newNetwork | Self.newMounts) == 0 else {
      throw LabError.system(operation: "unshare", object: "network and mount namespace", errno: errno)
    }
    try mountPrivately()
    let byte: [UInt8] = [UInt8(ascii: "r")]
    guard write(readyDescriptor, byte, 1) == 1 else {
      throw LabError.process(name: "lab", reason: "went away while \(controlGroup) was made")
    }
    close(readyDescriptor)
    // A crashed `lab up` leaves this process to `lab down`; this is for a state folder that somebody removed by hand.
    while Files.exists("\(stateDirectory)/\(LabState.fileName)") { sleep(1) }
    exit(0)
  }

  // The kernel's numbers: sched.h declares them under _GNU_SOURCE only.
  static let newNetwork: Int32 = 0x4000_0000
  static let newMounts: Int32 = 0x0002_0000

  private func mountPrivately() throws {
    // First of all: nothing that is mounted here may ever reach the machine's own mount namespace.
    try mount("none", "/", nil, UInt(MS_REC) | UInt(MS_PRIVATE))
    try replaceRun()
    for folder in ["/etc", "/opt", "/var/lib"] {
      // Links to the machine's own entries, except for what belongs to Sluice and CNI: those are this node's own.
      try mirror(folder, leavingOut: ["cni", "sluice"])
    }
    if kind == .node {
      for folder in [
        "/run/netns", "/run/sluice", "/var/lib/sluice", "/var/lib/cni", "/etc/cni/net.d", "/opt/cni/bin",
      ] {
        try Files.makeDirectories(folder)
      }
    }
    try replaceSys()
  }

  private func mount(
    _ source: String, _ target: String, _ type: String?, _ flags: UInt, data: String? = nil
  ) throws(LabError) {
    guard Glibc.mount(source, target, type, flags, data) == 0 else {
      throw .system(operation: "mount", object: "\(type ?? source) on \(target)", errno: errno)
    }
  }

  /// A `/run` of its own, in which only the lab's state folder and the machine's mirrored folders are visible.
  private func replaceRun() throws {
    // The new /run is built beside the old one, since the state folder is in the old one.
    let staging = "\(stateDirectory)/.mounts"
    try Files.makeDirectories(staging)
    try mount("tmpfs", staging, "tmpfs", 0, data: "mode=0755")
    let inner = staging + stateDirectory.dropFirst("/run".count)
    try Files.makeDirectories(inner)
    try mount(stateDirectory, inner, nil, UInt(MS_BIND))
    for folder in ["/etc", "/opt", "/var/lib"] {
      let target = staging + Self.hostFolder.dropFirst("/run".count) + folder
      try Files.makeDirectories(target)
      try mount(folder, target, nil, UInt(MS_BIND) | UInt(MS_REC))
    }
    try mount(staging, "/run", nil, UInt(MS_MOVE))
  }

  /// Replaces a folder by a tmpfs with links to everything that was in it.
  private func mirror(_ folder: String, leavingOut: Set<String>) throws {
    let names = Files.names(in: folder)
    try mount("tmpfs", folder, "tmpfs", 0, data: "mode=0755")
    for name in names where !leavingOut.contains(name) {
      guard symlink("\(Self.hostFolder)\(folder)/\(name)", "\(folder)/\(name)") == 0 else {
        throw LabError.system(operation: "link", object: "\(folder)/\(name)", errno: errno)
      }
    }
  }

  /// `/sys` shows the network devices of the namespace that mounted it, so this node mounts its own; the cgroup
  /// hierarchies move over, and BPF pins get a file system of their own where the kernel has one.
  private func replaceSys() throws {
    let parked = "/run/.cgroup"
    try Files.makeDirectories(parked)
    try mount("/sys/fs/cgroup", parked, nil, UInt(MS_BIND) | UInt(MS_REC))
    try mount("sysfs", "/sys", "sysfs", UInt(MS_NOSUID) | UInt(MS_NODEV) | UInt(MS_NOEXEC))
    try mount(parked, "/sys/fs/cgroup", nil, UInt(MS_MOVE))
    rmdir(parked)
    if kind == .node, Files.isDirectory("/sys/fs/bpf") {
      _ = Glibc.mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700")
    }
  }
}
