import CLinux
import Glibc
import NetworkTypes
import Testing

@testable import Netlink

/// Real packets, real rules and the real kernel, in namespaces that are not the first one.
@Suite("nfnetlink_log")
struct PacketLogSocketTests {
  private static let group: UInt16 = 7
  private static let loopbacks: [IPAddress] = ["127.0.0.1", "::1"].compactMap { IPAddress($0) }

  @Test("every packet that meets a rule is reported once, with what the rule and the packet say", arguments: loopbacks)
  func input(address: IPAddress) throws {
    let rig = try PacketLogRig(
      rules: """
        chain input { type filter hook input priority 0;
          udp dport 5001 meta mark set 0x1234abcd log prefix "deny 0000002a " group \(Self.group) drop; }
        """)
    let socket = try PacketLogSocket(group: Self.group, in: rig.namespace)
    let contents = (0..<40).map { "packet \($0)" }
    let port = try rig.send(contents, to: address, port: 5001)
    let events = try socket.collect(contents.count)
    try #require(events.messages.count == contents.count)
    #expect(events.lost == 0 && !events.hasUncountedLoss)
    for (number, message) in events.messages.enumerated() {
      #expect(message.prefix == "deny 0000002a " && message.mark == 0x1234_abcd)
      #expect(message.hook == 1 && message.inputInterface == UInt32(PacketLogRig.loopback))
      #expect(message.outputInterface == nil && message.sequence == UInt32(number))
      #expect(message.text == contents[number])
      let headers = try #require(PacketHeaders(message.payload))
      #expect(headers.source == address && headers.destination == address && headers.l4Protocol == .udp)
      #expect(headers.sourcePort == port && headers.destinationPort == 5001)
      #expect(headers.totalLength == message.payload.count)
      let timestamp = try #require(message.timestamp)
      #expect(timestamp.seconds > 1_700_000_000 && timestamp.microseconds < 1_000_000)
    }
    // Nothing is reported twice, and what meets no rule is not reported.
    try rig.send(["other"], to: address, port: 5002)
    try rig.send(["last"], to: address, port: 5001)
    let last = try socket.collect(1)
    #expect(last.messages.map(\.text) == ["last"] && last.messages.first?.sequence == 40)
  }

  @Test("a rule without prefix, mark and input; long packets are cut", arguments: loopbacks)
  func output(address: IPAddress) throws {
    let rig = try PacketLogRig(
      rules: "chain output { type filter hook output priority 0; udp dport 5001 log group \(Self.group); }")
    let options = PacketLogOptions(copiedBytes: 64, queueThreshold: 1)
    let socket = try PacketLogSocket(group: Self.group, options: options, in: rig.namespace)
    try rig.send([String(repeating: "x", count: 1000)], to: address, port: 5001)
    let message = try #require(try socket.collect(1).messages.first)
    #expect(message.prefix == "" && message.mark == 0 && message.hook == 3 && message.timestamp == nil)
    #expect(message.inputInterface == nil && message.outputInterface == UInt32(PacketLogRig.loopback))
    #expect(message.payload.count == 64)
    #expect(PacketHeaders(message.payload)?.totalLength == (address.family == .v4 ? 1028 : 1048))
  }

  @Test("a connection attempt shows as SYN", arguments: loopbacks)
  func tcp(address: IPAddress) throws {
    let rig = try PacketLogRig(
      rules: "chain output { type filter hook output priority 0; tcp dport 5001 log group \(Self.group); }")
    let socket = try PacketLogSocket(group: Self.group, in: rig.namespace)
    let port = try rig.connect(to: address, port: 5001)
    let headers = try socket.collect(1).messages.first.flatMap { PacketHeaders($0.payload) }
    #expect(headers?.tcpFlags == .syn && headers?.tcpFlags?.description == "SYN")
    #expect(headers?.sourcePort == port && headers?.destinationPort == 5001 && headers?.source == address)
  }

  @Test("a flooded socket knows exactly how much it lost", arguments: loopbacks)
  func flood(address: IPAddress) throws {
    let rig = try PacketLogRig(
      rules: """
        chain output { type filter hook output priority 0; udp dport 5001 log group \(Self.group); }
        chain input { type filter hook input priority 0; udp dport 5001 drop; }
        """)
    // The smallest buffer that the kernel allows: one datagram always fits, two of this size do not.
    let socket = try PacketLogSocket(
      group: Self.group, options: PacketLogOptions(queueThreshold: 8, receiveBufferBytes: 1), in: rig.namespace)
    var (sent, received, last) = (0, 0, -1)
    var events = PacketLogEvents(messages: [], lost: 0, hasUncountedLoss: false)
    func read(timeoutMilliseconds: Int) throws -> Bool {
      events = try socket.next(timeoutMilliseconds: timeoutMilliseconds)
      received += events.messages.count
      if let number = events.messages.last.flatMap({ Int($0.text) }) { last = number }
      // Whatever is still under way: up to the newest packet that was seen, each is either here or lost.
      #expect(received + Int(events.lost) == last + 1)
      return !events.messages.isEmpty
    }
    for burst in [2_000, 3_000] {
      try rig.send((sent..<sent + burst).map(String.init), to: address, port: 5001)
      sent += burst
      try #require(try read(timeoutMilliseconds: 5_000))
      #expect(events.hasUncountedLoss)
      while try read(timeoutMilliseconds: 0) {}
    }
    // How many were lost at the end only a later packet tells; the first of them may be lost itself.
    for _ in 0..<50 where last != sent - 1 || events.hasUncountedLoss {
      try rig.send(["\(sent)"], to: address, port: 5001)
      sent += 1
      while last != sent - 1, try read(timeoutMilliseconds: 200) {}
    }
    #expect(last == sent - 1 && received + Int(events.lost) == sent)
    #expect(events.lost > 4_000 && received > 2 && !events.hasUncountedLoss)
  }

  @Test("a group has one reader, and is free again when that is gone")
  func exclusive() throws {
    let rig = try PacketLogRig(
      rules: "chain output { type filter hook output priority 0; udp dport 5001 log group \(Self.group); }")
    let address = try #require(IPAddress("127.0.0.1"))
    let elsewhere = try AnonymousNetworkNamespace()
    for round in 0..<3 {
      let socket = try PacketLogSocket(group: Self.group, in: rig.namespace)
      #expect {
        try PacketLogSocket(group: Self.group, in: rig.namespace)
      } throws: {
        ($0 as? NetlinkError)?.errno == EBUSY && "\($0)".contains("log group 7") && "\($0)".contains("another socket")
      }
      // Another group, and the same group elsewhere, are other things.
      _ = try PacketLogSocket(group: Self.group + 1, in: rig.namespace)
      _ = try PacketLogSocket(group: Self.group, in: elsewhere.namespace)
      try rig.send(["round \(round)"], to: address, port: 5001)
      let messages = try socket.collect(1).messages
      #expect(messages.map(\.text) == ["round \(round)"] && messages.first?.sequence == 0)
    }
    withExtendedLifetime(elsewhere) {}
    // Nobody is bound: nothing is kept for the next reader.
    try rig.send(["unheard"], to: address, port: 5001)
    let socket = try PacketLogSocket(group: Self.group, in: rig.namespace)
    try rig.send(["heard"], to: address, port: 5001)
    #expect(try socket.collect(1).messages.map(\.text) == ["heard"])
  }

  @Test("an event loop sees the descriptor become readable")
  func readable() throws {
    let rig = try PacketLogRig(
      rules: "chain output { type filter hook output priority 0; udp dport 5001 log group \(Self.group); }")
    let socket = try PacketLogSocket(group: Self.group, in: rig.namespace)
    #expect(try !SystemCalls.waitReadable(socket.descriptorNumber, milliseconds: 0))
    let nothing = PacketLogEvents(messages: [], lost: 0, hasUncountedLoss: false)
    #expect(try socket.next(timeoutMilliseconds: 0) == nothing)
    try rig.send(["x"], to: try #require(IPAddress("::1")), port: 5001)
    #expect(try SystemCalls.waitReadable(socket.descriptorNumber, milliseconds: 5_000))
    #expect(try socket.next(timeoutMilliseconds: 0).messages.count == 1)
    #expect(try !SystemCalls.waitReadable(socket.descriptorNumber, milliseconds: 0))
  }
}

extension PacketLogMessage {
  /// What a datagram of these tests says.
  fileprivate var text: String {
    guard let headers = PacketHeaders(payload) else { return "" }
    return String(decoding: payload.dropFirst((headers.family == .v4 ? 20 : 40) + 8), as: UTF8.self)
  }
}
