import Glibc

@testable import NFTables

/// One thing that goes wrong with one transaction.
struct KernelFault: Hashable, Sendable, CustomStringConvertible {
  enum Kind: Hashable, Sendable {
    /// The kernel fails at that message, counted from 0 without the transaction's frame, and undoes the ones before it.
    case message(Int)
    /// Nothing is sent: sendmsg fails, once.
    case send
    /// What was sent is done, and reading the answer fails, once.
    case answer
  }
  /// Which of the transactions after `arm`, from 0.
  var batch: Int
  var kind: Kind
  var errno: Int32

  var description: String { "\(kind) of transaction \(batch): \(String(cString: strerror(errno)))" }
}

/// Stands between an engine and its socket, and has one transaction fail.
///
/// A message that has to fail gets a type nf_tables does not have: the kernel meets it in its place, refuses it and takes
/// everything back, as it does when memory runs out there. The error number of its answer is then replaced.
final class FaultyKernel {
  private(set) var fault: KernelFault?
  /// The fault has happened.
  private(set) var hasStruck = false
  private var batches = 0
  private var refusedSequence: UInt32?
  private var failsNextAnswer = false

  init(_ engine: NFTablesEngine) {
    let calls = Connection.Calls()
    // The engine's socket owns these closures, and this object with them.
    engine.connection.calls = Connection.Calls(
      send: { [self] in send($0, $1, calls) }, receive: { [self] in receive($0, $1, $2, calls) })
  }

  func arm(_ fault: KernelFault) {
    (self.fault, hasStruck, batches, refusedSequence, failsNextAnswer) = (fault, false, 0, nil, false)
  }

  func disarm() { fault = nil }

  private func send(_ socket: CInt, _ bytes: UnsafeRawBufferPointer, _ calls: Connection.Calls) -> Int {
    // NFNL_MSG_BATCH_BEGIN comes first in every transaction.
    guard let fault, !hasStruck, bytes.loadUnaligned(fromByteOffset: 4, as: UInt16.self) == 0x10 else {
      return calls.send(socket, bytes)
    }
    defer { batches += 1 }
    guard batches == fault.batch else { return calls.send(socket, bytes) }
    switch fault.kind {
    case .send:
      hasStruck = true
      errno = fault.errno
      return -1
    case .answer:
      (hasStruck, failsNextAnswer) = (true, true)
      return calls.send(socket, bytes)
    case .message(let number):
      var copy = Array(bytes)
      guard let place = Self.place(ofMessage: number, in: bytes) else { return calls.send(socket, bytes) }
      copy[place + 4] = 0xff
      refusedSequence = bytes.loadUnaligned(fromByteOffset: place + 8, as: UInt32.self)
      hasStruck = true
      return copy.withUnsafeBytes { calls.send(socket, $0) }
    }
  }

  /// nil where the transaction has fewer messages.
  private static func place(ofMessage number: Int, in bytes: UnsafeRawBufferPointer) -> Int? {
    var (place, index) = (0, -1)
    while place + 16 <= bytes.count {
      // NFNL_MSG_BATCH_END
      if bytes.loadUnaligned(fromByteOffset: place + 4, as: UInt16.self) == 0x11 { return nil }
      if index == number { return place }
      place += (Int(bytes.loadUnaligned(fromByteOffset: place, as: UInt32.self)) + 3) & ~3
      index += 1
    }
    return nil
  }

  private func receive(
    _ socket: CInt, _ buffer: UnsafeMutableRawBufferPointer, _ flags: CInt, _ calls: Connection.Calls
  ) -> Int {
    if failsNextAnswer {
      failsNextAnswer = false
      errno = fault?.errno ?? 0
      return -1
    }
    let count = calls.receive(socket, buffer, flags)
    guard let refusedSequence, let fault, count > 0 else { return count }
    var place = 0
    while place + 20 <= count {
      // NLMSG_ERROR, and the code behind the header.
      if buffer.loadUnaligned(fromByteOffset: place + 4, as: UInt16.self) == 2,
        buffer.loadUnaligned(fromByteOffset: place + 8, as: UInt32.self) == refusedSequence
      {
        buffer.storeBytes(of: -fault.errno, toByteOffset: place + 16, as: Int32.self)
      }
      place += (Int(buffer.loadUnaligned(fromByteOffset: place, as: UInt32.self)) + 3) & ~3
    }
    return count
  }
}
