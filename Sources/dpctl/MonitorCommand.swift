import ArgumentParser
import DataplaneModel
import Glibc
import LocalAPI
import NetworkTypes

/// What is dropped, or would be, as it happens; on request what is allowed, translated and passes too.
struct MonitorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "monitor", abstract: "Dropped packets as they are dropped, and by whom; other packets on request.",
    discussion: """
      Follows until Ctrl-C; with --last it shows the past and ends, unless --follow is given too. Times are UTC. Events \
      that were lost are counted on stderr. The node's log limits how many a second there are.
      """)

  @OptionGroup var options: GlobalOptions
  @Option(
    help: """
      drop, audit: packets dropped, or that a policy in audit mode would drop (without --type: both). By the ebpf engine \
      also verdict: flows allowed; lb: packets translated or refused; trace: packets of known flows. Comma-separated.
      """,
    completion: .list(EventType.allCases.map(\.rawValue)))
  var type: CommaList<EventType>?
  @Option(
    help: "deny, audit, allow: what policies decided; instead of --type and --reason.",
    completion: .list(PolicyVerdict.allCases.map(\.rawValue)))
  var verdict: PolicyVerdict?
  @Option(
    help: "Only these reasons, comma-separated.", completion: .list(DropReason.allCases.map(\.rawValue)))
  var reason: CommaList<DropReason>?
  @Option(help: "Only packets from this pod, NAMESPACE/NAME, or address.") var fromPod: String?
  @Option(help: "Only packets to this pod, NAMESPACE/NAME, or address.") var toPod: String?
  @Option(help: "Only packets from or to this pod, NAMESPACE/NAME, or address.") var pod: String?
  @OptionGroup var namespaces: NamespaceOptions
  @Option(help: "Only what is younger: 30s, 5m, 2h, 1d.") var since: Age?
  @Option(help: "The last N events that match.") var last: Int?
  @Flag(name: .shortAndLong, help: "Go on with what happens next.") var follow = false

  func validate() throws {
    if [.yaml, .name].contains(options.output) {
      throw ValidationError("-o \(options.output.rawValue): events are printed as table, wide, json or jsonl")
    }
    if verdict != nil, type != nil || reason != nil {
      throw ValidationError("--verdict says type and reason: leave --type and --reason out")
    }
    if let last, last < 0 { throw ValidationError("--last \(last): not a number of events") }
    for (option, name) in [("--from-pod", fromPod), ("--to-pod", toPod), ("--pod", pod)] {
      if let name { _ = try qualified(name, option) }
    }
  }

  var follows: Bool { follow || last == nil }

  /// More than an agent keeps.
  private static let everything = 1_000_000

  /// What to ask the agent for: only events from now on, unless the past is asked for.
  func parameters() throws -> [(key: String, value: String?)] {
    [
      ("last", "\(last ?? (since == nil ? 0 : Self.everything))"), ("follow", follows ? "true" : "false"),
      ("type", verdict?.type ?? type?.text), ("reason", verdict?.reason ?? reason?.text),
      ("from", try fromPod.map { try qualified($0, "--from-pod") }),
      ("to", try toPod.map { try qualified($0, "--to-pod") }), ("pod", try pod.map { try qualified($0, "--pod") }),
      ("namespace", namespaces.wanted), ("since", since?.seconds.description),
    ]
  }

  private func qualified(_ name: String, _ option: String) throws -> String {
    if let address = IPAddress(name) { return address.description }
    guard let (namespace, name) = qualifiedName(name, in: namespaces.wanted ?? "default") else {
      throw ValidationError("\(option) '\(name)': write NAMESPACE/NAME, or an address")
    }
    return "\(namespace)/\(name)"
  }

  func run() throws {
    // Every line is written as it comes, so nothing is left to save.
    signal(SIGINT) { _ in _exit(0) }
    // A reader that has gone (`| head`) is seen as EPIPE: the end, not an error.
    signal(SIGPIPE, SIG_IGN)
    MonitorPrinter.exitWhenReaderGoes()
    let path = "/v1/monitor"
    let printer = MonitorPrinter(options)
    do {
      try options.client.stream(AgentPath.query(path, try parameters())) { line in try printer.show(line) }
    } catch LocalAPIError.refused(_, let status, let message) {
      throw options.refusal(status, message, path)
    } catch LocalAPIError.badResponse(_, let reason) {
      throw Self.agentGone(reason)
    } catch let error as LocalAPIError {
      throw options.failure(error)
    }
    if follows, !printer.isReaderGone { throw Self.agentGone("it ended the stream") }
  }

  private static func agentGone(_ reason: String) -> ExitCode {
    Dpctl.complain("dpctl: the agent has gone: \(reason)")
    return ExitCode(3)
  }
}

enum EventType: String, CaseIterable, ExpressibleByArgument {
  case drop, audit, verdict, lb, trace
}

enum PolicyVerdict: String, CaseIterable, ExpressibleByArgument {
  case deny, audit, allow

  var type: String {
    switch self {
    case .deny: "drop"
    case .audit: "audit"
    case .allow: "verdict"
    }
  }
  var reason: String? { self == .deny ? DropReason.policyDenied.rawValue : nil }
}

extension DropReason: ExpressibleByArgument {}

/// Values separated by commas.
struct CommaList<Element: RawRepresentable & ExpressibleByArgument>: ExpressibleByArgument
where Element.RawValue == String {
  var elements: [Element]

  init?(argument: String) {
    let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
    elements = parts.compactMap { Element(rawValue: String($0)) }
    if elements.count != parts.count { return nil }
  }

  var text: String { elements.map(\.rawValue).joined(separator: ",") }
  static var allValueStrings: [String] { Element.allValueStrings }
}

/// A span of time back from now: `90`, `30s`, `5m`, `2h`, `1d`.
struct Age: ExpressibleByArgument, Hashable {
  var seconds: Int

  init?(argument: String) {
    let units: [Character: Int] = ["s": 1, "m": 60, "h": 3600, "d": 86400]
    let unit = argument.last.flatMap { units[$0] }
    let digits = unit == nil ? argument[...] : argument.dropLast()
    guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
      let number = Int(digits)
    else { return nil }
    let (seconds, overflow) = number.multipliedReportingOverflow(by: unit ?? 1)
    guard !overflow else { return nil }
    self.seconds = seconds
  }
}
