import DataplaneModel
import Glibc
import NetworkTypes
import Synchronization
import Testing

/// A thread with a result.
final class Thread<Result: Sendable>: @unchecked Sendable {
  private var thread = pthread_t()
  private var result: Result?
  private let body: () -> Result

  init(_ body: @escaping () -> Result) {
    self.body = body
    pthread_create(
      &thread, nil,
      { context in
        guard let context else { return nil }
        (Unmanaged<AnyObject>.fromOpaque(context).takeRetainedValue() as? any Runnable)?.run()
        return nil
      }, Unmanaged.passRetained(self as AnyObject).toOpaque())
  }

  func join() throws -> Result {
    pthread_join(thread, nil)
    return try #require(result)
  }
}

private protocol Runnable: AnyObject { func run() }
extension Thread: Runnable { fileprivate func run() { result = body() } }

final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .relaxed) }
  func set() { value.store(true, ordering: .relaxed) }
}

/// One connection after the other, by a thread of its own.
final class Connections: Sendable {
  private let counter: Counter
  private let thread: Thread<[String]>

  init(from place: Everywhere, to: SocketAddress, permitted: Set<Arrival>, until stop: Flag) {
    let counter = Counter()
    self.counter = counter
    thread = Thread {
      var misses: [String] = []
      while !stop.isSet {
        do {
          let arrival = try place.connect(to: to, .tcp)
          if !permitted.contains(arrival) { misses.append("\(arrival)") }
        } catch {
          misses.append("nowhere: \(error)")
        }
        counter.increment()
      }
      return misses
    }
  }

  var count: Int { counter.value }
  func misses() throws -> [String] { try thread.join() }
}

private final class Counter: Sendable {
  private let number = Atomic<Int>(0)
  var value: Int { number.load(ordering: .relaxed) }
  func increment() { number.add(1, ordering: .relaxed) }
}
