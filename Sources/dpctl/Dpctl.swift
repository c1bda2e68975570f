import ArgumentParser
import Glibc
import Lab
import LocalAPI

/// The operator's tool: what this node does, and whether it is what was asked for.
@main
struct Dpctl: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "dpctl", abstract: "Looks into Sluice on this node.",
    discussion: """
      Exit status: 0 ok, 1 unhealthy or different, 2 usage, 3 agent unreachable, 4 no permission, 124 time-out.
      """,
    version: "0.1.0",
    subcommands: [
      StatusCommand.self, MonitorCommand.self, ExplainCommand.self, ServiceCommand.self, EndpointCommand.self,
      IdentityCommand.self, PolicyCommand.self, MapCommand.self, ConntrackCommand.self, LogLevelCommand.self,
      LabCommand.self,
      CompletionCommand.self,
    ])

  /// Own entry point: ArgumentParser ends with 64 on wrong usage, operators expect 2.
  static func main() {
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch {
      if let code = error as? ExitCode { exit(flushing: code.rawValue) }
      if let failure = error as? LocalAPIError {
        complain("dpctl: \(failure)")
        _exit(ExitStatus.of(failure))
      }
      let code = exitCode(for: error)
      if code == .success {
        print(fullMessage(for: error))
        exit(flushing: 0)
      }
      complain(fullMessage(for: error))
      _exit(code == .validationFailure ? 2 : 1)
    }
    exit(flushing: 0)
  }

  /// What was printed into a pipe or a file is still in the buffer.
  private static func exit(flushing status: Int32) -> Never {
    fflush(nil)
    _exit(status)
  }

  static func complain(_ text: String) {
    fflush(nil)
    var line = Array((text + "\n").utf8)
    _ = write(2, &line, line.count)
  }
}

enum ExitStatus {
  static func of(_ error: LocalAPIError) -> Int32 {
    switch error {
    case .unreachable: 3
    case .permission: 4
    case .timeout: 124
    default: 1
    }
  }
}

/// What every command takes.
struct GlobalOptions: ParsableArguments {
  @Option(help: "Unix socket of the agent.") var socket = LocalAPIDefaults.agentSocket
  @Option(name: .shortAndLong, help: "table, wide, json, jsonl, yaml or name.") var output = OutputFormat.table
  @Flag(name: .customLong("no-headers"), help: "No heading line.") var noHeaders = false
  @Option(help: "Seconds to wait for the agent.") var timeout = 10
  @Option(help: "auto, always or never; auto: on a terminal, unless NO_COLOR is set.") var color = ColorMode.auto

  var terminal: Terminal { Terminal(color) }
  var client: UnixHTTPClient { UnixHTTPClient(path: socket, timeoutMilliseconds: max(1, timeout) * 1000) }

  func get(_ target: String) throws -> JSONValue {
    let (status, body) = try client.request("GET", target, body: nil)
    guard status == 200 else { throw ValidationError("the agent answered: \(UnixHTTPClient.message(in: body))") }
    return try JSONValue(parsing: body)
  }
}

enum OutputFormat: String, CaseIterable, ExpressibleByArgument { case table, wide, json, jsonl, yaml, name }

struct CompletionCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "completion", abstract: "Print the completion script of a shell.")
  enum Shell: String, CaseIterable, ExpressibleByArgument { case bash, zsh, fish }
  @Argument(help: "bash, zsh or fish.") var shell: Shell

  func run() throws {
    let shell: CompletionShell =
      switch self.shell {
      case .bash: .bash
      case .zsh: .zsh
      case .fish: .fish
      }
    print(Dpctl.completionScript(for: shell))
  }
}
