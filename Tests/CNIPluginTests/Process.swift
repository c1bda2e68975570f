import CLinux
import Glibc
import LocalAPI
import Netlink
import Testing

/// The built plugin, as a runtime finds it: `$SLUICE_BIN_DIR/sluice`, else `bin/sluice` at the package's root.
enum Plugin {
  static let packageRoot: String = {
    let parts = #filePath.split(separator: "/").dropLast(3)
    return "/" + parts.joined(separator: "/")
  }()

  static func path() throws -> String {
    let folder = getenv("SLUICE_BIN_DIR").map { String(cString: $0) } ?? "\(packageRoot)/bin"
    let path = "\(folder)/sluice"
    try #require(access(path, X_OK) == 0, "no plugin at \(path): run `make build`, or set SLUICE_BIN_DIR")
    return path
  }
}

/// What a finished plugin left.
struct Outcome: Sendable {
  /// The exit code; nil when a signal ended it.
  var exitCode: CInt?
  var output: String
  var notes: String

  var json: JSONValue { (try? JSONValue(parsing: output)) ?? .null }
  var errorCode: Int64? { json["code"]?.intValue }
  var message: String { json["msg"]?.stringValue ?? "" }
}

/// A plugin that runs.
struct RunningPlugin: Sendable {
  let processID: pid_t
  private let output: CInt
  private let notes: CInt

  /// Starts it in `namespace` with nothing but this environment and input.
  static func start(
    _ path: String, arguments: [String] = [], environment: [String: String], input: String,
    in namespace: NetworkNamespace
  ) throws -> RunningPlugin {
    try namespace.run {
      let (standardInput, output, notes) = (try Self.pipe(), try Self.pipe(), try Self.pipe())
      // Written before anybody reads: it fits the pipe's 64 KiB, and nobody can close it under us.
      let bytes = Array(input.utf8)
      _ = write(standardInput.write, bytes, bytes.count)
      var actions = posix_spawn_file_actions_t()
      posix_spawn_file_actions_init(&actions)
      defer { posix_spawn_file_actions_destroy(&actions) }
      posix_spawn_file_actions_adddup2(&actions, standardInput.read, 0)
      posix_spawn_file_actions_adddup2(&actions, output.write, 1)
      posix_spawn_file_actions_adddup2(&actions, notes.write, 2)
      var arguments = ([path] + arguments).map { strdup($0) } + [nil]
      var variables = environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
      defer { for pointer in arguments + variables { free(pointer) } }
      var processID = pid_t()
      let code = posix_spawn(&processID, path, &actions, nil, &arguments, &variables)
      for descriptor in [standardInput.read, standardInput.write, output.write, notes.write] { close(descriptor) }
      guard code == 0 else { throw FileError(path: path, operation: "start", errno: code) }
      return RunningPlugin(processID: processID, output: output.read, notes: notes.read)
    }
  }

  private static func pipe() throws -> (read: CInt, write: CInt) {
    var ends: [CInt] = [0, 0]
    guard clinux_pipe2(&ends, O_CLOEXEC) == 0 else { throw FileError(path: "", operation: "pipe", errno: errno) }
    return (ends[0], ends[1])
  }

  /// Waits for the end and collects what it said.
  func finish() -> Outcome {
    let (text, notes) = (Self.readAll(output), Self.readAll(notes))
    var status: CInt = 0
    while waitpid(processID, &status, 0) < 0, errno == EINTR {}
    let exited = status & 0x7f == 0
    return Outcome(exitCode: exited ? status >> 8 & 0xff : nil, output: text, notes: notes)
  }

  private static func readAll(_ descriptor: CInt) -> String {
    defer { close(descriptor) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      if count <= 0 { return String(decoding: content, as: UTF8.self) }
      content += chunk[0..<count]
    }
  }
}
