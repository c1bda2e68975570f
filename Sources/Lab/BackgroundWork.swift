import Glibc
import Synchronization

/// Work that goes on in a thread of its own until it is stopped: probes or flows beside what a test does.
public final class BackgroundWork<Value: Sendable>: Sendable {
  private struct State {
    var isStopping = false
    var result: Result<Value, any Error>?
  }

  private let state = Mutex(State())

  /// Starts a thread; `work` asks its argument whether to stop, at least every 100 ms.
  init(_ work: @escaping @Sendable (_ shouldStop: @escaping @Sendable () -> Bool) throws -> Value) {
    startThread { [self] in
      let result = Result { try work { self.state.withLock { $0.isStopping } } }
      state.withLock { $0.result = result }
    }
  }

  /// True when the work has ended by itself.
  public var isDone: Bool { state.withLock { $0.result != nil } }

  /// Lets the work end by itself.
  public func wait() throws -> Value {
    while true {
      if let result = state.withLock({ $0.result }) { return try result.get() }
      usleep(2000)
    }
  }

  /// Asks the work to stop, and returns what it found until then.
  public func stop() throws -> Value {
    state.withLock { $0.isStopping = true }
    return try wait()
  }
}

private final class ThreadBody {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

/// Runs `body` on a fresh, detached thread: one whose namespaces nobody else depends on.
func startThread(_ body: @escaping @Sendable () -> Void) {
  var thread = pthread_t()
  let context = Unmanaged.passRetained(ThreadBody(body))
  let code = pthread_create(
    &thread, nil,
    { context in
      if let context { Unmanaged<ThreadBody>.fromOpaque(context).takeRetainedValue().run() }
      return nil
    }, context.toOpaque())
  if code == 0 {
    pthread_detach(thread)
  } else {
    // Without threads there is nothing to run on beside the caller: the work is done here instead.
    context.takeRetainedValue().run()
  }
}

/// Set once, by any thread.
final class AtomicFlag: Sendable {
  private let value = Atomic(false)

  var isSet: Bool { value.load(ordering: .acquiring) }
  func set() { value.store(true, ordering: .releasing) }
}
