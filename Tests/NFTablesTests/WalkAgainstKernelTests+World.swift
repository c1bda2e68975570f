import DataplaneModel
import NetworkTypes

@testable import NFTables

/// SplitMix64: small, and the same everywhere for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
    return mixed ^ mixed >> 31
  }
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
  mutating func pick<Element>(_ elements: [Element]) -> Element {
    elements[Int.random(in: 0..<elements.count, using: &self)]
  }
}

/// A random cluster as one node sees it, with only such tables as the compiler can make: small ranges of numbers, so that
/// claims collide.
struct World {
  struct ServiceSpec {
    var id: Int
    var proto: L4Protocol
    var port: Int
    var families: [IPFamily]
    /// Two service ports may share an address.
    var address: Int
    var internalLocal = false
    var externalLocal = false
    var affinity: UInt32?
    var isHashed = false
    var nodePort: Int?
    var loadBalancers: [Int] = []
    var externalIPs: [Int] = []
    var sourceRanges: [CIDR] = []
    var backends: [IPFamily: [SocketAddress]] = [:]
  }

  var services: [ServiceSpec] = []
  var nextID = 1
  var nodePortAddresses: Set<IPAddress> = []
  var internalNumber: [IPFamily: Int] = [.v4: 0, .v6: 0]
  var endpoints: Set<Int> = [0, 1, 2]
  var secondServiceRange = false
  var masqueradesLeaving = true
  /// How many Services have 4,093 slots, by which steps of a plan cannot be gone through one by one.
  var hashedPercent = 0

  static func clusterIP(_ family: IPFamily, _ number: Int) -> IPAddress {
    ip(family == .v4 ? "10.96.0.\(number)" : "fd00:10:96::\(number)")
  }
  /// Virtual addresses 0...3; 4 is a ClusterIP, 5 and 6 are the node's: claims that meet others.
  static func virtualIP(_ family: IPFamily, _ number: Int) -> IPAddress {
    switch number {
    case 4: clusterIP(family, 2)
    case 5: PacketRig.uplink(family)
    case 6: PacketRig.nodeInternal(family, 0)
    default: ip(family == .v4 ? "203.0.113.\(10 + number)" : "2001:db8:113::\(10 + number)")
    }
  }
  /// Stands for this node's InternalIP, whichever that is, as the address of a pod in the host's network.
  private static func hostNetwork(_ family: IPFamily) -> IPAddress { .unspecified(family) }
  static func nodeAddresses(_ family: IPFamily) -> [IPAddress] {
    [PacketRig.uplink(family), PacketRig.nodeInternal(family, 0), PacketRig.nodeInternal(family, 1)]
  }

  init(services count: Int, hashedPercent: Int = 0, using random: inout SeededGenerator) {
    self.hashedPercent = hashedPercent
    for _ in 0..<count { addService(using: &random) }
    changeNode(using: &random)
  }

  // MARK: Changes

  mutating func addService(using random: inout SeededGenerator) {
    let proto: L4Protocol = random.chance(50) ? .tcp : .udp
    var service = ServiceSpec(
      id: nextID, proto: proto, port: random.pick([53, 80, 443]),
      families: random.pick([[.v4], [.v6], [.v4, .v6], [.v4, .v6]]), address: nextID / 2 + 1)
    nextID += 1
    changePolicies(&service, using: &random)
    changeFrontends(&service, using: &random)
    changeBackends(&service, using: &random)
    services.append(service)
  }

  /// One change such as a cluster sees.
  mutating func change(using random: inout SeededGenerator) {
    guard !services.isEmpty, !random.chance(15) else { return addService(using: &random) }
    let index = Int.random(in: 0..<services.count, using: &random)
    switch Int.random(in: 0..<10, using: &random) {
    case 0: services.remove(at: index)
    case 1: changePolicies(&services[index], using: &random)
    case 2: changeFrontends(&services[index], using: &random)
    case 3: changeNode(using: &random)
    default: changeBackends(&services[index], using: &random)
    }
  }

  private func changePolicies(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    service.internalLocal = random.chance(25)
    service.externalLocal = random.chance(40)
    service.affinity = random.chance(35) ? random.pick([1, 2, 30, 10800]) : nil
    service.isHashed = hashedPercent > 0 && random.chance(hashedPercent)
  }

  private func changeFrontends(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    service.nodePort = random.chance(60) ? random.pick([30001, 30002, 30003, 30004, 80, 443]) : nil
    service.loadBalancers =
      random.chance(50) ? Array(Set([random.pick([0, 1, 2, 4, 5]), random.pick([0, 1, 2])])) : []
    service.externalIPs = random.chance(30) ? [random.pick([0, 1, 3, 5, 6])] : []
    let ranges = [
      "198.51.100.0/29", "10.244.0.0/16", "10.244.1.2/31", "192.168.0.0/16", "2001:db8::/32", "fd00:10:244:1::2/127",
      "fd00:100::/64",
    ].map(cidr)
    service.sourceRanges = random.chance(50) ? Array(ranges.shuffled(using: &random).prefix(3)) : []
  }

  private func changeBackends(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    for family in service.families {
      var pool: [SocketAddress] = []
      func add(_ address: IPAddress, _ port: Int) { pool.append(at("\(address)", port)) }
      for pod in 0..<PacketRig.podCount { add(PacketRig.pod(family, pod), 8080) }
      add(PacketRig.pod(family, 0), 8081)
      for pod in 0..<6 { add(PacketRig.remotePod(family, pod), 8080) }
      add(PacketRig.external(family), 9090)
      add(Self.hostNetwork(family), 6443)
      let count = random.chance(20) ? 0 : Int.random(in: 1...6, using: &random)
      let kind = random.pick([0, 0, 1, 2])
      if kind == 1 { pool.removeAll { PacketRig.isPod($0.address) } }
      if kind == 2 { pool.removeAll { !PacketRig.isPod($0.address) } }
      service.backends[family] = Array(pool.shuffled(using: &random).prefix(count))
    }
  }

  private mutating func changeNode(using random: inout SeededGenerator) {
    nodePortAddresses = []
    for family in IPFamily.allCases {
      nodePortAddresses.formUnion(Self.nodeAddresses(family).filter { _ in random.chance(60) })
      internalNumber[family] = random.pick([0, 1])
    }
    endpoints = random.chance(70) ? [0, 1, 2] : [0, 1]
    secondServiceRange = random.chance(50)
    masqueradesLeaving = random.chance(80)
  }

  // MARK: Tables

  /// What the compiler would make of this, as a change of `tables`.
  func delta(from tables: Tables) -> TableDelta {
    var claims: [FrontendKey: (kind: FrontendKind, frontend: Frontend)] = [:]
    var sets: [BackendSetID: BackendSet] = [:]
    var addresses: Set<IPAddress> = []
    for service in services {
      for family in service.families {
        addresses.insert(Self.clusterIP(family, service.address))
        var scopes: Set<BackendScope> = []
        for (key, frontend) in frontends(service, family) {
          scopes.formUnion([frontend.nodeScope, frontend.outsideScope])
          if let known = claims[key], known.kind <= frontend.kind { continue }
          claims[key] = (frontend.kind, frontend)
        }
        for scope in scopes {
          let id = BackendSetID(service: id(service.id), scope: scope, family: family)
          sets[id] = set(service, family, scope).withSlots(following: tables.services.sets[id]?.backends ?? [])
        }
      }
    }
    var delta = TableDelta()
    delta.frontends = changes(tables.services.frontends, claims.mapValues(\.frontend))
    delta.sets = changes(tables.services.sets, sets)
    delta.serviceAddresses = SetChange(from: tables.services.serviceAddresses, to: addresses)
    delta.serviceRanges = SetChange(from: tables.services.serviceRanges, to: serviceRanges)
    delta.nodePortAddresses = SetChange(from: tables.node.nodePortAddresses, to: nodePortAddresses)
    delta.clusterRanges = SetChange(from: tables.node.clusterRanges, to: clusterRanges)
    delta.internalAddresses = changes(
      tables.node.internalAddresses,
      Dictionary(uniqueKeysWithValues: internalNumber.map { ($0, PacketRig.nodeInternal($0, $1)) }))
    delta.endpoints = changes(
      tables.node.endpoints,
      Dictionary(uniqueKeysWithValues: endpoints.map { (PacketRig.interface($0), PacketRig.endpoint($0)) }))
    return delta
  }

  private func changes<Key: Hashable, Value: Equatable & Sendable>(
    _ old: [Key: Value], _ new: [Key: Value]
  ) -> [Key: Change<Value>] {
    var changes: [Key: Change<Value>] = [:]
    for key in Set(old.keys).union(new.keys) where old[key] != new[key] {
      changes[key] = Change(old: old[key], new: new[key])
    }
    return changes
  }

  private var serviceRanges: Set<CIDR> {
    var ranges: Set<CIDR> = [cidr("10.96.0.0/24"), cidr("fd00:10:96::/112")]
    if secondServiceRange { ranges.formUnion([cidr("10.96.8.0/23"), cidr("fd00:10:97::/112")]) }
    return ranges
  }

  private var clusterRanges: Set<CIDR> {
    guard masqueradesLeaving else { return [] }
    let pods = ["10.244.0.0/16", "fd00:10:244::/48", "10.96.0.0/16", "fd00:10:96::/112"].map(cidr)
    return Set(pods + IPFamily.allCases.flatMap { Self.nodeAddresses($0).map(CIDR.init(host:)) })
  }

  private func set(_ service: ServiceSpec, _ family: IPFamily, _ scope: BackendScope) -> BackendSet {
    let node = PacketRig.nodeInternal(family, internalNumber[family] ?? 0)
    let all = (service.backends[family] ?? []).map {
      $0.address == Self.hostNetwork(family) ? SocketAddress(node, $0.port) : $0
    }
    let backends = scope == .cluster ? all : all.filter { PacketRig.isPod($0.address) || $0.address == node }
    return BackendSet(
      backends: backends, emptyAction: scope == .local && !all.isEmpty ? .drop : .reject,
      affinityTimeout: service.affinity, isHashed: service.isHashed)
  }

  private func frontends(_ service: ServiceSpec, _ family: IPFamily) -> [(FrontendKey, Frontend)] {
    var result: [(FrontendKey, Frontend)] = []
    func add(
      _ destination: FrontendAddress, _ port: Int, _ kind: FrontendKind, ranges: [AddressRange]? = nil
    ) {
      let isInternal = kind == .clusterIP
      let inner: BackendScope = service.internalLocal ? .local : .cluster
      result.append(
        (
          FrontendKey(destination, service.proto, at("::", port).port),
          Frontend(
            service: id(service.id), kind: kind, nodeScope: isInternal ? inner : .cluster,
            outsideScope: isInternal ? inner : service.externalLocal ? .local : .cluster,
            masquerade: isInternal ? .exceptPods : service.externalLocal ? .hostOnly : .always,
            hasAffinity: service.affinity != nil, sourceRanges: ranges)
        ))
    }
    add(.address(Self.clusterIP(family, service.address)), service.port, .clusterIP)
    if let nodePort = service.nodePort { add(.node(family), nodePort, .nodePort) }
    let ranges = AddressRange.merging(service.sourceRanges.filter { $0.family == family }.map(AddressRange.init))
    for number in service.loadBalancers {
      add(
        .address(Self.virtualIP(family, number)), service.port, .loadBalancer, ranges: ranges.isEmpty ? nil : ranges)
    }
    for number in service.externalIPs { add(.address(Self.virtualIP(family, number)), service.port, .externalIP) }
    return result
  }

  // MARK: Packets

  /// A packet that has something to meet in `tables`, and which pod sends it.
  func packet(port: UInt16, _ tables: Tables, using random: inout SeededGenerator) -> (packet: Packet, pod: Int?) {
    let family = random.pick(IPFamily.allCases)
    var proto: L4Protocol = random.chance(50) ? .tcp : .udp
    let (destination, destinationPort): (IPAddress, Int)
    let keys = frontendsInOrder(tables, family)
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<76 where !keys.isEmpty:
      let key = random.pick(keys)
      proto = key.proto
      destinationPort = Int(key.port.number)
      switch key.destination {
      case .address(let address): destination = address
      case .node: destination = random.pick(Self.nodeAddresses(family))
      }
    case 76..<83: (destination, destinationPort) = (Self.clusterIP(family, random.pick([1, 2, 3])), 4711)
    case 83..<88:
      (destination, destinationPort) = (
        ip(
          family == .v4
            ? random.pick(["10.96.0.200", "10.96.9.1"]) : random.pick(["fd00:10:96::200", "fd00:10:97::9"])),
        80
      )
    case 88..<92: (destination, destinationPort) = (random.pick(Self.nodeAddresses(family)), random.pick([30001, 5]))
    default:
      destinationPort = 8080
      destination = random.pick([
        PacketRig.pod(family, 1), PacketRig.remotePod(family, 2), PacketRig.external(family),
        Self.virtualIP(family, 3),
      ])
    }
    let origin = random.pick(Origin.allCases)
    var pod: Int?
    let source: IPAddress
    switch origin {
    case .pod:
      let sender = random.pick(endpoints.sorted())
      pod = sender
      source =
        random.chance(5)
        ? random.pick([PacketRig.external(family), PacketRig.remotePod(family, 1)]) : PacketRig.pod(family, sender)
    case .host: source = random.pick(Self.nodeAddresses(family))
    case .outside:
      source = random.pick([
        PacketRig.gateway(family), PacketRig.external(family, 1), PacketRig.external(family, 200),
        PacketRig.remotePod(family, 3),
      ])
    }
    return (
      Packet(
        origin: origin, source: source, destination: destination, proto: proto, sourcePort: port,
        destinationPort: UInt16(destinationPort)), pod
    )
  }

  /// Sorted: the same seed must send the same packets, and a dictionary's order is another in every process.
  private func frontendsInOrder(_ tables: Tables, _ family: IPFamily) -> [FrontendKey] {
    tables.services.frontends.keys.filter { $0.destination.family == family }
      .sorted { "\($0)" < "\($1)" }
  }
}
