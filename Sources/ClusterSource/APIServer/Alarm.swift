import Synchronization

/// Ends the waits of all kinds once one of them gets through: after an outage nobody waits out what failures had added up to.
final class Alarm: Sendable {
  private struct State {
    var last = 0
    var sleepers: [Int: AsyncStream<Void>.Continuation] = [:]
  }
  private let state = Mutex(State())

  /// Returns after a while, when it rings, or when the task is cancelled.
  func sleep(_ duration: Duration, by sleep: @escaping @Sendable (Duration) async throws -> Void) async {
    let (rings, sleeper) = AsyncStream.makeStream(of: Void.self)
    let number = state.withLock { state in
      state.last += 1
      state.sleepers[state.last] = sleeper
      return state.last
    }
    await withTaskGroup(of: Void.self) { group in
      group.addTask { try? await sleep(duration) }
      group.addTask { for await _ in rings { return } }
      await group.next()
      group.cancelAll()
    }
    state.withLock { $0.sleepers[number] = nil }
  }

  func ring() {
    for sleeper in state.withLock({ $0.sleepers.values.map { $0 } }) { sleeper.yield() }
  }
}
