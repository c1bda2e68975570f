import Glibc
import Netlink

@testable import PolicyWorlds

/// A whole frame and where it goes out.
struct PreparedFrame: Sendable {
  let socket: CInt
  let bytes: [UInt8]
  /// struct sockaddr_ll, which Glibc's module does not have.
  let address: [UInt8]

  init(socket: CInt, interface: CInt, bytes: [UInt8]) {
    self.socket = socket
    self.bytes = bytes
    var address = [UInt8](repeating: 0, count: 20)
    address.withUnsafeMutableBytes {
      $0.storeBytes(of: UInt16(AF_PACKET), toByteOffset: 0, as: UInt16.self)
      $0.storeBytes(of: interface, toByteOffset: 4, as: CInt.self)
      $0[11] = 6
    }
    self.address = address
  }

  /// The number of bytes sent; -1 with errno.
  func send() -> Int {
    address.withUnsafeBytes { name in
      name.withMemoryRebound(to: sockaddr.self) {
        sendto(socket, bytes, bytes.count, 0, $0.baseAddress, socklen_t(name.count))
      }
    }
  }
}

/// sendmmsg(2) and recvmmsg(2), which Glibc's module does not carry: a stream has to be dense, for what it looks for
/// lasts a microsecond.
@_silgen_name("sendmmsg")
private func sendmmsg(_ socket: CInt, _ messages: UnsafeMutableRawPointer?, _ count: CUnsignedInt, _ flags: CInt)
  -> CInt
@_silgen_name("recvmmsg")
private func recvmmsg(
  _ socket: CInt, _ messages: UnsafeMutableRawPointer?, _ count: CUnsignedInt, _ flags: CInt,
  _ timeout: UnsafeMutableRawPointer?
) -> CInt

/// Messages of a fixed number of bytes each with a socket address, in memory that stays where it is: struct mmsghdr, an
/// array of them. Belongs to one thread.
private struct MessageBlock: ~Copyable {
  /// struct mmsghdr: a msghdr, the length received, padding.
  static let headerBytes = MemoryLayout<msghdr>.size + 8
  /// struct sockaddr_ll.
  static let nameBytes = 20
  let count: Int
  let messageBytes: Int
  let headers: UnsafeMutableRawPointer
  private let vectors: UnsafeMutablePointer<iovec>
  let names: UnsafeMutableRawPointer
  let content: UnsafeMutableRawPointer

  init(count: Int, messageBytes: Int) {
    self.count = count
    self.messageBytes = messageBytes
    headers = .allocate(byteCount: count * Self.headerBytes, alignment: 8)
    vectors = .allocate(capacity: count)
    names = .allocate(byteCount: count * Self.nameBytes, alignment: 4)
    content = .allocate(byteCount: count * messageBytes, alignment: 8)
    for index in 0..<count { reset(index, length: messageBytes) }
  }

  deinit {
    headers.deallocate()
    vectors.deallocate()
    names.deallocate()
    content.deallocate()
  }

  func reset(_ index: Int, length: Int) {
    vectors[index] = iovec(iov_base: content + index * messageBytes, iov_len: length)
    var header = msghdr()
    header.msg_name = names + index * Self.nameBytes
    header.msg_namelen = socklen_t(Self.nameBytes)
    header.msg_iov = vectors + index
    header.msg_iovlen = 1
    (headers + index * Self.headerBytes).storeBytes(of: header, as: msghdr.self)
  }

  func received(_ index: Int) -> Int {
    Int((headers + index * Self.headerBytes + MemoryLayout<msghdr>.size).load(as: CUnsignedInt.self))
  }
}

/// Frames of one socket that are sent together, again and again.
struct FrameBurst: ~Copyable {
  private let socket: CInt
  private let block: MessageBlock

  /// - Parameter frames: all of one socket; not empty.
  init(_ frames: [PreparedFrame]) {
    socket = frames[0].socket
    block = MessageBlock(count: frames.count, messageBytes: frames.map(\.bytes.count).max() ?? 0)
    for (index, frame) in frames.enumerated() {
      (block.content + index * block.messageBytes).copyMemory(from: frame.bytes, byteCount: frame.bytes.count)
      (block.names + index * MessageBlock.nameBytes).copyMemory(
        from: frame.address, byteCount: MessageBlock.nameBytes)
      block.reset(index, length: frame.bytes.count)
    }
  }

  func send() throws(SystemError) {
    var sent = 0
    while sent < block.count {
      let count = sendmmsg(
        socket, block.headers + sent * MessageBlock.headerBytes, CUnsignedInt(block.count - sent), 0)
      guard count > 0 else { throw SystemError(operation: "send", object: "burst of frames", errno: errno) }
      sent += Int(count)
    }
  }
}

/// Reads the numbers of test packets from packet sockets.
struct FrameReader: ~Copyable {
  private let block = MessageBlock(count: 128, messageBytes: 256)

  /// Calls `body` with the number and the length of each frame that waits; not with those we sent ourselves.
  func read(_ socket: CInt, _ body: (UInt64, Int) -> Void) {
    while true {
      // The kernel writes the names' lengths anew.
      for index in 0..<block.count { block.reset(index, length: block.messageBytes) }
      let count = recvmmsg(socket, block.headers, CUnsignedInt(block.count), CInt(MSG_DONTWAIT), nil)
      guard count > 0 else { return }
      for index in 0..<Int(count) {
        let length = block.received(index)
        // PACKET_OUTGOING, at 10 of sockaddr_ll.
        let kind = (block.names + index * MessageBlock.nameBytes + 10).load(as: UInt8.self)
        guard kind != 4, length >= ProbePacket.numberBytes, length < block.messageBytes else { continue }
        let end = block.content + index * block.messageBytes + length
        let number = (end - ProbePacket.numberBytes).loadUnaligned(as: UInt64.self)
        body(UInt64(bigEndian: number), length)
      }
    }
  }
}
