import Glibc

/// The clock that programs write times of.
enum MonotonicClock {
  /// Nanoseconds.
  static var now: UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
  }

  /// 0 for what is yet to come.
  static func seconds(since time: UInt64) -> UInt64 {
    let now = now
    return now > time ? (now - time) / 1_000_000_000 : 0
  }
}
