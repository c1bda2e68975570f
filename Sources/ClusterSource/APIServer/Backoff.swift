/// How long to wait before trying again: longer each time, until it has gone well for a while.
struct Backoff: Sendable {
  static let first = Duration.milliseconds(800)
  static let longest = Duration.seconds(30)
  /// Nobody may ask for more: another server may be well.
  static let longestAsked = Duration.seconds(300)
  /// Without a failure for this long, the next one is the first again.
  static let forgiveness = Duration.seconds(120)

  private var next = first
  private var lastFailure: Duration?

  /// - Parameters:
  ///   - now: of any clock, always the same one.
  ///   - asked: how long the server asks to be left alone; that is never shortened.
  mutating func fail(now: Duration, asked: Duration? = nil, _ random: inout some RandomNumberGenerator) -> Duration {
    if let lastFailure, now - lastFailure > Self.forgiveness { next = Self.first }
    lastFailure = now
    defer { next = min(next * 2, Self.longest) }
    // Agents whose server was away for all of them must not come back at the same time.
    let jittered = next * Double.random(in: 1...2, using: &random)
    return max(min(asked ?? .zero, Self.longestAsked), min(jittered, Self.longest))
  }
}
