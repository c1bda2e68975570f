import LocalAPI
import NetworkTypes

/// How one probe ended.
public enum ProbeOutcome: Sendable, Hashable, CustomStringConvertible {
  case answered
  /// Connection refused: a reset to the SYN, or ICMP port unreachable.
  case refused
  /// No answer within the probe's time limit: dropped somewhere, or a dead backend.
  case timedOut
  /// The connection was made and then broke before the answer was complete.
  case reset
  /// ICMP host, network or administratively unreachable, or no route at all.
  case unreachable
  /// Anything else, with its errno.
  case failed(errno: Int32)

  public var description: String {
    switch self {
    case .answered: "answered"
    case .refused: "refused"
    case .timedOut: "timeout"
    case .reset: "reset"
    case .unreachable: "unreachable"
    case .failed(let code): "failed (\(errorText(code)))"
    }
  }
}

/// One probe: when it started, how it ended, and what the server said.
public struct ProbeResult: Sendable {
  /// CLOCK_MONOTONIC, nanoseconds.
  public var started: UInt64
  /// From connect (or the datagram) to the complete answer or the error, nanoseconds.
  public var latency: UInt64
  public var outcome: ProbeOutcome
  /// The name of the server that answered.
  public var pod: String?
  /// The client's address as the server saw it.
  public var client: SocketAddress?
  /// The port the server was reached on: the targetPort.
  public var serverPort: Port?
}

/// Everything a run of probes found.
public struct ProbeReport: Sendable {
  public var results: [ProbeResult]
  /// CLOCK_MONOTONIC at the start and the end of the run, nanoseconds.
  public var started: UInt64
  public var ended: UInt64

  public var answered: Int { outcomes[.answered] ?? 0 }
  public var failures: [ProbeResult] { results.filter { $0.outcome != .answered } }
  public var outcomes: [ProbeOutcome: Int] { results.reduce(into: [:]) { $0[$1.outcome, default: 0] += 1 } }
  /// Answers by server name.
  public var backends: [String: Int] {
    results.reduce(into: [:]) { counts, result in
      if let pod = result.pod { counts[pod, default: 0] += 1 }
    }
  }
  /// The addresses the servers saw.
  public var clients: Set<IPAddress> { Set(results.compactMap { $0.client?.address }) }
  public var serverPorts: Set<Port> { Set(results.compactMap(\.serverPort)) }

  /// The latency below which that share (0...1) of the answers lies, nanoseconds; nil without answers.
  public func latency(quantile: Double) -> UInt64? {
    let latencies = results.filter { $0.outcome == .answered }.map(\.latency).sorted()
    guard !latencies.isEmpty else { return nil }
    return latencies[min(latencies.count - 1, Int(Double(latencies.count) * quantile))]
  }

  public var json: JSONValue {
    func milliseconds(_ nanoseconds: UInt64) -> JSONValue { .double(Double(nanoseconds / 1000) / 1000) }
    func counts(_ values: [(String, Int)]) -> JSONValue {
      .object(JSONObject(values.sorted { $0.0 < $1.0 }.map { ($0.0, .int(Int64($0.1))) }))
    }
    let quantiles = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)]
    return [
      "probes": .int(Int64(results.count)), "answered": .int(Int64(answered)),
      "duration_ms": milliseconds(ended - started),
      "outcomes": counts(outcomes.map { ($0.key.description, $0.value) }),
      "backends": counts(backends.map { ($0.key, $0.value) }),
      "clients": .array(clients.sorted().map { .string($0.description) }),
      "latency_ms": .object(
        JSONObject(quantiles.compactMap { name, share in latency(quantile: share).map { (name, milliseconds($0)) } })),
      "first_errors": .array(
        failures.prefix(10).map {
          ["at_ms": milliseconds($0.started - started), "outcome": .string($0.outcome.description)]
        }),
    ]
  }

  /// For people: `200 answered: api-1 98, api-2 102`, then what failed.
  public var summary: String {
    let spread = backends.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
    let failed = outcomes.filter { $0.key != .answered }.map { "\($0.value) \($0.key)" }.sorted()
    return ([spread.isEmpty ? "\(answered) answered" : "\(answered) answered: \(spread)"] + failed)
      .joined(separator: "; ")
  }
}
