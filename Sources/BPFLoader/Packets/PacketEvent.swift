import DataplaneModel
import NetworkTypes

/// One decision of a packet program.
public struct PacketEvent: Sendable, Hashable {
  public enum Kind: UInt8, Sendable, Hashable, CaseIterable {
    case drop, verdict, audit, translation, reject
    /// A packet of a flow goes on its way.
    case trace
  }
  public var kind: Kind
  /// Of a drop.
  public var reason: DropReason?
  /// Of policy's decisions.
  public var direction: PolicyDirection?
  public var clause: ClauseKey?
  /// The peer's, as policy saw it.
  public var identity: IdentityID?
  /// The device at which it was decided.
  public var device: UInt32
  /// Nanoseconds of the monotonic clock.
  public var time: UInt64
  public var source: IPAddress?
  public var destination: IPAddress?
  public var proto: UInt8
  /// 0 where the protocol has none.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  /// Of a translation: what both ends become.
  public struct Ends: Sendable, Hashable {
    public var source: IPAddress
    public var sourcePort: UInt16
    public var destination: IPAddress
    public var destinationPort: UInt16
  }
  public var translated: Ends?
  /// Of a trace: who got the flow's first packet sent this one.
  public var isAnswer: Bool
  public var tcpFlags: UInt8
  public var icmpType: UInt8
  /// Bytes from the IP header on.
  public var length: Int
  /// Where in bpf/ it was decided: `policy.h:57`.
  public var place: String

  init(_ event: EventLayout) {
    kind = Kind(rawValue: event.kind) ?? .drop
    let reasons = DropReason.allCases
    reason = kind == .drop && (1...reasons.count).contains(Int(event.reason)) ? reasons[Int(event.reason) - 1] : nil
    let isPolicys = kind == .verdict || kind == .audit || (kind == .drop && reason == .policyDenied)
    direction = isPolicys ? PolicyDirection(rawValue: event.direction) : nil
    clause =
      isPolicys && event.attribution != 0
      ? Clause(rawValue: event.clause).map { ClauseKey(AttributionID(rawValue: event.attribution), $0) } : nil
    identity = event.identity == 0 ? nil : IdentityID(rawValue: event.identity)
    (device, time) = (event.device, event.time)
    // What was dropped before its headers were read has no addresses.
    source = event.tuple.source.address.flatMap { event.tuple.proto == 0 ? nil : $0 }
    destination = event.tuple.destination.address.flatMap { event.tuple.proto == 0 ? nil : $0 }
    proto = event.tuple.proto
    sourcePort = UInt16(bigEndian: event.tuple.sourcePort)
    destinationPort = UInt16(bigEndian: event.tuple.destinationPort)
    let other = event.other
    if kind == .translation, let source = other.source.address, let destination = other.destination.address {
      translated = Ends(
        source: source, sourcePort: UInt16(bigEndian: other.sourcePort), destination: destination,
        destinationPort: UInt16(bigEndian: other.destinationPort))
    }
    isAnswer = event.isAnswer != 0
    (tcpFlags, icmpType) = (event.tcpFlags, event.icmpType)
    length = Int(event.length)
    place = "\(Int(event.file) < Self.files.count ? Self.files[Int(event.file)] : "?"):\(event.line)"
  }

  /// `enum source_file`.
  private static let files = ["endpoint.c", "uplink.c", "policy.h", "nat.h", "path.h"]
}
