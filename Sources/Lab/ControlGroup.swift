import Glibc

/// A cgroup-v2 folder of the lab: what runs in it can be counted and ended as a whole, whatever it has become.
struct ControlGroup: Sendable, Hashable {
  let path: String

  /// Where the unified hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
  static func mountPoint() throws(LabError) -> String {
    for line in (Files.text("/proc/self/mountinfo") ?? "").split(separator: "\n") {
      // … root mountPoint options [optional…] - type source superOptions
      guard let dash = line.range(of: " - "), line[dash.upperBound...].hasPrefix("cgroup2 ") else { continue }
      let fields = line[..<dash.lowerBound].split(separator: " ")
      if fields.count > 4 { return String(fields[4]) }
    }
    throw .machine("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
  }

  /// The folder of all labs.
  static func ofAllLabs() throws(LabError) -> ControlGroup {
    ControlGroup(path: "\(try mountPoint())/sluice-lab")
  }

  func child(_ name: String) -> ControlGroup { ControlGroup(path: "\(path)/\(name)") }
  var exists: Bool { Files.exists(path) }
  var procsFile: String { "\(path)/cgroup.procs" }

  func create() throws(LabError) { try Files.makeDirectories(path) }

  /// The processes directly in this group, children excluded.
  var processes: [pid_t] { (Files.text(procsFile) ?? "").split(separator: "\n").compactMap { pid_t($0) } }

  /// Whether any process lives in the group or below it.
  var isPopulated: Bool {
    (Files.text("\(path)/cgroup.events") ?? "").split(separator: "\n").contains("populated 1")
  }

  func signal(_ signal: Int32) { for process in processes { kill(process, signal) } }

  /// Ends everything in the group and below it, and waits until nothing is left.
  func killAll() throws(LabError) {
    guard exists else { return }
    // Since Linux 5.14; before, one by one, until nobody who was just starting another is left.
    let killsAtOnce = Files.exists("\(path)/cgroup.kill")
    if killsAtOnce { try Files.write("1", to: "\(path)/cgroup.kill") }
    try waitUntilEmpty(milliseconds: 10_000) { if !killsAtOnce { signalTree(SIGKILL) } }
  }

  private func signalTree(_ signal: Int32) {
    self.signal(signal)
    for name in Files.names(in: path) where Files.isDirectory("\(path)/\(name)") { child(name).signalTree(signal) }
  }

  /// - Parameter urge: called each time that there is still something.
  func waitUntilEmpty(milliseconds: Int, _ urge: () -> Void = {}) throws(LabError) {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    while exists, isPopulated {
      urge()
      guard monotonicNanoseconds() < deadline else {
        throw .timedOut("processes in \(path) do not end: \(occupations.joined(separator: "; "))")
      }
      usleep(1000)
    }
  }

  /// What each thread in the group does: name, state, and where in the kernel it waits.
  private var occupations: [String] {
    (Files.text("\(path)/cgroup.threads") ?? "").split(separator: "\n").map { thread in
      let name = (Files.text("/proc/\(thread)/comm") ?? "gone").filter { $0 != "\n" }
      let states = (Files.text("/proc/\(thread)/status") ?? "").split(separator: "\n")
        .filter { $0.hasPrefix("State:") || $0.hasPrefix("TracerPid:") }
        .map { $0.split(whereSeparator: \.isWhitespace).joined(separator: " ") }
      let places = (Files.text("/proc/\(thread)/stack") ?? "").split(separator: "\n")
        .compactMap { $0.split(separator: " ").last?.split(separator: "+").first }
      return "\(name) (\(thread)) \(states.joined(separator: ", ")) in \(places.joined(separator: " < "))"
    }
  }

  /// Removes the group and those below it; nothing may run there any more.
  func remove() throws(LabError) {
    guard exists else { return }
    for name in Files.names(in: path) where Files.isDirectory("\(path)/\(name)") { try child(name).remove() }
    // A process that has just ended may keep its group busy for a moment.
    for _ in 0..<1000 {
      if rmdir(path) == 0 || errno == ENOENT { return }
      guard errno == EBUSY else { break }
      usleep(1000)
    }
    throw .system(operation: "remove cgroup", object: path, errno: errno)
  }
}

extension StringProtocol {
  /// The first place where `text` occurs.
  func range(of text: String) -> Range<Index>? {
    var start = startIndex
    while start < endIndex {
      if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
      start = index(after: start)
    }
    return nil
  }
}
