import Synchronization

/// The newest packets that were dropped, or that an audit policy would drop, and who waits for more.
///
/// Readers have a place in the ring, not a queue of their own: one that is slow costs nothing, can hold up nobody, and is
/// told how many events it missed.
final class EventRing: Sendable {
  static let defaultCapacity = 10_000

  private struct State {
    /// The event with number n is at n % capacity.
    var events: [PolicyEvent] = []
    /// The number that the next event gets: as many as there ever were.
    var next: UInt64 = 0
    var lost: UInt64 = 0
    var counts: [PolicyEvent.Kind: UInt64] = [:]
    var waiters: [ObjectIdentifier: CheckedContinuation<Void, Never>] = [:]
    var isClosed = false

    /// The number of the oldest event that is still there.
    var first: UInt64 { next - UInt64(events.count) }

    func event(_ number: UInt64, _ capacity: Int) -> PolicyEvent? {
      number < next && number >= first ? events[Int(number % UInt64(capacity))] : nil
    }

    mutating func takeWaiters() -> [CheckedContinuation<Void, Never>] {
      defer { waiters = [:] }
      return Array(waiters.values)
    }
  }
  let capacity: Int
  private let state = Mutex(State())

  init(capacity: Int = EventRing.defaultCapacity) { self.capacity = max(1, capacity) }

  // MARK: Writing

  func append(_ events: [PolicyEvent]) {
    guard !events.isEmpty else { return }
    let waiters = state.withLock { state in
      for event in events { add(event, &state) }
      return state.takeWaiters()
    }
    for waiter in waiters { waiter.resume() }
  }

  /// Notes that events did not arrive here, as an event of its own.
  func noteLost(_ count: UInt64, at time: PolicyEvent.Time) {
    guard count > 0 else { return }
    let waiters = state.withLock { state in
      state.lost += count
      var event = PolicyEvent(time: time, kind: .lost)
      event.count = count
      add(event, &state)
      return state.takeWaiters()
    }
    for waiter in waiters { waiter.resume() }
  }

  private func add(_ event: PolicyEvent, _ state: inout State) {
    var event = event
    event.lost = state.lost
    state.counts[event.kind, default: 0] += 1
    if state.events.count < capacity {
      state.events.append(event)
    } else {
      state.events[Int(state.next % UInt64(capacity))] = event
    }
    state.next += 1
  }

  /// Ends all readers, for good.
  func close() {
    let waiters = state.withLock { state in
      state.isClosed = true
      return state.takeWaiters()
    }
    for waiter in waiters { waiter.resume() }
  }

  /// Since the agent began, by kind; and how many were lost.
  var counts: (byKind: [PolicyEvent.Kind: UInt64], lost: UInt64) {
    state.withLock { ($0.counts, $0.lost) }
  }

  /// Readers that have read everything.
  var waitingReaders: Int { state.withLock { $0.waiters.count } }

  // MARK: Reading

  /// A place in the ring. One task reads; `close` may come from any.
  final class Reader: Sendable {
    private struct Place {
      var next: UInt64
      /// Where the reader is done; nil: it follows.
      var end: UInt64?
      var missed: UInt64 = 0
      var isClosed = false
    }
    private let ring: EventRing
    private let filter: EventFilter
    private let place: Mutex<Place>

    fileprivate init(_ ring: EventRing, _ filter: EventFilter, from next: UInt64, to end: UInt64?) {
      (self.ring, self.filter) = (ring, filter)
      place = Mutex(Place(next: next, end: end))
    }

    /// The next events that the filter lets through, at most `limit`, oldest first; waits for the first. nil at the end.
    ///
    /// Events that were overwritten before they could be read are in the answer as one that says how many. What the
    /// filter would have said about them nobody knows.
    func next(limit: Int = 256) async -> [PolicyEvent]? {
      while true {
        let (events, isDone) = read(limit: limit)
        if !events.isEmpty { return events }
        if isDone { return nil }
        await ring.wait(for: self)
      }
    }

    /// Ends the reader, also one that waits.
    func close() {
      place.withLock { $0.isClosed = true }
      ring.wake(ObjectIdentifier(self))
    }

    fileprivate func isBehind(_ next: UInt64) -> Bool {
      place.withLock { $0.isClosed || $0.next < next || $0.end.map { [at = $0.next] in at >= $0 } ?? false }
    }

    private func read(limit: Int) -> (events: [PolicyEvent], isDone: Bool) {
      place.withLock { place in
        if place.isClosed { return ([], true) }
        var result: [PolicyEvent] = []
        let isDone = ring.state.withLock { state in
          let first = state.first
          if place.next < first {
            let missed = first - place.next
            place.missed += missed
            place.next = first
            if let oldest = state.event(first, ring.capacity) {
              var event = PolicyEvent(time: oldest.time, kind: .lost)
              (event.count, event.lost) = (missed, oldest.lost)
              result.append(event)
            }
          }
          let end = min(place.end ?? state.next, state.next)
          while place.next < end, result.count < limit {
            if let event = state.event(place.next, ring.capacity), filter.passes(event) { result.append(event) }
            place.next += 1
          }
          return state.isClosed || place.end.map { place.next >= $0 } ?? false
        }
        for index in result.indices { result[index].lost += place.missed }
        return (result, isDone)
      }
    }
  }

  /// - Parameters:
  ///   - last: how many of the events that are there; nil: all, or none if the reader follows.
  ///   - follows: it goes on when those are read.
  func reader(_ filter: EventFilter = EventFilter(), last: Int?, follows: Bool) -> Reader {
    state.withLock { state in
      let first = state.first
      var start = follows && last == nil ? state.next : first
      if let last {
        var found = 0
        start = state.next
        while start > first, found < last {
          start -= 1
          if let event = state.event(start, capacity), filter.passes(event), event.kind != .lost { found += 1 }
        }
      }
      return Reader(self, filter, from: start, to: follows ? nil : state.next)
    }
  }

  /// Returns when there is something to read, the ring or the reader is closed, or the task is cancelled (which closes the
  /// reader).
  private func wait(for reader: Reader) async {
    let id = ObjectIdentifier(reader)
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isReady = state.withLock { state in
          if state.isClosed || reader.isBehind(state.next) { return true }
          state.waiters[id] = continuation
          return false
        }
        if isReady { continuation.resume() }
      }
    } onCancel: {
      reader.close()
    }
  }

  private func wake(_ id: ObjectIdentifier) {
    state.withLock { $0.waiters.removeValue(forKey: id) }?.resume()
  }
}
