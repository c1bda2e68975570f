import DataplaneModel
import Glibc

/// Time that this process has spent on a processor: as long as on the clock where it has one for itself, and the same where
/// it has not.
enum CPUTime {
  static func measure(_ body: () -> Void) -> Duration {
    let start = now
    body()
    return now - start
  }

  private static var now: Duration {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
  }
}

/// One line for each thing measured.
enum Report {
  static func line(_ name: String, _ value: String) {
    let gap = String(repeating: " ", count: max(1, 62 - name.utf8.count))
    print("\(name)\(gap)\(value)")
  }

  static func line(_ name: String, _ time: Duration) { line(name, "\(milliseconds(time)) ms") }

  static func line(_ name: String, _ time: Duration, _ delta: TableDelta) {
    line(name, "\(milliseconds(time)) ms, \(size(delta))")
  }

  static func line(_ name: String, _ time: Agent.Times, _ delta: TableDelta) {
    line(
      name,
      "compile \(milliseconds(time.compile)), kernel \(milliseconds(time.kernel)), other \(milliseconds(time.other)), "
        + "in all \(milliseconds(time.total)) ms, \(size(delta))")
  }

  /// Median and 99th percentile.
  static func line(_ name: String, _ times: [Agent.Times], _ delta: TableDelta) {
    func spread(_ part: (Agent.Times) -> Duration) -> String {
      let sorted = times.map(part).sorted()
      return "\(milliseconds(sorted[sorted.count / 2])) / \(milliseconds(sorted[sorted.count * 99 / 100]))"
    }
    line(
      name,
      "compile \(spread(\.compile)), kernel \(spread(\.kernel)), in all \(spread(\.total)), later \(spread(\.removals)) ms "
        + "of \(times.count), \(size(delta))")
  }

  /// With three digits behind the point below ten, else one.
  static func milliseconds(_ time: Duration) -> String {
    let microseconds = time.components.seconds * 1_000_000 + time.components.attoseconds / 1_000_000_000_000
    func pad(_ number: Int64, _ digits: Int) -> String {
      let text = "\(number)"
      return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
    }
    if microseconds < 10_000 { return "\(microseconds / 1000).\(pad(microseconds % 1000, 3))" }
    return "\(microseconds / 1000).\(microseconds % 1000 / 100)"
  }

  private static func size(_ delta: TableDelta) -> String {
    let atoms = delta.blocks.values.reduce(0) { $0 + ($1.new?.atoms.count ?? 0) }
    let counts = [
      ("identities", delta.identities.count), ("atoms", atoms), ("pairs", delta.pairs.count),
      ("port sets", delta.portSets.count), ("clauses", delta.clauses.count),
    ].filter { $0.1 > 0 }
    return counts.isEmpty ? "empty delta" : counts.map { "\($0.1) \($0.0)" }.joined(separator: ", ")
  }

  /// Resident and highest, of this process.
  static func memory() -> String {
    guard let file = fopen("/proc/self/status", "r") else { return "unknown" }
    defer { fclose(file) }
    var found: [String] = []
    var buffer = [CChar](repeating: 0, count: 256)
    while fgets(&buffer, Int32(buffer.count), file) != nil {
      let line = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      guard line.hasPrefix("VmRSS") || line.hasPrefix("VmHWM") else { continue }
      found.append("\((Int(line.filter(\.isNumber)) ?? 0) / 1024)")
    }
    return found.reversed().joined(separator: " / ") + " MiB resident / highest"
  }
}
