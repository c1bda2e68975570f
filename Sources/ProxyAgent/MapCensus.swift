import BPFLoader
import Logging

/// How full the pinned BPF maps are, for metrics, status and the log.
///
/// Counted from the kernel, beside the reconciler: programs write flows without telling anybody, and of the tables too
/// only the kernel knows what room they take (prefixes of ranges, removals that wait). Nobody waits for a count: scrapes
/// get the last one.
actor MapCensus {
  /// A pass over empty maps is some 30 ms of one processor; half a per cent of its time at most.
  private static let (interval, costFactor) = (Duration.seconds(30), 200)
  /// Below that a map may be warned of again.
  private static let calmPercent = 80

  private let folder: String
  private let logger: Logger
  private let clock = ContinuousClock()
  private var due: ContinuousClock.Instant?
  private(set) var fills: [MapFill] = []
  private var crowded: [String] = []
  private var warned: Set<String> = []
  private var lastFailure: String?

  init(folder: String, logger: Logger) { (self.folder, self.logger) = (folder, logger) }

  /// The maps that have hardly any room left.
  var full: [MapFill] { fills.filter { $0.percent >= MapFill.highPercent } }

  /// Caches of live flows that are nearly full: programs do not fail there, they forget. Each count's once.
  func takeCrowdedCaches() -> [String] {
    defer { crowded = [] }
    return crowded
  }

  func countIfDue() {
    guard due.map({ clock.now >= $0 }) ?? true else { return }
    let start = clock.now
    do {
      note(try MapFill.all(in: try PinFolder(reading: folder)))
      lastFailure = nil
    } catch {
      // Once, not each time.
      if lastFailure != "\(error)" { logger.warning("maps not counted", metadata: ["reason": "\(error)"]) }
      lastFailure = "\(error)"
    }
    due = clock.now + max(Self.interval, (clock.now - start) * Self.costFactor)
  }

  /// Warns of a map once for each time that it fills.
  func note(_ found: [MapFill]) {
    fills = found
    crowded = found.filter { !$0.flows.isEmpty && $0.percent >= MapFill.highPercent }.map(\.map)
    for fill in found {
      if fill.percent < Self.calmPercent { warned.remove(fill.map) }
      guard fill.percent >= MapFill.highPercent, warned.insert(fill.map).inserted else { continue }
      logger.warning(
        "map nearly full",
        metadata: ["map": "\(fill.map)", "entries": "\(fill.live)", "bound": "\(fill.maximum)"])
    }
  }

  func metrics() -> [AgentMetrics.Family] {
    guard !fills.isEmpty else { return [] }
    func family(_ name: String, _ help: String, _ value: (MapFill) -> Int) -> AgentMetrics.Family {
      AgentMetrics.Family(
        name: name, help: help, type: "gauge",
        samples: fills.map { .init(labels: [("map", $0.map)], value: UInt64(value($0))) })
    }
    var flows: [FlowState: Int] = [:]
    for fill in fills { flows.merge(fill.flows, uniquingKeysWith: +) }
    return [
      family("sluice_bpf_map_entries", "Elements of BPF maps; of caches also those that nobody needs.", \.entries),
      family("sluice_bpf_map_live_entries", "Elements of BPF maps that somebody needs.", \.live),
      family("sluice_bpf_map_max_entries", "Most elements that BPF maps can have.", \.maximum),
    ]
      + (fills.contains { $0.map == "flows" }
        ? [
          AgentMetrics.Family(
            name: "sluice_tracked_flows", help: "Live flows that the packet programs track.", type: "gauge",
            samples: FlowState.allCases.map { .init(labels: [("state", "\($0)")], value: UInt64(flows[$0] ?? 0)) })
        ] : [])
  }
}
