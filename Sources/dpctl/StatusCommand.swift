import ArgumentParser
import BPFLoader
import Glibc
import LocalAPI
import NFTables

/// One look: is the node fine, and if not, where.
struct StatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Agent, packet path and sources at a glance.")
  @OptionGroup var options: GlobalOptions
  @OptionGroup var pins: PinOptions

  func run() throws {
    let status: JSONValue
    do throws(LocalAPIError) {
      let (code, body) = try options.client.request("GET", "/v1/status", body: nil)
      guard code == 200 else { throw .badResponse(path: options.socket, reason: "status \(code)") }
      status = (try? JSONValue(parsing: body)) ?? .null
    } catch {
      try withoutAgent(error)
      throw ExitCode(ExitStatus.of(error))
    }
    switch options.output {
    case .json: print(status.serialized(pretty: true))
    case .jsonl: print(status.serialized())
    case .yaml: print(Output.yaml(status, indent: 0))
    default: print(text(status))
    }
    guard status["dataplane"]?["ok"]?.boolValue == true, status["source"]?["synced"]?.boolValue == true else {
      throw ExitCode(1)
    }
  }

  /// The kernel goes on without the agent: say what it has.
  private func withoutAgent(_ error: LocalAPIError) throws {
    let tables = pins.folderIfThere.map { Self.kernel($0) } ?? Self.netfilter()
    if options.output == .json || options.output == .jsonl {
      let answer: JSONValue = [
        "apiVersion": "sluice.dev/v1", "agent": .null, "error": .string("\(error)"), "kernel": .string(tables),
      ]
      print(answer.serialized(pretty: options.output == .json))
    } else {
      print("Agent       DOWN      \(error)\nDataplane   \(tables)")
    }
  }

  private static func netfilter() -> String {
    do {
      let names = try NFTablesEngine().tableNames().filter { $0 == "sluice" }.count
      return names == 2
        ? "nftables tables are in place: Services go on as last programmed" : "no Sluice tables in nftables"
    } catch {
      return "nftables cannot be read: \(error)"
    }
  }

  private static func kernel(_ pins: PinFolder) -> String {
    guard pins.hasPacketMaps else { return "\(netfilter()); BPF maps of services at the socket are in place" }
    do {
      let flows = try TrackedFlows(pins: pins).count()
      let maps = try PinnedMap.all(in: pins).count
      return "\(maps) BPF maps are in place, with \(flows) live flows: Services and policies go on as last programmed"
    } catch {
      return "BPF maps cannot be read: \(error)"
    }
  }

  private func text(_ status: JSONValue) -> String {
    let agent = status["agent"] ?? .null
    let plane = status["dataplane"] ?? .null
    let source = status["source"] ?? .null
    let services = status["services"] ?? .null
    let problems = source["problems"]?.arrayValue ?? []
    let conflicts = services["conflicts"]?.arrayValue ?? []
    var lines = [
      "Agent       OK        v\(agent.text("version")) up \(Self.duration(agent.number("uptimeSeconds"))) pid \(agent.text("pid")), \(agent.number("residentBytes") >> 20) MB",
      "Dataplane   \(plane["ok"]?.boolValue == true ? "OK      " : "FAILING ")  \(plane.text("engine")), revision \(plane.text("revision"))"
        + (plane["verifiedSecondsAgo"]?.intValue.map { " (verified \($0)s ago)" } ?? "")
        + (plane["tables"]?.stringValue.map { ", tables \($0)" } ?? "")
        + ["lastFailure", "socketFailure"].compactMap { plane[$0]?.stringValue.map { ": \($0)" } }.joined(),
      sourceLine(source, problems: problems.count),
      "Services    OK        \(services.text("services")) services / \(services.text("backends")) backends"
        + (conflicts.isEmpty ? "" : ", \(conflicts.count) claims lost"),
      "Endpoints   OK        \(status.text("endpoints")) pods on \(agent.text("node"))",
    ]
    let full = plane["fullMaps"]?.arrayValue ?? []
    if !full.isEmpty {
      lines.append(
        "Maps        WARN      "
          + full.map { "\($0.text("name")) \($0.text("fillPercent")) % of \($0.text("maxEntries"))" }
          .joined(separator: ", "))
    }
    lines += (problems + conflicts).prefix(10).map { "  - \($0.stringValue ?? "")" }
    return lines.joined(separator: "\n")
  }

  private func sourceLine(_ source: JSONValue, problems: Int) -> String {
    let isSynced = source["synced"]?.boolValue == true
    let away = source["awaySeconds"]?.intValue
    let state = !isSynced ? "WAITING " : problems == 0 && away == nil ? "OK      " : "DEGRADED"
    var line = "Source      \(state)  \(source.text("kind")) \(source.text("path"))"
    if problems > 0 { line += ", \(problems) objects ignored" }
    if let away {
      line += "\n            unreachable \(Self.duration(away))"
      if isSynced { line += "; enforcing last-known state" }
      if let reason = source["awayReason"]?.stringValue { line += " (\(reason))" }
    }
    return line
  }

  static func duration(_ seconds: Int64) -> String {
    switch seconds {
    case ..<60: "\(seconds)s"
    case ..<3600: "\(seconds / 60)m\(seconds % 60)s"
    case ..<86400: "\(seconds / 3600)h\(seconds % 3600 / 60)m"
    default: "\(seconds / 86400)d\(seconds % 86400 / 3600)h"
    }
  }
}
