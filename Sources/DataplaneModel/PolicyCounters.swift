/// Packets and bytes (from the IP header on), as an engine counts them.
public struct TrafficCount: Sendable, Hashable {
  public var packets: UInt64
  public var bytes: UInt64

  public init(packets: UInt64 = 0, bytes: UInt64 = 0) {
    self.packets = packets
    self.bytes = bytes
  }
  public static func += (left: inout TrafficCount, right: TrafficCount) {
    left.packets &+= right.packets
    left.bytes &+= right.bytes
  }
}

/// What has been counted, both families together. Totals never step back while the engine lives: what counters said that
/// are gone is kept. Those that were there before it count on.
public struct PolicyCounters: Sendable, Equatable {
  public struct Drop: Sendable, Hashable {
    public var reason: DropReason
    /// Of policy's denials; nil for every other reason.
    public var direction: PolicyDirection?

    public init(_ reason: DropReason, _ direction: PolicyDirection? = nil) {
      self.reason = reason
      self.direction = direction
    }
  }
  /// Packets judged by each clause: a flow's first packets, and those at which a live flow was judged again.
  public var clauses: [ClauseKey: TrafficCount] = [:]
  /// Every reason has an entry.
  public var drops: [Drop: TrafficCount] = [:]

  public init() {
    for reason in DropReason.allCases where reason != .policyDenied { drops[Drop(reason)] = TrafficCount() }
    for direction in PolicyDirection.allCases { drops[Drop(.policyDenied, direction)] = TrafficCount() }
  }
}
