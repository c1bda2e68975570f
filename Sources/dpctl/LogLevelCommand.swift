import ArgumentParser
import LocalAPI

/// How much the agent writes into its log, until it ends.
struct LogLevelCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "log-level", abstract: "Show or change how much the agent logs, until it is started again.")

  @Argument(help: "trace, debug, info, warning or error; without it, the level is shown.") var level: String?
  @OptionGroup var options: GlobalOptions

  func run() throws {
    guard let level else {
      let answer = try options.answer("/v1/log-level")
      print(options.output == .json ? answer.serialized() : answer["level"]?.stringValue ?? "")
      return
    }
    do {
      let (status, body) = try options.client.request("PUT", "/v1/log-level", body: ["level": .string(level)])
      guard status == 200 else { throw options.refusal(status, UnixHTTPClient.message(in: body), "/v1/log-level") }
    } catch let error as LocalAPIError {
      throw options.failure(error)
    }
  }
}
