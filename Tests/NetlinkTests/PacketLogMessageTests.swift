import CLinux
import Testing

@testable import Netlink

@Suite("Messages of nfnetlink_log")
struct PacketLogMessageTests {
  @Test("a group is bound and set up by one message")
  func bind() {
    let options = PacketLogOptions(copiedBytes: 192, queueThreshold: 64, flushMilliseconds: 11)
    let expected: [UInt8] = [
      0x40, 0, 0, 0, 0x01, 0x04, 0x01, 0,  // length 64, nfnetlink_log CONFIG, REQUEST
      5, 0, 0, 0, 0, 0, 0, 0,  // sequence, port id
      0, 0, 0x01, 0x07,  // nfgenmsg: any family, version 0, group 263, big endian
      0x05, 0, 0x01, 0, 1, 0, 0, 0,  // NFULA_CFG_CMD: BIND, padded
      0x0a, 0, 0x02, 0, 0, 0, 0, 192, 2, 0, 0, 0,  // NFULA_CFG_MODE: 192 bytes, COPY_PACKET, padded
      0x08, 0, 0x04, 0, 0, 0, 0, 2,  // NFULA_CFG_TIMEOUT: 20 ms
      0x08, 0, 0x05, 0, 0, 0, 0, 64,  // NFULA_CFG_QTHRESH
      0x06, 0, 0x06, 0, 0, 1, 0, 0,  // NFULA_CFG_FLAGS: F_SEQ, padded
    ]
    #expect(PacketLogSocket.bindMessage(0x0107, options).finished(sequence: 5, portID: 0) == expected)
  }

  @Test("a group is unbound by its number alone")
  func unbind() {
    let expected: [UInt8] = [
      0x1c, 0, 0, 0, 0x01, 0x04, 0x01, 0,  // length 28, nfnetlink_log CONFIG, REQUEST
      0, 0, 0, 0, 0, 0, 0, 0,  // sequence, port id
      0, 0, 0, 7,  // nfgenmsg
      0x05, 0, 0x01, 0, 2, 0, 0, 0,  // NFULA_CFG_CMD: UNBIND, padded
    ]
    #expect(PacketLogSocket.unbindMessage(7).finished(sequence: 0, portID: 0) == expected)
  }

  /// A packet as the kernel tells it, from nfgenmsg on.
  private static let golden: [UInt8] = [
    2, 0, 0, 7,  // nfgenmsg: AF_INET, version 0, group 7
    0x08, 0, 0x01, 0, 0x08, 0x00, 1, 0,  // NFULA_PACKET_HDR: IPv4, input
    0x08, 0, 0x0a, 0, 0x64, 0x65, 0x6e, 0,  // NFULA_PREFIX: "den"
    0x08, 0, 0x04, 0, 0, 0, 0, 3,  // NFULA_IFINDEX_INDEV
    0x08, 0, 0x05, 0, 0, 0, 1, 4,  // NFULA_IFINDEX_OUTDEV
    0x08, 0, 0x02, 0, 0x80, 0, 0, 0x2a,  // NFULA_MARK
    0x06, 0, 0x0f, 0, 0, 1, 0, 0,  // NFULA_HWTYPE, which is not read
    0x14, 0, 0x03, 0, 0, 0, 0, 0, 0x65, 0, 0, 1, 0, 0, 0, 0, 0, 0x01, 0, 2,  // NFULA_TIMESTAMP
    0x08, 0, 0x0c, 0, 0, 0, 0, 9,  // NFULA_SEQ
    0x09, 0, 0x09, 0, 0x45, 1, 2, 3, 4, 0, 0, 0,  // NFULA_PAYLOAD, padded
  ]

  private static func message(_ payload: [UInt8], type: UInt16 = 0x0400) -> NetlinkMessage {
    NetlinkMessage(type: type, flags: 0, sequence: 0, portID: 0, payload: payload[...])
  }

  @Test("every attribute is read from its place")
  func decode() throws {
    let expected = PacketLogMessage(
      prefix: "den", mark: 0x8000_002a, hook: 1, inputInterface: 3, outputInterface: 260,
      payload: [0x45, 1, 2, 3, 4], sequence: 9,
      timestamp: PacketLogMessage.Timestamp(seconds: 0x6500_0001, microseconds: 0x1_0002))
    #expect(try PacketLogMessage(message: Self.message(Self.golden)) == expected)
    let least = try PacketLogMessage(message: Self.message(Array(Self.golden.prefix(12))))
    #expect(least == PacketLogMessage(hook: 1, payload: []))
    // The end of a batch, and other subsystems' messages, are no packets.
    #expect(try PacketLogMessage(message: Self.message(Self.golden, type: 3)) == nil)
    #expect(try PacketLogMessage(message: Self.message(Self.golden, type: 0x0401)) == nil)
  }

  @Test("damaged messages are read or refused")
  func damaged() {
    #expect(throws: MalformedNetlink.self) { try PacketLogMessage(message: Self.message([2, 0, 0, 7])) }
    for length in 13..<Self.golden.count - 3 {
      // Between attributes a message may end; in one, never.
      let isBetween = [20, 28, 36, 44, 50, 51, 52, 72, 80].contains(length)
      let cut = Self.message(Array(Self.golden.prefix(length)))
      #expect((try? PacketLogMessage(message: cut)) != nil || !isBetween, "\(length) bytes")
      #expect((try? PacketLogMessage(message: cut)) == nil || isBetween, "\(length) bytes")
    }
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    var (read, refused) = (0, 0)
    for _ in 0..<50_000 {
      do {
        _ = try PacketLogMessage(message: Self.message(random.mutate(Self.golden)))
        read += 1
      } catch {
        refused += 1
      }
    }
    #expect(read > 1_000 && refused > 1_000, "seed \(seed)")
  }

  @Test("gaps in the numbers are counted, also across their end")
  func loss() {
    var loss = PacketLogLoss()
    for sequence: UInt32 in [0, 1, 2] { loss.note(sequence: sequence) }
    #expect(loss.lost == 0 && !loss.hasUncounted)
    loss.note(sequence: 5)
    #expect(loss.lost == 2)
    loss = PacketLogLoss()
    loss.note(sequence: 3)
    #expect(loss.lost == 3)
    // Half of all numbers and more at once is no gap, it is a step back.
    loss.note(sequence: .max - 1)
    #expect(loss.lost == 3)
    loss.note(sequence: 1)
    #expect(loss.lost == 5)
    loss.note(sequence: 2)
    #expect(loss.lost == 5)
  }

  @Test("each report of an overflow waits for its own gap")
  func overruns() {
    var loss = PacketLogLoss()
    loss.note(sequence: 0)
    loss.noteOverrun()
    loss.note(sequence: 1)
    #expect(loss.hasUncounted && loss.lost == 0)
    // The second is reported while the packet that tells the first one's size still waits to be read.
    loss.noteOverrun()
    loss.note(sequence: 4)
    #expect(loss.hasUncounted && loss.lost == 2)
    loss.note(sequence: 5)
    #expect(loss.hasUncounted)
    loss.note(sequence: 7)
    #expect(!loss.hasUncounted && loss.lost == 3)
    loss.note(sequence: 9)
    #expect(!loss.hasUncounted && loss.lost == 4)
  }
}
