import NetworkTypes

/// Node, Pod and ServiceCIDR.
extension ObjectDecoder {
  // MARK: Node

  func node(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> Node {
    var result = Node(name: metadata.key.name)
    result.zone = metadata.labels[WellKnown.zone].flatMap { $0.isEmpty ? nil : $0 }
    result.isBeingDeleted = metadata.isBeingDeleted
    try node.section("spec") { (spec) throws(FieldError) in
      result.podCIDRs = try Self.oneOrSeveral("podCIDR", "podCIDRs", in: spec, Read.cidr)
      try Self.checkFamilies(result.podCIDRs, "podCIDRs", in: spec)
      result.taintKeys = try spec.list("taints") { (taint) throws(FieldError) in
        strings.shared(try taint.required("key", Read.text))
      }
    }
    try node.section("status") { (status) throws(FieldError) in
      let addresses: [IPAddress?] = try status.list("addresses") { (element) throws(FieldError) in
        let type = try element.required("type", Read.text)
        guard type == "InternalIP" else { return nil }
        return try element.required("address", Read.address)
      }
      result.internalIPs = addresses.compactMap { $0 }
    }
    return result
  }

  /// The API has a field for one value and a newer one for several, whose first must be the same.
  private static func oneOrSeveral<Value: Equatable>(
    _ single: String, _ several: String, in node: ManifestNode, _ read: FieldReader<Value>
  ) throws(FieldError) -> [Value] {
    let one: Value? = try node.nonEmpty(single, read)
    let all = try node.list(several, read)
    guard let one else { return all }
    if let first = all.first, first != one { throw node.wrong(several, "the first must be the same as \(single)") }
    return all.isEmpty ? [one] : all
  }

  private static func checkFamilies(_ cidrs: [CIDR], _ key: String, in node: ManifestNode) throws(FieldError) {
    if let family = cidrs.map(\.address).repeatedFamily {
      throw node.wrong(key, "must have at most one range of each family, has two of \(family)")
    }
  }

  // MARK: ServiceCIDR

  func serviceCIDR(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> ServiceCIDR {
    try node.section("spec") { (spec) throws(FieldError) in
      let cidrs = try spec.list("cidrs", Read.cidr)
      guard !cidrs.isEmpty else { throw spec.wrong("cidrs", "is missing") }
      try Self.checkFamilies(cidrs, "cidrs", in: spec)
      return ServiceCIDR(name: metadata.key.name, cidrs: cidrs)
    }
  }

  // MARK: Pod

  func pod(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> Pod {
    var pod = Pod(key: metadata.key)
    pod.uid = metadata.uid
    pod.labels = metadata.labels
    pod.isTerminating = metadata.isBeingDeleted
    try node.section("spec") { (spec) throws(FieldError) in
      pod.nodeName =
        try spec.nonEmpty("nodeName", nodeName)
      pod.hostNetwork = try spec.optional("hostNetwork", Read.flag) ?? false
      for ports in try spec.list("containers", namedPorts) { pod.containerPorts += ports }
      for ports in try spec.list("initContainers", sidecarPorts) { pod.containerPorts += ports }
    }
    try node.section("status") { (status) throws(FieldError) in
      pod.phase = try status.nonEmpty("phase", Read.choice) ?? .pending
      pod.podIPs = try Self.podIPs(status)
    }
    return pod
  }

  private static func podIPs(_ status: ManifestNode) throws(FieldError) -> [IPAddress] {
    let one: IPAddress? = try status.nonEmpty("podIP", Read.address)
    let all = try status.list("podIPs") { (element) throws(FieldError) in
      try element.required("ip", Read.address)
    }
    if let one, let first = all.first, first != one {
      throw status.wrong("podIPs", "the first must be the same as podIP")
    }
    let addresses = all.isEmpty ? one.map { [$0] } ?? [] : all
    if let family = addresses.repeatedFamily {
      throw status.wrong("podIPs", "must have at most one address of each family, has two of \(family)")
    }
    return addresses
  }

  private func namedPorts(_ container: ManifestNode) throws(FieldError) -> [NamedContainerPort] {
    let ports: [NamedContainerPort?] = try container.list("ports") { (element) throws(FieldError) in
      let port = try element.required("containerPort", Read.port)
      let proto =
        try element.optional("protocol", Read.transportProtocol) ?? .tcp
      let name: String? =
        try element.optional("name") { (field) throws(FieldError) in
          let text = try Read.text(field)
          guard text.isEmpty || NameRules.isPortName(text) else {
            throw FieldError(field, "\(NameRules.portNameRule), is \(quoted(text))")
          }
          return text.isEmpty ? nil : text
        } ?? nil
      return name.map { NamedContainerPort(name: $0, proto: proto, port: port) }
    }
    return ports.compactMap { $0 }
  }

  /// An init container that is restarted always runs beside the others; any other is gone when the pod serves.
  private func sidecarPorts(_ container: ManifestNode) throws(FieldError) -> [NamedContainerPort] {
    let ports = try namedPorts(container)
    let policy = try container.optional("restartPolicy", Read.text)
    return policy == "Always" ? ports : []
  }
}
