import DataplaneModel
import NetworkTypes

/// One decision of a packet program.
public struct PacketEvent: Sendable, Hashable {
  public enum Kind: UInt8, Sendable, Hashable {
    case drop, verdict, audit, translation, reject
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
    direction = PolicyDirection(rawValue: event.direction)
    let isPolicys = event.attribution != 0 && (kind != .drop || reason == .policyDenied)
    clause =
      isPolicys
      ? Clause(rawValue: event.clause).map { ClauseKey(AttributionID(rawValue: event.attribution), $0) } : nil
    identity = event.identity == 0 ? nil : IdentityID(rawValue: event.identity)
    (device, time) = (event.device, event.time)
    // What was dropped before its headers were read has no addresses.
    source = event.tuple.source.address.flatMap { event.tuple.proto == 0 ? nil : $0 }
    destination = event.tuple.destination.address.flatMap { event.tuple.proto == 0 ? nil : $0 }
    proto = event.tuple.proto
    sourcePort = UInt16(bigEndian: event.tuple.sourcePort)
    destinationPort = UInt16(bigEndian: event.tuple.destinationPort)
    (tcpFlags, icmpType) = (event.tcpFlags, event.icmpType)
    length = Int(event.length)
    place = "\(Int(event.file) < Self.files.count ? Self.files[Int(event.file)] : "?"):\(event.line)"
  }

  /// `enum source_file`.
  private static let files = ["endpoint.c", "uplink.c", "policy.h", "nat.h", "path.h"]
}
