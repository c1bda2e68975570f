import CLinux
import Glibc
import NetworkTypes
import Testing

@testable import Netlink

@Suite("ctnetlink")
struct ConntrackSocketTests {
  private let namespace: AnonymousNetworkNamespace
  private let socket: ConntrackSocket

  init() throws {
    namespace = try AnonymousNetworkNamespace()
    socket = try ConntrackSocket(in: namespace.namespace)
    let netlink = try NetlinkSocket(protocol: NETLINK_NETFILTER, in: namespace.namespace)
    for (service, backend, client, count) in [
      ("10.96.0.10", "10.0.0.5", "10.0.0.9", 3), ("10.96.0.10", "10.0.0.6", "10.0.0.9", 2),
      ("fd00:96::10", "fd00::5", "fd00::9", 2),
    ] {
      for number in 0..<count {
        try Self.create(
          netlink, service: try #require(IPAddress(service)), backend: try #require(IPAddress(backend)),
          client: try #require(IPAddress(client)), clientPort: UInt16(40_000 + number * 7 + Int(backend.utf8.last ?? 0))
        )
      }
    }
  }

  /// A UDP flow from `client` to `service`:53 that answers come to from `backend`:5353.
  private static func create(
    _ netlink: NetlinkSocket, service: IPAddress, backend: IPAddress, client: IPAddress, clientPort: UInt16
  ) throws {
    var message = NetlinkMessageBuilder(
      type: NFNL_SUBSYS_CTNETLINK << 8 | CInt(IPCTNL_MSG_CT_NEW.rawValue), flags: NLM_F_CREATE | NLM_F_EXCL)
    var header = nfgenmsg()
    header.nfgen_family = service.family.linuxFamily
    message.append(header)
    let isV4 = service.family == .v4
    func tuple(
      _ type: UInt32, _ source: IPAddress, _ sourcePort: UInt16, _ destination: IPAddress, _ destinationPort: UInt16
    ) {
      message.nest(type) { message in
        message.nest(CTA_TUPLE_IP.rawValue) {
          $0.attribute(isV4 ? CTA_IP_V4_SRC.rawValue : CTA_IP_V6_SRC.rawValue, address: source)
          $0.attribute(isV4 ? CTA_IP_V4_DST.rawValue : CTA_IP_V6_DST.rawValue, address: destination)
        }
        message.nest(CTA_TUPLE_PROTO.rawValue) {
          $0.attribute(CTA_PROTO_NUM.rawValue, number: UInt8(17))
          $0.attribute(CTA_PROTO_SRC_PORT.rawValue, bigEndian: sourcePort)
          $0.attribute(CTA_PROTO_DST_PORT.rawValue, bigEndian: destinationPort)
        }
      }
    }
    tuple(CTA_TUPLE_ORIG.rawValue, client, clientPort, service, 53)
    tuple(CTA_TUPLE_REPLY.rawValue, backend, 5353, client, clientPort)
    message.attribute(CTA_TIMEOUT.rawValue, bigEndian: UInt32(300))
    message.attribute(CTA_MARK.rawValue, bigEndian: UInt32(0x5a))
    try netlink.acknowledge(message, operation: "create flow", object: "\(client) -> \(service)")
  }

  @Test("flows are listed with both tuples, mark and time")
  func list() throws {
    let entries = try socket.entries()
    #expect(entries.count == 7)
    let entry = try #require(entries.first { $0.reply.source.description == "10.0.0.5" })
    #expect(entry.original.destination.description == "10.96.0.10")
    #expect(entry.original.destinationPort == 53 && entry.reply.sourcePort == 5353)
    #expect(entry.original.protocolNumber == 17)
    #expect(entry.mark == 0x5a)
    #expect((1...300).contains(entry.timeout))
  }

  @Test("the kernel filters by every field")
  func filters() throws {
    let service = try #require(IPAddress("10.96.0.10"))
    let backend = try #require(IPAddress("10.0.0.5"))
    let filters: [(ConntrackFilter, Int)] = [
      (ConntrackFilter(family: .v6), 2), (ConntrackFilter(originalDestination: service), 5),
      (ConntrackFilter(replySource: backend), 3),
      (ConntrackFilter(protocolNumber: 17, originalDestinationPort: 53), 7),
      (ConntrackFilter(protocolNumber: 17, originalDestinationPort: 54), 0),
      (ConntrackFilter(protocolNumber: 6), 0),
      (ConntrackFilter(protocolNumber: 17, replySource: backend, replySourcePort: 5353), 3),
      (
        ConntrackFilter(
          family: .v4, protocolNumber: 17, originalDestination: service, originalDestinationPort: 53,
          replySource: backend, replySourcePort: 5353), 3
      ),
      (
        ConntrackFilter(
          family: .v6, protocolNumber: 17, originalDestination: IPAddress("fd00:96::10"), originalDestinationPort: 53,
          replySource: IPAddress("fd00::5"), replySourcePort: 5353), 2
      ),
      (ConntrackFilter(originalDestination: IPAddress("fd00:96::10")), 2),
      (ConntrackFilter(replySource: IPAddress("fd00::6")), 0),
    ]
    for (filter, count) in filters {
      #expect(try socket.entries(matching: filter).count == count, "\(filter)")
      #expect(socket.isFilteredByKernel, "\(filter)")
    }
    // The families contradict each other.
    #expect(try socket.entries(matching: ConntrackFilter(family: .v6, originalDestination: service)).isEmpty)
    // Ports without a protocol are compared in user space.
    #expect(try socket.entries(matching: ConntrackFilter(originalDestinationPort: 54)).isEmpty)
    #expect(!socket.isFilteredByKernel)
  }

  @Test("a flow is added as it would be had it been seen: translated, answered; what was seen under its tuples goes")
  func additions() throws {
    // conntrack's translation is part of nf_nat, which is there once a chain uses it.
    for family in ["ip", "ip6"] {
      try namespace.namespace.nft("add table \(family) t; add chain \(family) t c { type nat hook output priority 0; }")
    }
    for (client, service, backend, node) in [
      ("10.0.0.9", "10.96.0.99", "10.0.0.7", "10.0.0.1"), ("fd00::9", "fd00:96::99", "fd00::7", "fd00::1"),
    ] {
      for proto: UInt8 in [6, 17, 132] {
        func tuple(_ source: String, _ sourcePort: UInt16, _ destination: String, _ port: UInt16) throws
          -> ConntrackTuple
        {
          ConntrackTuple(
            source: try #require(IPAddress(source)), destination: try #require(IPAddress(destination)),
            protocolNumber: proto, sourcePort: sourcePort, destinationPort: port)
        }
        let original = try tuple(client, 4000, service, 53)
        for reply in [
          original.reversed, try tuple(backend, 5353, client, 4000), try tuple(backend, 5353, node, 61_007),
          try tuple(service, 53, node, 61_008),
        ] {
          // The second time it stands in its own way.
          for timeout: UInt32 in [100, 200] {
            try socket.add(ConntrackAddition(original: original, reply: reply, isAnswered: true, timeout: timeout))
            let found = try socket.entries().filter { $0.original == original }
            #expect(found.map(\.reply) == [reply], "\(original), \(reply)")
            let entry = try #require(found.first)
            #expect((timeout - 50...timeout).contains(entry.timeout))
            #expect(entry.status & ConntrackStatus.seenReply != 0 && entry.status & ConntrackStatus.assured != 0)
            // IPS_SRC_NAT and IPS_DST_NAT.
            #expect((entry.status & 16 != 0) == (reply.destination != original.source))
            #expect((entry.status & 32 != 0) == (reply.source != original.destination))
            #expect(entry.tcpState == (proto == 6 ? ConntrackTCPState.established : nil))
          }
          // What another flow seems to be, seen between two translations.
          let between = ConntrackTuple(
            source: original.source, destination: reply.source, protocolNumber: proto, sourcePort: original.sourcePort,
            destinationPort: reply.sourcePort)
          #expect(try socket.delete(try #require(try socket.entries().first { $0.original == original })))
          try socket.add(
            ConntrackAddition(original: between, reply: between.reversed, isAnswered: false, timeout: 30))
          try socket.add(ConntrackAddition(original: original, reply: reply, isAnswered: true, timeout: 100))
          #expect(try socket.entries().contains { $0.original == original && $0.reply == reply })
          for entry in try socket.entries() where entry.timeout <= 100 { _ = try socket.delete(entry) }
        }
      }
    }
  }

  @Test("only what matches is deleted, and what is gone already is no error")
  func delete() throws {
    let filter = ConntrackFilter(
      protocolNumber: 17, originalDestination: IPAddress("10.96.0.10"),
      replySource: IPAddress("10.0.0.5"))
    let entries = try socket.entries(matching: filter)
    #expect(try socket.delete(matching: filter) == 3)
    #expect(try socket.delete(matching: filter) == 0)
    #expect(try socket.delete(try #require(entries.first)) == false)
    #expect(try socket.entries().count == 4)
    #expect(try socket.delete(matching: ConntrackFilter(family: .v6)) == 2)
  }
}
