import DataplaneModel
import NetworkTypes

/// Service tables at random, with few enough addresses and ports that claims collide, and connections to them.
struct RandomServices {
  static let podAddresses = [ip("10.244.1.2"), ip("fd00:244:1::2")]
  static let otherPodAddresses = [ip("10.244.1.3"), ip("fd00:244:1::3")]
  static let nodeAddresses = [ip("10.9.0.1"), ip("fd00:9::1")]
  static let outsideAddresses = [ip("192.0.2.9"), ip("2001:db8::9")]

  private(set) var tables = Tables() {
    didSet { frontends = nil }
  }
  /// The tables' frontends in an order that a seed gives again: sorted once per change, not per packet.
  private var frontends: [FrontendKey]?
  private var random: SplitMix

  init(seed: UInt64, podCookie: UInt64) {
    random = SplitMix(seed: seed)
    var delta = TableDelta()
    delta.endpoints["slc0"] = Change(
      old: nil,
      new: LocalEndpoint(
        interface: "slc0", mac: podMAC, addresses: Self.podAddresses,
        netnsCookie: podCookie))
    delta.endpoints["slc1"] = Change(
      old: nil, new: LocalEndpoint(interface: "slc1", mac: podMAC, addresses: Self.otherPodAddresses))
    for text in ["10.244.0.0/16", "10.9.0.0/16", "fd00:244::/32", "fd00:9::/32"] {
      if let range = CIDR(text) { delta.clusterRanges.added.insert(range) }
    }
    for text in ["10.96.0.0/16", "fd00:96::/32"] {
      if let range = CIDR(text) { delta.serviceRanges.added.insert(range) }
    }
    delta.serviceAddresses.added = [ip("10.96.0.1"), ip("10.96.0.2"), ip("fd00:96::1"), ip("fd00:96::2")]
    delta.otherAddresses.added = [ip("10.96.0.6"), ip("fd00:96::6")]
    for address in Self.nodeAddresses {
      delta.internalAddresses[address.family] = Change(old: nil, new: address)
      delta.ownAddresses.added.insert(address)
      delta.nodePortAddresses.added.insert(address)
    }
    for number in 1...30 { set(number, &delta) }
    tables.apply(delta)
  }

  /// A few Services become others.
  mutating func mutate() -> TableDelta {
    var delta = TableDelta()
    for _ in 0..<Int.random(in: 1...4, using: &random) {
      let number = Int.random(in: 1...30, using: &random)
      guard let service = ServicePortID(number), !delta.sets.keys.contains(where: { $0.service == service }) else {
        continue
      }
      for (key, frontend) in tables.services.frontends where frontend.service == service {
        delta.frontends[key] = Change(old: frontend, new: nil)
      }
      for (id, old) in tables.services.sets where id.service == service {
        delta.sets[id] = Change(old: old, new: nil)
      }
      if Int.random(in: 0..<5, using: &random) > 0 { set(number, &delta) }
    }
    if Int.random(in: 0..<8, using: &random) == 0 {
      let address = Self.nodeAddresses[Int.random(in: 0...1, using: &random)]
      if tables.node.nodePortAddresses.contains(address) {
        delta.nodePortAddresses.removed.insert(address)
      } else {
        delta.nodePortAddresses.added.insert(address)
      }
    }
    tables.apply(delta)
    return delta
  }

  private mutating func set(_ number: Int, _ delta: inout TableDelta) {
    guard let service = ServicePortID(number) else { return }
    let affinity: UInt32? = number % 3 == 0 ? 10_800 : nil
    let family = number % 2 == 0 ? IPFamily.v4 : .v6
    for scope in BackendScope.allCases {
      var backends = (0..<Int.random(in: 0...4, using: &random)).map { _ in backend(family) }
      backends = Array(Set(backends)).sorted { "\($0)" < "\($1)" }
      let id = BackendSetID(service: service, scope: scope, family: family)
      let new = BackendSet(
        backends: backends, emptyAction: Bool.random(using: &random) ? .reject : .drop, affinityTimeout: affinity,
        isHashed: number % 5 == 0)
      delta.sets[id] = Change(
        old: delta.sets[id]?.old, new: new.withSlots(following: tables.services.sets[id]?.backends ?? []))
    }
    for _ in 0..<Int.random(in: 1...3, using: &random) {
      let kind = FrontendKind.allCases.randomElement(using: &random) ?? .clusterIP
      let proto: L4Protocol = Bool.random(using: &random) ? .tcp : .udp
      let address: FrontendAddress =
        kind == .nodePort || kind == .hostPort && Bool.random(using: &random)
        ? .node(family) : .address(frontendAddress(family, kind))
      let key = FrontendKey(address, proto, port())
      // One claim per address and port; NodePorts against addresses are for the packet path to settle.
      guard (delta.frontends[key] ?? Change(old: tables.services.frontends[key], new: nil)).new == nil,
        tables.services.frontends[key] == nil || delta.frontends[key]?.old != nil
      else { continue }
      let scopes = BackendScope.allCases
      delta.frontends[key] = Change(
        old: delta.frontends[key]?.old,
        new: Frontend(
          service: service, kind: kind, nodeScope: scopes.randomElement(using: &random) ?? .cluster,
          outsideScope: scopes.randomElement(using: &random) ?? .cluster,
          masquerade: [.exceptPods, .always, .hostOnly].randomElement(using: &random) ?? .exceptPods,
          hasAffinity: affinity != nil, sourceRanges: sourceRanges(family)))
    }
  }

  private mutating func backend(_ family: IPFamily) -> SocketAddress {
    // A pod in this node's network, now and then.
    if Int.random(in: 0..<12, using: &random) == 0 { return SocketAddress(Self.nodeAddresses.of(family), port()) }
    let host = Int.random(in: 2...9, using: &random)
    return SocketAddress(ip(family == .v4 ? "10.244.1.\(host)" : "fd00:244:1::\(host)"), port())
  }

  private mutating func frontendAddress(_ family: IPFamily, _ kind: FrontendKind) -> IPAddress {
    if kind != .clusterIP, Int.random(in: 0..<3, using: &random) == 0 {
      return Self.nodeAddresses.of(family)
    }
    let host = Int.random(in: 1...6, using: &random)
    return ip(family == .v4 ? "10.96.0.\(host)" : "fd00:96::\(host)")
  }

  private mutating func port() -> Port { BPFLoaderTests.port(Everywhere.ports.randomElement(using: &random) ?? 80) }

  private mutating func sourceRanges(_ family: IPFamily) -> [AddressRange]? {
    guard Int.random(in: 0..<4, using: &random) == 0 else { return nil }
    let choices =
      family == .v4
      ? ["10.244.1.2/32", "10.9.0.0/16", "10.0.0.0/8", "192.0.2.0/24", "10.244.1.0/31", "0.0.0.0/0"]
      : ["fd00:244:1::2/128", "fd00:9::/32", "fd00::/8", "2001:db8::/32", "fd00:244:1::/127", "::/0"]
    return AddressRange.merging(
      choices.filter { _ in Bool.random(using: &random) }.compactMap { CIDR($0) }.map(AddressRange.init))
  }

  /// A connection of a pod or of the node, often to a frontend.
  mutating func packet() -> Packet { packet(isPod: Bool.random(using: &random), other: .host, Self.nodeAddresses) }

  /// The first packet of a flow of a pod, or from outside.
  mutating func routedPacket() -> Packet {
    var packet = packet(isPod: Bool.random(using: &random), other: .outside, Self.outsideAddresses)
    let family = packet.source.family
    switch Int.random(in: 0..<30, using: &random) {
    case 0: packet.source = Self.nodeAddresses.of(family)
    case 1: packet.source = Self.otherPodAddresses.of(family)
    case 2...5: packet.destination = ip(family == .v4 ? "198.51.100.7" : "2001:db8:7::7")
    case 6...8: packet.destination = ip(family == .v4 ? "10.96.0.99" : "fd00:96::99")
    case 9: packet.destination = Self.otherPodAddresses.of(family)
    default: break
    }
    return packet
  }

  private mutating func packet(isPod: Bool, other: Origin, _ others: [IPAddress]) -> Packet {
    let keys = frontends ?? tables.services.frontends.keys.sorted { "\($0)" < "\($1)" }
    frontends = keys
    var (family, proto, number) = (IPFamily.v4, L4Protocol.tcp, Everywhere.ports.randomElement(using: &random) ?? 80)
    var destination = ip("10.96.0.\(Int.random(in: 1...7, using: &random))")
    if Int.random(in: 0..<8, using: &random) > 0, let key = keys.randomElement(using: &random) {
      (family, proto, number) = (key.destination.family, key.proto, key.port.number)
      switch key.destination {
      case .address(let address): destination = address
      case .node(let family): destination = Self.nodeAddresses.of(family)
      }
    }
    return Packet(
      origin: isPod ? .pod : other,
      source: (isPod ? Self.podAddresses : others).of(family),
      destination: destination, proto: proto, sourcePort: 0, destinationPort: number, interface: isPod ? "slc0" : nil)
  }
}

struct SplitMix: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
