import CLinux
import Glibc
import NetworkTypes
import Synchronization

/// ctnetlink: the tracked flows of one network namespace.
public final class ConntrackSocket: NetlinkClient, Sendable {
  let socket: NetlinkSocket
  public var descriptorNumber: CInt { socket.descriptorNumber }
  private let kernelFilters = Atomic<Bool>(true)

  public init(in namespace: NetworkNamespace? = nil) throws(SystemError) {
    socket = try NetlinkSocket(protocol: NETLINK_NETFILTER, in: namespace)
  }

  /// Whether the last dump was filtered by the kernel (5.8 and newer). When not, the whole table was read: same result,
  /// at the cost of its size.
  public var isFilteredByKernel: Bool { kernelFilters.load(ordering: .relaxed) }

  public func entries(matching filter: ConntrackFilter = ConntrackFilter()) throws(NetlinkError) -> [ConntrackEntry] {
    var entries: [ConntrackEntry] = []
    for family in filter.families { entries += try dump(filter, family) }
    return entries
  }

  /// Deletes the flows that match and returns how many there were. One that ended meanwhile is no error and not counted.
  public func delete(matching filter: ConntrackFilter) throws(NetlinkError) -> Int {
    var count = 0
    for entry in try entries(matching: filter) where try delete(entry) { count += 1 }
    return count
  }

  /// Deletes this flow; false where it has ended. A later flow with the same tuples is left alone.
  public func delete(_ entry: ConntrackEntry) throws(NetlinkError) -> Bool {
    let message = Self.deleteMessage(entry)
    do throws(NetlinkError) {
      try socket.acknowledge(message, operation: "delete flow", object: entry.original.description)
      return true
    } catch {
      if error.errno == ENOENT { return false }
      throw error
    }
  }

  // MARK: Messages

  /// The bits of CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS: net/netfilter/nf_internals.h, not exported to UAPI.
  enum FilterBit {
    static let destination: UInt32 = 1 << 1
    static let source: UInt32 = 1 << 0
    static let protocolNumber: UInt32 = 1 << 3
    static let sourcePort: UInt32 = 1 << 4
    static let destinationPort: UInt32 = 1 << 5
  }

  static func builder(_ type: UInt32, _ family: IPFamily, flags: CInt = 0) -> NetlinkMessageBuilder {
    var message = NetlinkMessageBuilder(type: UInt32(NFNL_SUBSYS_CTNETLINK) << 8 | type, flags: flags)
    var header = nfgenmsg()
    header.nfgen_family = family.linuxFamily
    message.append(header)
    return message
  }

  private func dump(_ filter: ConntrackFilter, _ family: IPFamily) throws(NetlinkError) -> [ConntrackEntry] {
    let operation = "list flows"
    let kernelFilter = filter.forKernel(family)
    var messages: [NetlinkMessage]
    do throws(NetlinkError) {
      messages = try socket.dump(Self.dumpMessage(kernelFilter, family), operation: operation)
      kernelFilters.store(true, ordering: .relaxed)
    } catch {
      guard error.errno == EOPNOTSUPP || error.errno == EINVAL else { throw error }
      kernelFilters.store(false, ordering: .relaxed)
      messages = try socket.dump(Self.builder(IPCTNL_MSG_CT_GET.rawValue, family), operation: operation)
    }
    let type = NFNL_SUBSYS_CTNETLINK << 8 | CInt(IPCTNL_MSG_CT_NEW.rawValue)
    let entries = try RouteSocket.decode(messages, Int(type), operation, ConntrackEntry.init(message:))
    // An older kernel ignores the attribute it does not know and sends everything.
    if !entries.allSatisfy(kernelFilter.matches) { kernelFilters.store(false, ordering: .relaxed) }
    return entries.filter(filter.matches)
  }

  static func dumpMessage(_ filter: ConntrackFilter, _ family: IPFamily) -> NetlinkMessageBuilder {
    var message = builder(IPCTNL_MSG_CT_GET.rawValue, family)
    var originalBits: UInt32 = 0
    var replyBits: UInt32 = 0
    if filter.originalDestination != nil { originalBits |= FilterBit.destination }
    if filter.replySource != nil { replyBits |= FilterBit.source }
    // The kernel compares ports only together with the protocol; without one they are compared here.
    if filter.protocolNumber != nil {
      originalBits |= FilterBit.protocolNumber
      if filter.originalDestinationPort != nil { originalBits |= FilterBit.destinationPort }
      if filter.replySourcePort != nil { replyBits |= FilterBit.protocolNumber | FilterBit.sourcePort }
    }
    guard originalBits | replyBits != 0 else { return message }

    let isV4 = family == .v4
    if originalBits != 0 {
      message.nest(CTA_TUPLE_ORIG.rawValue) { message in
        if let address = filter.originalDestination {
          message.nest(CTA_TUPLE_IP.rawValue) {
            $0.attribute(isV4 ? CTA_IP_V4_DST.rawValue : CTA_IP_V6_DST.rawValue, address: address)
          }
        }
        if let number = filter.protocolNumber {
          message.nest(CTA_TUPLE_PROTO.rawValue) { message in
            message.attribute(CTA_PROTO_NUM.rawValue, number: number)
            if let port = filter.originalDestinationPort {
              message.attribute(CTA_PROTO_DST_PORT.rawValue, bigEndian: port)
            }
          }
        }
      }
    }
    if replyBits != 0 {
      message.nest(CTA_TUPLE_REPLY.rawValue) { message in
        if let address = filter.replySource {
          message.nest(CTA_TUPLE_IP.rawValue) {
            $0.attribute(isV4 ? CTA_IP_V4_SRC.rawValue : CTA_IP_V6_SRC.rawValue, address: address)
          }
        }
        if let number = filter.protocolNumber, let port = filter.replySourcePort {
          message.nest(CTA_TUPLE_PROTO.rawValue) { message in
            message.attribute(CTA_PROTO_NUM.rawValue, number: number)
            message.attribute(CTA_PROTO_SRC_PORT.rawValue, bigEndian: port)
          }
        }
      }
    }
    message.nest(CTA_FILTER.rawValue) { message in
      message.attribute(CTA_FILTER_ORIG_FLAGS.rawValue, number: originalBits)
      message.attribute(CTA_FILTER_REPLY_FLAGS.rawValue, number: replyBits)
    }
    return message
  }

  static func deleteMessage(_ entry: ConntrackEntry) -> NetlinkMessageBuilder {
    var message = builder(IPCTNL_MSG_CT_DELETE.rawValue, entry.original.source.family)
    message.attribute(CTA_TUPLE_ORIG.rawValue | UInt32(NLA_F_NESTED), entry.originalBytes)
    if entry.zone != 0 { message.attribute(CTA_ZONE.rawValue, bigEndian: entry.zone) }
    message.attribute(CTA_ID.rawValue, bigEndian: entry.id)
    return message
  }
}

extension ConntrackEntry {
  /// nil for families that are not IP.
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    let attributes = try message.attributes(after: nfgenmsg.self)
    guard let originalAttribute = attributes.last(CTA_TUPLE_ORIG.rawValue),
      let original = try ConntrackTuple(attributes: try originalAttribute.nested()),
      let replyAttributes = try attributes.nested(CTA_TUPLE_REPLY.rawValue),
      let reply = try ConntrackTuple(attributes: replyAttributes)
    else { return nil }
    func number(_ type: UInt32) throws(MalformedNetlink) -> UInt32 {
      UInt32(bigEndian: try attributes.number(type, as: UInt32.self) ?? 0)
    }
    self.original = original
    self.reply = reply
    originalBytes = originalAttribute.content
    status = try number(CTA_STATUS.rawValue)
    mark = try number(CTA_MARK.rawValue)
    timeout = try number(CTA_TIMEOUT.rawValue)
    id = try number(CTA_ID.rawValue)
    tcpState = try attributes.nested(CTA_PROTOINFO.rawValue)?.nested(CTA_PROTOINFO_TCP.rawValue)?
      .number(CTA_PROTOINFO_TCP_STATE.rawValue, as: UInt8.self)
    zone = UInt16(bigEndian: try attributes.number(CTA_ZONE.rawValue, as: UInt16.self) ?? 0)
  }
}

extension ConntrackTuple {
  init?(attributes: NetlinkAttributes) throws(MalformedNetlink) {
    guard let addresses = try attributes.nested(CTA_TUPLE_IP.rawValue),
      let transport = try attributes.nested(CTA_TUPLE_PROTO.rawValue)
    else { return nil }
    func address(_ v4: UInt32, _ v6: UInt32) -> IPAddress? {
      (addresses.last(v4) ?? addresses.last(v6)).flatMap { IPAddress(bytes: $0.content) }
    }
    guard let source = address(CTA_IP_V4_SRC.rawValue, CTA_IP_V6_SRC.rawValue),
      let destination = address(CTA_IP_V4_DST.rawValue, CTA_IP_V6_DST.rawValue)
    else { return nil }
    self.init(
      source: source, destination: destination,
      protocolNumber: try transport.number(CTA_PROTO_NUM.rawValue, as: UInt8.self) ?? 0,
      sourcePort: UInt16(bigEndian: try transport.number(CTA_PROTO_SRC_PORT.rawValue, as: UInt16.self) ?? 0),
      destinationPort: UInt16(bigEndian: try transport.number(CTA_PROTO_DST_PORT.rawValue, as: UInt16.self) ?? 0))
  }
}
