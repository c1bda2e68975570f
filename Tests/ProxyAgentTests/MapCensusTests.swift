import BPFLoader
import Logging
import Synchronization
import Testing

@testable import ProxyAgent

@Suite("How full maps are")
struct MapCensusTests {
  /// Keeps what is logged.
  private struct Notes: LogHandler {
    final class Lines: Sendable {
      let all = Mutex<[String]>([])
    }
    let lines: Lines
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.trace
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) {
      let words = (event.metadata ?? [:]).map { "\($0)=\($1)" }.sorted()
      lines.all.withLock { $0.append("\(event.level) \(event.message) \(words.joined(separator: " "))") }
    }
  }

  @Test("a map is warned of once at 90 %, and again only after it had room; what is live counts")
  func warns() async {
    let lines = Notes.Lines()
    let census = MapCensus(folder: "/nonexistent", logger: Logger(label: "test") { _ in Notes(lines: lines) })
    // Pairs, and live flows of a cache that has been full for long.
    let steps: [(pairs: Int, flows: Int, warnings: Int)] = [
      (89, 0, 0), (90, 89, 1), (95, 91, 2), (85, 100, 2), (90, 95, 2), (79, 10, 2), (91, 95, 4),
    ]
    for step in steps {
      await census.note([
        MapFill(map: "pairs", entries: step.pairs, maximum: 100, live: step.pairs),
        MapFill(map: "flows", entries: 100, maximum: 100, live: step.flows),
      ])
      #expect(lines.all.withLock(\.count) == step.warnings, "\(step)")
      let full = await census.full.map(\.map)
      #expect(full == (step.pairs >= 90 ? ["pairs"] : []) + (step.flows >= 90 ? ["flows"] : []))
    }
    #expect(lines.all.withLock { $0[0] } == "warning map nearly full bound=100 entries=90 map=pairs")
    let text = await AgentMetricsText.of(census)
    #expect(text.contains("# TYPE sluice_bpf_map_entries gauge"))
    #expect(text.contains("# TYPE sluice_bpf_map_live_entries gauge"))
    #expect(text.contains("sluice_bpf_map_entries{map=\"flows\"} 100\n"))
    #expect(text.contains("sluice_bpf_map_max_entries{map=\"pairs\"} 100\n"))
  }

  @Test("a folder that cannot be read is told once, and scrapes go on without the gauges")
  func unreadable() async {
    let lines = Notes.Lines()
    let census = MapCensus(folder: "/nonexistent", logger: Logger(label: "test") { _ in Notes(lines: lines) })
    await census.countIfDue()
    await census.countIfDue()
    #expect(lines.all.withLock(\.count) == 1)
    #expect(await census.metrics().isEmpty)
  }

  private enum AgentMetricsText {
    static func of(_ census: MapCensus) async -> String {
      var metrics = AgentMetrics()
      metrics.families = await census.metrics()
      return metrics.text()
    }
  }
}
