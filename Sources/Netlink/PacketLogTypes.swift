import CLinux

/// How a log group is delivered.
public struct PacketLogOptions: Sendable, Hashable {
  /// Bytes of each packet that are copied, from its IP header on; 0 means all, up to 65,531. A rule's `snaplen` can only
  /// make it less. 192 hold the headers with the usual extensions.
  public var copiedBytes: UInt32
  /// Events that the kernel collects before it hands them over; a rule's `queue-threshold` can only make it less.
  public var queueThreshold: UInt32
  /// The longest an event waits for others, rounded up to the kernel's steps of 10 ms.
  public var flushMilliseconds: UInt32
  /// What may wait to be read; the kernel doubles it for its own overhead. Memory is taken as events come. 16 MiB hold
  /// 100,000 events that come in bursts, or 26,000 that were delivered one by one.
  public var receiveBufferBytes: Int32

  public init(
    copiedBytes: UInt32 = 192, queueThreshold: UInt32 = 64, flushMilliseconds: UInt32 = 10,
    receiveBufferBytes: Int32 = 16 << 20
  ) {
    self.copiedBytes = copiedBytes
    self.queueThreshold = queueThreshold
    self.flushMilliseconds = flushMilliseconds
    self.receiveBufferBytes = receiveBufferBytes
  }
}

/// A packet that met a `log group` rule.
public struct PacketLogMessage: Sendable, Hashable {
  /// Since 1970, when the packet came in.
  public struct Timestamp: Sendable, Hashable {
    public var seconds: UInt64
    public var microseconds: UInt32

    public init(seconds: UInt64, microseconds: UInt32) {
      self.seconds = seconds
      self.microseconds = microseconds
    }
  }

  /// The rule's, "" without one.
  public var prefix: String
  /// The packet's mark at the rule.
  public var mark: UInt32
  /// `NF_INET_…`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
  public var hook: UInt8
  /// Interface indexes of the socket's namespace; nil where the hook has none.
  public var inputInterface: UInt32?
  public var outputInterface: UInt32?
  /// The packet from its IP header on, cut off at `PacketLogOptions.copiedBytes`.
  public var payload: [UInt8]
  /// Counts this group's events since the socket was opened. nil for an event that came between the kernel's creating the
  /// group and its switching numbers on.
  public var sequence: UInt32?
  /// Only the hooks from prerouting to forward know one.
  public var timestamp: Timestamp?

  public init(
    prefix: String = "", mark: UInt32 = 0, hook: UInt8, inputInterface: UInt32? = nil, outputInterface: UInt32? = nil,
    payload: [UInt8], sequence: UInt32? = nil, timestamp: Timestamp? = nil
  ) {
    self.prefix = prefix
    self.mark = mark
    self.hook = hook
    self.inputInterface = inputInterface
    self.outputInterface = outputInterface
    self.payload = payload
    self.sequence = sequence
    self.timestamp = timestamp
  }
}

/// What was read from a log group, and what was missed.
public struct PacketLogEvents: Sendable, Hashable {
  /// In the order the packets met their rules.
  public var messages: [PacketLogMessage]
  /// Events lost before the last message returned so far, since the socket was opened. Exact: the kernel numbers events
  /// before it tries to deliver them.
  public var lost: UInt64
  /// Events were lost behind the last message too (ENOBUFS), and how many only the next one will tell.
  public var hasUncountedLoss: Bool

  public init(messages: [PacketLogMessage], lost: UInt64, hasUncountedLoss: Bool) {
    self.messages = messages
    self.lost = lost
    self.hasUncountedLoss = hasUncountedLoss
  }
}

/// Counts lost events from the gaps between sequence numbers.
struct PacketLogLoss: Sendable, Hashable {
  private(set) var lost: UInt64 = 0
  private var expected: UInt32 = 0
  /// ENOBUFS reports whose gap has not come yet. After an overflow the kernel drops everything until the queue has been
  /// read empty, and it reports before the queue can be: each report is one gap, in the same order.
  private var overruns = 0

  var hasUncounted: Bool { overruns > 0 }

  mutating func noteOverrun() { overruns += 1 }

  mutating func note(sequence: UInt32) {
    let gap = sequence &- expected
    expected = sequence &+ 1
    // Numbers never go back; if they did, that would be no loss of four thousand million.
    guard gap != 0, gap < 1 << 31 else { return }
    lost += UInt64(gap)
    overruns = max(0, overruns - 1)
  }
}

extension PacketLogMessage {
  /// nil for a message that is no packet.
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    guard CInt(message.type) == NFNL_SUBSYS_ULOG << 8 | PacketLogABI.packetMessage else { return nil }
    var isComplete = false
    self.init(hook: 0, payload: [])
    for attribute in try message.attributes(after: nfgenmsg.self) {
      switch PacketLogABI.Attribute(rawValue: attribute.type) {
      case .packetHeader:
        // nfulnl_msg_packet_hdr: the EtherType (16 bits), the hook, padding.
        guard let hook = attribute.content.number(at: 2, as: UInt8.self) else {
          throw MalformedNetlink(offset: 0, reason: "NFULA_PACKET_HDR without hook")
        }
        self.hook = hook
        isComplete = true
      case .mark: mark = UInt32(bigEndian: try attribute.number())
      case .timestamp:
        guard let seconds = attribute.content.number(at: 0, as: UInt64.self),
          let microseconds = attribute.content.number(at: 8, as: UInt64.self)
        else { throw MalformedNetlink(offset: 0, reason: "NFULA_TIMESTAMP is too short") }
        timestamp = Timestamp(
          seconds: UInt64(bigEndian: seconds), microseconds: UInt32(clamping: UInt64(bigEndian: microseconds)))
      case .inputInterface: inputInterface = UInt32(bigEndian: try attribute.number())
      case .outputInterface: outputInterface = UInt32(bigEndian: try attribute.number())
      case .payload: payload = Array(attribute.content)
      case .prefix: prefix = attribute.string
      case .sequence: sequence = UInt32(bigEndian: try attribute.number())
      case nil: break
      }
    }
    guard isComplete else { throw MalformedNetlink(offset: 0, reason: "packet without NFULA_PACKET_HDR") }
  }
}

/// The numbers of linux/netfilter/nfnetlink_log.h that are used here.
enum PacketLogABI {
  static let packetMessage: CInt = 0
  static let configMessage: CInt = 1

  enum Attribute: UInt16 {
    case packetHeader = 1
    case mark = 2
    case timestamp = 3
    case inputInterface = 4
    case outputInterface = 5
    case payload = 9
    case prefix = 10
    case sequence = 12
  }

  enum ConfigAttribute {
    static let command: UInt16 = 1
    static let mode: UInt16 = 2
    static let timeout: UInt16 = 4
    static let queueThreshold: UInt16 = 5
    static let flags: UInt16 = 6
  }

  static let bind: UInt8 = 1
  static let unbind: UInt8 = 2
  static let copyPacket: UInt8 = 2
  static let numbered: UInt16 = 1  // NFULNL_CFG_F_SEQ
}
