import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import PodFilters
import Testing

/// A node of its own for one test: a network namespace that forwards, with folders that are gone with it.
final class Node: Sendable {
  let network: AnonymousNetworkNamespace
  let folder: String
  private let plugin: String

  init() throws {
    plugin = try Plugin.path()
    network = try AnonymousNetworkNamespace()
    var template = Array("/tmp/sluice-test-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw FileError(path: "/tmp", operation: "create temporary folder", errno: errno)
    }
    folder = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    try LocalFile.createDirectories(runDirectory)
    try network.namespace.run {
      try RouteSocket().setLink(index: 1, LinkChanges(isUp: true))
      try Sysctl.write("net", "ipv4", "ip_forward", value: 1)
      try Sysctl.write("net", "ipv6", "conf", "all", "forwarding", value: 1)
    }
  }

  deinit { Self.remove(folder) }

  private static func remove(_ path: String) {
    for name in (try? LocalFile.names(in: path)) ?? [] { remove("\(path)/\(name)") }
    if rmdir(path) != 0 { unlink(path) }
  }

  var stateDirectory: String { "\(folder)/state" }
  var runDirectory: String { "\(folder)/run" }
  var agentSocket: String { "\(runDirectory)/agent.sock" }
  var store: AddressStore { AddressStore(stateDirectory: stateDirectory, network: "pods") }
  var endpoints: EndpointRecordStore { EndpointRecordStore(directory: "\(runDirectory)/endpoints") }

  func startAgent(_ behaviour: FakeAgent.Behaviour = .programs) throws -> FakeAgent {
    unlink(agentSocket)
    return try FakeAgent(path: agentSocket, behaviour)
  }

  /// A configuration that needs no agent, with both families; members of `changes` are set, nulls removed.
  func config(version: String = "1.1.0", _ changes: JSONObject = [:]) -> JSONValue {
    var object: JSONObject = [
      "cniVersion": .string(version), "name": "pods", "type": "sluice", "requireAgent": false,
      "stateDir": .string(stateDirectory), "runDir": .string(runDirectory),
      "ipam": ["type": "sluice", "ranges": [[["subnet": "10.77.0.0/24"]], [["subnet": "fd00:77::/64"]]]],
    ]
    for change in changes { object[change.key] = change.value.isNull ? nil : change.value }
    return .object(object)
  }

  /// Variables of `extra` are added; empty ones are left out.
  ///
  /// - Parameter tracer: a program with its arguments that runs the plugin.
  func start(
    _ command: String, _ containerID: String = "c1", netns: String = "", _ config: JSONValue? = nil,
    extra: [String: String] = [:], under tracer: [String] = []
  ) throws -> RunningPlugin {
    var environment = [
      "CNI_COMMAND": command, "CNI_CONTAINERID": containerID, "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
      "CNI_PATH": "/opt/cni/bin",
    ]
    environment.merge(extra) { $1 }
    let words = tracer + [plugin]
    return try RunningPlugin.start(
      words[0], arguments: Array(words.dropFirst()), environment: environment.filter { !$0.value.isEmpty },
      input: (config ?? self.config()).serialized(), in: network.namespace)
  }

  func run(
    _ command: String, _ containerID: String = "c1", netns: String = "", _ config: JSONValue? = nil,
    extra: [String: String] = [:]
  ) throws -> Outcome {
    try start(command, containerID, netns: netns, config, extra: extra).finish()
  }

  /// With a pod that lives until the plugin has ended: its path is good only as long.
  func run(
    _ command: String, _ containerID: String = "c1", in pod: Pod, _ config: JSONValue? = nil,
    extra: [String: String] = [:]
  ) throws -> Outcome {
    let outcome = try run(
      command, containerID, netns: pod.path, config, extra: extra)
    withExtendedLifetime(pod) {}
    return outcome
  }

  /// ADD that must succeed.
  @discardableResult
  func add(_ containerID: String, _ pod: Pod, _ config: JSONValue? = nil) throws -> JSONValue {
    let outcome = try run("ADD", containerID, in: pod, config)
    try #require(outcome.exitCode == 0, "\(outcome)")
    return outcome.json
  }

  /// Everything an attachment may have left, as text; empty after a clean DEL.
  func leftovers() throws -> [String] {
    let socket = try RouteSocket(in: network.namespace)
    var found = try socket.links().map(\.name).filter { $0 != "lo" }
    found += try socket.routes(table: Route.mainTable).map(\.description)
    found += try socket.neighbours().map { "neighbour \($0.address)" }
    found += try network.namespace.run { try SenderChains().devices().map { "chain \($0)" } }
    found += try store.reservations().map { "reserved \($0.address)" }
    found += try LocalFile.names(in: "\(store.directory)/owners").map { "owner \($0)" }
    found += try LocalFile.names(in: store.directory).filter { $0.hasPrefix(".") }
    found += try LocalFile.names(in: endpoints.directory).map { "record \($0)" }
    return found
  }
}

/// A pod sandbox: an empty namespace.
final class Pod: Sendable {
  let network: AnonymousNetworkNamespace

  init() throws { network = try AnonymousNetworkNamespace() }

  var path: String { network.namespace.path }

  func links() throws -> [String] { try RouteSocket(in: network.namespace).links().map(\.name) }

  /// Whether `address` answers an echo request from here.
  func reaches(_ address: IPAddress, milliseconds: Int32 = 1000) throws -> Bool {
    try network.namespace.run { Echo.reaches(address, milliseconds: milliseconds) }
  }
}

/// ping: one echo request over a raw socket.
enum Echo {
  static func reaches(_ address: IPAddress, milliseconds: Int32) -> Bool {
    let isV4 = address.family == .v4
    let descriptor = socket(
      isV4 ? AF_INET : AF_INET6, CInt(SOCK_RAW.rawValue) | CInt(SOCK_CLOEXEC.rawValue),
      isV4 ? CInt(IPPROTO_ICMP) : CInt(IPPROTO_ICMPV6))
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    // Type, code, checksum, identifier, sequence, payload; the kernel fills in ICMPv6's checksum.
    let identifier = UInt8.random(in: 1...255)
    var packet: [UInt8] = [isV4 ? 8 : 128, 0, 0, 0, identifier, 7, 0, 1] + Array("sluice!!".utf8)
    if isV4 {
      var sum: UInt32 = 0
      for index in stride(from: 0, to: packet.count, by: 2) {
        sum += UInt32(packet[index]) << 8 | UInt32(packet[index + 1])
      }
      while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
      (packet[2], packet[3]) = (UInt8(~sum >> 8 & 0xff), UInt8(~sum & 0xff))
    }
    guard send(packet, to: address, descriptor) else { return false }
    let end = time(nil) + Int(milliseconds) / 1000 + 1
    while time(nil) <= end {
      var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      guard poll(&request, 1, milliseconds) > 0 else { return false }
      var buffer = [UInt8](repeating: 0, count: 1500)
      let count = recv(descriptor, &buffer, buffer.count, 0)
      // IPv4 raw sockets hand out the IP header too.
      let start = isV4 ? Int(buffer[0] & 15) * 4 : 0
      guard count >= start + 8 else { return false }
      if buffer[start] == (isV4 ? 0 : 129), buffer[start + 4] == identifier { return true }
    }
    return false
  }

  private static func send(_ packet: [UInt8], to address: IPAddress, _ descriptor: CInt) -> Bool {
    var storage = sockaddr_storage()
    let length: Int
    if address.family == .v4 {
      var target = sockaddr_in()
      target.sin_family = sa_family_t(AF_INET)
      withUnsafeMutableBytes(of: &target.sin_addr) { $0.copyBytes(from: address.bytes) }
      length = MemoryLayout<sockaddr_in>.size
      withUnsafeMutableBytes(of: &storage) { storage in withUnsafeBytes(of: target) { storage.copyBytes(from: $0) } }
    } else {
      var target = sockaddr_in6()
      target.sin6_family = sa_family_t(AF_INET6)
      withUnsafeMutableBytes(of: &target.sin6_addr) { $0.copyBytes(from: address.bytes) }
      length = MemoryLayout<sockaddr_in6>.size
      withUnsafeMutableBytes(of: &storage) { storage in withUnsafeBytes(of: target) { storage.copyBytes(from: $0) } }
    }
    return withUnsafePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        sendto(descriptor, packet, packet.count, 0, $0, socklen_t(length)) == packet.count
      }
    }
  }
}
