import CLinux
import Glibc
import LocalAPI
import Testing

/// A `dpctl` that runs: the one built together with these tests.
final class Program {
  struct Outcome {
    /// nil when a signal ended it.
    var status: CInt?
    var output: String
    var notes: String
    var json: JSONValue { (try? JSONValue(parsing: output)) ?? .null }
  }

  private let processID: pid_t
  private var output: CInt
  private let notes: CInt

  /// Starts it with nothing in its environment.
  init(_ arguments: [String]) throws {
    let path = try Self.path()
    let (output, notes) = (try Self.pipe(), try Self.pipe())
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_adddup2(&actions, output.write, 1)
    posix_spawn_file_actions_adddup2(&actions, notes.write, 2)
    // Threads of the test runner may have signals blocked, which a program inherits.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
    var environment: [UnsafeMutablePointer<CChar>?] = [nil]
    defer { for word in words { free(word) } }
    var processID = pid_t()
    let code = posix_spawn(&processID, path, &actions, &attributes, &words, &environment)
    close(output.write)
    close(notes.write)
    (self.output, self.notes, self.processID) = (output.read, notes.read, processID)
    guard code == 0 else { throw FileError(path: path, operation: "start", errno: code) }
  }

  /// Runs it to its end against an agent.
  static func run(_ arguments: [String], _ agent: FakeAgent) throws -> Outcome {
    try Program(arguments + ["--socket", agent.path]).finish()
  }

  private static func path() throws -> String {
    var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
    let count = readlink("/proc/self/exe", &buffer, buffer.count)
    let own = String(decoding: buffer.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let path = own.split(separator: "/").dropLast().map { "/\($0)" }.joined() + "/dpctl"
    try #require(access(path, X_OK) == 0, "no dpctl at \(path)")
    return path
  }

  private static func pipe() throws -> (read: CInt, write: CInt) {
    var ends: [CInt] = [0, 0]
    guard clinux_pipe2(&ends, O_CLOEXEC) == 0 else { throw FileError(path: "", operation: "pipe", errno: errno) }
    return (ends[0], ends[1])
  }

  /// Waits for something to read; a program that is silent for long is ended, so that no test waits for ever.
  private func wait(for descriptor: CInt) {
    var poll = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    while true {
      let ready = Glibc.poll(&poll, 1, 30_000)
      if ready > 0 || (ready < 0 && errno != EINTR) { return }
      if ready == 0 { kill(processID, SIGKILL) }
    }
  }

  /// Waits for one line of its output.
  func line() -> String {
    var line: [UInt8] = []
    var byte: UInt8 = 0
    while true {
      wait(for: output)
      guard read(output, &byte, 1) == 1, byte != 0x0a else { break }
      line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
  }

  func signal(_ number: CInt) { kill(processID, number) }

  /// Nobody reads its output any more.
  func closeOutput() {
    close(output)
    output = -1
  }

  /// Waits for the end and collects what it said.
  func finish() -> Outcome {
    let (text, notes) = (readAll(output), readAll(notes))
    var status: CInt = 0
    while waitpid(processID, &status, 0) < 0, errno == EINTR {}
    return Outcome(status: status & 0x7f == 0 ? status >> 8 & 0xff : nil, output: text, notes: notes)
  }

  private func readAll(_ descriptor: CInt) -> String {
    guard descriptor >= 0 else { return "" }
    defer { close(descriptor) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      wait(for: descriptor)
      let count = read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      if count <= 0 { return String(decoding: content, as: UTF8.self) }
      content += chunk[0..<count]
    }
  }
}
