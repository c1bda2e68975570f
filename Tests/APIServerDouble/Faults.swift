import Synchronization

/// What goes wrong on demand, at random with a seed, and how often it did.
package final class Faults: Sendable {
  package enum Fault: String, CaseIterable, Sendable {
    case serverError, unavailable, tooManyRequests, unauthorized, slowAnswer
    case expiredList, shuffledList, expiredWatch, watchEndsAtOnce, cutMidFrame
  }

  private struct State {
    var random: SeededGenerator
    /// In 10,000 requests, or events of a watch.
    var rates: [Fault: Int] = [:]
    var counts: [Fault: Int] = [:]
  }

  /// Everything goes wrong often, and some of it goes well.
  package static let manyOfEach: [Fault: Int] = [
    .serverError: 400, .unavailable: 400, .tooManyRequests: 300, .unauthorized: 300, .slowAnswer: 300,
    .expiredList: 2000, .shuffledList: 3000, .expiredWatch: 60, .watchEndsAtOnce: 1000, .cutMidFrame: 60,
  ]

  private let state: Mutex<State>

  package init(seed: UInt64) { state = Mutex(State(random: SeededGenerator(seed: seed))) }

  /// From now on, in 10,000; what is not named does not happen.
  package func set(_ rates: [Fault: Int]) { state.withLock { $0.rates = rates } }

  package var counts: [Fault: Int] { state.withLock { $0.counts } }
  package var total: Int { counts.values.reduce(0, +) }

  func strike(_ fault: Fault) -> Bool {
    state.withLock { state in
      guard let rate = state.rates[fault], Int.random(in: 0..<10_000, using: &state.random) < rate else { return false }
      state.counts[fault, default: 0] += 1
      return true
    }
  }

  func number(in range: ClosedRange<Int>) -> Int { state.withLock { Int.random(in: range, using: &$0.random) } }

  /// One more generator, for what takes longer than a look.
  func generator() -> some RandomNumberGenerator { SeededGenerator(seed: state.withLock { $0.random.next() }) }
}

/// SplitMix64: the same everywhere for the same seed.
package struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
