import NetworkTypes

/// `networking.k8s.io/v1` NetworkPolicy.
extension ObjectDecoder {
  private enum PolicyType: String, CaseIterable {
    case ingress = "Ingress"
    case egress = "Egress"
  }

  func networkPolicy(_ node: ManifestNode, _ metadata: ObjectMetadata) throws(FieldError) -> NetworkPolicy {
    var policy = NetworkPolicy(key: metadata.key)
    policy.mode = try annotation(WellKnown.mode, of: node) ?? .enforce
    try node.section("spec") { (spec) throws(FieldError) in
      policy.podSelector = try spec.optional("podSelector", selector) ?? LabelSelector()
      policy.ingress = try spec.list("ingress") { (rule) throws(FieldError) in try self.rule(rule, peers: "from") }
      policy.egress = try spec.list("egress") { (rule) throws(FieldError) in try self.rule(rule, peers: "to") }
      let types: [PolicyType] = try spec.list("policyTypes", Read.choice)
      guard types.count <= 2 else { throw spec.wrong("policyTypes", "must be at most 2, are \(types.count)") }
      // What the API server fills in: Ingress always, Egress only for a policy that has an egress rule.
      policy.isolatesIngress = types.isEmpty || types.contains(.ingress)
      policy.isolatesEgress = types.isEmpty ? !policy.egress.isEmpty : types.contains(.egress)
    }
    return policy
  }

  private func rule(_ node: ManifestNode, peers: String) throws(FieldError) -> NetworkPolicyRule {
    NetworkPolicyRule(peers: try node.list(peers, peer), ports: try node.list("ports", policyPort))
  }

  // MARK: Peers

  private func peer(_ node: ManifestNode) throws(FieldError) -> NetworkPolicyPeer {
    let pods = try node.optional("podSelector", selector)
    let namespaces = try node.optional("namespaceSelector", selector)
    let block = try node.optional("ipBlock", Self.ipBlock)
    switch (block, pods == nil && namespaces == nil) {
    case (let block?, true): return .ipBlock(block)
    case (nil, false): return .pods(pods, namespaces: namespaces)
    case (_?, false): throw node.wrong("ipBlock", "must not stand beside podSelector or namespaceSelector")
    case (nil, true): throw FieldError(node, "must have podSelector, namespaceSelector or ipBlock")
    }
  }

  private static func ipBlock(_ node: ManifestNode) throws(FieldError) -> IPBlock {
    let cidr = try node.required("cidr", Read.cidr)
    let except = try node.list("except") { (field) throws(FieldError) in
      let part = try Read.cidr(field)
      guard cidr.contains(part), part != cidr else {
        throw FieldError(field, "must lie within \(cidr) and be smaller, is \(part)")
      }
      return part
    }
    return IPBlock(cidr: cidr, except: except)
  }

  func selector(_ node: ManifestNode) throws(FieldError) -> LabelSelector {
    LabelSelector(
      matchLabels: try node.optional("matchLabels", labels) ?? Labels(),
      matchExpressions: try node.list("matchExpressions", requirement))
  }

  private func requirement(_ node: ManifestNode) throws(FieldError) -> LabelSelector.Requirement {
    let key = try node.required("key") { (field) throws(FieldError) in
      let text = try Read.text(field)
      guard NameRules.isQualifiedName(text) else {
        throw FieldError(field, "\(NameRules.labelKeyRule), is \(quoted(text))")
      }
      return strings.shared(text)
    }
    let comparison: LabelSelector.Operator =
      try node.required("operator", Read.choice)
    let values = try node.list("values") { (field) throws(FieldError) in
      let text = try Read.stringMapValue(field)
      guard NameRules.isLabelValue(text) else {
        throw FieldError(field, "\(NameRules.labelValueRule), is \(quoted(text))")
      }
      return strings.shared(text)
    }
    switch comparison {
    case .isIn, .isNotIn:
      if values.isEmpty { throw node.wrong("values", "is missing: \(comparison.rawValue) needs at least one") }
    case .exists, .doesNotExist:
      if !values.isEmpty { throw node.wrong("values", "must be empty with \(comparison.rawValue)") }
    }
    return LabelSelector.Requirement(key: key, comparison: comparison, values: values)
  }

  // MARK: Ports

  private func policyPort(_ node: ManifestNode) throws(FieldError) -> NetworkPolicyPort {
    let proto = try node.optional("protocol", Read.transportProtocol) ?? .tcp
    let port = try node.optional("port", Self.portOrName)
    let end = try node.optional("endPort", Read.port)
    switch (port, end) {
    case (nil, nil): return NetworkPolicyPort(proto: proto, port: .any)
    case (nil, _?): throw node.wrong("endPort", "needs port")
    case (.name(let name), nil): return NetworkPolicyPort(proto: proto, port: .named(strings.shared(name)))
    case (.name, _?): throw node.wrong("endPort", "needs a port that is a number")
    case (.number(let first), let last):
      guard first <= last ?? first else {
        throw node.wrong("endPort", "must be at least port, which is \(first), is \(last ?? first)")
      }
      return NetworkPolicyPort(proto: proto, port: .range(first...(last ?? first)))
    }
  }
}
