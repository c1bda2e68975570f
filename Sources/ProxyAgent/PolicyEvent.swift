import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import Netlink
import NetworkTypes

/// What became of a packet: it was dropped, or an audit policy would drop it; what somebody has asked for, too. Or that
/// some of these are not known.
struct PolicyEvent: Sendable, Hashable {
  typealias Time = PacketLogMessage.Timestamp

  enum Kind: String, Sendable, Hashable, CaseIterable {
    case drop, audit
    /// A flow's first packet was allowed.
    case verdict
    /// A packet was translated or refused, for a Service or by masquerade.
    case lb
    /// A packet of a known flow goes on.
    case trace
    case lost

    /// Told where somebody asks for them, and only then: there may be one for each packet.
    static let onRequest: Set<Kind> = [.verdict, .lb, .trace]
  }

  /// Who an address was when the packet came.
  struct Side: Sendable, Hashable {
    var address: IPAddress
    /// nil where the protocol has none, or it was not captured.
    var port: UInt16?
    var pod: ObjectKey?
    /// `pod`, `node`, `world`, `unknown`, or `host` for this node's own processes.
    var kind: String
    var identity: IdentityID?
  }

  var time: Time
  var kind: Kind
  /// A `DropReason`'s raw value; an audit's is that of a denial. "" for what was lost.
  var reason = ""
  var direction: PolicyDirection?
  /// nil where the packet's header could not be read.
  var source: Side?
  var destination: Side?
  var proto: UInt8?
  var flags: TCPFlags?
  var icmpType: UInt8?
  /// Of a translation: what both ends become.
  var translated: [Side] = []
  /// It goes against the direction in which its flow began.
  var isReply = false
  /// Bytes from the IP header to the packet's end.
  var length = 0
  /// Where in bpf/ it was decided: `policy.h:57`; nil by nftables.
  var place: String?
  var policies: [PolicyReference] = []
  var isDefaultDeny = false
  /// The local pod's device, if that is how the packet came or would have gone.
  var interface: String?
  var revision = 0
  /// Of an event that others are missing: how many.
  var count: UInt64 = 0
  /// Events lost so far, all readers' and those of whoever reads this.
  var lost: UInt64 = 0

  init(time: Time, kind: Kind) {
    self.time = time
    self.kind = kind
  }
}

extension PolicyEvent.Time {
  static var now: Self {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Self(seconds: UInt64(max(0, now.tv_sec)), microseconds: UInt32(now.tv_nsec / 1000))
  }

  /// `2026-11-21T12:04:01.221Z`.
  var text: String {
    var seconds = time_t(clamping: self.seconds)
    var parts = tm()
    gmtime_r(&seconds, &parts)
    func padded(_ number: some BinaryInteger, _ width: Int = 2) -> String {
      let text = "\(number)"
      return String(repeating: "0", count: max(0, width - text.utf8.count)) + text
    }
    let date = "\(padded(parts.tm_year + 1900, 4))-\(padded(parts.tm_mon + 1))-\(padded(parts.tm_mday))"
    let time = "\(padded(parts.tm_hour)):\(padded(parts.tm_min)):\(padded(parts.tm_sec))"
    return "\(date)T\(time).\(padded(microseconds / 1000, 3))Z"
  }
}

extension PolicyEvent {
  /// One line of `/v1/monitor`.
  var json: JSONValue {
    if kind == .lost {
      return [
        "time": .string(time.text), "type": "lost", "count": .int(Int64(clamping: count)),
        "lost": .int(Int64(clamping: lost)),
      ]
    }
    return [
      "time": .string(time.text), "type": .string(kind.rawValue),
      "reason": .string(reason),
      "direction": direction.map { .string($0.description) } ?? .null,
      "source": source?.json ?? .null, "destination": destination?.json ?? .null,
      "protocol": proto.map { .string(Self.name(ofProtocol: $0)) } ?? .null,
      "flags": flags.map { .string($0.description) } ?? .null,
      "icmpType": icmpType.map { .int(Int64($0)) } ?? .null, "length": .int(Int64(length)),
      "policies": .array(policies.map { .string($0.description) }), "rule": .null,
      "isDefaultDeny": .bool(isDefaultDeny), "interface": interface.map { .string($0) } ?? .null,
      "translated": translated.count == 2
        ? ["source": translated[0].json, "destination": translated[1].json] : .null,
      "isReply": .bool(isReply), "place": place.map { .string($0) } ?? .null,
      "revision": .int(Int64(revision)), "lost": .int(Int64(clamping: lost)),
    ]
  }

  static func name(ofProtocol number: UInt8) -> String {
    switch number {
    case 1: "icmp"
    case 58: "icmpv6"
    default: L4Protocol(rawValue: number)?.description ?? "\(number)"
    }
  }
}

extension PolicyEvent.Side {
  fileprivate var json: JSONValue {
    [
      "address": .string(address.description), "port": port.map { .int(Int64($0)) } ?? .null,
      "pod": pod.map { .string($0.description) } ?? .null, "kind": .string(kind),
      "identity": identity.map { .int(Int64($0.rawValue)) } ?? .null,
    ]
  }
}

/// Which events somebody wants to see. What says that events were lost always passes.
struct EventFilter: Sendable, Hashable {
  /// One end of a packet: a pod, whatever its address, or an address.
  enum End: Sendable, Hashable {
    case pod(ObjectKey)
    case address(IPAddress)

    init?(_ text: String) {
      if let address = IPAddress(text) {
        self = .address(address)
        return
      }
      let parts = text.split(separator: "/", omittingEmptySubsequences: false)
      guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else { return nil }
      self = .pod(ObjectKey(namespace: String(parts[0]), name: String(parts[1])))
    }

    func isMeant(by side: PolicyEvent.Side?) -> Bool {
      switch self {
      case .pod(let pod): side?.pod == pod
      case .address(let address): side?.address == address
      }
    }
  }

  /// Empty: all that are told unasked.
  var kinds: Set<PolicyEvent.Kind> = []
  var reasons: Set<String> = []
  var source: End?
  var destination: End?
  /// One of the two.
  var either: End?
  /// A pod of this namespace is at one end.
  var namespace: String?
  /// Not before.
  var since: PolicyEvent.Time?

  func passes(_ event: PolicyEvent) -> Bool {
    if event.kind == .lost { return true }
    if kinds.isEmpty ? PolicyEvent.Kind.onRequest.contains(event.kind) : !kinds.contains(event.kind) { return false }
    if !reasons.isEmpty, !reasons.contains(event.reason) { return false }
    if let source, !source.isMeant(by: event.source) { return false }
    if let destination, !destination.isMeant(by: event.destination) { return false }
    if let either, !either.isMeant(by: event.source), !either.isMeant(by: event.destination) { return false }
    if let namespace, event.source?.pod?.namespace != namespace, event.destination?.pod?.namespace != namespace {
      return false
    }
    if let since, (event.time.seconds, event.time.microseconds) < (since.seconds, since.microseconds) { return false }
    return true
  }
}
