import CLinux
import Glibc
import Synchronization

/// nfnetlink_log: the packets that meet `log group` rules of one network namespace, for one group.
///
/// A group has one reader at a time. It is bound while this object lives and free again afterwards, also after a crash.
/// Packets that meet the rules while nobody is bound are not counted anywhere.
///
/// A flood cannot be kept out by reading fast: rules that log should have a `limit`. What does not fit the receive
/// buffer is lost and counted. Not counted is only what the kernel found no memory for in the first place.
public final class PacketLogSocket: Sendable {
  public let group: UInt16
  private let socket: NetlinkSocket
  /// Reading and counting are one step, so that several threads see the numbers in order.
  private let loss: Mutex<PacketLogLoss>

  /// Binds `group` in `namespace` or the caller's own. Errors: EBUSY where another socket has the group, EPERM without
  /// CAP_NET_ADMIN in that namespace's user namespace.
  public init(
    group: UInt16, options: PacketLogOptions = PacketLogOptions(), in namespace: NetworkNamespace? = nil
  ) throws(NetlinkError) {
    var loss = PacketLogLoss()
    do throws(SystemError) {
      socket = try NetlinkSocket(protocol: NETLINK_NETFILTER, in: namespace)
      try Self.setReceiveBuffer(socket.descriptorNumber, bytes: options.receiveBufferBytes)
      // No ack is asked for, as packets can come at once and an ack would be lost among them, or with them. The kernel
      // works a request off within send(2): a refusal is there already, and then nothing else is.
      try SystemCalls.send(
        socket.descriptorNumber, Self.bindMessage(group, options).finished(sequence: 0, portID: 0), "bind log group")
      switch try SystemCalls.peekError(socket.descriptorNumber) {
      case .none: break
      case .overrun: loss.noteOverrun()
      case .refused(let code): throw Self.refusal(code, group, socket)
      }
    } catch {
      throw .system(error)
    }
    self.group = group
    self.loss = Mutex(loss)
  }

  deinit {
    // Closing unbinds too, but only with the descriptor's last copy, and a process that is just being started has one.
    try? SystemCalls.send(
      socket.descriptorNumber, Self.unbindMessage(group).finished(sequence: 0, portID: 0), "unbind log group")
  }

  /// For event loops: readable when `next` has something to say.
  public var descriptorNumber: CInt { socket.descriptorNumber }

  /// Waits at most `timeoutMilliseconds` (negative: no limit); no messages when nothing came. One call reads one datagram,
  /// at most `PacketLogOptions.queueThreshold` messages or what a page holds: call again until there are none.
  ///
  /// After `.malformed` the datagram's messages are gone, and counted as lost by the next one.
  public func next(timeoutMilliseconds: Int = -1) throws(NetlinkError) -> PacketLogEvents {
    let events = try read()
    if !events.messages.isEmpty || timeoutMilliseconds == 0 { return events }
    do throws(SystemError) {
      guard try SystemCalls.waitReadable(descriptorNumber, milliseconds: timeoutMilliseconds) else { return events }
    } catch {
      throw .system(error)
    }
    return try read()
  }

  /// The next datagram with packets, if one is there.
  private func read() throws(NetlinkError) -> PacketLogEvents {
    try loss.withLock { loss throws(NetlinkError) in
      while true {
        switch try socket.receiveEvents(timeoutMilliseconds: 0) {
        case .overrun: loss.noteOverrun()
        case .messages(let received):
          let messages = try Self.decode(received)
          for message in messages {
            if let sequence = message.sequence { loss.note(sequence: sequence) }
          }
          guard messages.isEmpty, !received.isEmpty else {
            return PacketLogEvents(messages: messages, lost: loss.lost, hasUncountedLoss: loss.hasUncounted)
          }
        }
      }
    }
  }

  private static func decode(_ received: [NetlinkMessage]) throws(NetlinkError) -> [PacketLogMessage] {
    do throws(MalformedNetlink) {
      var messages: [PacketLogMessage] = []
      messages.reserveCapacity(received.count)
      for one in received {
        if let message = try PacketLogMessage(message: one) { messages.append(message) }
      }
      return messages
    } catch {
      throw .malformed(operation: "receive logged packets", error)
    }
  }

  private static func setReceiveBuffer(_ descriptor: CInt, bytes: CInt) throws(SystemError) {
    do throws(SystemError) {
      try SystemCalls.setOption(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, bytes, "SO_RCVBUFFORCE")
    } catch {
      // FORCE needs CAP_NET_ADMIN in the first user namespace; without it net.core.rmem_max is the limit.
      try SystemCalls.setOption(descriptor, SOL_SOCKET, SO_RCVBUF, bytes, "SO_RCVBUF")
    }
  }

  /// The kernel says EPERM both to those who may not bind groups and to those who come second.
  private static func refusal(_ code: CInt, _ group: UInt16, _ socket: NetlinkSocket) -> SystemError {
    let (operation, object) = ("bind log group", "\(group)")
    switch code {
    case EPERM where mayConfigure(socket), EBUSY:
      return SystemError(
        operation: operation, object: object, errno: EBUSY, detail: "another socket of this namespace receives it")
    case EINVAL:
      return SystemError(operation: operation, object: object, errno: code, detail: "is nfnetlink_log in the kernel?")
    default: return SystemError(operation: operation, object: object, errno: code)
    }
  }

  /// Asks for something that the kernel never does: without the right to, the answer is EPERM, with it another.
  private static func mayConfigure(_ socket: NetlinkSocket) -> Bool {
    var message = NetlinkMessageBuilder(type: NFNL_SUBSYS_ULOG << 8 | PacketLogABI.packetMessage)
    message.append(nfgenmsg())
    do throws(NetlinkError) {
      try socket.acknowledge(message, operation: "probe nfnetlink_log", object: "")
      return true
    } catch {
      return error.errno != EPERM
    }
  }

  // MARK: Messages

  /// `NFULNL_CFG_CMD_PF_BIND` is not needed: it chooses who gets what is logged without a group.
  static func bindMessage(_ group: UInt16, _ options: PacketLogOptions) -> NetlinkMessageBuilder {
    var message = configMessage(group, PacketLogABI.bind)
    // nfulnl_msg_config_mode: the range (32 bits, big endian), the mode, padding.
    let range = (0..<4).map { UInt8(truncatingIfNeeded: options.copiedBytes >> UInt32(24 - $0 * 8)) }
    message.attribute(PacketLogABI.ConfigAttribute.mode, range + [PacketLogABI.copyPacket, 0])
    // Rounded up without overflow; the kernel counts hundredths of a second.
    let hundredths = options.flushMilliseconds / 10 + (options.flushMilliseconds % 10 == 0 ? 0 : 1)
    message.attribute(PacketLogABI.ConfigAttribute.timeout, bigEndian: hundredths)
    message.attribute(PacketLogABI.ConfigAttribute.queueThreshold, bigEndian: options.queueThreshold)
    message.attribute(PacketLogABI.ConfigAttribute.flags, bigEndian: PacketLogABI.numbered)
    return message
  }

  static func unbindMessage(_ group: UInt16) -> NetlinkMessageBuilder { configMessage(group, PacketLogABI.unbind) }

  private static func configMessage(_ group: UInt16, _ command: UInt8) -> NetlinkMessageBuilder {
    var message = NetlinkMessageBuilder(type: NFNL_SUBSYS_ULOG << 8 | PacketLogABI.configMessage)
    var header = nfgenmsg()
    header.res_id = group.bigEndian
    message.append(header)
    message.attribute(PacketLogABI.ConfigAttribute.command, number: command)
    return message
  }
}

extension SystemCalls {
  fileprivate enum Waiting {
    case none
    case overrun
    case refused(errno: CInt)
  }

  /// Whether the first datagram that waits is the kernel's refusal; whatever it is, it stays there.
  fileprivate static func peekError(_ descriptor: CInt) throws(SystemError) -> Waiting {
    // nlmsghdr, then the negative error number.
    var start = [UInt8](repeating: 0, count: 20)
    while true {
      let count = recv(descriptor, &start, start.count, CInt(MSG_PEEK) | CInt(MSG_DONTWAIT))
      if count < 0 {
        switch errno {
        case EINTR: continue
        case EAGAIN: return .none
        case ENOBUFS: return .overrun
        default: throw SystemError(operation: "receive", object: "netlink socket", errno: errno)
        }
      }
      guard count == start.count, start[4...].number(at: 0, as: UInt16.self).map(CInt.init) == NLMSG_ERROR,
        let code = start[16...].number(at: 0, as: CInt.self), code < 0
      else { return .none }
      return .refused(errno: -code)
    }
  }
}
