import DataplaneModel

/// `enum flow_state`.
public enum FlowState: UInt8, Sendable, Hashable, CaseIterable {
  /// Nobody has answered.
  case opening
  case open
  case closing
}

/// How long a flow may be silent: `lifetime` of bpf/include/flows.h; a test compares both.
enum FlowLifetime {
  /// Seconds, by the names of the programs' constants.
  static let seconds: [String: UInt32] = [
    "tcp_opening_seconds": 60, "tcp_open_seconds": 86400, "tcp_closing_seconds": 60, "datagram_attempt_seconds": 30,
    "datagram_flow_seconds": 120, "icmp_seconds": 30, "other_seconds": 600,
  ]

  /// Seconds.
  static func of(proto: UInt8, _ state: FlowState?) -> UInt64 {
    let name =
      switch proto {
      case 6, 132:
        switch state {
        case .open: "tcp_open_seconds"
        case .opening: "tcp_opening_seconds"
        default: "tcp_closing_seconds"
        }
      case 17: state == .opening ? "datagram_attempt_seconds" : "datagram_flow_seconds"
      case 1, 58: "icmp_seconds"
      default: "other_seconds"
      }
    return UInt64(seconds[name] ?? 0)
  }
}

extension FlowLayout {
  /// Whether packets no longer find it: its place is free, but taken until another flow wants it.
  /// - Parameter now: nanoseconds of the monotonic clock.
  func isOver(proto: UInt8, at now: UInt64) -> Bool {
    now > seen + FlowLifetime.of(proto: proto, FlowState(rawValue: state)) * 1_000_000_000
  }
}
