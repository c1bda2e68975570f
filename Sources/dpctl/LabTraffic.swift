// The hidden parts of `dpctl lab`: what runs inside the lab's namespaces.
import ArgumentParser
import Glibc
import Lab
import LocalAPI
import NetworkTypes

struct LabHold: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hold", abstract: "Hold the namespaces of one host.", shouldDisplay: false)

  @Option(name: .long) var kind: NamespaceHolder.Kind
  @Option(name: .long) var stateDirectory: String
  @Option(name: .long) var cgroup: String
  @Option(name: .long) var readyFd: Int32

  func run() throws {
    try NamespaceHolder(
      kind: kind, stateDirectory: stateDirectory, controlGroup: cgroup, readyDescriptor: readyFd
    ).run()
  }
}

extension NamespaceHolder.Kind: ExpressibleByArgument {}
extension ProbeSpec.Mode: ExpressibleByArgument {}

/// A comma-separated list of ports.
struct PortList: ExpressibleByArgument {
  var ports: [Port]

  init?(argument: String) {
    let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
    ports = parts.compactMap { Int($0).flatMap { Port($0) } }
    if ports.count != parts.count { return nil }
  }
}

struct LabServe: ParsableCommand {
  enum Family: String, ExpressibleByArgument, CaseIterable {
    case v4, v6, both
  }

  static let configuration = CommandConfiguration(
    commandName: "serve", abstract: "Answer TCP, UDP and HTTP with who was reached by whom.", shouldDisplay: false)

  @Option(name: .long, help: "The name to answer with.") var name: String
  @Option(name: .long, help: "The node to answer with.") var node = ""
  @Option(name: .long, help: "Ports that greet with one line and echo lines.") var tcp: PortList?
  @Option(name: .long, help: "Ports that answer datagrams.") var udp: PortList?
  @Option(name: .long, help: "Ports that answer HTTP.") var http: PortList?
  @Option(name: .long, help: "v4, v6 or both.") var family = Family.both
  @Option(name: .long, help: "A descriptor that is written to once everything listens.") var readyFd: Int32?

  func run() throws {
    var configuration = TrafficServerConfiguration(name: name, node: node)
    configuration.tcp = tcp?.ports ?? []
    configuration.udp = udp?.ports ?? []
    configuration.http = http?.ports ?? []
    configuration.families = family == .both ? [.v4, .v6] : family == .v4 ? [.v4] : [.v6]
    let server = try TrafficServer(configuration)
    if let readyFd {
      let byte: [UInt8] = [UInt8(ascii: "r")]
      write(readyFd, byte, 1)
      close(readyFd)
    }
    try server.run()
  }
}

struct LabProbe: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "probe", abstract: "Open connections and say who answered.", shouldDisplay: false)

  @Flag(help: "What to open.") var mode: Mode = .tcp
  @Option(name: .long, help: "ADDRESS:PORT; IPv6 in brackets.") var to: String
  @Option(name: .long, help: "How many.") var count = 1
  @Option(name: .long, help: "How many at once; with --keep, how many flows.") var concurrency = 64
  @Option(name: .long, help: "New ones per second. Default: as fast as it goes.") var rate: Double?
  @Option(name: .long, help: "Milliseconds to wait for each answer.") var timeout = 2000
  @Option(name: .long, help: "A fixed source port; use --concurrency 1.") var sourcePort: Int?
  @Option(name: .long, help: "The source address.") var bind: String?
  @Flag(name: .long, help: "Close TCP in the ordinary way instead of with a reset.") var gracefulClose = false
  @Flag(name: .long, help: "Long-lived flows with one line each per interval, until --duration.") var keep = false
  @Option(name: .long, help: "Milliseconds between two lines of a long-lived flow.") var interval = 10
  @Option(name: .long, help: "Milliseconds that long-lived flows last.") var duration = 10_000
  @Flag(name: .long, help: "Print JSON.") var json = false

  enum Mode: String, EnumerableFlag {
    case tcp, udp, http
  }

  private func target() throws -> SocketAddress {
    guard let target = SocketAddress(parsing: to) else { throw ValidationError("\"\(to)\" is not ADDRESS:PORT") }
    return target
  }

  private func source() throws -> IPAddress? {
    guard let bind else { return nil }
    guard let address = IPAddress(bind) else { throw ValidationError("\"\(bind)\" is no address") }
    return address
  }

  func validate() throws {
    guard count > 0, concurrency > 0, timeout > 0, interval > 0, rate ?? 1 > 0 else {
      throw ValidationError("--count, --concurrency, --timeout, --interval and --rate must be positive")
    }
    if keep, mode == .http { throw ValidationError("--keep is for --tcp and --udp") }
  }

  func run() throws {
    let probeMode = ProbeSpec.Mode(rawValue: mode.rawValue) ?? .tcp
    if keep {
      try runFlows(probeMode)
      return
    }
    var spec = ProbeSpec(probeMode, to: try target(), count: count)
    spec.concurrency = concurrency
    spec.rate = rate
    spec.timeoutMilliseconds = timeout
    spec.sourceAddress = try source()
    spec.sourcePort = sourcePort.flatMap { Port($0) }
    spec.closesWithReset = !gracefulClose
    let report = try Probe.run(spec)
    print(json ? report.json.serialized(pretty: true) : report.summary)
    if report.answered != count { throw ExitCode(1) }
  }

  private func runFlows(_ probeMode: ProbeSpec.Mode) throws {
    var spec = EchoFlowSpec(probeMode, to: try target())
    spec.flows = concurrency
    spec.intervalMilliseconds = interval
    spec.sourceAddress = try source()
    let end = monotonicNanoseconds() + UInt64(duration) * 1_000_000
    let reports = try EchoFlow.run(spec) { monotonicNanoseconds() >= end }
    if json {
      print(JSONValue.array(reports.map(\.json)).serialized(pretty: true))
    } else {
      for report in reports {
        let broken = report.broken.map { ", broken: \($0)" } ?? ""
        print(
          "\(report.received) of \(report.sent) answered by \(report.pods.joined(separator: ", "));",
          "longest silence \(report.longestSilenceMilliseconds) ms\(broken)")
      }
    }
    if reports.contains(where: { $0.broken != nil || !$0.gaps.isEmpty }) { throw ExitCode(1) }
  }
}
