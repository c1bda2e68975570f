import CLinux
import Glibc
import Netlink
import Synchronization

/// Where a process of the lab lives.
struct Surroundings: Sendable {
  var network: NetworkNamespace
  /// The file of the mount namespace.
  var mounts: String
  var controlGroup: ControlGroup
}

/// What a process left behind when it ended.
public struct ExecResult: Sendable {
  /// The exit code, or 128 + the signal that ended it.
  public var status: Int32
  public var stdout: String
  public var stderr: String
}

/// A process that the lab started, as its parent.
public final class ChildProcess: Sendable {
  public let processID: pid_t
  public let name: String
  private let exitStatus = Mutex<Int32?>(nil)

  init(processID: pid_t, name: String) {
    self.processID = processID
    self.name = name
  }

  /// Sends a signal; does nothing once the end of the process has been seen.
  public func signal(_ signal: Int32) {
    exitStatus.withLock { status in
      if status == nil { kill(processID, signal) }
    }
  }

  /// The exit code (128 + signal) when the process has ended, else nil.
  public func poll() -> Int32? {
    exitStatus.withLock { known in
      if let known { return known }
      var status: Int32 = 0
      let result = waitpid(processID, &status, WNOHANG)
      // Anything but "still running": no other part of this program waits for it.
      if result != 0 { known = result == processID ? Self.exitCode(status) : 255 }
      return known
    }
  }

  /// Waits for the end; kills the process when it takes longer than that.
  @discardableResult
  public func wait(milliseconds: Int) -> Int32 {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    var wasKilled = false
    while true {
      if let status = poll() { return status }
      if !wasKilled, monotonicNanoseconds() > deadline {
        signal(SIGKILL)
        wasKilled = true
      }
      usleep(500)
    }
  }

  static func exitCode(_ status: Int32) -> Int32 {
    // WIFEXITED and its like are macros that Swift does not import.
    status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
  }

  // MARK: Starting

  /// Starts a program. It begins life in its cgroup and namespaces, with no signal blocked, in a process group of its own
  /// (Ctrl-C in a terminal must reach the lab, which then ends its processes in order).
  ///
  /// - Parameter descriptors: what the child sees as 0, 1, 2, 3…; nil is /dev/null. It has no others.
  static func start(
    _ arguments: [String], name: String, in surroundings: Surroundings?, environment: [String: String] = [:],
    descriptors: [Int32?]
  ) throws -> ChildProcess {
    guard let program = arguments.first else {
      throw LabError.invalid(field: "command", value: "", reason: "is empty")
    }
    let spawn: @Sendable () throws -> pid_t = {
      // A process must be in its cgroup before its first instruction; posix_spawn cannot do that in this libc, a shell can.
      let wrapped = surroundings.map {
        ["/bin/sh", "-c", "echo 0 >\"$0\" && exec \"$@\"", $0.controlGroup.procsFile] + arguments
      }
      return try posixSpawn(wrapped ?? arguments, object: program, environment, descriptors)
    }
    let identifier =
      if let surroundings {
        try surroundings.network.run(mountNamespace: surroundings.mounts, spawn)
      } else {
        try spawn()
      }
    return ChildProcess(processID: identifier, name: name)
  }

  private static func posixSpawn(
    _ arguments: [String], object: String, _ environment: [String: String], _ descriptors: [Int32?]
  ) throws(LabError) -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    for (target, source) in descriptors.enumerated() {
      if let source {
        posix_spawn_file_actions_adddup2(&actions, source, Int32(target))
      } else {
        posix_spawn_file_actions_addopen(&actions, Int32(target), "/dev/null", O_RDWR, 0)
      }
    }
    // Of what was left open by whoever started this program: its reader would wait for an end that pods never come to.
    clinux_spawn_closefrom(&actions, Int32(descriptors.count))
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    var all = sigset_t()
    sigemptyset(&none)
    sigfillset(&all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    posix_spawnattr_setpgroup(&attributes, 0)
    let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP
    posix_spawnattr_setflags(&attributes, Int16(flags))

    var variables = ["PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"]
    variables.merge(environment) { $1 }
    var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    var envp: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
    defer {
      for pointer in argv + envp { free(pointer) }
    }
    var identifier: pid_t = 0
    let code = posix_spawn(&identifier, arguments[0], &actions, &attributes, &argv, &envp)
    guard code == 0 else { throw .system(operation: "start", object: object, errno: code) }
    return identifier
  }

  /// Runs a program to its end, with `input` on its standard input.
  static func run(
    _ arguments: [String], name: String, in surroundings: Surroundings?, environment: [String: String] = [:],
    input: [UInt8] = [], milliseconds: Int
  ) throws -> ExecResult {
    var stdin = try Channel()
    var stdout = try Channel()
    var stderr = try Channel()
    let process = try start(
      arguments, name: name, in: surroundings, environment: environment,
      descriptors: [stdin.childs, stdout.childs, stderr.childs])
    stdin.closeChildsEnd()
    stdout.closeChildsEnd()
    stderr.closeChildsEnd()

    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    var rest = input[...]
    var outputs: [[UInt8]] = [[], []]
    var isOpen = [true, true]
    if rest.isEmpty { stdin.closeOwnEnd() }
    while isOpen.contains(true) {
      let now = monotonicNanoseconds()
      guard now < deadline else {
        process.signal(SIGKILL)
        process.wait(milliseconds: 1000)
        throw LabError.timedOut("\(name) did not end within \(milliseconds) ms")
      }
      var entries = [
        pollfd(fd: stdin.own, events: Int16(POLLOUT), revents: 0),
        pollfd(fd: isOpen[0] ? stdout.own : -1, events: Int16(POLLIN), revents: 0),
        pollfd(fd: isOpen[1] ? stderr.own : -1, events: Int16(POLLIN), revents: 0),
      ]
      Glibc.poll(&entries, 3, Int32(min(1000, (deadline - now) / 1_000_000 + 1)))
      if entries[0].revents != 0 {
        let sent = rest.withUnsafeBytes {
          send(stdin.own, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        }
        // A child that has closed its input does not want the rest.
        rest = sent < 0 && errno != EAGAIN ? [] : rest.dropFirst(max(0, sent))
        if rest.isEmpty { stdin.closeOwnEnd() }
      }
      for index in 0...1 where entries[index + 1].revents != 0 {
        var chunk = [UInt8](repeating: 0, count: 65_536)
        let count = read(entries[index + 1].fd, &chunk, chunk.count)
        if count > 0 { outputs[index] += chunk[0..<count] } else { isOpen[index] = false }
      }
    }
    let left = (max(deadline, monotonicNanoseconds()) - monotonicNanoseconds()) / 1_000_000
    return ExecResult(
      status: process.wait(milliseconds: Int(left)), stdout: String(decoding: outputs[0], as: UTF8.self),
      stderr: String(decoding: outputs[1], as: UTF8.self))
  }

  /// Starts a program that reports on descriptor 3 when it is ready, and waits for that.
  static func startReporting(
    _ arguments: [String], name: String, in surroundings: Surroundings?, log: String, milliseconds: Int = 30_000
  ) throws -> ChildProcess {
    var ready = try Channel()
    let output = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard output >= 0 else { throw LabError.system(operation: "open", object: log, errno: errno) }
    defer { close(output) }
    let process = try start(
      arguments, name: name, in: surroundings, descriptors: [nil, output, output, ready.childs])
    ready.closeChildsEnd()
    var entry = pollfd(fd: ready.own, events: Int16(POLLIN), revents: 0)
    let result = Glibc.poll(&entry, 1, Int32(milliseconds))
    var byte: UInt8 = 0
    guard result == 1, read(ready.own, &byte, 1) == 1 else {
      process.signal(SIGKILL)
      process.wait(milliseconds: 1000)
      let words = (Files.text(log) ?? "").split(separator: "\n").suffix(5).joined(separator: " | ")
      let reason = result == 0 ? "not ready after \(milliseconds) ms" : "ended before it was ready"
      throw LabError.process(name: name, reason: "\(reason): \(words)")
    }
    return process
  }
}
