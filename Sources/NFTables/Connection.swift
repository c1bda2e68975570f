import CLibMNL
import CLibNFTNL
import CLinux
import Glibc
import Netlink
import NetworkTypes

/// The netlink socket to nf_tables of one network namespace: the one its opener was in.
final class Connection {
  private let descriptor: FileDescriptor
  /// This socket in the eyes of the kernel: who owns a table is told by it.
  let portID: UInt32
  private var sequence: UInt32 = 1
  private var buffer = [UInt8](repeating: 0, count: 1 << 17)
  private(set) var report = Report()
  /// How bytes get to the kernel and back; tests have it fail.
  var calls = Calls()

  /// send(2) and recv(2) with their results and errno.
  struct Calls {
    var send: (CInt, UnsafeRawBufferPointer) -> Int = { Glibc.send($0, $1.baseAddress, $1.count, 0) }
    var receive: (CInt, UnsafeMutableRawBufferPointer, CInt) -> Int = { recv($0, $1.baseAddress, $1.count, $2) }
  }

  /// Counted since the last `takeReport`.
  struct Report {
    var messages = 0
    var batches = 0
    var dumps = 0
  }

  init() throws(NFTablesError) {
    let number = socket(AF_NETLINK, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), NETLINK_NETFILTER)
    guard number >= 0 else { throw Self.failure("open socket") }
    descriptor = FileDescriptor(owning: number)
    var on: Int32 = 1
    var sendSize: Int32 = 64 << 20
    var receiveSize: Int32 = 4 << 20
    // A batch is one datagram. FORCE goes beyond wmem_max; without the privilege large batches fail by name.
    setsockopt(number, SOL_SOCKET, SO_SNDBUFFORCE, &sendSize, 4)
    setsockopt(number, SOL_SOCKET, SO_RCVBUFFORCE, &receiveSize, 4)
    setsockopt(number, 270, NETLINK_EXT_ACK, &on, 4)  // SOL_NETLINK
    var address = sockaddr_nl()
    address.nl_family = UInt16(AF_NETLINK)
    var length = socklen_t(MemoryLayout<sockaddr_nl>.size)
    let bound = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(number, $0, length) == 0 && getsockname(number, $0, &length) == 0
      }
    }
    guard bound else { throw Self.failure("bind socket") }
    portID = address.nl_pid
  }

  private static func failure(_ operation: String, _ object: String = "") -> NFTablesError {
    NFTablesError(operation: operation, object: object, errno: Glibc.errno)
  }

  func takeReport() -> Report {
    defer { report = Report() }
    return report
  }

  // MARK: Transactions

  /// Runs operations as one transaction. The kernel works within the send call: all answers wait when it returns.
  ///
  /// - Throws: what the kernel refused; of a table that another socket owns, whose it is.
  func commit(_ operations: [Operation]) throws(NFTablesError) {
    guard !operations.isEmpty else { return }
    do throws(NFTablesError) {
      try commit { batch in batch.append(operations) }
    } catch  where error.errno == EPERM {
      for family in IPFamily.allCases {
        if let owner = try? ownTable(family)?.owner, owner != portID { throw .ownedByOther(family, owner) }
      }
      throw error
    }
  }

  /// Runs what `body` writes as one transaction.
  func commit(_ body: (inout Batch) -> Void) throws(NFTablesError) {
    var batch = Batch(sequence: sequence)
    body(&batch)
    try send(&batch)
  }

  /// Whether the kernel knows these flags. Nothing is made.
  func canMakeTable(with flags: TableFlags) throws(NFTablesError) -> Bool {
    var batch = Batch(sequence: sequence)
    // Of an existing table the kernel might refuse the change: a name that nobody has.
    batch.addTable("\(Layout.tableName)-trial-\(portID)", .v4, flags)
    do throws(NFTablesError) {
      try send(&batch, isTrial: true)
      return true
    } catch  where error.errno == EOPNOTSUPP || error.errno == EINVAL {
      return false
    }
  }

  private func send(_ batch: inout Batch, isTrial: Bool = false) throws(NFTablesError) {
    var sent = false
    batch.finish(isTrial: isTrial) { bytes in
      sent = Self.retrying { calls.send(descriptor.number, bytes) } == bytes.count
    }
    let sendErrno = Glibc.errno
    sequence = batch.nextSequence
    if !isTrial { report.batches += 1 }
    report.messages += batch.messages
    guard sent else {
      throw NFTablesError(operation: "send a batch of \(batch.byteCount) bytes", object: "", errno: sendErrno)
    }
    try collectAnswers(to: batch)
  }

  private func collectAnswers(to batch: borrowing Batch) throws(NFTablesError) {
    var failure: NFTablesError?
    var acknowledged = false
    let last = batch.objects.last?.sequence
    let first = batch.objects.first?.sequence ?? 0
    receiving: while true {
      let count = receive(CInt(MSG_DONTWAIT))
      guard count > 0 else {
        if count < 0, Glibc.errno == ENOBUFS { failure = failure ?? Self.failure("commit", "answers were lost") }
        break receiving
      }
      buffer.withUnsafeBytes { bytes in
        forEachMessage(in: UnsafeRawBufferPointer(rebasing: bytes[..<count])) { message in
          guard message.type == UInt16(NLMSG_ERROR), message.portID == portID, message.payload.count >= 4,
            message.sequence >= first || message.sequence == first &- 1
          else { return }
          let code = message.payload.loadUnaligned(as: Int32.self)
          if code == 0 {
            acknowledged = acknowledged || message.sequence == last
          } else if failure == nil {
            let object = batch.objects.first { $0.sequence == message.sequence }?.object ?? ""
            failure = NFTablesError(operation: "commit", object: object, errno: -code, detail: message.extendedAck)
          }
        }
      }
    }
    if let failure { throw failure }
    guard acknowledged || batch.objects.isEmpty else {
      throw NFTablesError(operation: "commit", object: "no answer from the kernel", errno: EPROTO)
    }
  }

  // MARK: Reading

  /// The number of transactions nf_tables has seen in this namespace, ours and anybody's.
  func generation() throws(NFTablesError) -> UInt32 {
    var generation: UInt32?
    try request(Int(NFT_MSG_GETGEN.rawValue), family: 0, dump: false, attributes: []) { message in
      message.forEachAttribute(skipping: 4) { type, value in
        if type == NFTA_GEN_ID.rawValue, value.count >= 4 {
          generation = UInt32(bigEndian: value.loadUnaligned(as: UInt32.self))
        }
      }
    }
    guard let generation else { throw NFTablesError(operation: "read the generation", object: "", errno: EPROTO) }
    return generation
  }

  /// Sends one request and hands every answer to `body`. A missing object (ENOENT) is an empty answer.
  func request(
    _ type: Int, family: UInt32, dump: Bool, attributes: [(Int, String)], body: (KernelMessage) -> Void
  ) throws(NFTablesError) {
    try request(
      type, family: family, dump: dump, object: attributes.map(\.1).joined(separator: " "),
      writing: { header in
        for (attribute, value) in attributes { mnl_attr_put_strz(header, UInt16(attribute), value) }
      }, body: body)
  }

  /// The same with attributes of any kind; the whole request has to fit 4096 bytes.
  func request(
    _ type: Int, family: UInt32, dump: Bool, object: @autoclosure () -> String,
    writing: (UnsafeMutablePointer<nlmsghdr>) -> Void, body: (KernelMessage) -> Void
  ) throws(NFTablesError) {
    sequence &+= 1
    let number = sequence
    var message = [UInt8](repeating: 0, count: 4096)
    let length = message.withUnsafeMutableBytes { bytes -> Int in
      guard
        let header = nftnl_nlmsg_build_hdr(
          bytes.baseAddress?.assumingMemoryBound(to: CChar.self), UInt16(type), UInt16(family),
          UInt16(dump ? NLM_F_DUMP : 0), number)
      else { return 0 }
      writing(header)
      return Int(header.pointee.nlmsg_len)
    }
    report.messages += 1
    if dump { report.dumps += 1 }
    let sent = message.withUnsafeBytes { bytes in
      Self.retrying { calls.send(descriptor.number, UnsafeRawBufferPointer(rebasing: bytes[..<length])) }
    }
    guard sent == length else { throw Self.failure("send request") }
    var finished = false
    var failure: NFTablesError?
    while !finished {
      let count = receive(0)
      guard count > 0 else { throw Self.failure("read an answer") }
      buffer.withUnsafeBytes { bytes in
        forEachMessage(in: UnsafeRawBufferPointer(rebasing: bytes[..<count])) { message in
          guard message.portID == portID, message.sequence == number else { return }
          switch message.type {
          case UInt16(NLMSG_ERROR):
            finished = true
            let code = message.payload.count >= 4 ? message.payload.loadUnaligned(as: Int32.self) : -EPROTO
            if code != 0, code != -ENOENT {
              failure = NFTablesError(
                operation: "read", object: object(), errno: -code,
                detail: message.extendedAck)
            }
          case UInt16(NLMSG_DONE): finished = true
          default:
            body(message)
            if !dump { finished = true }
          }
        }
      }
    }
    if let failure { throw failure }
  }

  private func receive(_ flags: CInt) -> Int {
    buffer.withUnsafeMutableBytes { bytes in Self.retrying { calls.receive(descriptor.number, bytes, flags) } }
  }

  /// EINTR repeats the call; every other answer is the caller's.
  private static func retrying(_ call: () -> Int) -> Int {
    while true {
      let result = call()
      if result >= 0 || Glibc.errno != EINTR { return result }
    }
  }
}

/// One netlink message, lent from the receive buffer.
struct KernelMessage {
  var type: UInt16
  var flags: UInt16
  var sequence: UInt32
  var portID: UInt32
  /// With the header, for libnftnl's parsers.
  var whole: UnsafeRawBufferPointer
  var payload: UnsafeRawBufferPointer

  /// The kernel's words in an error's extended ack.
  var extendedAck: String? {
    guard flags & UInt16(NLM_F_ACK_TLVS) != 0, payload.count >= 20 else { return nil }
    // The refused message's header follows the code; its body too, unless capped.
    let inner = Int(payload.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
    let skip = 4 + (flags & UInt16(NLM_F_CAPPED) != 0 ? 16 : (inner + 3) & ~3)
    var text: String?
    forEachAttribute(skipping: skip) { type, value in
      if type == 1 { text = String(decoding: value.prefix { $0 != 0 }, as: UTF8.self) }  // NLMSGERR_ATTR_MSG
    }
    return text
  }

  func forEachAttribute(skipping: Int, _ body: (UInt32, UnsafeRawBufferPointer) -> Void) {
    guard skipping <= payload.count else { return }
    attributes(in: UnsafeRawBufferPointer(rebasing: payload[skipping...]), body)
  }
}

/// Walks attributes; stops where a length does not fit. The kernel is trusted to be right, not to be believed.
func attributes(in bytes: UnsafeRawBufferPointer, _ body: (UInt32, UnsafeRawBufferPointer) -> Void) {
  var offset = 0
  while bytes.count - offset >= 4 {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    let type = UInt32(bytes.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self)) & 0x3fff
    guard length >= 4, length <= bytes.count - offset else { return }
    body(type, UnsafeRawBufferPointer(rebasing: bytes[offset + 4..<offset + length]))
    offset += (length + 3) & ~3
  }
}

private func forEachMessage(in bytes: UnsafeRawBufferPointer, _ body: (KernelMessage) -> Void) {
  var offset = 0
  while bytes.count - offset >= 16 {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    guard length >= 16, length <= bytes.count - offset else { return }
    let whole = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + length])
    body(
      KernelMessage(
        type: whole.loadUnaligned(fromByteOffset: 4, as: UInt16.self),
        flags: whole.loadUnaligned(fromByteOffset: 6, as: UInt16.self),
        sequence: whole.loadUnaligned(fromByteOffset: 8, as: UInt32.self),
        portID: whole.loadUnaligned(fromByteOffset: 12, as: UInt32.self), whole: whole,
        payload: UnsafeRawBufferPointer(rebasing: whole[16...])))
    offset += (length + 3) & ~3
  }
}
