import NetworkTypes

/// `v1.Service`: defaulting and validation as in `pkg/apis/core` of the API server.
extension ObjectDecoder {
  func service(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> Service {
    var service = Service(key: metadata.key)
    service.creationTimestamp = (metadata.creationTime ?? 0) / 1000
    service.proxyName = metadata.labels[WellKnown.serviceProxyName]
    service.loadBalancing = try annotation(WellKnown.loadBalancing, of: node) ?? .random
    try node.section("spec") { (spec) throws(FieldError) in
      service.type = try spec.nonEmpty("type", Read.choice) ?? .clusterIP
      try readClusterIPs(spec, &service)
      try readPorts(spec, &service)
      service.selector = try spec.optional("selector", labels) ?? Labels()
      service.externalIPs = try spec.list("externalIPs", Read.routableAddress)
      try readAffinity(spec, &service)
      try readTrafficPolicies(spec, &service)
      service.publishNotReadyAddresses =
        try spec.optional("publishNotReadyAddresses", Read.flag) ?? false
      service.loadBalancerSourceRanges = try spec.list("loadBalancerSourceRanges", Self.sourceRange)
      if !service.loadBalancerSourceRanges.isEmpty, service.type != .loadBalancer {
        throw spec.wrong("loadBalancerSourceRanges", "needs type LoadBalancer, the type is \(service.type.rawValue)")
      }
    }
    try node.section("status") { (status) throws(FieldError) in try readStatus(status, &service) }
    return service
  }

  // MARK: Addresses

  private enum ClusterIP: Equatable {
    case headless
    case address(IPAddress)
  }

  private static func clusterIP(_ field: ManifestNode) throws(FieldError) -> ClusterIP {
    if case .scalar("None", _, _) = field { return .headless }
    let text = try Read.text(field)
    guard let address = IPAddress(text) else {
      throw FieldError(field, "must be an IPv4 or IPv6 address, or None, is \(quoted(text))")
    }
    return .address(address)
  }

  /// `clusterIP` and `clusterIPs` say the same; objects written by hand may have either.
  private func readClusterIPs(_ spec: ManifestNode, _ service: inout Service) throws(FieldError) {
    let single: ClusterIP? = try spec.nonEmpty("clusterIP", Self.clusterIP)
    let several = try spec.list("clusterIPs", Self.clusterIP)
    if let single, let first = several.first, single != first {
      throw spec.wrong("clusterIPs", "the first must be the same as clusterIP")
    }
    let all = several.isEmpty ? single.map { [$0] } ?? [] : several
    guard !all.isEmpty else { return }
    let field = several.isEmpty ? "clusterIP" : "clusterIPs"
    if service.type == .externalName { throw spec.wrong(field, "must not be set with type ExternalName") }
    if all.contains(.headless) {
      guard all.count == 1 else { throw spec.wrong(field, "None must stand alone") }
      guard service.type == .clusterIP else {
        throw spec.wrong(field, "None needs type ClusterIP, the type is \(service.type.rawValue)")
      }
      service.isHeadless = true
      return
    }
    for case .address(let address) in all { service.clusterIPs.append(address) }
    if let family = service.clusterIPs.repeatedFamily {
      throw spec.wrong(field, "must have at most one address of each family, has two of \(family)")
    }
  }

  /// The API server trims blanks here and nowhere else.
  private static func sourceRange(_ field: ManifestNode) throws(FieldError) -> CIDR {
    func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0d).contains(byte) }
    let text = try Read.text(field)
    let start = text.utf8.firstIndex { !isBlank($0) } ?? text.startIndex
    let end = text.utf8.lastIndex { !isBlank($0) } ?? text.startIndex
    guard start < end else { return try Read.cidr(field) }
    return try Read.cidr(.scalar(String(text[start...end]), isQuoted: true, line: field.line))
  }

  private func readStatus(_ status: ManifestNode, _ service: inout Service) throws(FieldError) {
    try status.section("loadBalancer") { (balancer) throws(FieldError) in
      let addresses = try balancer.list("ingress", Self.ingressIP)
      if !addresses.isEmpty, service.type != .loadBalancer {
        throw balancer.wrong("ingress", "needs spec.type LoadBalancer, the type is \(service.type.rawValue)")
      }
      service.loadBalancerIPs = addresses.compactMap { $0 }
    }
  }

  private enum IPMode: String, CaseIterable {
    case vip = "VIP"
    case proxy = "Proxy"
  }

  /// nil where packets for the address do not reach nodes unchanged: ipMode Proxy, or a host name only.
  private static func ingressIP(_ ingress: ManifestNode) throws(FieldError) -> IPAddress? {
    let mode: IPMode? = try ingress.optional("ipMode", Read.choice)
    let address: IPAddress? = try ingress.nonEmpty("ip", Read.address)
    if mode != nil, address == nil { throw ingress.wrong("ipMode", "needs ip") }
    return mode == .proxy ? nil : address
  }

  // MARK: Ports

  private func readPorts(_ spec: ManifestNode, _ service: inout Service) throws(FieldError) {
    let count = try spec.optional("ports") { (field) throws(FieldError) in try field.elements().count } ?? 0
    if count == 0, !service.isHeadless, service.type != .externalName {
      throw spec.wrong("ports", "is missing: a Service with an address needs at least one port")
    }
    let type = service.type
    var earlier: [ServicePort] = []
    earlier.reserveCapacity(count)
    _ = try spec.list("ports") { (element) throws(FieldError) in
      let port = try servicePort(element, type: type, isOnlyOne: count == 1)
      for other in earlier {
        if !port.name.isEmpty, other.name == port.name {
          throw element.wrong("name", "another port has the name \(quoted(port.name))")
        }
        guard other.proto == port.proto else { continue }
        if other.port == port.port {
          throw element.wrong("port", "another port has the number \(port.port) and \(port.proto.kubernetesName)")
        }
        if let nodePort = port.nodePort, other.nodePort == nodePort {
          throw element.wrong("nodePort", "another port has the nodePort \(nodePort) and \(port.proto.kubernetesName)")
        }
      }
      earlier.append(port)
    }
    service.ports = earlier
  }

  private func servicePort(
    _ element: ManifestNode, type: ServiceType, isOnlyOne: Bool
  ) throws(FieldError) -> ServicePort {
    let name = try element.optional("name", portLabel) ?? ""
    if name.isEmpty, !isOnlyOne { throw element.wrong("name", "is missing: with several ports each needs a name") }
    let port = ServicePort(
      name: name,
      proto: try element.optional("protocol", Read.transportProtocol) ?? .tcp,
      port: try element.required("port", Read.port),
      nodePort: try element.optional("nodePort", Read.portOrNone) ?? nil)
    if port.nodePort != nil, type != .nodePort, type != .loadBalancer {
      throw element.wrong("nodePort", "needs type NodePort or LoadBalancer, the type is \(type.rawValue)")
    }
    // Where the pods listen is the EndpointSlices' business; a wrong one is still refused.
    _ = try element.nonEmpty("targetPort", Self.targetPort)
    return port
  }

  /// The name of a Service's or EndpointSlice's port: a DNS label, or "".
  func portLabel(_ field: ManifestNode) throws(FieldError) -> String {
    let text = try Read.text(field)
    guard text.isEmpty || NameRules.isLabel(text) else {
      throw FieldError(field, "\(NameRules.labelRule), is \(quoted(text))")
    }
    return strings.shared(text)
  }

  /// 0 stands for the port itself.
  private static func targetPort(_ field: ManifestNode) throws(FieldError) {
    if case .scalar("0", false, _) = field { return }
    _ = try portOrName(field)
  }

  enum PortOrName {
    case number(Port)
    case name(String)
  }

  /// `intstr.IntOrString`: quoted digits are a name, and a name needs a letter.
  static func portOrName(_ field: ManifestNode) throws(FieldError) -> PortOrName {
    let text = try Read.text(field)
    if case .scalar(_, false, _) = field, YAMLNumber(text) != nil { return .number(try Read.port(field)) }
    guard NameRules.isPortName(text) else {
      throw FieldError(field, "must be a number from 1 to 65535 or a port's name, is \(field.summary)")
    }
    return .name(text)
  }

  // MARK: Policies

  private enum Affinity: String, CaseIterable {
    case off = "None"
    case clientIP = "ClientIP"
  }

  private func readAffinity(_ spec: ManifestNode, _ service: inout Service) throws(FieldError) {
    let affinity: Affinity = try spec.nonEmpty("sessionAffinity", Read.choice) ?? .off
    let timeout: Int? = try spec.section("sessionAffinityConfig") { (config) throws(FieldError) in
      try config.section("clientIP") { (client) throws(FieldError) in
        try client.optional("timeoutSeconds") { (field) throws(FieldError) in try Read.integer(field, 1...86400) }
      }
    }
    switch affinity {
    case .clientIP: service.affinityTimeoutSeconds = timeout ?? 10800
    case .off:
      if spec["sessionAffinityConfig"] != nil {
        throw spec.wrong("sessionAffinityConfig", "needs sessionAffinity ClientIP")
      }
    }
  }

  private func readTrafficPolicies(_ spec: ManifestNode, _ service: inout Service) throws(FieldError) {
    service.internalTrafficPolicy = try trafficPolicy("internalTrafficPolicy", spec) ?? .cluster
    let external = try trafficPolicy("externalTrafficPolicy", spec)
    let isExternal: Bool =
      switch service.type {
      case .nodePort, .loadBalancer: true
      case .clusterIP: !service.externalIPs.isEmpty
      case .externalName: false
      }
    if external != nil, !isExternal {
      throw spec.wrong(
        "externalTrafficPolicy",
        "needs type NodePort or LoadBalancer, or externalIPs; the type is \(service.type.rawValue)")
    }
    service.externalTrafficPolicy = external ?? .cluster
    service.healthCheckNodePort =
      try spec.optional("healthCheckNodePort", Read.portOrNone) ?? nil
    if service.healthCheckNodePort != nil,
      service.type != .loadBalancer || service.externalTrafficPolicy != .local
    {
      throw spec.wrong("healthCheckNodePort", "needs type LoadBalancer and externalTrafficPolicy Local")
    }
  }

  private func trafficPolicy(_ key: String, _ spec: ManifestNode) throws(FieldError) -> TrafficPolicy? {
    try spec.nonEmpty(key, Read.choice)
  }
}
