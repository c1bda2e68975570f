import NetworkTypes

/// One direction of a tracked flow. Ports are 0 for protocols without them.
public struct ConntrackTuple: Sendable, Hashable, CustomStringConvertible {
  public var source: IPAddress
  public var destination: IPAddress
  /// The IP protocol number.
  public var protocolNumber: UInt8
  public var sourcePort: UInt16
  public var destinationPort: UInt16

  public init(
    source: IPAddress, destination: IPAddress, protocolNumber: UInt8, sourcePort: UInt16, destinationPort: UInt16
  ) {
    self.source = source
    self.destination = destination
    self.protocolNumber = protocolNumber
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
  }

  /// As answers have it, where nobody translates.
  public var reversed: ConntrackTuple {
    ConntrackTuple(
      source: destination, destination: source, protocolNumber: protocolNumber, sourcePort: destinationPort,
      destinationPort: sourcePort)
  }

  public var description: String {
    func side(_ address: IPAddress, _ port: UInt16) -> String {
      address.family == .v4 ? "\(address):\(port)" : "[\(address)]:\(port)"
    }
    let name = L4Protocol(rawValue: protocolNumber)?.description ?? "proto \(protocolNumber)"
    return "\(side(source, sourcePort)) -> \(side(destination, destinationPort)) \(name)"
  }
}

/// A tracked flow.
public struct ConntrackEntry: Sendable, Hashable {
  /// As the first packet was sent.
  public var original: ConntrackTuple
  /// As answers are expected: behind NAT not the mirror of `original`.
  public var reply: ConntrackTuple
  /// `IPS_…` bits.
  public var status: UInt32
  public var mark: UInt32
  /// Seconds until it expires.
  public var timeout: UInt32
  /// `TCP_CONNTRACK_…`; nil for other protocols.
  public var tcpState: UInt8?
  /// Tells this flow from a later one with the same tuples.
  public var id: UInt32
  public var zone: UInt16
  /// The kernel's own encoding of `original`, for a delete that names exactly this flow, ICMP's included.
  let originalBytes: ArraySlice<UInt8>
}

/// `IPS_…` (linux/netfilter/nf_conntrack_common.h).
public enum ConntrackStatus {
  public static let seenReply: UInt32 = 1 << 1
  public static let assured: UInt32 = 1 << 2
  public static let confirmed: UInt32 = 1 << 3
}

/// `TCP_CONNTRACK_…` (linux/netfilter/nf_conntrack_tcp.h).
public enum ConntrackTCPState {
  public static let synReceived: UInt8 = 2
  public static let established: UInt8 = 3
  public static let timeWait: UInt8 = 7
  public static let close: UInt8 = 8
}

/// A flow that conntrack is to know without having seen it begin.
public struct ConntrackAddition: Sendable, Hashable {
  public var original: ConntrackTuple
  /// As answers are expected: where it is not the mirror of `original` the kernel translates.
  public var reply: ConntrackTuple
  public var isAnswered: Bool
  /// Seconds.
  public var timeout: UInt32

  public init(original: ConntrackTuple, reply: ConntrackTuple, isAnswered: Bool, timeout: UInt32) {
    (self.original, self.reply, self.isAnswered, self.timeout) = (original, reply, isAnswered, timeout)
  }
}

/// Which flows are meant: those that agree with everything that is not nil.
public struct ConntrackFilter: Sendable, Hashable {
  public var family: IPFamily?
  /// The IP protocol number.
  public var protocolNumber: UInt8?
  public var originalDestination: IPAddress?
  public var originalDestinationPort: UInt16?
  public var replySource: IPAddress?
  public var replySourcePort: UInt16?

  public init(
    family: IPFamily? = nil, protocolNumber: UInt8? = nil, originalDestination: IPAddress? = nil,
    originalDestinationPort: UInt16? = nil, replySource: IPAddress? = nil, replySourcePort: UInt16? = nil
  ) {
    self.family = family
    self.protocolNumber = protocolNumber
    self.originalDestination = originalDestination
    self.originalDestinationPort = originalDestinationPort
    self.replySource = replySource
    self.replySourcePort = replySourcePort
  }

  public func matches(_ entry: ConntrackEntry) -> Bool {
    func agrees<Value: Equatable>(_ wanted: Value?, _ found: Value) -> Bool { wanted.map { $0 == found } ?? true }
    return agrees(family, entry.original.source.family) && agrees(protocolNumber, entry.original.protocolNumber)
      && agrees(originalDestination, entry.original.destination)
      && agrees(originalDestinationPort, entry.original.destinationPort)
      && agrees(replySource, entry.reply.source) && agrees(replySourcePort, entry.reply.sourcePort)
  }

  /// What the kernel can be asked to compare. Not IPv6 addresses: ctnetlink_filter_match_tuple takes the result of
  /// ipv6_addr_cmp for its opposite (5.8 to at least 6.18) and sends exactly the flows that differ. Protocol and ports
  /// are compared, the rest here.
  func forKernel(_ family: IPFamily) -> ConntrackFilter {
    guard family == .v6 else { return self }
    var filter = self
    (filter.originalDestination, filter.replySource) = (nil, nil)
    return filter
  }

  /// The families that can match; none where the filter contradicts itself.
  var families: [IPFamily] {
    let named = [family, originalDestination?.family, replySource?.family].compactMap { $0 }
    return IPFamily.allCases.filter { family in named.allSatisfy { $0 == family } }
  }
}
