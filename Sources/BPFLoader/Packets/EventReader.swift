import CLibBPF
import Glibc
import Netlink

/// What the packet programs tell, in the order in which they told it. One reader at a time: what it takes is gone.
///
/// To be used by one thread at a time.
public final class EventReader: @unchecked Sendable {
  private let ring: OpaquePointer
  /// The ring has to stay open while it is mapped.
  private let descriptor: FileDescriptor
  private let lost: PerProcessorMap<UInt32>
  private let inbox: Inbox

  private final class Inbox { var events: [EventLayout] = [] }

  /// Of the programs that run with these pins.
  public convenience init(pins: PinFolder) throws(SystemError) {
    let object = try BPFObject(.endpoint)
    func open(_ map: String) throws(SystemError) -> FileDescriptor {
      guard let descriptor = try MapPins(pins: pins).open(map, of: object) else {
        throw SystemError(operation: "find map", object: "\(pins.path): \(map)", errno: ENOENT)
      }
      return FileDescriptor(owning: descriptor)
    }
    try self.init(ring: try open("events"), lost: try open("lost_events"))
  }

  /// - Parameter object: a loaded one.
  convenience init(_ object: BPFObject) throws(SystemError) {
    try self.init(
      ring: try object.duplicateDescriptor(ofMap: "events"),
      lost: try object.duplicateDescriptor(ofMap: "lost_events"))
  }

  private init(ring descriptor: consuming FileDescriptor, lost: consuming FileDescriptor) throws(SystemError) {
    let inbox = Inbox()
    let ring = ring_buffer__new(
      descriptor.number,
      { context, bytes, size in
        guard let context, let bytes, size >= MemoryLayout<EventLayout>.size else { return 0 }
        Unmanaged<Inbox>.fromOpaque(context).takeUnretainedValue().events
          .append(bytes.loadUnaligned(as: EventLayout.self))
        return 0
      }, Unmanaged.passUnretained(inbox).toOpaque(), nil)
    guard let ring else { throw SystemError(operation: "open ring buffer", object: "events", errno: errno) }
    self.inbox = inbox
    self.ring = ring
    self.descriptor = descriptor
    self.lost = try PerProcessorMap("lost_events", owning: lost)
  }

  deinit { ring_buffer__free(ring) }

  /// Waits until there is something; empty where the time is over.
  public func next(timeoutMilliseconds: Int) throws(SystemError) -> [PacketEvent] {
    try check("wait for", "events") { ring_buffer__poll(ring, CInt(clamping: timeoutMilliseconds)) }
    defer { inbox.events.removeAll(keepingCapacity: inbox.events.count < 10_000) }
    return inbox.events.map(PacketEvent.init)
  }

  /// Events that found no room since the programs were first loaded.
  public var lostEvents: UInt64 {
    get throws(SystemError) { try lost[0]?.packets ?? 0 }
  }

  /// All that are there; does not wait.
  func take() throws(SystemError) -> [EventLayout] {
    try check("read from", "events") { ring_buffer__consume(ring) }
    defer { inbox.events = [] }
    return inbox.events
  }
}
