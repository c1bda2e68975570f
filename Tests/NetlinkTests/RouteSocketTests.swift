import CLinux
import Foundation
import Glibc
import NetworkTypes
import Testing

@testable import Netlink

/// Against the kernel, each test in namespaces of its own that end with it.
@Suite("rtnetlink")
struct RouteSocketTests {
  private let node: AnonymousNetworkNamespace
  private let pod: AnonymousNetworkNamespace
  private let socket: RouteSocket
  private let podSocket: RouteSocket

  init() throws {
    node = try AnonymousNetworkNamespace()
    pod = try AnonymousNetworkNamespace()
    socket = try RouteSocket(in: node.namespace)
    podSocket = try RouteSocket(in: pod.namespace)
  }

  private func address(_ text: String) throws -> IPAddress { try #require(IPAddress(text)) }
  private func cidr(_ text: String) throws -> CIDR { try #require(CIDR(text)) }

  /// The host end's index.
  private func createPair() throws -> Int {
    try socket.createVethPair(
      name: "host0", mac: MACAddress("0a:00:00:00:00:01"), mtu: 1400,
      peer: VethPeer(
        name: "eth0", mac: MACAddress("0a:00:00:00:00:02"), mtu: 1400,
        namespaceDescriptor: pod.descriptorNumber))
    return try #require(try socket.link(named: "host0")).index
  }

  @Test("a socket stays in the namespace it was opened in")
  func namespaces() throws {
    #expect(try socket.links().map(\.name) == ["lo"])
    #expect(try node.namespace.inode() != NetworkNamespace.current.inode())
    #expect(try node.namespace.run { try NetworkNamespace.current.inode() } == node.namespace.inode())
    struct Failure: Error {}
    #expect(throws: Failure.self) { try node.namespace.run { throw Failure() } }
  }

  @Test("links are removed without waiting for the kernel's memory, by a process of its own")
  func removal() throws {
    let node = node.namespace
    for _ in 0..<5 {
      // Of one name each time: it is free at once. A bridge announces that it has lost its port before the link is gone.
      let index = try createPair()
      try socket.createBridge(name: "br0")
      let bridge = try #require(try socket.link(named: "br0")).index
      try socket.setLink(index: bridge, LinkChanges(isUp: true))
      try socket.setLink(index: index, LinkChanges(isUp: true, masterIndex: bridge))
      try node.run { try LinkRemoval(RouteSocket()).remove(named: ["host0", "none", "longer than a name", "br0"]) }
      #expect(try socket.links().map(\.name) == ["lo"])
      #expect(try podSocket.links().map(\.name) == ["lo"])
    }
    #expect {
      try node.run { try LinkRemoval(RouteSocket()).remove(named: ["lo"]) }
    } throws: {
      ($0 as? NetlinkError)?.errno == EOPNOTSUPP && "\($0)".contains("lo")
    }
    #expect(try socket.links().map(\.name) == ["lo"])
  }

  @Test("who waits for the kernel keeps the sockets it was given, and nothing else")
  func removalApart() throws {
    let node = node.namespace
    _ = try createPair()
    let path = "/tmp/sluice-test-pipe-\(getpid())"
    mkfifo(path, 0o600)
    defer { unlink(path) }
    let reader = Glibc.open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    let writer = Glibc.open(path, O_WRONLY | O_CLOEXEC)
    defer { close(reader) }
    try node.run {
      let filter = try FilterSocket()
      defer { withExtendedLifetime(filter) {} }
      var removal = LinkRemoval(try RouteSocket())
      removal.hold(filter)
      let table = FilterTable(.netdev, "test")
      let hook = FilterHook(.filter, number: FilterHook.deviceIngress, priority: 0, device: "host0")
      try filter.replaceChain("one", in: table, hook: hook, rules: [[.verdict(.drop)]])
      try filter.removeChain("one", in: table)
      try removal.remove(named: ["host0"])
      // Even when the kernel is done: as long as we have it open, we would be the last to close it.
      usleep(300_000)
      #expect(try Self.childrenHave(descriptorLike: filter.descriptorNumber))
    }
    close(writer)
    // Whoever reads what we write sees its end, while the kernel still works.
    var byte: UInt8 = 0
    #expect(read(reader, &byte, 1) == 0)
  }

  private static func childrenHave(descriptorLike number: CInt) throws -> Bool {
    let files = FileManager.default
    let sought = try files.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(number)")
    return try files.contentsOfDirectory(atPath: "/proc").contains { process in
      // Behind the name's bracket: state, parent.
      guard Int(process) != nil, let status = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8),
        let fields = status.split(separator: ")").last?.split(separator: " "), Int(fields[1]) == Int(getpid())
      else { return false }
      let folder = "/proc/\(process)/fd"
      return (try? files.contentsOfDirectory(atPath: folder))?
        .contains { (try? files.destinationOfSymbolicLink(atPath: "\(folder)/\($0)")) == sought } ?? false
    }
  }

  @Test("a path that is no namespace is refused by name")
  func noNamespace() {
    #expect {
      try NetworkNamespace(path: "/dev/null").run {}
    } throws: {
      ($0 as? SystemError)?.errno == EINVAL && "\($0)".contains("/dev/null")
    }
    #expect(throws: SystemError.self) { try RouteSocket(in: NetworkNamespace(path: "/none")) }
  }

  @Test("a named namespace is made and removed")
  func named() throws {
    let path = "/tmp/sluice-test-ns-\(getpid())"
    let namespace = try NetworkNamespace.create(at: path)
    defer { try? NetworkNamespace.remove(at: path) }
    #expect(try namespace.run { try RouteSocket().links().map(\.name) } == ["lo"])
    #expect(throws: SystemError.self) { try NetworkNamespace.create(at: path) }
    for _ in 0..<2 { try NetworkNamespace.remove(at: path) }
    #expect(access(path, F_OK) != 0)
  }

  @Test("a veth pair has its peer in the other namespace at once")
  func vethPair() throws {
    let index = try createPair()
    let host = try #require(try socket.link(index: index))
    let peer = try #require(try podSocket.link(named: "eth0"))
    #expect(host.kind == "veth")
    #expect(host.mtu == 1400 && peer.mtu == 1400)
    #expect(host.mac?.description == "0a:00:00:00:00:01")
    #expect(peer.mac?.description == "0a:00:00:00:00:02")
    #expect(host.peerIndex == peer.index && host.peerNamespaceID != nil)
    #expect(!host.isUp)
    #expect { try createPair() } throws: { ($0 as? NetlinkError)?.errno == EEXIST }
    try socket.deleteLink(index: index)
    #expect(try podSocket.link(named: "eth0") == nil)
    try socket.deleteLink(index: index)
    try socket.deleteLink(named: "host0")
  }

  @Test("links are changed and put into a bridge")
  func changes() throws {
    let index = try createPair()
    try socket.createBridge(name: "br0")
    let bridge = try #require(try socket.link(named: "br0"))
    #expect(bridge.kind == "bridge")
    try socket.setLink(
      index: index, LinkChanges(isUp: true, mtu: 1300, alias: "pod", name: "other0", masterIndex: bridge.index))
    let link = try #require(try socket.link(named: "other0"))
    #expect(link.isUp && link.mtu == 1300 && link.alias == "pod" && link.masterIndex == bridge.index)
    try socket.setLink(index: index, LinkChanges(isUp: false, masterIndex: 0))
    #expect(try socket.link(index: index)?.masterIndex == nil)
    #expect { try socket.setLink(index: 9999, LinkChanges(mtu: 1500)) } throws: {
      ($0 as? NetlinkError)?.errno == ENODEV
    }
  }

  @Test("addresses of both families, usable at once, are added, listed and deleted")
  func addresses() throws {
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    let wanted = [try #require(InterfaceAddress(try address("10.0.0.7"), prefixLength: 24))]
    let v6 = InterfaceAddress(host: try address("fd00::7"))
    for one in wanted + [v6] { try socket.addAddress(one, interfaceIndex: index, withoutDAD: true) }
    #expect(try socket.addresses(family: .v4, interfaceIndex: index).map(\.address) == wanted)
    let all = try socket.addresses(interfaceIndex: index)
    #expect(all.contains { $0.address == v6 && !$0.isTentative })
    #expect { try socket.addAddress(v6, interfaceIndex: index) } throws: {
      ($0 as? NetlinkError)?.errno == EEXIST
    }
    for _ in 0..<2 { try socket.deleteAddress(v6, interfaceIndex: index) }
    #expect(try !socket.addresses(family: .v6).contains { $0.address == v6 })
    #expect(try socket.addresses(interfaceIndex: 9999).isEmpty)
  }

  @Test("an address without prefix route leaves the table alone")
  func withoutPrefixRoute() throws {
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    let one = try #require(InterfaceAddress(try address("10.0.0.7"), prefixLength: 24))
    try socket.addAddress(one, interfaceIndex: index, withoutPrefixRoute: true)
    #expect(try socket.routes(table: Route.mainTable, family: .v4).isEmpty)
  }

  @Test("routes are added, replaced, read back as written and deleted, in any table")
  func routes() throws {
    // Without an address the namespace has no local table, and the kernel takes every gateway for a broadcast address.
    try socket.setLink(index: 1, LinkChanges(isUp: true))
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    let routes = [
      Route(destination: try cidr("10.1.0.0/24"), interfaceIndex: index),
      Route(
        destination: try cidr("10.2.0.0/24"), gateway: try address("10.9.9.9"), interfaceIndex: index, isOnLink: true),
      Route(
        destination: try cidr("10.3.0.0/24"), gateway: try address("fe80::1"), interfaceIndex: index, table: 1000,
        isOnLink: true, mtu: 1280),
      Route(destination: try cidr("fd01::/64"), interfaceIndex: index, priority: 1024),
      Route(
        destination: Route.defaultDestination(.v6), gateway: try address("fe80::1"), interfaceIndex: index,
        table: 1000, priority: 7),
    ]
    for route in routes { try socket.addRoute(route) }
    let ours = try socket.routes().filter { $0.routeProtocol == Route.sluiceProtocol }
    #expect(Set(ours) == Set(routes), "\(ours)")
    #expect(try Set(socket.routes(table: 1000)) == [routes[2], routes[4]])
    #expect(try socket.routes(table: 4711).isEmpty)

    #expect { try socket.addRoute(routes[0]) } throws: { ($0 as? NetlinkError)?.errno == EEXIST }
    var replaced = routes[1]
    replaced.gateway = try address("10.8.8.8")
    try socket.replaceRoute(replaced)
    #expect(try socket.routes(table: Route.mainTable, family: .v4).contains(replaced))
    for route in [routes[0], replaced, routes[2], routes[3], routes[4], routes[0]] { try socket.deleteRoute(route) }
    #expect(try !socket.routes().contains { $0.routeProtocol == Route.sluiceProtocol })
  }

  @Test("a refusal names operation and object and carries the kernel's words")
  func extendedAck() throws {
    let index = try createPair()
    let route = Route(
      destination: try cidr("10.1.0.0/24"), gateway: try address("10.9.9.9"), interfaceIndex: index)
    try socket.setLink(index: index, LinkChanges(isUp: true))
    #expect {
      try socket.addRoute(route)
    } throws: {
      guard case .system(let error) = $0 as? NetlinkError else { return false }
      return error.operation == "add route" && error.object.contains("10.1.0.0/24") && error.detail != nil
    }
  }

  @Test("rules are listed")
  func rules() throws {
    #expect(try socket.rules().contains { $0.family == .v4 && $0.table == Route.mainTable && $0.priority == 32766 })
    #expect(try socket.rules().contains { $0.family == .v6 && $0.table == Route.mainTable })
  }

  @Test("permanent neighbours are set, replaced and deleted")
  func neighbours() throws {
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    for text in ["10.0.0.7", "fd00::7"] {
      for mac in ["0a:00:00:00:00:09", "0a:00:00:00:00:0a"] {
        try socket.replaceNeighbour(
          Neighbour(address: try address(text), interfaceIndex: index, mac: MACAddress(mac)))
      }
    }
    let found = try socket.neighbours(interfaceIndex: index)
    #expect(Set(found.map(\.address.description)) == ["10.0.0.7", "fd00::7"])
    #expect(found.allSatisfy { $0.isPermanent && $0.mac?.description == "0a:00:00:00:00:0a" })
    for _ in 0..<2 { try socket.deleteNeighbour(try address("10.0.0.7"), interfaceIndex: index) }
    #expect(try socket.neighbours().count == 1)
  }

  @Test("a dump larger than any buffer is read whole")
  func largeDump() throws {
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    for number in 0..<3000 {
      let destination = CIDR(host: IPAddress(v4: 0x0a10_0000 + UInt32(number)))
      try socket.addRoute(Route(destination: destination, interfaceIndex: index))
    }
    #expect(try socket.routes(table: Route.mainTable, family: .v4).count == 3000)
  }

  @Test("a monitor sees links, addresses and routes come and go, and says when it lost some")
  func monitor() throws {
    let monitor = try RouteMonitor(in: node.namespace)
    #expect(try monitor.next(timeoutMilliseconds: 0).isEmpty)
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    let one = InterfaceAddress(host: try address("10.0.0.7"))
    try socket.addAddress(one, interfaceIndex: index)
    let route = Route(destination: try cidr("10.1.0.0/24"), interfaceIndex: index)
    try socket.addRoute(route)
    try socket.deleteRoute(route)
    try socket.deleteLink(index: index)
    var events: [RouteEvent] = []
    while true {
      let next = try monitor.next(timeoutMilliseconds: 200)
      if next.isEmpty { break }
      events += next
    }
    func contains(_ matches: (RouteEvent) -> Bool) -> Bool { events.contains(where: matches) }
    #expect(contains { if case .linkAdded(let link) = $0 { link.name == "host0" } else { false } })
    #expect(contains { if case .addressAdded(let added) = $0 { added.address == one } else { false } })
    #expect(events.contains(.routeAdded(route)))
    #expect(events.contains(.routeRemoved(route)))
    #expect(contains { if case .linkRemoved(let link) = $0 { link.name == "host0" } else { false } })
  }

  @Test("a monitor whose buffer overflows says so and goes on")
  func overrun() throws {
    let monitor = try RouteMonitor([.routes], in: node.namespace)
    var size: CInt = 1
    #expect(
      setsockopt(monitor.descriptorNumber, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<CInt>.size)) == 0)
    let index = try createPair()
    try socket.setLink(index: index, LinkChanges(isUp: true))
    for number in 0..<500 {
      try socket.addRoute(
        Route(destination: CIDR(host: IPAddress(v4: 0x0a10_0000 + UInt32(number))), interfaceIndex: index))
    }
    var events: [RouteEvent] = []
    while true {
      let next = try monitor.next(timeoutMilliseconds: 0)
      if next.isEmpty { break }
      events += next
    }
    #expect(events.contains(.overrun))
    let route = Route(destination: try cidr("10.1.0.0/24"), interfaceIndex: index)
    try socket.addRoute(route)
    #expect(try monitor.next(timeoutMilliseconds: 1000) == [.routeAdded(route)])
  }

  @Test("settings belong to the namespace they are read and written in")
  func sysctl() throws {
    try node.namespace.run { try Sysctl.write("net", "ipv4", "ip_forward", value: 1) }
    #expect(try node.namespace.run { try Sysctl.read("net", "ipv4", "ip_forward") } == "1")
    #expect(try pod.namespace.run { try Sysctl.read("net", "ipv4", "ip_forward") } == "0")
    #expect(throws: SystemError.self) { try Sysctl.read("net", "..", "kernel") }
  }
}
