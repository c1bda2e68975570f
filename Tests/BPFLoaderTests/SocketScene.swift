import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

@testable import BPFLoader

/// One Service of two backends per family and protocol, and who may use it.
final class SocketScene {
  let pod: Everywhere
  let host: Everywhere
  let name: String
  var tables = Tables()
  var balancer: SocketBalancer

  static let vips = [ip("10.96.0.1"), ip("fd00:96::1")]
  static let nodes = RandomServices.nodeAddresses

  init(_ name: String, _ change: (inout TableDelta) -> Void = { _ in }) throws {
    self.name = name
    (pod, host) = (try Everywhere(), try Everywhere())
    balancer = try Self.balancer(name, host)
    var delta = TableDelta()
    for family in IPFamily.allCases {
      for (number, proto) in [(1, L4Protocol.tcp), (2, .udp)] {
        delta.frontends[Self.key(family, proto)] = Change(old: nil, new: Self.frontend(number))
        delta.sets[Self.set(number, family)] = Change(old: nil, new: Self.set(family, [2, 3]))
        delta.frontends[FrontendKey(.node(family), proto, port(30080))] = Change(
          old: nil, new: Self.frontend(number, .nodePort))
      }
      delta.nodePortAddresses.added.insert(Self.nodes.of(family))
      delta.internalAddresses[family] = Change(old: nil, new: Self.nodes.of(family))
    }
    delta.endpoints["slc0"] = Change(
      old: nil,
      new: LocalEndpoint(
        interface: "slc0", mac: podMAC, addresses: RandomServices.podAddresses,
        netnsCookie: pod.cookie))
    change(&delta)
    tables.apply(delta)
    _ = try balancer.resync(tables)
  }

  deinit { try? balancer.cleanUp() }

  static func balancer(_ name: String, _ host: Everywhere) throws -> SocketBalancer {
    try SocketBalancer(
      pins: try Surroundings.pins(name), cgroup: try Surroundings.cgroup, hostCookie: host.cookie)
  }
  static func key(_ family: IPFamily, _ proto: L4Protocol) -> FrontendKey {
    FrontendKey(.address(vips.of(family)), proto, port(80))
  }
  static func frontend(_ number: Int, _ kind: FrontendKind = .clusterIP) -> Frontend {
    Frontend(
      service: BPFLoaderTests.service(number), kind: kind, nodeScope: .cluster, outsideScope: .cluster,
      masquerade: .exceptPods)
  }
  static func set(_ number: Int, _ family: IPFamily) -> BackendSetID {
    BackendSetID(service: BPFLoaderTests.service(number), scope: .cluster, family: family)
  }
  static func set(_ family: IPFamily, _ hosts: [Int], affinity: UInt32? = nil, draining: [Int] = []) -> BackendSet {
    BackendSet(
      backends: hosts.map { backend(family, $0) }, emptyAction: .reject, affinityTimeout: affinity,
      draining: draining.map { backend(family, $0) })
  }
  static func backend(_ family: IPFamily, _ host: Int) -> SocketAddress {
    SocketAddress(ip(family == .v4 ? "10.244.2.\(host)" : "fd00:244:2::\(host)"), port(8080))
  }
  static func both(_ family: IPFamily) -> Set<Arrival> {
    [.at(backend(family, 2)), .at(backend(family, 3))]
  }
  static func vip(_ family: IPFamily) -> SocketAddress { SocketAddress(vips.of(family), port(80)) }

  func change(_ number: Int, _ family: IPFamily, _ new: BackendSet) throws {
    var delta = TableDelta()
    let id = Self.set(number, family)
    delta.sets[id] = Change(old: tables.services.sets[id], new: new)
    tables.apply(delta)
    _ = try balancer.apply(delta, tables: tables)
  }

  /// As many connections as leave no doubt.
  func arrivals(_ from: Everywhere, to: SocketAddress, _ proto: L4Protocol, _ count: Int = 40) throws -> Set<Arrival> {
    Set(try (0..<count).map { _ in try from.connect(to: to, proto) })
  }

  /// One of its pinned maps.
  func openMap<Key: MapLayout, Value: MapLayout>(_ map: String) throws -> BPFMap<Key, Value> {
    let pins = try Surroundings.pins(name)
    guard let pin = pins.names.first(where: { $0.hasPrefix("map-\(map)-") }), let descriptor = try pins.open(pin) else {
      throw Surroundings.Failure(description: "no map \(map) is pinned")
    }
    return try BPFMap(map, owning: FileDescriptor(owning: descriptor))
  }
}
