import CLibBPF
import Glibc
import Netlink

/// What the packet programs tell, in the order in which they told it.
final class EventReader {
  private let ring: OpaquePointer
  private let inbox: Inbox

  private final class Inbox { var events: [EventLayout] = [] }

  /// - Parameter object: a loaded one that has the ring.
  init(_ object: BPFObject) throws(SystemError) {
    let inbox = Inbox()
    self.inbox = inbox
    let ring = ring_buffer__new(
      try object.descriptor(ofMap: "events"),
      { context, bytes, size in
        guard let context, let bytes, size >= MemoryLayout<EventLayout>.size else { return 0 }
        Unmanaged<Inbox>.fromOpaque(context).takeUnretainedValue().events
          .append(bytes.loadUnaligned(as: EventLayout.self))
        return 0
      }, Unmanaged.passUnretained(inbox).toOpaque(), nil)
    guard let ring else { throw SystemError(operation: "open ring buffer", object: "events", errno: errno) }
    self.ring = ring
  }

  deinit { ring_buffer__free(ring) }

  /// All that are there; does not wait.
  func take() throws(SystemError) -> [EventLayout] {
    try check("read from", "events") { ring_buffer__consume(ring) }
    defer { inbox.events = [] }
    return inbox.events
  }
}
