import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("Host ports without an agent")
struct HostPortTests {
  private let node: Node
  private let outside: AnonymousNetworkNamespace

  /// A node with a wire to somebody outside.
  init() throws {
    node = try Node()
    outside = try AnonymousNetworkNamespace()
    let descriptor = try outside.namespace.open()
    let number = descriptor.number
    try node.network.namespace.run {
      try RouteSocket().createVethPair(name: "wire", peer: VethPeer(name: "wire", namespaceDescriptor: number))
    }
    for (namespace, last) in [(node.network.namespace, 1), (outside.namespace, 2)] {
      try namespace.run {
        let socket = try RouteSocket()
        try Sysctl.write("net", "ipv6", "conf", "wire", "accept_dad", value: 0)
        let link = try #require(try socket.link(named: "wire"))
        try socket.setLink(index: link.index, LinkChanges(isUp: true))
        for (address, length) in [("192.0.2.\(last)", 24), ("2001:db8::\(last)", 64)] {
          let address = try #require(IPAddress(address).flatMap { InterfaceAddress($0, prefixLength: length) })
          try socket.addAddress(address, interfaceIndex: link.index, withoutDAD: true)
        }
      }
    }
  }

  private func config(_ ports: [JSONValue]) -> JSONValue {
    node.config(["runtimeConfig": ["portMappings": .array(ports)]])
  }

  /// Whether somebody answers there with this word.
  private func asks(_ namespace: NetworkNamespace, _ text: String, _ port: UInt16, udp: Bool = false) throws -> String?
  {
    let address = try #require(IPAddress(text))
    return try namespace.run { Exchange.ask(address, port, isUDP: udp) }
  }

  @Test("lead to the pod from outside, from the node and from itself, over both families, TCP and UDP; DEL closes them")
  func serve() throws {
    let pod = try Pod()
    let config = config([
      ["hostPort": 8080, "containerPort": 80, "protocol": "tcp"],
      ["HostPort": 8053, "ContainerPort": 53, "Protocol": "UDP"],
    ])
    let server = try Exchange.Server(pod, tcp: 80, udp: 53, says: "one")
    // Tracked before there was a port: it went nowhere.
    #expect(try asks(outside.namespace, "192.0.2.1", 8053, udp: true) == nil)
    let result = try node.add("c1", pod, config)
    for (address, own) in [("192.0.2.1", "10.77.0.1"), ("2001:db8::1", "fd00:77::1")] {
      for (who, place) in [
        ("outside", outside.namespace), ("the node", node.network.namespace), ("itself", pod.network.namespace),
      ] {
        #expect(try asks(place, address, 8080) == "one", "\(who) to \(address), TCP")
        #expect(try asks(place, address, 8053, udp: true) == "one", "\(who) to \(address), UDP")
      }
      // Only what is for the node is taken.
      #expect(try asks(node.network.namespace, own, 8080) == nil)
    }
    #expect(try asks(node.network.namespace, "127.0.0.1", 8080) == nil)
    #expect(!result.serialized().contains("8080"))
    #expect(try node.run("DEL", "c1", config).exitCode == 0)
    #expect(try asks(outside.namespace, "192.0.2.1", 8080) == nil)
    #expect(try tables() == [])
    withExtendedLifetime(server) {}
  }

  private func tables() throws -> [String] {
    let filter = try FilterSocket(in: node.network.namespace)
    return try [.ipv4, .ipv6].flatMap { try filter.chains(in: FilterTable($0, "sluice-cni")) }
  }

  @Test(
    "listen at hostIP alone where one is given; another pod's port is refused by that pod's name, at another address not"
  )
  func hostIP() throws {
    let (first, second, third) = (try Pod(), try Pod(), try Pod())
    let servers = try [(first, "one"), (second, "two")].map { try Exchange.Server($0, tcp: 80, udp: 53, says: $1) }
    try node.network.namespace.run {
      let socket = try RouteSocket()
      let link = try #require(try socket.link(named: "wire"))
      let address = try #require(IPAddress("192.0.2.9").flatMap { InterfaceAddress($0, prefixLength: 24) })
      try socket.addAddress(address, interfaceIndex: link.index)
    }
    func mapping(_ address: String) -> JSONValue {
      config([["hostPort": 8080, "containerPort": 80, "hostIP": .string(address)]])
    }
    try node.add("c1", first, mapping("192.0.2.1"))
    try node.add("c2", second, mapping("192.0.2.9"))
    #expect(try asks(outside.namespace, "192.0.2.1", 8080) == "one")
    #expect(try asks(outside.namespace, "192.0.2.9", 8080) == "two")
    #expect(try asks(outside.namespace, "2001:db8::1", 8080) == nil)
    let refused = try node.run("ADD", "c3", in: third, config([["hostPort": 8080, "containerPort": 80]]))
    #expect(
      refused.errorCode == 102 && refused.message.contains("8080") && refused.message.contains("container c"),
      "\(refused)")
    #expect(try third.links() == ["lo"])
    #expect(try asks(outside.namespace, "192.0.2.1", 8080) == "one")
    // A pod that is gone holds none.
    for container in ["c1", "c2"] { #expect(try node.run("DEL", container).exitCode == 0) }
    #expect(try node.run("ADD", "c3", in: third, config([["hostPort": 8080, "containerPort": 80]])).exitCode == 0)
    #expect(
      try node.run("GC", "", node.config(["cni.dev/valid-attachments": []]), extra: ["CNI_IFNAME": ""]).exitCode == 0)
    #expect(try tables() == [])
    withExtendedLifetime(servers) {}
  }
}

/// One word asked for and given.
private enum Exchange {
  static func ask(_ address: IPAddress, _ port: UInt16, isUDP: Bool) -> String? {
    let descriptor = open(address.family, isUDP)
    defer { close(descriptor) }
    let isConnected = withAddress(address, port) { connect(descriptor, $0, $1) } == 0
    guard isConnected, send(descriptor, "?", 1, Int32(MSG_NOSIGNAL)) == 1 else { return nil }
    var buffer = [UInt8](repeating: 0, count: 64)
    let count = recv(descriptor, &buffer, buffer.count, 0)
    return count > 0 ? String(decoding: buffer[..<count], as: UTF8.self) : nil
  }

  private static func open(_ family: IPFamily, _ isUDP: Bool) -> CInt {
    let type = isUDP ? SOCK_DGRAM : SOCK_STREAM
    let descriptor = socket(CInt(family.linuxFamily), CInt(type.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    var patience = timeval(tv_sec: 0, tv_usec: 500_000)
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
      setsockopt(descriptor, SOL_SOCKET, option, &patience, socklen_t(MemoryLayout<timeval>.size))
    }
    return descriptor
  }

  private static func withAddress(
    _ address: IPAddress, _ port: UInt16, _ body: (UnsafePointer<sockaddr>, socklen_t) -> CInt
  ) -> CInt {
    // struct sockaddr_in and sockaddr_in6: family, port, (flow,) address.
    let family = withUnsafeBytes(of: UInt16(address.family.linuxFamily)) { Array($0) }
    let start = family + [UInt8(port >> 8), UInt8(truncatingIfNeeded: port)]
    let bytes =
      address.family == .v4
      ? start + address.bytes + [UInt8](repeating: 0, count: 8) : start + [0, 0, 0, 0] + address.bytes + [0, 0, 0, 0]
    return bytes.withUnsafeBytes { raw in
      raw.withMemoryRebound(to: sockaddr.self) { body($0.baseAddress.unsafelyUnwrapped, socklen_t(bytes.count)) }
    }
  }

  /// In a pod, over both families and transports, until it is let go.
  final class Server: Sendable {
    private let descriptors: [CInt]

    init(_ pod: Pod, tcp: UInt16, udp: UInt16, says word: String) throws {
      let namespace = pod.network.namespace
      descriptors = try namespace.run {
        // The pod's addresses come later.
        try [(tcp, false), (udp, true)].map { port, isUDP in
          let descriptor = Exchange.open(.v6, isUDP)
          let isBound = Exchange.withAddress(.unspecified(.v6), port) { bind(descriptor, $0, $1) } == 0
          try #require(isBound && (isUDP || listen(descriptor, 16) == 0))
          return descriptor
        }
      }
      let (listener, datagrams) = (descriptors[0], descriptors[1])
      let bytes = Array(word.utf8)
      startThread {
        while true {
          let connection = accept(listener, nil, nil)
          if connection < 0 {
            if errno == EAGAIN { continue }
            return
          }
          send(connection, bytes, bytes.count, Int32(MSG_NOSIGNAL))
          close(connection)
        }
      }
      startThread {
        var buffer = [UInt8](repeating: 0, count: 64)
        while true {
          var peer = sockaddr_storage()
          var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
          let isDone = withUnsafeMutablePointer(to: &peer) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
              let count = recvfrom(datagrams, &buffer, buffer.count, 0, address, &length)
              if count < 0 { return errno != EAGAIN }
              sendto(datagrams, bytes, bytes.count, 0, address, length)
              return false
            }
          }
          if isDone { return }
        }
      }
    }

    deinit {
      for descriptor in descriptors {
        shutdown(descriptor, CInt(SHUT_RDWR))
        close(descriptor)
      }
    }
  }
}
