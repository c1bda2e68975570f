import ClusterSource
import DataplaneModel
import KubernetesObjects
import LocalAPI
import NetworkTypes
import ServiceCompiler

/// A cluster as a folder of manifests, one file for each thing that changes at once, and random edits of it.
struct CrashCluster {
  struct PortSpec {
    var name: String
    var proto: L4Protocol
    var port: Int
    var target: Int
    var nodePort: Int?
  }
  struct EndpointSpec {
    var address: IPAddress
    var isLocal: Bool
    var conditions: String
  }
  struct ServiceSpec {
    var number: Int
    var families: [IPFamily]
    var ports: [PortSpec]
    var type = ServiceType.clusterIP
    var internalLocal = false
    var externalLocal = false
    var affinity: Int?
    var loadBalancers: [Int] = []
    var externalIPs: [Int] = []
    var sourceRanges: [String] = []
    var endpoints: [IPFamily: [EndpointSpec]] = [:]

    var file: String { "svc-\(number).yaml" }
  }

  static let nodeName = "here"
  /// Ranges that come and go with the second ServiceCIDR and the third node.
  static let secondRange: [IPFamily: String] = [.v4: "10.97.0.0/24", .v6: "fd00:10:97::/112"]
  static let thirdPods: [IPFamily: String] = [.v4: "10.244.3.0/24", .v6: "fd00:10:244:3::/64"]

  private(set) var services: [ServiceSpec] = []
  private var hasSecondRange = false
  private var hasThirdNode = false
  private var firstInternal = 0

  init(using random: inout SeededGenerator) {
    for _ in 0..<14 { addService(using: &random) }
  }

  // MARK: Edits

  /// One change such as a cluster sees, in one file. Returns what was done and to which Service.
  mutating func edit(using random: inout SeededGenerator) -> (what: String, service: Int?) {
    let index = Int.random(in: 0..<services.count, using: &random)
    let number = services[index].number
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<12 where services.count < 20: return ("add", addService(using: &random))
    case 12..<20 where services.count > 8:
      services.remove(at: index)
      return ("remove", number)
    case 20..<35:
      Self.changePolicies(&services[index], using: &random)
      return ("policies", number)
    case 35..<50:
      Self.changeFrontends(&services[index], using: &random)
      return ("frontends", number)
    case 50..<54:
      hasSecondRange.toggle()
      return ("second ServiceCIDR", nil)
    case 54..<58:
      hasThirdNode.toggle()
      return ("third node", nil)
    case 58..<62:
      firstInternal = 1 - firstInternal
      return ("order of InternalIPs", nil)
    case 62..<72:
      Self.changePolicies(&services[index], using: &random)
      Self.changeFrontends(&services[index], using: &random)
      Self.changeEndpoints(&services[index], using: &random)
      return ("everything", number)
    case 72..<79:
      for family in services[index].families { services[index].endpoints[family] = [] }
      return ("scale to zero", number)
    default:
      Self.changeEndpoints(&services[index], using: &random)
      return ("scale", number)
    }
  }

  @discardableResult
  private mutating func addService(using random: inout SeededGenerator) -> Int {
    // The numbers are few: a Service that comes again finds what is left of its namesake.
    let number = random.pick((1...24).filter { number in !services.contains { $0.number == number } })
    var service = ServiceSpec(
      number: number, families: random.pick([[.v4], [.v6], [.v4, .v6], [.v6, .v4]]), ports: [])
    Self.changeFrontends(&service, using: &random)
    Self.changePolicies(&service, using: &random)
    Self.changeEndpoints(&service, using: &random)
    services.append(service)
    return number
  }

  /// Timeouts are longer than the test: what a client sticks to is known from outcomes alone.
  private static func changePolicies(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    service.internalLocal = random.chance(25)
    service.externalLocal = random.chance(40)
    service.affinity = random.chance(35) ? random.pick([3600, 10800, 86400]) : nil
  }

  private static func changeFrontends(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    service.type = random.pick([.clusterIP, .nodePort, .nodePort, .loadBalancer, .loadBalancer])
    let names = random.pick([["a"], ["a"], ["b"], ["a", "b"]])
    let proto: L4Protocol = random.chance(50) ? .tcp : .udp
    service.ports = names.enumerated().map { index, name in
      let nodePort = random.chance(70) ? 30001 + 2 * Int.random(in: 0..<5, using: &random) + index : nil
      return PortSpec(
        name: name, proto: random.chance(80) ? proto : .udp, port: random.pick([53, 80]) + index,
        target: random.pick([8080, 8081]), nodePort: service.type == .clusterIP ? nil : nodePort)
    }
    service.loadBalancers =
      service.type == .loadBalancer ? Array(Set([random.pick([0, 1, 2, 3]), random.pick([0, 1])])).sorted() : []
    service.externalIPs = random.chance(30) ? [random.pick([0, 1, 2, 3])] : []
    let ranges = [
      "198.51.100.0/29", "10.244.0.0/16", "10.244.1.2/31", "192.168.0.0/16", "2001:db8::/32", "fd00:10:244:1::2/127",
      "fd00:100::/64",
    ]
    service.sourceRanges =
      service.type == .loadBalancer && random.chance(50) ? Array(ranges.shuffled(using: &random).prefix(3)) : []
  }

  private static func changeEndpoints(_ service: inout ServiceSpec, using random: inout SeededGenerator) {
    for family in service.families {
      var pool = (0..<PacketRig.podCount).map { (PacketRig.pod(family, $0), true) }
      pool += (0..<6).map { (PacketRig.remotePod(family, $0), false) }
      pool.append((PacketRig.external(family), false))
      switch random.pick([0, 0, 1, 2]) {
      case 1: pool.removeAll { $0.1 }
      case 2: pool.removeAll { !$0.1 }
      default: break
      }
      let count = random.chance(12) ? 0 : Int.random(in: 1...6, using: &random)
      service.endpoints[family] = pool.shuffled(using: &random).prefix(count).map { address, isLocal in
        EndpointSpec(
          address: address, isLocal: isLocal,
          conditions: random.pick([
            "{}", "{}", "{}", "{}", "{ready: false, serving: false}",
            "{ready: false, serving: true, terminating: true}",
          ]))
      }
    }
  }

  // MARK: Manifests

  /// Text by file name.
  var files: [String: String] {
    var files = ["cluster.yaml": clusterManifest]
    if hasThirdNode {
      files["third.yaml"] = Self.node(
        "third", pods: Self.thirdPods, internalIPs: IPFamily.allCases.map(PacketRig.gateway))
    }
    for service in services { files[service.file] = Self.manifest(service) }
    return files
  }

  /// For counterexamples.
  func manifest(of service: Int?) -> String {
    services.first { $0.number == service }.map(Self.manifest) ?? (service == nil ? clusterManifest : "removed")
  }

  private var clusterManifest: String {
    // All addresses of the node are InternalIPs; the first of each family is the one that counts.
    let own = IPFamily.allCases.flatMap { family in
      [PacketRig.nodeInternal(family, firstInternal), PacketRig.nodeInternal(family, 1 - firstInternal)]
        + [PacketRig.uplink(family)]
    }
    var documents = [
      Self.node(
        Self.nodeName, pods: [.v4: "10.244.1.0/24", .v6: "fd00:10:244:1::/64"], internalIPs: own),
      Self.node(
        "there", pods: [.v4: "10.244.2.0/24", .v6: "fd00:10:244:2::/64"],
        internalIPs: IPFamily.allCases.map(PacketRig.gateway)),
      Self.serviceCIDR("kubernetes", [.v4: "10.96.0.0/24", .v6: "fd00:10:96::/112"]),
    ]
    // Pods without a Pod object are closed: nobody knows which policies are theirs.
    for pod in 0..<PacketRig.podCount { documents.append(Self.pod(pod)) }
    if hasSecondRange { documents.append(Self.serviceCIDR("second", Self.secondRange)) }
    return documents.joined(separator: "---\n")
  }

  private static func node(_ name: String, pods: [IPFamily: String], internalIPs: [IPAddress]) -> String {
    """
    apiVersion: v1
    kind: Node
    metadata: {name: \(name)}
    spec: {podCIDRs: [\(list(IPFamily.allCases.compactMap { pods[$0] }))]}
    status: {addresses: [\(internalIPs.map { "{type: InternalIP, address: '\($0)'}" }.joined(separator: ", "))]}

    """
  }

  private static func pod(_ number: Int) -> String {
    """
    apiVersion: v1
    kind: Pod
    metadata: {namespace: shop, name: pod-\(number)}
    spec: {nodeName: \(nodeName), containers: [{name: main}]}
    status: {phase: Running, podIPs: [\(PacketRig.endpoint(number).addresses.map { "{ip: '\($0)'}" }.joined(separator: ", "))]}

    """
  }

  private static func serviceCIDR(_ name: String, _ ranges: [IPFamily: String]) -> String {
    """
    apiVersion: networking.k8s.io/v1
    kind: ServiceCIDR
    metadata: {name: \(name)}
    spec: {cidrs: [\(list(IPFamily.allCases.compactMap { ranges[$0] }))]}

    """
  }

  private static func manifest(_ service: ServiceSpec) -> String {
    let name = "svc-\(service.number)"
    var spec = ["type: \(service.type.rawValue)"]
    spec.append("clusterIPs: [\(list(service.families.map { World.clusterIP($0, service.number) }))]")
    let ports = service.ports.map { port in
      "{name: \(port.name), protocol: \(port.proto.kubernetesName), port: \(port.port), targetPort: \(port.target)"
        + (port.nodePort.map { ", nodePort: \($0)" } ?? "") + "}"
    }
    spec.append("ports: [\(ports.joined(separator: ", "))]")
    spec.append("internalTrafficPolicy: \(service.internalLocal ? "Local" : "Cluster")")
    func virtual(_ numbers: [Int]) -> [IPAddress] {
      numbers.flatMap { number in service.families.map { World.virtualIP($0, number) } }
    }
    if !service.externalIPs.isEmpty { spec.append("externalIPs: [\(list(virtual(service.externalIPs)))]") }
    if service.type != .clusterIP || !service.externalIPs.isEmpty {
      spec.append("externalTrafficPolicy: \(service.externalLocal ? "Local" : "Cluster")")
    }
    if !service.sourceRanges.isEmpty { spec.append("loadBalancerSourceRanges: [\(list(service.sourceRanges))]") }
    if let timeout = service.affinity {
      spec.append("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: \(timeout)}}")
    }
    let ingress = virtual(service.loadBalancers).map { "{ip: '\($0)'}" }.joined(separator: ", ")
    let second = service.number < 10 ? "0\(service.number)" : "\(service.number)"
    var text = """
      apiVersion: v1
      kind: Service
      metadata: {name: \(name), namespace: shop, creationTimestamp: '2026-01-01T00:00:\(second)Z'}
      spec: {\(spec.joined(separator: ", "))}
      \(ingress.isEmpty ? "" : "status: {loadBalancer: {ingress: [\(ingress)]}}")

      """
    for family in service.families {
      let endpoints = (service.endpoints[family] ?? []).map { endpoint in
        "{addresses: ['\(endpoint.address)'], nodeName: \(endpoint.isLocal ? nodeName : "there"), "
          + "conditions: \(endpoint.conditions)}"
      }
      let ports = service.ports.map { "{name: \($0.name), protocol: \($0.proto.kubernetesName), port: \($0.target)}" }
      text += """
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: \(name)-\(family == .v4 ? 4 : 6), namespace: shop, labels: {kubernetes.io/service-name: \(name)}}
        addressType: \(family)
        ports: [\(ports.joined(separator: ", "))]
        endpoints: [\(endpoints.joined(separator: ", "))]

        """
    }
    return text
  }

  private static func list(_ items: [some CustomStringConvertible]) -> String {
    items.map { "'\($0)'" }.joined(separator: ", ")
  }
}

/// What the agent has to make of a folder of manifests, compiled from nothing. Numbers need not agree with the agent's, but
/// each Service port keeps its own.
struct ManifestCompiler {
  private var numbering = VolatileNumbering()
  /// How many Service ports have been numbered.
  private(set) var numbered: UInt32 = 0
  private var decoded: [String: (text: String, objects: [ClusterObject])] = [:]

  /// A manifest that the test should not have written.
  struct BadManifest: Error, CustomStringConvertible { var description: String }

  mutating func tables(_ files: [String: String]) throws -> Tables {
    let state = ClusterState(ownNodeName: CrashCluster.nodeName)
    for (name, text) in files {
      if decoded[name]?.text != text { decoded[name] = (text, try Self.objects(text)) }
      for object in decoded[name]?.objects ?? [] { state.apply(.upsert(object)) }
    }
    var compiler = ServiceCompiler(nodeName: CrashCluster.nodeName, numbering: numbering)
    var tables = Tables()
    // In one order, so that a seed means one run.
    tables.apply(compiler.compile(state.services.keys.sorted(), in: state, tables: tables))
    numbering = compiler.numbering
    numbered = max(numbered, compiler.names.keys.max()?.rawValue ?? 0)
    tables.apply(Self.nodeDelta(state))
    return tables
  }

  private static func objects(_ text: String) throws -> [ClusterObject] {
    try text.components(separatedBy: "---\n").map { document in
      let result = decodeObject(try parseYAMLDocument(Array(document.utf8)), file: "")
      guard case .object(let object, let problems, _) = result, problems.isEmpty else {
        throw BadManifest(description: "\(result)\n\(document)")
      }
      return object
    }
  }

  /// As the agent's reconciler with its default flags.
  private static func nodeDelta(_ state: ClusterState) -> TableDelta {
    var delta = TableDelta()
    for family in IPFamily.allCases {
      guard let address = state.ownNode?.internalIPs.first(where: { $0.family == family }) else { continue }
      delta.nodePortAddresses.added.insert(address)
      delta.internalAddresses[family] = Change(old: nil, new: address)
    }
    for node in state.nodes.values {
      delta.clusterRanges.added.formUnion(node.podCIDRs)
      delta.clusterRanges.added.formUnion(node.internalIPs.map(CIDR.init(host:)))
    }
    for range in state.serviceCIDRs.values {
      delta.serviceRanges.added.formUnion(range.cidrs)
      delta.clusterRanges.added.formUnion(range.cidrs)
    }
    for pod in 0..<PacketRig.podCount {
      delta.endpoints[PacketRig.interface(pod)] = Change(old: nil, new: PacketRig.endpoint(pod))
    }
    return delta
  }
}

extension String {
  fileprivate func components(separatedBy separator: String) -> [String] {
    var parts = [""]
    for line in split(separator: "\n", omittingEmptySubsequences: false) {
      if line + "\n" == separator { parts.append("") } else { parts[parts.count - 1] += line + "\n" }
    }
    return parts
  }
}
