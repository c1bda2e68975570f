import Glibc
import Synchronization

/// Ctrl-C and SIGTERM of a program that has a lab up: the first interrupts the lab, so that the program takes it down in
/// order; the second removes it at once and exits.
///
/// Made before other threads are: the signals are blocked for all threads that start later, and one thread waits for them.
public final class LabSignals: Sendable {
  private let received = Atomic<Int>(0)

  public init(interrupting lab: Lab) {
    // A reader of our output that has gone (`| head`) must not keep the lab from being taken down.
    signal(SIGPIPE, SIG_IGN)
    var signals = sigset_t()
    sigemptyset(&signals)
    for signal in [SIGINT, SIGTERM, SIGHUP] { sigaddset(&signals, signal) }
    pthread_sigmask(SIG_BLOCK, &signals, nil)
    let waited = signals
    startThread { [self] in
      var waited = waited
      while true {
        var number: Int32 = 0
        guard sigwait(&waited, &number) == 0 else { return }
        if received.add(1, ordering: .sequentiallyConsistent).newValue > 1 {
          try? Lab.down(lab.name)
          _exit(128 + number)
        }
        lab.interrupt()
      }
    }
  }

  /// Waits for the first signal.
  public func wait() {
    while received.load(ordering: .sequentiallyConsistent) == 0 { usleep(20_000) }
  }
}
