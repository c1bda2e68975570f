import Glibc
import LocalAPI
import Netlink
import NetworkTypes

@testable import NFTables

/// A call of the agent before which it is killed, or a moment.
struct KillPoint: CustomStringConvertible {
  enum Kind: String, CaseIterable {
    /// Before the nth request to the kernel is sent.
    case send = "sendto"
    /// Sent, the nth answer not read.
    case receive = "recvfrom"
    /// Numbers chosen, not on disk.
    case journalWrite = "write"
    case journalSync = "fdatasync"
    case manifestOpen = "openat"
    /// Everything in the kernel but the removals.
    case gracePeriod = "membarrier"
    /// As soon as the nth transaction is seen in the kernel.
    case commit
    case clock
  }
  var kind: Kind
  /// Which call of one thread, or which transaction, from 1.
  var number = 1
  /// Microseconds after the edit, for `clock`.
  var delay: UInt32 = 0
  /// While a new agent adopts the kernel's state, not while one that runs handles an edit.
  var isAtStart = false

  /// 200 points in random order; what is drawn by chance is where within its kind each lies. That in between send and
  /// answer 40 are hit must not depend on luck: the first answer that a thread reads while it handles an edit is a batch's.
  static func all(using random: inout SeededGenerator) -> [KillPoint] {
    func points(
      _ count: Int, _ kind: Kind, atStart: Bool = false, _ draw: (inout SeededGenerator) -> Int = { _ in 1 }
    ) -> [KillPoint] {
      (0..<count).map { _ in
        let value = draw(&random)
        return KillPoint(
          kind: kind, number: kind == .clock ? 1 : value, delay: kind == .clock ? UInt32(value) : 0, isAtStart: atStart)
      }
    }
    var all = points(64, .receive) + points(16, .receive) { $0.pick([2, 3, 3, 4, 5]) }
    all += points(34, .send) { $0.pick([1, 1, 2, 2, 3]) }
    all += points(12, .journalSync) + points(8, .journalWrite) + points(8, .manifestOpen) + points(12, .gracePeriod)
    all += points(8, .commit) { $0.pick([1, 1, 2]) } + points(14, .clock) { Int.random(in: 0...3000, using: &$0) }
    // An agent that starts reads what the kernel has with some hundred calls before it writes.
    all += points(3, .receive, atStart: true) { Int.random(in: 1...120, using: &$0) }
    all += points(3, .send, atStart: true) { Int.random(in: 1...70, using: &$0) }
    all += points(2, .journalSync, atStart: true)
    all += points(12, .commit, atStart: true) { Int.random(in: 1...5, using: &$0) }
    all += points(4, .clock, atStart: true) { Int.random(in: 0...60_000, using: &$0) }
    return all.shuffled(using: &random)
  }

  var description: String {
    (kind == .clock ? "after \(delay) us" : "\(kind.rawValue) \(number)") + (isAtStart ? " of a starting agent" : "")
  }
}

/// The built agent in the calling thread's network namespace, with all its files in a folder of its own.
///
/// Used by one thread, which stays in that namespace: the agents die with it.
final class CrashAgent {
  struct Failure: Error, CustomStringConvertible {
    var description: String
  }

  private static let strace = "/usr/bin/strace"
  private static let binary: String = {
    if let folder = getenv("SLUICE_BIN_DIR") { return String(cString: folder) + "/sluice-agent" }
    return #filePath.split(separator: "/").dropLast(3).reduce("") { "\($0)/\($1)" } + "/bin/sluice-agent"
  }()
  private static var mustRun: Bool { getenv("CI") != nil || getenv("SLUICE_BIN_DIR") != nil }

  /// What keeps the test from running; nil: nothing.
  static var obstacle: String? {
    if access(binary, X_OK) != 0 { return "no agent at \(binary): run `make build`, or set SLUICE_BIN_DIR" }
    return access(strace, X_OK) == 0 ? nil : "no \(strace): run `make deps`"
  }
  /// Where somebody insists on all tests an obstacle is a failure of the test, else it is skipped.
  static var canRun: Bool {
    if let obstacle, !mustRun { print("agent crash test skipped: \(obstacle)") }
    return obstacle == nil || mustRun
  }

  let directory: String
  private var manifests: String { "\(directory)/manifests" }
  private var trace: String { "\(directory)/trace" }
  private var log: String { "\(directory)/log" }
  private var written: [String: String] = [:]
  private var process: pid_t?
  private let client: UnixHTTPClient
  /// To nf_tables of this namespace, for its count of transactions.
  private let observer: Connection

  init() throws {
    if let obstacle = Self.obstacle { throw Failure(description: obstacle) }
    var template = Array("/tmp/sluice-crash-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw FileError(path: "/tmp", operation: "create folder", errno: errno) }
    observer = try Connection()
    directory = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    client = UnixHTTPClient(path: "\(directory)/socket", timeoutMilliseconds: 5000)
    try LocalFile.createDirectories(manifests)
    let records = EndpointRecordStore(directory: "\(directory)/run/endpoints")
    for pod in 0..<PacketRig.podCount {
      try records.write(
        EndpointRecord(
          network: "sluice", containerID: "pod-\(pod)", interfaceName: "eth0",
          hostInterface: PacketRig.interface(pod), mac: PacketRig.podMAC(pod),
          addresses: PacketRig.endpoint(pod).addresses, netnsPath: "/run/netns/pod-\(pod)", netnsInode: 1, bootID: "",
          podNamespace: "shop", podName: "pod-\(pod)", createdAt: Int64(pod)))
    }
  }

  deinit {
    kill()
    _ = try? run("rm -rf \(directory)")
  }

  // MARK: Manifests

  /// Makes the folder hold these files, each replaced by a rename.
  func write(_ files: [String: String]) throws {
    for (name, text) in files where written[name] != text {
      let hidden = "\(manifests)/.\(name)"
      try LocalFile.create(hidden, with: Array(text.utf8), flags: O_TRUNC, sync: false)
      guard rename(hidden, "\(manifests)/\(name)") == 0 else {
        throw FileError(path: hidden, operation: "rename", errno: errno)
      }
    }
    for name in written.keys where files[name] == nil { try LocalFile.remove("\(manifests)/\(name)") }
    written = files
  }

  // MARK: Life

  private var arguments: [String] {
    [
      Self.binary, "--node-name", CrashCluster.nodeName, "--manifests", manifests, "--state-dir", "\(directory)/state",
      "--run-dir", "\(directory)/run", "--socket", client.path, "--metrics-address", "127.0.0.1:10249",
      "--healthz-address", "127.0.0.1:10256",
    ]
  }

  /// Starts it and waits until the kernel has what the manifests say.
  func start() throws {
    let process = try spawn(["/usr/bin/setpriv", "--pdeathsig", "KILL", "--"] + arguments, log: log)
    self.process = process
    for _ in 0..<10_000 {
      if let answer = try? client.request("GET", AgentPath.health), answer.status == 200 { return }
      if Self.hasEnded(process) {
        self.process = nil
        break
      }
      usleep(1000)
    }
    throw Failure(description: "the agent does not become ready: \(tail())")
  }

  func kill() {
    guard let process else { return }
    Glibc.kill(process, SIGKILL)
    Self.wait(process)
    self.process = nil
  }

  /// Differences the agent finds between objects, tables and kernel.
  func differences() throws -> [JSONValue] {
    let answer = try client.request("GET", "/v1/services/diff")
    guard answer.status == 200, let found = try JSONValue(parsing: answer.body)["differences"]?.arrayValue else {
      throw Failure(description: "diff: \(UnixHTTPClient.message(in: answer.body))")
    }
    return found
  }

  /// The last lines it logged.
  func tail() -> String {
    (try? run("tail -n 20 \(log)").output) ?? ""
  }

  /// What it logged of errors.
  func errors() throws -> String { try run("grep -E ' (error|critical) ' \(log) || true").output }

  // MARK: Death

  /// Writes the files and kills the agent at that point; one that gets past it is killed later.
  ///
  /// - Returns: where it was killed.
  func edit(_ files: [String: String], dyingAt point: KillPoint) throws -> String {
    if point.isAtStart {
      kill()
      try write(files)
      return try startAndDie(at: point)
    }
    guard let process else { throw Failure(description: "no agent runs") }
    switch point.kind {
    case .clock:
      try write(files)
      usleep(point.delay)
      kill()
      return "by the clock"
    case .commit:
      let generation = try observer.generation()
      try write(files)
      return try kill(process, afterCommit: point.number, since: generation) ?? "after the edit"
    default: break
    }
    let changed = Set(files.keys.filter { files[$0] != written[$0] }).sorted().map { "\(manifests)/\($0)" }
    let tracer = try spawn(
      [Self.strace, "-p", "\(process)"] + options(point, changed), log: "\(directory)/strace.log")
    try waitUntilTraced(process, by: tracer)
    try write(files)
    let isKilled = Self.hasEnded(process, within: 250_000)
    if isKilled { self.process = nil }
    kill()
    Self.wait(tracer)
    return isKilled ? place(point) : "after the edit"
  }

  private func startAndDie(at point: KillPoint) throws -> String {
    switch point.kind {
    case .clock:
      process = try spawn(arguments, log: log)
      usleep(point.delay)
      kill()
      return "start: by the clock"
    case .commit:
      let generation = try observer.generation()
      let process = try spawn(arguments, log: log)
      self.process = process
      return "start: \(try kill(process, afterCommit: point.number, since: generation) ?? "after it")"
    default: break
    }
    let tracer = try spawn(
      // Not with --seccomp-bpf: strace 6.1 then injects nothing.
      [Self.strace] + options(point, []) + arguments, log: log)
    let isKilled = Self.hasEnded(tracer, within: 700_000)
    if !isKilled {
      let child = try run("cat /proc/\(tracer)/task/\(tracer)/children").output.split(separator: " ").first
      if let child = child.flatMap({ pid_t($0) }) { Glibc.kill(child, SIGKILL) }
      Self.wait(tracer)
    }
    return "start: " + (isKilled ? place(point) : "after it")
  }

  /// nil where there are fewer transactions.
  private func kill(_ process: pid_t, afterCommit number: Int, since generation: UInt32) throws -> String? {
    defer { kill() }
    let end = PacketRig.now() + 250_000_000
    while PacketRig.now() < end {
      if try observer.generation() &- generation >= UInt32(number) {
        Glibc.kill(process, SIGKILL)
        return "after transaction \(number)"
      }
    }
    return nil
  }

  private func options(_ point: KillPoint, _ changed: [String]) -> [String] {
    let call = point.kind.rawValue
    var options = ["-f", "-o", trace, "-e", "inject=\(call):signal=KILL:when=\(point.number)"]
    // Answers are told apart by the requests before them.
    options += ["-e", "trace=\(point.kind == .receive ? "sendto,recvfrom" : call)"]
    switch point.kind {
    case .journalWrite, .journalSync: options += ["-P", "\(directory)/state/service-numbers"]
    case .manifestOpen: options += changed.flatMap { ["-P", $0] }
    default: break
    }
    return options
  }

  /// What the killed thread was about to do.
  private func place(_ point: KillPoint) -> String {
    guard point.kind == .send || point.kind == .receive else { return "before \(point.kind.rawValue)" }
    let text = (try? LocalFile.read(trace)).flatMap { $0 }.map { String(decoding: $0, as: UTF8.self) } ?? ""
    /// By thread: what it read since it sent a batch; nil where its last request was none.
    var answersToBatch: [Substring: Int] = [:]
    var place = "elsewhere"
    for line in text.split(separator: "\n") {
      guard let space = line.firstIndex(of: " ") else { continue }
      let call = line[space...].drop { $0 == " " }
      let thread = line[..<space]
      let isBatch = call.contains("NFNL_MSG_BATCH_BEGIN")
      if call.hasPrefix("sendto(") { answersToBatch[thread] = isBatch ? 0 : nil }
      let isLast = call.contains("unfinished") || call.hasSuffix("= ?")
      if call.hasPrefix("\(point.kind.rawValue)("), isLast {
        switch (point.kind, answersToBatch[thread]) {
        case (.send, _): place = isBatch ? "before a batch is sent" : "before a request is sent"
        case (_, 0?): place = Self.betweenSendAndAnswer
        case (_, .some): place = "after a batch's first answer"
        case (_, nil): place = "before a request's answer is read"
        }
      }
      if call.hasPrefix("recvfrom(") { answersToBatch[thread]? += 1 }
    }
    return place
  }

  static let betweenSendAndAnswer = "between a batch and its answer"

  private func waitUntilTraced(_ process: pid_t, by tracer: pid_t) throws {
    for _ in 0..<10_000 {
      // strace attaches to all threads before it goes on, and says so.
      let said = (try LocalFile.read("\(directory)/strace.log")).map { String(decoding: $0, as: UTF8.self) } ?? ""
      if said.contains("attached") { return }
      if Self.hasEnded(tracer) { throw Failure(description: "strace: \(said)") }
      usleep(200)
    }
    throw Failure(description: "strace does not attach")
  }

  // MARK: Processes

  private func spawn(_ arguments: [String], log: String) throws -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(
      &actions, 1, log, O_WRONLY | O_CREAT | (log == self.log ? O_APPEND : O_TRUNC), 0o600)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)
    var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for pointer in pointers { free(pointer) } }
    var process = pid_t()
    let code = posix_spawn(&process, arguments[0], &actions, nil, &pointers, environ)
    guard code == 0 else { throw FileError(path: arguments[0], operation: "start", errno: code) }
    return process
  }

  private static func hasEnded(_ process: pid_t, within microseconds: Int = 0) -> Bool {
    let end = PacketRig.now() + UInt64(microseconds) * 1000
    while true {
      var status: CInt = 0
      if waitpid(process, &status, WNOHANG) == process { return true }
      if PacketRig.now() >= end { return false }
      usleep(300)
    }
  }

  private static func wait(_ process: pid_t) {
    var status: CInt = 0
    while waitpid(process, &status, 0) < 0, errno == EINTR {}
  }
}
