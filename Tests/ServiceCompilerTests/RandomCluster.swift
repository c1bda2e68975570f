import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

/// Random edits of a small cluster, in which everything collides: few names, addresses and ports, all features.
struct RandomCluster: RandomNumberGenerator {
  private var bits: UInt64
  init(seed: UInt64) { bits = seed }

  /// SplitMix64.
  mutating func next() -> UInt64 {
    bits &+= 0x9e37_79b9_7f4a_7c15
    var mixed = bits
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }

  private static let clusterIPs = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "198.51.100.1", "192.168.0.1"].map {
    address($0)
  }
  private static let clusterIPs6 = ["fd00:96::1", "fd00:96::2", "fd00:96::3"].map { address($0) }
  private static let externals = ["198.51.100.1", "198.51.100.2", "192.168.0.1", "10.96.0.1", "2001:db8:1::1"].map {
    address($0)
  }
  private static let sources = ["203.0.113.7", "192.168.0.1", "198.51.100.1", "10.244.1.2", "10.244.1.9"].map {
    address($0)
  }
  private static let sources6 = ["2001:db8::7", "fd00:192::1", "fd00:244:1::2", "fd00:244:1::9"].map { address($0) }
  private static let ports: [Port] = [53, 80, 81, 30080, 30081].compactMap { Port($0) }
  private static let ranges = ["203.0.113.0/24", "10.244.1.8/29", "192.168.0.0/24", "2001:db8::/32", "0.0.0.0/0"]

  private mutating func one<Value>(of values: [Value]) -> Value {
    values[Int.random(in: 0..<values.count, using: &self)]
  }
  private mutating func some<Value>(of values: [Value], _ atMost: Int) -> [Value] {
    Array(values.shuffled(using: &self).prefix(Int.random(in: 0...atMost, using: &self)))
  }
  private mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }

  /// One to three edits.
  mutating func edits() -> [ObjectChange] { (0..<Int.random(in: 1...3, using: &self)).map { _ in edit() } }

  private mutating func edit() -> ObjectChange {
    let key = ObjectKey(namespace: one(of: ["bank", "shop"]), name: one(of: ["a", "b", "c"]))
    switch Int.random(in: 0..<100, using: &self) {
    case ..<40: return .upsert(.service(service(key)))
    case ..<50: return .delete(.service, key)
    case ..<85: return .upsert(.endpointSlice(slice(key)))
    case ..<92: return .delete(.endpointSlice, ObjectKey(namespace: key.namespace, name: one(of: ["s0", "s1", "s2"])))
    case ..<95:
      return .upsert(
        .serviceCIDR(ServiceCIDR(name: "x", cidrs: ["10.96.0.0/29", "fd00:96::/125"].compactMap { CIDR($0) })))
    case ..<96: return .delete(.serviceCIDR, ObjectKey(namespace: "", name: "x"))
    case ..<99:
      var node = Node(name: "here")
      node.zone = one(of: ["a", "b", nil])
      node.internalIPs = [address(one(of: ["192.168.0.1", "192.168.1.1"])), address("fd00:192::1")]
      return .upsert(.node(node))
    default: return .delete(.node, ObjectKey(namespace: "", name: "here"))
    }
  }

  private mutating func service(_ key: ObjectKey) -> Service {
    var service = Service(key: key)
    service.creationTimestamp = one(of: [0, 100, 200])
    service.type = one(of: [.clusterIP, .clusterIP, .nodePort, .nodePort, .loadBalancer, .loadBalancer, .externalName])
    service.proxyName = chance(5) ? "other" : nil
    service.isHeadless = chance(5)
    if !service.isHeadless, service.type != .externalName {
      if chance(85) { service.clusterIPs.append(one(of: Self.clusterIPs)) }
      if chance(50) { service.clusterIPs.append(one(of: Self.clusterIPs6)) }
    }
    for name in ["", "x", "y"] where chance(60) {
      let port = ServicePort(
        name: name, proto: one(of: L4Protocol.allCases), port: one(of: Self.ports),
        nodePort: service.type == .nodePort || service.type == .loadBalancer ? one(of: [nil] + Self.ports) : nil)
      // As the API server has it: no port or node port twice for one protocol.
      let clashes = service.ports.contains {
        $0.proto == port.proto && ($0.port == port.port || $0.nodePort != nil && $0.nodePort == port.nodePort)
      }
      if !clashes { service.ports.append(port) }
    }
    service.internalTrafficPolicy = one(of: [.cluster, .local])
    service.externalTrafficPolicy = one(of: [.cluster, .local])
    service.affinityTimeoutSeconds = one(of: [nil, nil, 1, 10800])
    service.externalIPs = some(of: Self.externals, 2)
    if service.type == .loadBalancer {
      service.loadBalancerIPs = some(of: Self.externals, 2)
      if chance(50) { service.loadBalancerSourceRanges = some(of: Self.ranges, 2).compactMap { CIDR($0) } }
      if service.externalTrafficPolicy == .local { service.healthCheckNodePort = Port(32000) }
    }
    return service
  }

  private mutating func slice(_ service: ObjectKey) -> EndpointSlice {
    var slice = EndpointSlice(
      key: ObjectKey(namespace: service.namespace, name: one(of: ["s0", "s1", "s2", "s3", "s4", "s5"])))
    slice.serviceName = chance(95) ? service.name : nil
    slice.isHeadless = chance(5)
    let family: IPFamily = one(of: [.v4, .v4, .v6])
    slice.family = chance(97) ? family : nil
    for name in ["", "x", "y"] where chance(75) {
      for proto in some(of: L4Protocol.allCases, 1) {
        guard let port = Port(one(of: [8080, 8080, 9090])) else { continue }
        slice.ports.append(EndpointPort(name: name, proto: proto, port: port))
      }
    }
    let pool = ["1::2", "1::3", "2::2", "2::3", "2::4"].map { text in
      family == .v4 ? "10.244.\(text.replacing("::", with: "."))" : "fd00:244:\(text)"
    }
    let hinted = chance(50)
    for text in slice.family == nil
      ? [] : some(of: pool + ["2::9"].compactMap { family == .v6 ? "2001:db8:\($0)" : "9.9.9.9" }, 5)
    {
      slice.endpoints.append(
        Endpoint(
          address: address(text), ready: chance(60), serving: chance(70), terminating: chance(30),
          nodeName: one(of: ["here", "there", nil]), zoneHints: hinted && chance(90) ? [one(of: ["a", "b"])] : [],
          nodeHints: hinted && chance(70) ? [one(of: ["here", "there"])] : []))
    }
    return slice
  }

  mutating func packet() -> Packet {
    let isV4 = chance(65)
    let targets =
      isV4
      ? Self.clusterIPs + Self.externals.filter { $0.family == .v4 } + [address("10.96.0.5"), address("9.9.9.9")]
      : Self.clusterIPs6 + Self.externals.filter { $0.family == .v6 } + [address("fd00:192::1"), address("fd00:96::5")]
    return Packet(
      origin: one(of: Origin.allCases), source: one(of: isV4 ? Self.sources : Self.sources6),
      destination: one(of: targets),
      proto: one(of: L4Protocol.allCases), sourcePort: 40000, destinationPort: one(of: Self.ports).number)
  }
}
