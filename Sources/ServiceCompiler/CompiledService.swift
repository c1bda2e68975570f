import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// A frontend that a Service asks for, with what decides between several that ask for the same.
struct Claim: Hashable, Sendable {
  var key: FrontendKey
  var frontend: Frontend
  var service: ObjectKey
  var creationTimestamp: Int64

  /// ClusterIP before NodePort before LoadBalancer before externalIP before hostPort, then the older Service, then the name. A Service
  /// without a time stamp counts as the youngest.
  static func precedes(_ left: Claim, _ right: Claim) -> Bool {
    func age(_ claim: Claim) -> Int64 { claim.creationTimestamp == 0 ? .max : claim.creationTimestamp }
    if left.frontend.kind != right.frontend.kind { return left.frontend.kind < right.frontend.kind }
    if age(left) != age(right) { return age(left) < age(right) }
    return left.service != right.service
      ? left.service < right.service : left.frontend.service < right.frontend.service
  }
}

/// What one Service asks the tables for.
struct CompiledService {
  var claims: [Claim] = []
  var sets: [BackendSetID: BackendSet] = [:]
  var addresses: [IPAddress] = []
  /// Cluster addresses that another proxy serves: allocated, but not ours.
  var otherAddresses: [IPAddress] = []
  var names: [ServicePortID: ServicePortName] = [:]
  var healthCheck: ServiceHealthCheck?
  /// Service ports that got no number.
  var unnumbered: [ServicePortName] = []
  /// Traffic policies that find no local endpoint where others exist: "internal", "external".
  var policiesWithoutLocalEndpoint: Set<String> = []

  init() {}

  init(
    _ service: Service, slices: [EndpointSlice], nodeName: String, zone: String?, nodeAddresses: [IPAddress],
    numbering: inout some ServiceNumbering
  ) {
    guard Self.isOurs(service) else {
      otherAddresses = service.clusterIPs
      return
    }
    var localReady: Set<IPAddress> = []
    let primaryFamily = service.clusterIPs.first?.family
    for port in service.ports {
      let name = ServicePortName(service: service.key, port: port.name, proto: port.proto)
      guard let id = numbering.number(of: name) else {
        unnumbered.append(name)
        continue
      }
      names[id] = name
      for family in IPFamily.allCases {
        guard let clusterIP = service.clusterIPs.first(where: { $0.family == family }) else { continue }
        let selection = EndpointSelection(
          slices: slices, family: family, port: port, nodeName: nodeName, zone: zone)
        let before = claims.count
        claim(service, port, id, clusterIP: clusterIP, nodeAddresses: nodeAddresses)
        addSets(service, port, id, family, selection, scopesOf: claims[before...])
        if family == primaryFamily { localReady.formUnion(selection.localReady.map(\.address)) }
      }
    }
    addresses = service.clusterIPs
    // One address may stand in several fields of a Service; that is one claim, by the strongest of them.
    var seen: Set<FrontendKey> = []
    claims = claims.sorted(by: Claim.precedes).filter { seen.insert($0.key).inserted }
    if service.type == .loadBalancer, service.externalTrafficPolicy == .local, let port = service.healthCheckNodePort {
      // A pod with two addresses is one endpoint: the Service's first family counts.
      healthCheck = ServiceHealthCheck(port: port, localEndpoints: localReady.count)
    }
  }

  /// Not headless, not somebody else's, not an alias.
  static func isOurs(_ service: Service) -> Bool {
    service.proxyName == nil && !service.isHeadless && service.type != .externalName && !service.clusterIPs.isEmpty
  }

  private mutating func claim(
    _ service: Service, _ port: ServicePort, _ id: ServicePortID, clusterIP: IPAddress, nodeAddresses: [IPAddress]
  ) {
    let family = clusterIP.family
    func add(_ destination: FrontendAddress, _ port: Port, _ frontend: Frontend) {
      claims.append(
        Claim(
          key: FrontendKey(destination, proto, port), frontend: frontend,
          service: service.key, creationTimestamp: service.creationTimestamp))
    }
    let proto = port.proto
    let internalScope: BackendScope = service.internalTrafficPolicy == .local ? .local : .cluster
    add(
      .address(clusterIP), port.port,
      Frontend(
        service: id, kind: .clusterIP, nodeScope: internalScope, outsideScope: internalScope,
        masquerade: .exceptPods, hasAffinity: service.affinityTimeoutSeconds != nil))

    let isLocal = service.externalTrafficPolicy == .local
    func external(_ kind: FrontendKind, ranges: [AddressRange]? = nil) -> Frontend {
      Frontend(
        service: id, kind: kind, nodeScope: .cluster, outsideScope: isLocal ? .local : .cluster,
        masquerade: isLocal ? .hostOnly : .always, hasAffinity: service.affinityTimeoutSeconds != nil,
        sourceRanges: ranges)
    }
    if let nodePort = port.nodePort { add(.node(family), nodePort, external(.nodePort)) }
    for address in service.loadBalancerIPs where address.family == family {
      add(
        .address(address), port.port,
        external(.loadBalancer, ranges: Self.sourceRanges(service, address, nodeAddresses)))
    }
    for address in service.externalIPs where address.family == family {
      add(.address(address), port.port, external(.externalIP))
    }
  }

  /// Ranges of the VIP's family; none of that family leaves it open, as kube-proxy does. Where this node may use the
  /// VIP, so may the VIP itself: on nodes that have it as a local address the node's own packets carry it as source.
  private static func sourceRanges(
    _ service: Service, _ address: IPAddress, _ nodeAddresses: [IPAddress]
  ) -> [AddressRange]? {
    let cidrs = service.loadBalancerSourceRanges.filter { $0.family == address.family }
    guard !cidrs.isEmpty, !cidrs.contains(where: { $0.prefixLength == 0 }) else { return nil }
    var ranges = cidrs.map(AddressRange.init)
    if nodeAddresses.contains(where: { node in cidrs.contains { $0.contains(node) } }) {
      ranges.append(AddressRange(CIDR(host: address)))
    }
    return AddressRange.merging(ranges)
  }

  private mutating func addSets(
    _ service: Service, _ port: ServicePort, _ id: ServicePortID, _ family: IPFamily,
    _ selection: EndpointSelection, scopesOf claims: ArraySlice<Claim>
  ) {
    let scopes = Set(claims.flatMap { [$0.frontend.nodeScope, $0.frontend.outsideScope] })
    let timeout = service.affinityTimeoutSeconds.map(UInt32.init)
    func draining(_ serving: [SocketAddress], besides backends: [SocketAddress]) -> [SocketAddress] {
      guard port.proto == .udp else { return [] }
      let active = Set(backends)
      return serving.filter { !active.contains($0) }
    }
    for scope in scopes {
      let backends = scope == .cluster ? selection.cluster : selection.local
      let serving = scope == .cluster ? selection.serving : selection.localServing
      sets[BackendSetID(service: id, scope: scope, family: family)] = BackendSet(
        backends: backends,
        emptyAction: scope == .local && !selection.cluster.isEmpty ? .drop : .reject, affinityTimeout: timeout,
        draining: draining(serving, besides: backends), isHashed: service.loadBalancing == .maglev)
    }
    guard !selection.cluster.isEmpty, selection.local.isEmpty else { return }
    if service.internalTrafficPolicy == .local { policiesWithoutLocalEndpoint.insert("internal") }
    if service.externalTrafficPolicy == .local { policiesWithoutLocalEndpoint.insert("external") }
  }
}

/// What a healthCheckNodePort answers about.
public struct ServiceHealthCheck: Hashable, Sendable {
  public var port: Port
  public var localEndpoints: Int

  public init(port: Port, localEndpoints: Int) {
    self.port = port
    self.localEndpoints = localEndpoints
  }
}
