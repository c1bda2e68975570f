import Glibc

/// Puts this process into a cgroup below that of all labs: then programs on that one see the sockets of its probes, as
/// they see those of everything else in a lab.
enum OwnControlGroup {
  private static let result: Result<Void, LabError> = {
    do throws(LabError) {
      return .success(try enter())
    } catch {
      return .failure(error)
    }
  }()

  /// Once; it ends with the process.
  static func join() throws(LabError) { try result.get() }

  private static func enter() throws(LabError) {
    let own = (Files.text("/proc/self/cgroup") ?? "").split(separator: "\n").first { $0.hasPrefix("0::") }
    let home = "\(try ControlGroup.mountPoint())\(own?.dropFirst(3) ?? "")"
    let group = try ControlGroup.ofAllLabs().child("process-\(getpid())")
    try group.create()
    try Files.write("\(getpid())", to: group.procsFile)
    places = (home, group)
    atexit {
      guard let (home, group) = OwnControlGroup.places else { return }
      try? Files.write("\(getpid())", to: "\(home)/cgroup.procs")
      rmdir(group.path)
      if let all = try? ControlGroup.ofAllLabs() { rmdir(all.path) }
    }
  }

  nonisolated(unsafe) private static var places: (home: String, group: ControlGroup)?
}
