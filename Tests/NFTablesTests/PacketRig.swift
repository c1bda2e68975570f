import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

/// What went wrong on a namespace's thread, where Swift Testing cannot know which test runs: told to it afterwards.
struct Findings: Sendable {
  fileprivate var all: [(text: String, location: SourceLocation)] = []

  mutating func expect(
    _ condition: Bool, _ text: @autoclosure () -> String, location: SourceLocation = #_sourceLocation
  ) {
    if !condition { all.append((text(), location)) }
  }
  var isEmpty: Bool { all.isEmpty }
}

/// Runs `body` in a fresh network namespace and reports what it found as issues of the calling test.
func inNode(_ body: @escaping @Sendable (inout Findings) throws -> Void) throws {
  let namespace = try AnonymousNetworkNamespace()
  let findings = try namespace.namespace.run {
    var findings = Findings()
    try body(&findings)
    return findings
  }
  for finding in findings.all { Issue.record("\(finding.text)", sourceLocation: finding.location) }
}

/// The same with a node around it.
func inRig(_ body: @escaping @Sendable (PacketRig, inout Findings) throws -> Void) throws {
  try inNode { findings in
    let rig = try PacketRig()
    try body(rig, &findings)
    findings.expect(try rig.packetsWithStrangeMark() == 0, "a packet left with another mark than it came with")
  }
}

/// A node with pods and an outside, all real but for who sends: packets are written byte by byte, so that any source can
/// be claimed, and nobody answers them. What became of a packet is read from conntrack and from ICMP errors, never from
/// our own tables.
///
/// The calling thread's namespace becomes the node's. Pods and the outside have a device but no address: what reaches
/// them is seen by packet sockets only.
final class PacketRig {
  /// A packet as it is sent: `walk`'s, and by which pod.
  struct Sent {
    var packet: Packet
    var pod: Int?
    /// Nanoseconds of the monotonic clock.
    var time: UInt64
  }

  enum Outcome: CustomStringConvertible {
    case tracked(ConntrackEntry)
    case rejected
    case dropped
    var description: String {
      switch self {
      case .tracked(let entry): "tracked, answers from \(entry.reply)"
      case .rejected: "rejected"
      case .dropped: "dropped"
      }
    }
  }

  static let podCount = 3
  static let mark = 0x5157

  let conntrack: ConntrackSocket
  private let routes: RouteSocket
  private let outside: Neighbourhood
  private let pods: [Neighbourhood]
  private let rawIPv4: FileDescriptor
  private let rawIPv6: FileDescriptor
  private let icmp: FileDescriptor
  private let icmpIPv6: FileDescriptor
  private let tcp: FileDescriptor
  private let tcpIPv6: FileDescriptor
  private var lastPort: UInt16 = 9999
  private var rejected: Set<ConntrackTuple> = []

  /// A namespace next to the node, and the socket on its device.
  private final class Neighbourhood {
    let namespace: AnonymousNetworkNamespace
    let socket: FileDescriptor
    let nodeMAC: MACAddress
    let ownMAC: MACAddress
    let nodeInterface: Int

    init(_ name: String, number: UInt8, routes: RouteSocket) throws {
      namespace = try AnonymousNetworkNamespace()
      try namespace.namespace.run {
        for scope in ["all", "default"] {
          try Sysctl.write("net", "ipv6", "conf", scope, "disable_ipv6", value: 1)
        }
      }
      nodeMAC = PacketRig.mac(0xee, number)
      ownMAC = PacketRig.mac(0, number)
      try routes.createVethPair(
        name: name, mac: nodeMAC,
        peer: VethPeer(name: "eth0", mac: ownMAC, namespaceDescriptor: namespace.descriptorNumber))
      nodeInterface = try #require(try routes.link(named: name)).index
      try routes.setLink(index: nodeInterface, LinkChanges(isUp: true))
      let number = try namespace.namespace.run {
        let inside = try RouteSocket()
        let index = try #require(try inside.link(named: "eth0")).index
        try inside.setLink(index: index, LinkChanges(isUp: true))
        return try PacketRig.packetSocket(interface: index)
      }
      socket = FileDescriptor(owning: number)
    }

    /// Neighbours are permanent: nobody here would answer for them.
    func claim(_ address: IPAddress, routes: RouteSocket) throws {
      try routes.replaceNeighbour(Neighbour(address: address, interfaceIndex: nodeInterface, mac: ownMAC))
    }
  }

  init() throws {
    routes = try RouteSocket()
    conntrack = try ConntrackSocket()
    try routes.setLink(index: 1, LinkChanges(isUp: true))
    try Self.writeSettings()
    outside = try Neighbourhood("uplink", number: 0xff, routes: routes)
    pods = try (0..<Self.podCount).map { [routes] in
      try Neighbourhood(Self.interface($0), number: UInt8($0 + 1), routes: routes)
    }
    rawIPv4 = FileDescriptor(owning: try Self.open(AF_INET, CInt(IPPROTO_RAW)))
    rawIPv6 = FileDescriptor(owning: try Self.open(AF_INET6, CInt(IPPROTO_RAW)))
    icmp = FileDescriptor(owning: try Self.open(AF_INET, CInt(IPPROTO_ICMP)))
    icmpIPv6 = FileDescriptor(owning: try Self.open(AF_INET6, CInt(IPPROTO_ICMPV6)))
    tcp = FileDescriptor(owning: try Self.open(AF_INET, CInt(IPPROTO_TCP)))
    tcpIPv6 = FileDescriptor(owning: try Self.open(AF_INET6, CInt(IPPROTO_TCP)))
    // The destination of a reset is not in what a raw IPv6 socket reads.
    var on: CInt = 1
    setsockopt(tcpIPv6.number, CInt(IPPROTO_IPV6), IPV6_RECVPKTINFO, &on, 4)
    try addAddressesAndRoutes()
    try addObserver()
  }

  // MARK: Addresses

  static func interface(_ pod: Int) -> String { "sl\(pod)" }
  static func mac(_ kind: UInt8, _ number: UInt8) -> MACAddress {
    MACAddress(bytes: [2, 0, 0, 0, kind, number]) ?? macFallback
  }
  private static let macFallback = MACAddress("02:00:00:00:00:00").unsafelyUnwrapped
  static func podMAC(_ pod: Int) -> MACAddress { mac(0, UInt8(pod + 1)) }
  static func pod(_ family: IPFamily, _ pod: Int) -> IPAddress {
    ip(family == .v4 ? "10.244.1.\(2 + pod)" : "fd00:10:244:1::\(2 + pod)")
  }
  static func isPod(_ address: IPAddress) -> Bool {
    (0..<podCount).contains { pod(address.family, $0) == address }
  }
  static func remotePod(_ family: IPFamily, _ pod: Int) -> IPAddress {
    ip(family == .v4 ? "10.244.2.\(2 + pod)" : "fd00:10:244:2::\(2 + pod)")
  }
  static func uplink(_ family: IPFamily) -> IPAddress { ip(family == .v4 ? "192.168.100.1" : "fd00:100::1") }
  static func gateway(_ family: IPFamily) -> IPAddress { ip(family == .v4 ? "192.168.100.9" : "fd00:100::9") }
  /// The node's addresses on a device of their own: two that an InternalIP can be, neither the uplink's.
  static func nodeInternal(_ family: IPFamily, _ number: Int) -> IPAddress {
    ip(family == .v4 ? "10.99.0.\(1 + number)" : "fd00:99::\(1 + number)")
  }
  /// Of no cluster.
  static func external(_ family: IPFamily, _ number: Int = 0) -> IPAddress {
    ip(family == .v4 ? "198.51.100.\(7 + number)" : "2001:db8:51::\(7 + number)")
  }
  static func endpoint(_ number: Int) -> LocalEndpoint {
    LocalEndpoint(
      interface: interface(number), mac: podMAC(number), addresses: IPFamily.allCases.map { pod($0, number) })
  }

  // MARK: Building

  static func writeSettings() throws {
    try Sysctl.write("net", "ipv4", "ip_forward", value: 1)
    try Sysctl.write("net", "ipv6", "conf", "all", "forwarding", value: 1)
    try Sysctl.write("net", "ipv6", "conf", "default", "accept_dad", value: 0)
    for scope in ["all", "default"] {
      try Sysctl.write("net", "ipv4", "conf", scope, "rp_filter", value: 0)
      try Sysctl.write("net", "ipv4", "conf", scope, "send_redirects", value: 0)
    }
    // ICMP errors are an outcome here: none may fall to a rate limit.
    try Sysctl.write("net", "ipv4", "icmp_ratelimit", value: 0)
    try Sysctl.write("net", "ipv6", "icmp", "ratelimit", value: 0)
    for (name, value) in [("icmp_msgs_burst", 1_000_000), ("icmp_msgs_per_sec", 1_000_000)] {
      // Global before 6.12, and then not to be seen in a namespace.
      try? Sysctl.write("net", "ipv4", name, value: value)
    }
  }

  private func addAddressesAndRoutes() throws {
    // A bridge without ports: kernels without dummy devices have it.
    try routes.createBridge(name: "internal")
    let internalIndex = try #require(try routes.link(named: "internal")).index
    try routes.setLink(index: internalIndex, LinkChanges(isUp: true))
    for family in IPFamily.allCases {
      let onLink = try #require(InterfaceAddress(Self.uplink(family), prefixLength: family == .v4 ? 24 : 64))
      try routes.addAddress(onLink, interfaceIndex: outside.nodeInterface, withoutDAD: true)
      for number in 0..<2 {
        try routes.addAddress(
          InterfaceAddress(host: Self.nodeInternal(family, number)), interfaceIndex: internalIndex, withoutDAD: true)
      }
      try outside.claim(Self.gateway(family), routes: routes)
      try routes.addRoute(
        Route(
          destination: Route.defaultDestination(family), gateway: Self.gateway(family),
          // RTPROT_STATIC, an administrator's: an agent takes away what looks like its own.
          interfaceIndex: outside.nodeInterface, routeProtocol: 4))
      for (number, pod) in pods.enumerated() {
        let address = Self.pod(family, number)
        try pod.claim(address, routes: routes)
        try routes.addRoute(Route(destination: CIDR(host: address), interfaceIndex: pod.nodeInterface))
      }
    }
  }

  /// A table of the rig's own. Resets of the node's closed ports are held back, as they would end the flow they are to
  /// be read from (those that refuse a flow are "related" to it from the start); and every packet gets a mark that it has to leave with.
  private func addObserver() throws {
    let script = """
      table inet rig {
        chain first { type filter hook prerouting priority -400; meta mark set \(Self.mark); }
        chain sent { type filter hook output priority -400; tcp flags rst ct state != related drop; meta mark set \(Self.mark); }
        chain left { type filter hook postrouting priority 300; meta mark != \(Self.mark) counter; }
        chain kept { type filter hook input priority 300; meta mark != \(Self.mark) counter; }
      }
      """
    let result = try run("echo '\(script)' | nft -f -")
    guard result.status == 0 else {
      throw NFTablesError(operation: "add observer", object: result.output, errno: EINVAL)
    }
  }

  func packetsWithStrangeMark() throws -> Int {
    let words = try run("nft list table inet rig").output.split(whereSeparator: \.isWhitespace)
    return words.indices.dropLast().reduce(0) { $0 + (words[$1] == "packets" ? Int(words[$1 + 1]) ?? 0 : 0) }
  }

  static func open(_ domain: CInt, _ proto: CInt) throws -> CInt {
    let number = socket(domain, CInt(SOCK_RAW.rawValue) | CInt(SOCK_CLOEXEC.rawValue), proto)
    guard number >= 0 else { throw SystemError(operation: "open raw socket", object: "\(domain)", errno: errno) }
    var size: CInt = 64 << 20
    setsockopt(number, SOL_SOCKET, SO_RCVBUFFORCE, &size, 4)
    return number
  }

  /// Bound to one device, or with 0 to all of its namespace; sees and sends whole frames.
  static func packetSocket(interface: Int) throws -> CInt {
    let everything: UInt16 = UInt16(3).bigEndian  // ETH_P_ALL
    let number = try open(AF_PACKET, CInt(everything))
    // struct sockaddr_ll, which Glibc's module does not have.
    var address = [UInt8](repeating: 0, count: 20)
    address.withUnsafeMutableBytes {
      $0.storeBytes(of: UInt16(AF_PACKET), toByteOffset: 0, as: UInt16.self)
      $0.storeBytes(of: everything, toByteOffset: 2, as: UInt16.self)
      $0.storeBytes(of: CInt(interface), toByteOffset: 4, as: CInt.self)
    }
    let bound = address.withUnsafeBytes { bytes in
      bytes.withMemoryRebound(to: sockaddr.self) { bind(number, $0.baseAddress, 20) }
    }
    guard bound == 0 else {
      let code = errno
      close(number)
      throw SystemError(operation: "bind packet socket", object: "#\(interface)", errno: code)
    }
    return number
  }

  // MARK: Sending

  /// A source port no earlier packet had since the flows were last forgotten.
  func nextPort() -> UInt16 {
    lastPort = lastPort == 65535 ? 10000 : lastPort + 1
    return lastPort
  }

  /// Sends the first packet of a flow: an empty datagram or a SYN. `mac` is the source that a pod claims to be.
  func send(_ packet: Packet, pod: Int? = nil, mac: MACAddress? = nil) throws -> Sent {
    let bytes = Frames.firstPacket(packet)
    let count: Int
    let wanted: Int
    if packet.origin == .host {
      wanted = bytes.count
      count = Self.sendRaw(bytes, to: packet.destination, rawIPv4, rawIPv6)
    } else {
      let from = pod.map { pods[$0] } ?? outside
      let frame = Frames.ethernet(from: mac ?? from.ownMAC, to: from.nodeMAC, packet.destination.family, bytes)
      wanted = frame.count
      count = Glibc.send(from.socket.number, frame, frame.count, 0)
    }
    // A raw socket hears of a netfilter drop as EPERM: an outcome, not a failure.
    guard count == wanted || errno == EPERM else {
      throw SystemError(operation: "send", object: "\(packet)", errno: errno)
    }
    return Sent(packet: packet, pod: pod, time: Self.now())
  }

  static func sendRaw(
    _ bytes: [UInt8], to destination: IPAddress, _ rawIPv4: borrowing FileDescriptor,
    _ rawIPv6: borrowing FileDescriptor
  ) -> Int {
    var address = [UInt8](repeating: 0, count: destination.family == .v4 ? 16 : 28)
    address.withUnsafeMutableBytes { $0.storeBytes(of: UInt16(destination.family.linuxFamily), as: UInt16.self) }
    let offset = destination.family == .v4 ? 4 : 8
    address.replaceSubrange(offset..<offset + destination.family.addressBytes, with: destination.bytes)
    let socket = destination.family == .v4 ? rawIPv4.number : rawIPv6.number
    return address.withUnsafeBytes { name in
      name.withMemoryRebound(to: sockaddr.self) {
        sendto(socket, bytes, bytes.count, 0, $0.baseAddress, socklen_t(name.count))
      }
    }
  }

  static func now() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  // MARK: What became of them

  /// The outcomes, in order. Forgets all flows afterwards.
  func outcomes(of sent: [Sent]) throws -> [Outcome] {
    // Softirqs run at the end of the send call, or on a kernel thread when there is much to do.
    usleep(20_000)
    var flows: [ConntrackTuple: ConntrackEntry] = [:]
    for entry in try conntrack.entries() { flows[entry.original] = entry }
    let answers = Set(flows.values.map(\.reply))
    readErrors()
    defer { rejected = [] }
    for entry in flows.values { _ = try conntrack.delete(entry) }
    return sent.map { sent in
      let packet = sent.packet
      let tuple = ConntrackTuple(
        source: packet.source, destination: packet.destination, protocolNumber: packet.proto.rawValue,
        sourcePort: packet.sourcePort, destinationPort: packet.destinationPort)
      // The flow first: a closed port of the node answers with the same error as a Service without endpoint.
      guard var flow = flows[tuple] else { return rejected.contains(tuple) ? .rejected : .dropped }
      // A masqueraded flow drew this one's port at random: what is translated to nowhere gives way. As if it had not.
      var answer = flow.reply
      answer.destinationPort = tuple.sourcePort
      if answers.contains(answer) { flow.reply = answer }
      return .tracked(flow)
    }
  }

  func outcome(of packet: Packet, pod: Int? = nil, mac: MACAddress? = nil) throws -> Outcome {
    try outcomes(of: [try send(packet, pod: pod, mac: mac)])[0]
  }

  private func readErrors() {
    var buffer = [UInt8](repeating: 0, count: 2048)
    func drain(_ socket: CInt, _ parse: (ArraySlice<UInt8>) -> ConntrackTuple?) {
      while true {
        let count = recv(socket, &buffer, buffer.count, CInt(MSG_DONTWAIT))
        guard count > 0 else { return }
        if let tuple = parse(buffer[..<count]) { rejected.insert(tuple) }
      }
    }
    for neighbour in pods + [outside] {
      drain(neighbour.socket.number) { Frames.portUnreachable(frame: $0) ?? Frames.reset(frame: $0) }
    }
    drain(tcp.number, Frames.reset(ipv4:))
    drain(icmp.number, Frames.portUnreachable(ipv4:))
    drain(icmpIPv6.number, Frames.portUnreachable(icmpIPv6:))
    drainResetsIPv6()
  }

  /// A raw IPv6 socket gives the TCP header only: the addresses come beside it.
  private func drainResetsIPv6() {
    var segment = [UInt8](repeating: 0, count: 2048)
    var source = sockaddr_in6()
    var control = [UInt8](repeating: 0, count: 256)
    while true {
      let received = segment.withUnsafeMutableBytes { bytes -> (Int, Int) in
        control.withUnsafeMutableBytes { control in
          withUnsafeMutablePointer(to: &source) { name in
            var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            return withUnsafeMutablePointer(to: &vector) { vector in
              var header = msghdr()
              header.msg_name = UnsafeMutableRawPointer(name)
              header.msg_namelen = socklen_t(MemoryLayout<sockaddr_in6>.size)
              header.msg_iov = vector
              header.msg_iovlen = 1
              header.msg_control = control.baseAddress
              header.msg_controllen = control.count
              let count = recvmsg(tcpIPv6.number, &header, CInt(MSG_DONTWAIT))
              return (count, Int(header.msg_controllen))
            }
          }
        }
      }
      guard received.0 > 0 else { return }
      // One control message: struct cmsghdr (16 bytes), then in6_pktinfo, which begins with our address.
      guard received.1 >= 32, let to = IPAddress(bytes: control[16..<32]),
        let from = IPAddress(bytes: withUnsafeBytes(of: source.sin6_addr) { Array($0) }),
        let tuple = Frames.reset(segment: segment[..<received.0], from: from, to: to)
      else { continue }
      rejected.insert(tuple)
    }
  }
}
