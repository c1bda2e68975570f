import Glibc

/// The few parts of inotify(7) that following one folder needs.
struct Inotify: ~Copyable {
  struct Event {
    var mask: UInt32
    /// The name within the folder; "" for the folder itself.
    var name: String

    func has(_ bits: Int32...) -> Bool { bits.contains { mask & UInt32(bitPattern: $0) != 0 } }
  }

  private let queue: OwnedDescriptor

  /// Watches the folder; nil where that fails, errno says why.
  init?(folder: String) {
    guard let queue = OwnedDescriptor(inotify_init1(Int32(IN_CLOEXEC | IN_NONBLOCK))) else {
      return nil
    }
    let mask =
      IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
    guard inotify_add_watch(queue.number, folder, UInt32(mask)) >= 0 else { return nil }
    self.queue = queue
  }

  var descriptor: Int32 { queue.number }

  /// All that is queued, at most what 64 KiB hold; empty where nothing is.
  func read() -> [Event] {
    var events: [Event] = []
    withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 8) { buffer in
      let count = Glibc.read(queue.number, buffer.baseAddress, buffer.count)
      guard count > 0 else { return }
      var rest = UnsafeRawBufferPointer(rebasing: buffer[..<count])
      let header = MemoryLayout<inotify_event>.size
      while rest.count >= header {
        let event = rest.load(as: inotify_event.self)
        let end = header + Int(event.len)
        guard end <= rest.count else { return }
        let name = rest[header..<end].prefix { $0 != 0 }
        events.append(Event(mask: event.mask, name: String(decoding: name, as: UTF8.self)))
        rest = UnsafeRawBufferPointer(rebasing: rest[end...])
      }
    }
    return events
  }
}

/// Wakes a thread that waits in poll(2), once and for good.
final class StopSignal: Sendable {
  private let readEnd: Int32
  private let writeEnd: Int32

  /// nil where there are no more descriptors.
  init?() {
    var ends: [Int32] = [0, 0]
    guard pipe(&ends) == 0 else { return nil }
    (readEnd, writeEnd) = (ends[0], ends[1])
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
  }

  deinit {
    close(readEnd)
    close(writeEnd)
  }

  func send() {
    var byte: UInt8 = 0
    _ = write(writeEnd, &byte, 1)
  }

  enum Wakeup {
    case stopped
    case ready
    case timeout
  }

  /// Waits until the other descriptor (none where it is negative) can be read, at most so long (negative: for ever).
  func wait(for other: Int32, milliseconds: Int32) -> Wakeup {
    while true {
      var descriptors = [
        pollfd(fd: readEnd, events: Int16(POLLIN), revents: 0), pollfd(fd: other, events: Int16(POLLIN), revents: 0),
      ]
      let count = poll(&descriptors, 2, milliseconds)
      if count < 0, errno == EINTR { continue }
      if descriptors[0].revents != 0 { return .stopped }
      return count > 0 ? .ready : .timeout
    }
  }
}

/// Starts a thread of its own: waiting in a system call would block one of the few threads that tasks share.
/// - Returns: whether there is a thread now.
func startThread(_ body: @escaping @Sendable () -> Void) -> Bool {
  final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }
  var attributes = pthread_attr_t()
  guard pthread_attr_init(&attributes) == 0 else { return false }
  defer { pthread_attr_destroy(&attributes) }
  // Yams descends by recursion, into at most 1,000 levels.
  pthread_attr_setstacksize(&attributes, 16 << 20)
  pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
  let context = Unmanaged.passRetained(Body(body))
  var thread = pthread_t()
  let result = pthread_create(
    &thread, &attributes,
    { argument in
      guard let argument else { return nil }
      Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
      return nil
    }, context.toOpaque())
  if result != 0 { context.release() }
  return result == 0
}
