import DataplaneModel
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// A node with any number of pods that come and go, and an outside. Packets are written byte by byte and each has a
/// number; what arrives is read at the other end, outside of this node: on the device of a pod or of the next hop, and
/// for the node's own in a chain behind all others. Nobody answers by itself.
///
/// The calling thread's namespace becomes the node's. All pods' devices lead into one other namespace, where no address
/// and no route is: packet sockets only.
final class PolicyRig {
  /// Where a packet comes from or got to.
  enum Place: Hashable, Sendable, CustomStringConvertible {
    /// A pod, by its device on the node.
    case pod(String)
    case outside
    case node

    var description: String {
      switch self {
      case .pod(let interface): "pod \(interface)"
      case .outside: "outside"
      case .node: "node"
      }
    }
  }

  struct Arrival: Hashable, Sendable {
    var number: UInt64
    var place: Place
    var source: IPAddress
    var destination: IPAddress
  }

  static let mark = 0x5157
  /// Of the rig's own log rule: what a process of the node would receive.
  private static let keptGroup: UInt16 = 77
  private static let nodeMAC = PacketRig.mac(0xee, 1)
  static let outsideMAC = PacketRig.mac(0, 0xff)
  static func uplink(_ family: IPFamily) -> IPAddress { PacketRig.uplink(family) }

  let conntrack: ConntrackSocket
  private let routes: RouteSocket
  private let pods: Neighbourhood
  private let outside: Neighbourhood
  private let kept: PacketLogSocket
  private let rawIPv4: FileDescriptor
  private let rawIPv6: FileDescriptor
  /// Every address of the node but loopback's and link-local ones.
  let ownAddresses: Set<IPAddress>
  private var lastNumber: UInt64 = 0x51_1ce0_0000
  /// By number: what tells a packet from an error that quotes it, or from its echo.
  private var sent: [UInt64: ProbePacket.Shape] = [:]
  private var lastPort: UInt16 = 19_999

  private struct Device: Equatable {
    var index: Int
    var insideIndex: CInt
    var mac: MACAddress
  }
  private var devices: [String: Device] = [:]
  /// Of packets that must not arrive: what they are. What comes too late to be noticed at once is noticed by whoever
  /// looks next.
  var forbidden: [UInt64: String] = [:]
  /// IP packets that reached a pod or the next hop and that no test sent: answers. Without neighbour discovery and
  /// multicast membership, of which a node speaks by itself.
  private(set) var answers: [Place: Int] = [:]
  private var owners: [IPAddress: String] = [:]

  /// A namespace and one socket on all of its devices.
  private final class Neighbourhood {
    private let namespace: AnonymousNetworkNamespace
    let routes: RouteSocket
    let socket: FileDescriptor
    var descriptor: CInt { namespace.descriptorNumber }

    init() throws {
      namespace = try AnonymousNetworkNamespace()
      routes = try RouteSocket(in: namespace.namespace)
      let number = try namespace.namespace.run {
        for scope in ["all", "default"] {
          try Sysctl.write("net", "ipv6", "conf", scope, "disable_ipv6", value: 1)
        }
        // On all devices, those to come too; sees and sends whole frames.
        return try PacketRig.packetSocket(interface: 0)
      }
      socket = FileDescriptor(owning: number)
    }
  }

  /// - Parameter nodeAddresses: the node's InternalIPs, on a device of their own beside the uplink's addresses.
  init(nodeAddresses: [IPAddress]) throws {
    ownAddresses = Set(nodeAddresses + IPFamily.allCases.map(Self.uplink))
    routes = try RouteSocket()
    conntrack = try ConntrackSocket()
    try routes.setLink(index: 1, LinkChanges(isUp: true))
    try PacketRig.writeSettings()
    pods = try Neighbourhood()
    outside = try Neighbourhood()
    rawIPv4 = FileDescriptor(owning: try PacketRig.open(AF_INET, CInt(IPPROTO_RAW)))
    rawIPv6 = FileDescriptor(owning: try PacketRig.open(AF_INET6, CInt(IPPROTO_RAW)))
    // Without time to flush: a log line waits for the next tick, not longer.
    kept = try PacketLogSocket(
      group: Self.keptGroup, options: PacketLogOptions(copiedBytes: 0, flushMilliseconds: 0))
    devices["uplink"] = try addDevice("uplink", mac: Self.outsideMAC, in: outside)
    try addNode(nodeAddresses)
    try addObserver()
  }

  // MARK: Building

  private func addDevice(_ name: String, mac: MACAddress, in neighbourhood: Neighbourhood) throws -> Device {
    try routes.createVethPair(
      name: name, mac: Self.nodeMAC,
      peer: VethPeer(name: name, mac: mac, namespaceDescriptor: neighbourhood.descriptor))
    let index = try #require(try routes.link(named: name)).index
    try routes.setLink(index: index, LinkChanges(isUp: true))
    let inside = try #require(try neighbourhood.routes.link(named: name)).index
    try neighbourhood.routes.setLink(index: inside, LinkChanges(isUp: true))
    try Self.waitUntilRunning(index, routes)
    try Self.waitUntilRunning(inside, neighbourhood.routes)
    return Device(index: index, insideIndex: CInt(inside), mac: mac)
  }

  /// A device drops what it is to send until the kernel's link watch has seen its carrier.
  private static func waitUntilRunning(_ index: Int, _ routes: RouteSocket) throws {
    let isRunning: UInt32 = 0x40  // IFF_RUNNING
    let deadline = PacketRig.now() + 5_000_000_000
    while try routes.link(index: index).map({ $0.flags & isRunning == 0 }) ?? true {
      guard PacketRig.now() < deadline else {
        throw SystemError(operation: "wait for link", object: "#\(index)", errno: ETIMEDOUT)
      }
      usleep(1000)
    }
  }

  private func addNode(_ addresses: [IPAddress]) throws {
    try routes.createBridge(name: "internal")
    let internalIndex = try #require(try routes.link(named: "internal")).index
    try routes.setLink(index: internalIndex, LinkChanges(isUp: true))
    for address in addresses {
      try routes.addAddress(InterfaceAddress(host: address), interfaceIndex: internalIndex, withoutDAD: true)
    }
    let uplink = try #require(devices["uplink"])
    for family in IPFamily.allCases {
      let onLink = try #require(InterfaceAddress(Self.uplink(family), prefixLength: family == .v4 ? 24 : 64))
      try routes.addAddress(onLink, interfaceIndex: uplink.index, withoutDAD: true)
      try routes.replaceNeighbour(
        Neighbour(address: PacketRig.gateway(family), interfaceIndex: uplink.index, mac: uplink.mac))
      try routes.addRoute(
        Route(
          destination: Route.defaultDestination(family), gateway: PacketRig.gateway(family),
          interfaceIndex: uplink.index))
    }
  }

  /// Every packet gets a mark that it has to leave with; what a process of the node would get is logged. Resets of the
  /// node's closed ports are held back, as they would end the flows of which a test writes both ends.
  private func addObserver() throws {
    let script = """
      table inet rig {
        chain first { type filter hook prerouting priority -400; meta mark set \(Self.mark); }
        chain sent { type filter hook output priority -400; tcp flags rst drop; meta mark set \(Self.mark); }
        chain left { type filter hook postrouting priority 300; meta mark != \(Self.mark) counter; }
        chain kept {
          type filter hook input priority 300; meta mark != \(Self.mark) counter
          iifname != "lo" log group \(Self.keptGroup)
        }
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

  /// Makes devices and routes what the endpoints ask for, as the CNI plugin would: before the tables know new ones,
  /// after they have forgotten old ones.
  func follow(_ node: NodeTable) throws {
    for (name, device) in devices where name != "uplink" && node.endpoints[name]?.mac != device.mac {
      try routes.deleteLink(index: device.index)
      devices[name] = nil
      // Its routes went with it.
      owners = owners.filter { $0.value != name }
    }
    for (name, endpoint) in node.endpoints where devices[name] == nil {
      devices[name] = try addDevice(name, mac: endpoint.mac, in: pods)
    }
    var wanted: [IPAddress: String] = [:]
    for address in node.endpoints.values.flatMap(\.addresses) {
      wanted[address] = node.endpoint(with: address)?.interface
    }
    for (address, name) in owners where wanted[address] != name {
      guard let device = devices[name] else { continue }
      try routes.deleteRoute(Route(destination: CIDR(host: address), interfaceIndex: device.index))
    }
    for (address, name) in wanted where owners[address] != name {
      guard let device = devices[name] else { continue }
      try routes.replaceNeighbour(Neighbour(address: address, interfaceIndex: device.index, mac: device.mac))
      try routes.addRoute(Route(destination: CIDR(host: address), interfaceIndex: device.index))
    }
    owners = wanted
  }

  // MARK: Sending

  /// A source port or echo identifier no packet had for a long time.
  func nextPort() -> UInt16 {
    lastPort = lastPort == 59_999 ? 20_000 : lastPort + 1
    return lastPort
  }

  /// - Parameters:
  ///   - mac: the source that a pod claims to be.
  ///   - isBroadcast: in a frame to everybody.
  /// - Returns: the packet's number.
  @discardableResult
  func send(
    _ packet: ProbePacket, from place: Place, mac: MACAddress? = nil, isBroadcast: Bool = false
  ) throws -> UInt64 {
    lastNumber += 1
    let bytes = packet.bytes(number: lastNumber)
    sent[lastNumber] = ProbePacket.identify(bytes[...])?.shape
    let (count, wanted): (Int, Int)
    switch place {
    case .node: (count, wanted) = (PacketRig.sendRaw(bytes, to: packet.destination, rawIPv4, rawIPv6), bytes.count)
    case .outside, .pod:
      let frame = try prepare(bytes, packet.destination.family, place, mac, isBroadcast: isBroadcast)
      (count, wanted) = (frame.send(), frame.bytes.count)
    }
    // A raw socket hears of a netfilter drop as EPERM: an outcome, not a failure.
    guard count == wanted || errno == EPERM else {
      throw SystemError(operation: "send", object: "\(packet) from \(place)", errno: errno)
    }
    return lastNumber
  }

  private func prepare(
    _ packet: [UInt8], _ family: IPFamily, _ place: Place, _ mac: MACAddress? = nil, isBroadcast: Bool = false
  ) throws -> PreparedFrame {
    let (interface, neighbourhood) =
      switch place {
      case .pod(let interface): (interface, pods)
      case .outside: ("uplink", outside)
      case .node: throw SystemError(operation: "prepare frame", object: "of the node", errno: EINVAL)
      }
    let device = try #require(devices[interface], "no device \(interface)")
    let everybody = MACAddress(bytes: [UInt8](repeating: 0xff, count: 6))
    let target = isBroadcast ? try #require(everybody) : Self.nodeMAC
    let frame = Frames.ethernet(from: mac ?? device.mac, to: target, family, packet)
    return PreparedFrame(socket: neighbourhood.socket.number, interface: device.insideIndex, bytes: frame)
  }

  /// A frame that can be sent again and again from any thread, while the rig lives.
  func prepare(_ packet: ProbePacket, number: UInt64, from place: Place) throws -> PreparedFrame {
    try prepare(packet.bytes(number: number), packet.destination.family, place)
  }

  /// Where what reaches pods and the next hop is read.
  var captureDescriptors: [CInt] { [pods.socket.number, outside.socket.number] }

  // MARK: Arrivals

  /// What arrived since it was last asked for.
  func arrivals() throws -> [Arrival] {
    try readKept() + readFrames(pods) + readFrames(outside)
  }

  /// Waits until all of `numbers` have arrived, at most `seconds`, and then a moment longer for what should not.
  func arrivals(expecting numbers: Set<UInt64>, seconds: Double = 2) throws -> [Arrival] {
    var found = try arrivals()
    let deadline = PacketRig.now() + UInt64(seconds * 1e9)
    while !numbers.isSubset(of: found.map(\.number)), PacketRig.now() < deadline {
      usleep(2000)
      found += try arrivals()
    }
    // Only what is late can still come: softirqs run at the end of the send call, log lines with the next tick.
    usleep(12_000)
    return try found + arrivals()
  }

  private func readKept() throws -> [Arrival] {
    var found: [Arrival] = []
    while true {
      let events = try kept.next(timeoutMilliseconds: 0)
      guard !events.messages.isEmpty else { break }
      guard events.lost == 0 else {
        throw SystemError(operation: "read log", object: "group \(Self.keptGroup)", errno: ENOBUFS)
      }
      found += events.messages.compactMap { arrival($0.payload[...], .node) }
    }
    return found
  }

  private func readFrames(_ neighbourhood: Neighbourhood) throws -> [Arrival] {
    let isOutside = neighbourhood === outside
    var names: [CInt: String] = [:]
    for (name, device) in devices where name != "uplink" { names[device.insideIndex] = name }
    var found: [Arrival] = []
    var buffer = [UInt8](repeating: 0, count: 2048)
    var address = [UInt8](repeating: 0, count: 20)
    while true {
      var length = socklen_t(address.count)
      let count = address.withUnsafeMutableBytes { bytes in
        bytes.withMemoryRebound(to: sockaddr.self) {
          recvfrom(neighbourhood.socket.number, &buffer, buffer.count, CInt(MSG_DONTWAIT), $0.baseAddress, &length)
        }
      }
      // A device that went away is an error once.
      if count < 0, errno == ENETDOWN || errno == EINTR { continue }
      guard count > 0 else { return found }
      let index = address.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 4, as: CInt.self) }
      // PACKET_OUTGOING: what we sent ourselves.
      guard address[10] != 4, count > 14 else { continue }
      let place: Place = isOutside ? .outside : .pod(names[index] ?? "#\(index)")
      if let arrival = arrival(buffer[14..<count], place) {
        found.append(arrival)
      } else if Self.isAnswer(buffer[..<count]) {
        answers[place, default: 0] += 1
      }
    }
  }

  private func arrival(_ packet: ArraySlice<UInt8>, _ place: Place) -> Arrival? {
    guard let found = ProbePacket.identify(packet), sent[found.number] == found.shape else { return nil }
    return Arrival(number: found.number, place: place, source: found.source, destination: found.destination)
  }

  private static func isAnswer(_ frame: ArraySlice<UInt8>) -> Bool {
    switch Array(frame[12..<14]) {
    case [0x08, 0x00]: return true
    case [0x86, 0xdd]:
      guard frame.count > 54 else { return false }
      // Multicast membership comes behind a hop-by-hop header.
      return frame[20] != 0 && !(frame[20] == 58 && (130...143).contains(frame[54]))
    default: return false
    }
  }

  /// Forgets every flow, so that each next packet is a first one.
  func forgetFlows() throws {
    for entry in try conntrack.entries() { _ = try conntrack.delete(entry) }
  }
}
