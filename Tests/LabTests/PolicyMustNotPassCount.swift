// What the must-not-pass prober has counted.
import Glibc
import Testing

@testable import Lab

/// What happened to the packets that were sent in a stretch of time.
struct ProbeCount: Sendable, CustomStringConvertible {
  struct Line: Sendable {
    var lane: ProbedLane
    var sent: Int
    var passed: Int
    /// The longest row of packets that did not pass.
    var longestSilence: Int
  }
  var lines: [Line] = []
  var seconds: Double
  /// Between two ticks of the sender: a prober that pauses proves nothing.
  var longestPauseMilliseconds = 0
  /// The first and the last denied packet that passed, in milliseconds since the beginning.
  var leak: ClosedRange<Int>?

  /// - Parameter range: of ticks.
  init(_ log: MustNotPassProber.Log, _ lanes: [ProbedLane], _ range: Range<UInt32>) {
    let times = log.ticks[Int(range.lowerBound)..<Int(range.upperBound)]
    let begin = times.first ?? 0
    seconds = Double((times.last ?? 0) - begin) / 1e9
    for (earlier, later) in zip(times, times.dropFirst()) {
      longestPauseMilliseconds = max(longestPauseMilliseconds, Int((later - earlier) / 1_000_000))
    }
    for (index, lane) in lanes.enumerated() {
      let sent = log.sent[index].filter(range.contains)
      let seen = Set(log.seen[index].filter(range.contains))
      var (silence, longest) = (0, 0)
      for tick in sent {
        silence = seen.contains(tick) ? 0 : silence + 1
        longest = max(longest, silence)
      }
      lines.append(Line(lane: lane, sent: sent.count, passed: seen.count, longestSilence: longest))
      guard !lane.isAllowed else { continue }
      for tick in seen {
        let at = Int((log.ticks[Int(tick)] - begin) / 1_000_000)
        leak = min(leak?.lowerBound ?? at, at)...max(leak?.upperBound ?? at, at)
      }
    }
  }

  private var denied: [Line] { lines.filter { !$0.lane.isAllowed } }
  private var allowed: [Line] { lines.filter(\.lane.isAllowed) }
  var sentDenied: Int { denied.reduce(0) { $0 + $1.sent } }
  var passedDenied: Int { denied.reduce(0) { $0 + $1.passed } }
  var sentAllowed: Int { allowed.reduce(0) { $0 + $1.sent } }
  var lostAllowed: Int { allowed.reduce(0) { $0 + $1.sent - $1.passed } }
  /// Of the allowed lanes, in milliseconds.
  var longestSilence: Int { (allowed.map(\.longestSilence).max() ?? 0) * MustNotPassProber.kinds }

  /// Denied packets per second, on each of their paths.
  var rate: Double {
    let paths = Set(denied.map { "\($0.lane.source) \($0.lane.target)" }).count
    return seconds > 0 && paths > 0 ? Double(sentDenied) / Double(paths) / seconds : 0
  }

  var description: String {
    let length = leak.map { " (from ms \($0.lowerBound) to \($0.upperBound))" } ?? ""
    return """
      \(Int(seconds * 10 + 0.5)) tenths of a second at \(Int(rate)) Hz on each path, longest pause \
      \(longestPauseMilliseconds) ms: \(sentDenied) denied packets, \(passedDenied) passed\(length); \(sentAllowed) \
      allowed, \(lostAllowed) lost, longest silence \(longestSilence) ms
      """
  }

  /// Of the 1,000 a second that are meant, what a machine must manage that two suites share (scripts/lab-test).
  private static var leastRate: Double { LabHarness.sharesMachine ? 500 : 900 }

  /// Nothing denied passed, though it was sent all the time; and what is allowed passed, where that is promised.
  ///
  /// - Parameter isAtFullRate: false where a source cannot send all the time.
  func expectClosed(
    _ what: String, losesNothing: Bool = true, isAtFullRate: Bool = true,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    print("must not pass: \(what): \(self)")
    let leaks = denied.filter { $0.passed > 0 }.map { "\($0.lane): \($0.passed) of \($0.sent)" }
    #expect(leaks == [], "\(what): \(self)", sourceLocation: sourceLocation)
    // A busy machine may be late; what is late follows at once.
    if isAtFullRate { #expect(rate > Self.leastRate, "\(what): \(self)", sourceLocation: sourceLocation) }
    #expect(sentDenied > 900, "\(what): \(self)", sourceLocation: sourceLocation)
    if losesNothing {
      let lost = allowed.filter { $0.passed < $0.sent }.map { "\($0.lane): \($0.sent - $0.passed) of \($0.sent)" }
      #expect(lost == [], "\(what): \(self)", sourceLocation: sourceLocation)
    }
  }
}
