import CLinux
import Glibc
import Synchronization

/// A netlink socket of any family: requests with their answers, and notifications.
///
/// Several threads may share one; requests are then answered one after the other. A socket that has joined groups should
/// be used for notifications only: a request's answers would mix with them.
public final class NetlinkSocket: Sendable {
  /// How often a dump that met changes is repeated before it is given up.
  public static let dumpAttempts = 10

  private struct State: ~Copyable {
    let descriptor: FileDescriptor
    let portID: UInt32
    var sequence: UInt32 = 0
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
  }

  private let state: Mutex<State>
  private let timeoutMilliseconds: Int
  /// For event loops: readable when notifications wait. Valid while this object lives; never close it.
  public let descriptorNumber: CInt

  /// Opens a socket of a family such as `NETLINK_ROUTE`, in `namespace` or the caller's own, and joins multicast
  /// `groups` (numbers, not bits). An answer later than `timeoutMilliseconds` is ETIMEDOUT.
  public init(
    protocol family: CInt, groups: [UInt32] = [], in namespace: NetworkNamespace? = nil,
    timeoutMilliseconds: Int = 30_000
  ) throws(SystemError) {
    let number: CInt
    if let namespace {
      do {
        number = try namespace.run { try SystemCalls.netlinkSocket(family) }
      } catch let error as SystemError {
        throw error
      } catch {
        throw SystemError(operation: "open netlink socket", object: namespace.path, errno: EIO, detail: "\(error)")
      }
    } else {
      number = try SystemCalls.netlinkSocket(family)
    }
    let descriptor = FileDescriptor(owning: number)
    // Words for errors; no echo of the request in acks; filters and headers that are checked instead of ignored.
    try SystemCalls.setOption(number, SOL_NETLINK, CInt(NETLINK_EXT_ACK), 1, "NETLINK_EXT_ACK")
    try SystemCalls.setOption(number, SOL_NETLINK, CInt(NETLINK_CAP_ACK), 1, "NETLINK_CAP_ACK")
    // Since 4.20; without it dumps come unfiltered, which every reader allows for.
    try? SystemCalls.setOption(number, SOL_NETLINK, CInt(NETLINK_GET_STRICT_CHK), 1, "NETLINK_GET_STRICT_CHK")
    if !groups.isEmpty {
      // Notifications come in bursts; FORCE needs CAP_NET_ADMIN in the first user namespace, so it may be refused.
      try? SystemCalls.setOption(number, SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20, "SO_RCVBUFFORCE")
    }
    let portID = try SystemCalls.bindNetlink(number)
    for group in groups {
      try SystemCalls.setOption(
        number, SOL_NETLINK, CInt(NETLINK_ADD_MEMBERSHIP), CInt(bitPattern: group), "NETLINK_ADD_MEMBERSHIP \(group)")
    }
    self.timeoutMilliseconds = timeoutMilliseconds
    descriptorNumber = number
    state = Mutex(State(descriptor: descriptor, portID: portID))
  }

  // MARK: Requests

  /// Sends a request and waits for the kernel's ack. `operation` and `object` are for the error.
  public func acknowledge(
    _ message: NetlinkMessageBuilder, operation: String, object: String
  ) throws(NetlinkError) {
    _ = try request(message, operation: operation, object: object)
  }

  /// Sends a request and returns what the kernel answers before its ack.
  public func request(
    _ message: NetlinkMessageBuilder, operation: String, object: String
  ) throws(NetlinkError) -> [NetlinkMessage] {
    var message = message
    message.flags |= UInt16(NLM_F_ACK)
    return try exchange(message, operation, object).messages
  }

  /// Sends a dump request and returns all its messages; a dump that met changes is repeated.
  public func dump(
    _ message: NetlinkMessageBuilder, operation: String, object: String = ""
  ) throws(NetlinkError) -> [NetlinkMessage] {
    var message = message
    message.flags |= UInt16(NLM_F_DUMP)
    for _ in 0..<Self.dumpAttempts {
      let answer = try exchange(message, operation, object)
      if !answer.interrupted { return answer.messages }
    }
    throw NetlinkError.interrupted(operation: operation, attempts: Self.dumpAttempts)
  }

  /// Sends messages to a subsystem of netfilter (`NFNL_SUBSYS_...`) that takes all of them or none, and throws its first
  /// refusal.
  public func transaction(
    _ messages: [NetlinkMessageBuilder], subsystem: some BinaryInteger, operation: String, object: String
  ) throws(NetlinkError) {
    func edge(_ type: some BinaryInteger) -> NetlinkMessageBuilder {
      var message = NetlinkMessageBuilder(type: type)
      // struct nfgenmsg; its last number is the subsystem, in network order.
      message.append((UInt16(0), UInt16(truncatingIfNeeded: subsystem).bigEndian))
      return message
    }
    guard let last = messages.indices.last else { return }
    var messages = messages
    // One ack is enough: refusals come without being asked for.
    messages[last].flags |= UInt16(NLM_F_ACK)
    guard !messages.contains(where: \.isTooLong) else {
      throw .system(SystemError(operation: operation, object: object, errno: EMSGSIZE))
    }
    let batch = [edge(NFNL_MSG_BATCH_BEGIN)] + messages + [edge(NFNL_MSG_BATCH_END)]
    try state.withLock { state throws(NetlinkError) in
      let first = state.sequence &+ 1
      var bytes: [UInt8] = []
      for message in batch {
        state.sequence &+= 1
        bytes += message.finished(sequence: state.sequence, portID: state.portID)
      }
      // Of the last real message.
      let end = state.sequence &- 1
      do throws(SystemError) {
        try SystemCalls.send(state.descriptor.number, bytes, operation)
      } catch {
        throw NetlinkError.system(error)
      }
      var isDone = false
      // The kernel has answered all there is to say when send returns.
      while let answers = try Self.receive(&state, operation, milliseconds: 0) {
        for answer in answers
        where answer.portID == state.portID && answer.sequence &- first < UInt32(truncatingIfNeeded: batch.count) {
          guard CInt(answer.type) == NLMSG_ERROR else { continue }
          if let error = try Self.refusal(in: answer, operation, object) { throw NetlinkError.system(error) }
          if answer.sequence == end { isDone = true }
        }
      }
      guard isDone else { throw NetlinkError.system(SystemError(operation: operation, object: object, errno: EPROTO)) }
    }
  }

  private struct Answer: Sendable {
    var messages: [NetlinkMessage] = []
    var interrupted = false
  }

  private func exchange(
    _ message: NetlinkMessageBuilder, _ operation: String, _ object: String
  ) throws(NetlinkError) -> Answer {
    guard !message.isTooLong else {
      throw .system(SystemError(operation: operation, object: object, errno: EMSGSIZE))
    }
    return try state.withLock { state throws(NetlinkError) in
      state.sequence &+= 1
      do throws(SystemError) {
        try SystemCalls.send(
          state.descriptor.number, message.finished(sequence: state.sequence, portID: state.portID), operation)
      } catch {
        throw NetlinkError.system(error)
      }
      var answer = Answer()
      while true {
        guard let messages = try Self.receive(&state, operation, milliseconds: timeoutMilliseconds) else {
          throw NetlinkError.system(SystemError(operation: operation, object: object, errno: ETIMEDOUT))
        }
        // What belongs to an earlier request that failed half-way is not ours.
        for message in messages where message.sequence == state.sequence && message.portID == state.portID {
          if message.flags & UInt16(NLM_F_DUMP_INTR) != 0 { answer.interrupted = true }
          switch CInt(message.type) {
          case NLMSG_NOOP: continue
          case NLMSG_OVERRUN: throw NetlinkError.overrun(operation: operation)
          case NLMSG_ERROR, NLMSG_DONE:
            if let error = try Self.refusal(in: message, operation, object) { throw NetlinkError.system(error) }
            return answer
          default: answer.messages.append(message)
          }
        }
      }
    }
  }

  /// The error an ack or the end of a dump carries, nil for success.
  static func refusal(
    in message: NetlinkMessage, _ operation: String, _ object: String
  ) throws(NetlinkError) -> SystemError? {
    let isDone = CInt(message.type) == NLMSG_DONE
    guard let code = message.payload.number(at: 0, as: CInt.self) else {
      if isDone { return nil }
      throw .malformed(operation: operation, MalformedNetlink(offset: 0, reason: "ack without error number"))
    }
    guard code < 0 else { return nil }
    var detail: String?
    if message.flags & UInt16(NLM_F_ACK_TLVS) != 0 {
      var skipped = 4
      if !isDone {
        let echoed = message.flags & UInt16(NLM_F_CAPPED) != 0 ? 16 : message.payload.number(at: 4, as: UInt32.self)
        skipped += (Int(echoed ?? 16) + 3) & ~3
      }
      // Words that cannot be read do not hide the error itself.
      let attributes = try? NetlinkAttributes(message.payload.dropFirst(skipped))
      detail = attributes?.string(NLMSGERR_ATTR_MSG.rawValue)
    }
    return SystemError(operation: operation, object: object, errno: -code, detail: detail)
  }

  /// Sends a request from a process of its own, which keeps `descriptors` open until the kernel lets it go on, so that this one
  /// need not wait. What the kernel answers comes with the notifications.
  ///
  /// - Returns: the request's number, which its answer has too.
  func sendApart(
    _ message: NetlinkMessageBuilder, keeping descriptors: [CInt], operation: String
  ) throws(SystemError) -> UInt32 {
    var message = message
    message.flags |= UInt16(NLM_F_ACK)
    return try state.withLock { state throws(SystemError) in
      state.sequence &+= 1
      let bytes = message.finished(sequence: state.sequence, portID: state.portID)
      let code = clinux_send_apart(state.descriptor.number, bytes, bytes.count, descriptors, descriptors.count)
      guard code == 0 else { throw SystemError(operation: operation, object: "in a process of its own", errno: code) }
      return state.sequence
    }
  }

  // MARK: Notifications

  /// Notifications in the order they came; `.overrun` stands where some were lost and the whole state must be read anew.
  public enum Notifications: Sendable, Hashable {
    case messages([NetlinkMessage])
    case overrun
  }

  /// Waits for notifications at most `timeoutMilliseconds` (negative: no limit); no messages when that has passed.
  public func receiveEvents(timeoutMilliseconds: Int = -1) throws(NetlinkError) -> Notifications {
    // Waiting is outside the lock; whoever comes second may find nothing left.
    do throws(SystemError) {
      guard try SystemCalls.waitReadable(descriptorNumber, milliseconds: timeoutMilliseconds) else {
        return .messages([])
      }
    } catch {
      throw .system(error)
    }
    return try state.withLock { state throws(NetlinkError) in
      do throws(NetlinkError) {
        return .messages(try Self.receive(&state, "receive notifications", milliseconds: 0) ?? [])
      } catch {
        if case .overrun = error { return .overrun }
        throw error
      }
    }
  }

  /// One datagram's messages; nil when none came in time.
  private static func receive(
    _ state: inout State, _ operation: String, milliseconds: Int
  ) throws(NetlinkError) -> [NetlinkMessage]? {
    while true {
      let received: SystemCalls.Received
      do throws(SystemError) {
        received = try SystemCalls.receive(state.descriptor.number, into: &state.buffer)
        if case .nothingYet = received {
          guard milliseconds != 0, try SystemCalls.waitReadable(state.descriptor.number, milliseconds: milliseconds)
          else { return nil }
          continue
        }
      } catch {
        throw .system(error)
      }
      switch received {
      case .overrun: throw .overrun(operation: operation)
      case .bytes(let count, fromKernel: true):
        do throws(MalformedNetlink) {
          return try NetlinkMessage.parse(Array(state.buffer[0..<count])[...])
        } catch {
          throw .malformed(operation: operation, error)
        }
      // Another process can send to our port id; only the kernel is believed.
      case .bytes, .nothingYet: continue
      }
    }
  }
}
