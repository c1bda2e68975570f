import NetworkTypes

/// `discovery.k8s.io/v1` EndpointSlice.
extension ObjectDecoder {
  private enum AddressType: String, CaseIterable {
    case v4 = "IPv4"
    case v6 = "IPv6"
    case fqdn = "FQDN"
  }

  func endpointSlice(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> EndpointSlice {
    var slice = EndpointSlice(key: metadata.key)
    slice.serviceName = metadata.labels[WellKnown.serviceName].flatMap { $0.isEmpty ? nil : $0 }
    slice.isHeadless = metadata.labels[WellKnown.headless] != nil
    slice.lastChangeTriggerTime = metadata.lastChangeTriggerTime
    let type: AddressType = try node.required("addressType", Read.choice)
    slice.ports = try endpointPorts(node)
    switch type {
    case .v4: slice.endpoints = try endpoints(node, family: .v4)
    case .v6: slice.endpoints = try endpoints(node, family: .v6)
    case .fqdn: return slice
    }
    slice.family = type == .v4 ? .v4 : .v6
    return slice
  }

  /// A missing name is "", as the API server fills it in; a port without a number means all ports and is left out.
  private func endpointPorts(_ node: ManifestNode) throws(FieldError) -> [EndpointPort] {
    var names: [String] = []
    let ports: [EndpointPort?] = try node.list("ports") { (element) throws(FieldError) in
      let name = try element.optional("name", portLabel) ?? ""
      if names.contains(name) { throw element.wrong("name", "another port has the name \(quoted(name))") }
      names.append(name)
      let proto =
        try element.optional("protocol", Read.transportProtocol) ?? .tcp
      let port: Port? =
        try element.optional("port", Read.portOrNone) ?? nil
      return port.map { EndpointPort(name: name, proto: proto, port: $0) }
    }
    return ports.compactMap { $0 }
  }

  private func endpoints(_ node: ManifestNode, family: IPFamily) throws(FieldError) -> [Endpoint] {
    try node.optional("endpoints") { (field) throws(FieldError) in
      let elements = try field.elements()
      guard elements.count <= 1000 else {
        throw FieldError(field, "must be at most 1000 endpoints, are \(elements.count)")
      }
      var endpoints: [Endpoint] = []
      endpoints.reserveCapacity(elements.count)
      for (index, element) in elements.enumerated() {
        do throws(FieldError) {
          if let endpoint = try endpoint(element, index, family: family) { endpoints.append(endpoint) }
        } catch { throw error.within("[\(index)]") }
      }
      return endpoints
    } ?? []
  }

  /// nil where the address cannot be used: that costs this endpoint only, the others of the slice still serve.
  private func endpoint(
    _ element: ManifestNode, _ index: Int, family: IPFamily
  ) throws(FieldError) -> Endpoint? {
    let nodeName = try element.optional("nodeName", nodeName)
    let (zones, nodes) = try element.section("hints") { (hints) throws(FieldError) in
      (strings.shared(try hints.list("forZones", hint)), strings.shared(try hints.list("forNodes", hint)))
    }
    let conditions = try element.section("conditions") { (conditions) throws(FieldError) in
      (
        ready: try conditions.optional("ready", Read.flag) ?? true,
        serving: try conditions.optional("serving", Read.flag) ?? true,
        terminating: try conditions.optional("terminating", Read.flag) ?? false
      )
    }
    do throws(FieldError) {
      return Endpoint(
        address: try Self.firstAddress(element, family: family), ready: conditions.ready, serving: conditions.serving,
        terminating: conditions.terminating, nodeName: nodeName, zoneHints: zones, nodeHints: nodes)
    } catch {
      partProblems.append(error.within("[\(index)]").within("endpoints"))
      return nil
    }
  }

  /// Loopback and link-local addresses would let a namespace's user reach the node itself (CVE-2021-25737).
  private static func firstAddress(_ element: ManifestNode, family: IPFamily) throws(FieldError) -> IPAddress {
    let first = try element.optional("addresses") { (field) throws(FieldError) in
      guard let first = try field.elements().first else { throw FieldError(field, "must have an address") }
      do throws(FieldError) {
        let address = try Read.routableAddress(first)
        guard address.family == family else {
          throw FieldError(first, "must be an \(family) address as addressType says, is \(address)")
        }
        return address
      } catch { throw error.within("[0]") }
    }
    guard let first else { throw element.wrong("addresses", "is missing") }
    return first
  }

  /// The name of the node that something is on.
  func nodeName(_ field: ManifestNode) throws(FieldError) -> String {
    let text = try Read.text(field)
    guard NameRules.isSubdomain(text) else { throw FieldError(field, "\(NameRules.subdomainRule), is \(quoted(text))") }
    return strings.shared(text)
  }

  private func hint(_ element: ManifestNode) throws(FieldError) -> String {
    try element.required("name") { (field) throws(FieldError) in strings.shared(try Read.text(field)) }
  }
}
