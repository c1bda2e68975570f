import KubernetesObjects
import NetworkTypes

/// A world as manifests: what a failing test prints, and what `kubectl apply` or the manifest folder reads.
enum WorldYAML {
  /// All objects as documents of one file, in the order of `PolicyWorld.objects`. Of the other objects that a
  /// ClusterObject can be, nothing is written.
  static func documents(_ world: PolicyWorld) -> String {
    "# Seen from \(world.ownNode).\n" + world.objects.map(document).joined()
  }

  /// One document, `---` before it.
  static func document(_ object: ClusterObject) -> String {
    let body: String
    switch object {
    case .node(let node): body = self.node(node)
    case .namespace(let namespace): body = self.namespace(namespace)
    case .pod(let pod): body = self.pod(pod)
    case .networkPolicy(let policy): body = self.policy(policy)
    case .service, .endpointSlice, .serviceCIDR: return ""
    }
    return "---\napiVersion: \(object.kind.apiVersion)\nkind: \(object.kind)\n\(body)"
  }

  // MARK: Kinds

  private static func node(_ node: Node) -> String {
    var lines = metadata(
      ObjectKey(namespace: "", name: node.name), labels: node.zone.map { [WellKnown.zone: $0] } ?? [:],
      isBeingDeleted: node.isBeingDeleted)
    let ranges = node.podCIDRs.map { quoted($0.description) }
    let taints = node.taintKeys.map { "{key: \(quoted($0)), effect: NoSchedule}" }
    lines.append("spec:" + (ranges.isEmpty && taints.isEmpty ? " {}" : ""))
    if let first = ranges.first { lines += ["  podCIDR: \(first)", "  podCIDRs: \(list(ranges))"] }
    if !taints.isEmpty { lines.append("  taints: \(list(taints))") }
    let addresses = node.internalIPs.map { "{type: InternalIP, address: \(quoted($0.description))}" }
    return text(lines + ["status:", "  addresses: \(list(addresses))"])
  }

  private static func namespace(_ namespace: Namespace) -> String {
    text(metadata(ObjectKey(namespace: "", name: namespace.name), labels: namespace.labels))
  }

  private static func pod(_ pod: Pod) -> String {
    var lines = metadata(pod.key, labels: pod.labels, uid: pod.uid, isBeingDeleted: pod.isTerminating)
    lines.append("spec:")
    if let node = pod.nodeName { lines.append("  nodeName: \(quoted(node))") }
    if pod.hostNetwork { lines.append("  hostNetwork: true") }
    lines.append("  containers:")
    for (number, ports) in containers(pod.containerPorts).enumerated() {
      lines.append("  - name: \"c\(number)\"")
      lines.append("    image: \"registry.k8s.io/pause:3.10\"")
      if !ports.isEmpty { lines.append("    ports:") }
      for port in ports {
        lines.append(
          "    - {name: \(quoted(port.name)), protocol: \(port.proto.kubernetesName), containerPort: \(port.port)}")
      }
    }
    lines += ["status:", "  phase: \(pod.phase.rawValue)"]
    if let first = pod.podIPs.first {
      let all = pod.podIPs.map { "{ip: \(quoted($0.description))}" }
      lines += ["  podIP: \(quoted(first.description))", "  podIPs: \(list(all))"]
    }
    return text(lines)
  }

  /// A name stands once in a container: one that comes again begins another container. At least one container.
  private static func containers(_ ports: [NamedContainerPort]) -> [[NamedContainerPort]] {
    var containers: [[NamedContainerPort]] = [[]]
    for port in ports {
      if containers[containers.count - 1].contains(where: { $0.name == port.name }) { containers.append([]) }
      containers[containers.count - 1].append(port)
    }
    return containers
  }

  private static func policy(_ policy: NetworkPolicy) -> String {
    var lines = metadata(
      policy.key, annotations: policy.mode == .enforce ? [:] : [WellKnown.mode: policy.mode.rawValue])
    let types = (policy.isolatesIngress ? ["Ingress"] : []) + (policy.isolatesEgress ? ["Egress"] : [])
    lines += ["spec:", "  podSelector: \(selector(policy.podSelector))", "  policyTypes: \(list(types))"]
    lines += rules("ingress", "from", policy.ingress) + rules("egress", "to", policy.egress)
    return text(lines)
  }

  private static func rules(_ key: String, _ peers: String, _ rules: [NetworkPolicyRule]) -> [String] {
    guard !rules.isEmpty else { return ["  \(key): []"] }
    var lines = ["  \(key):"]
    for rule in rules {
      var inside: [String] = []
      if !rule.peers.isEmpty { inside += ["\(peers):"] + rule.peers.map { "- \(peer($0))" } }
      if !rule.ports.isEmpty { inside.append("ports: \(list(rule.ports.map(port)))") }
      if inside.isEmpty { inside = ["{}"] }
      for (index, line) in inside.enumerated() { lines.append((index == 0 ? "  - " : "    ") + line) }
    }
    return lines
  }

  private static func peer(_ peer: NetworkPolicyPeer) -> String {
    switch peer {
    case .ipBlock(let block):
      let except = block.except.isEmpty ? "" : ", except: \(list(block.except.map { quoted($0.description) }))"
      return "ipBlock: {cidr: \(quoted(block.cidr.description))\(except)}"
    case .pods(let pods, let namespaces):
      let parts = [
        pods.map { "podSelector: \(selector($0))" }, namespaces.map { "namespaceSelector: \(selector($0))" },
      ]
      return "{\(parts.compactMap { $0 }.joined(separator: ", "))}"
    }
  }

  private static func port(_ port: NetworkPolicyPort) -> String {
    let number =
      switch port.port {
      case .any: ""
      case .named(let name): ", port: \(quoted(name))"
      case .range(let range):
        ", port: \(range.lowerBound)" + (range.lowerBound < range.upperBound ? ", endPort: \(range.upperBound)" : "")
      }
    return "{protocol: \(port.proto.kubernetesName)\(number)}"
  }

  private static func selector(_ selector: LabelSelector) -> String {
    var parts: [String] = []
    if !selector.matchLabels.isEmpty { parts.append("matchLabels: \(labels(selector.matchLabels))") }
    let requirements = selector.matchExpressions.map { requirement in
      let values = requirement.values.isEmpty ? "" : ", values: \(list(requirement.values.map(quoted)))"
      return "{key: \(quoted(requirement.key)), operator: \(requirement.comparison.rawValue)\(values)}"
    }
    if !requirements.isEmpty { parts.append("matchExpressions: \(list(requirements))") }
    return "{\(parts.joined(separator: ", "))}"
  }

  // MARK: Pieces

  private static func metadata(
    _ key: ObjectKey, labels: Labels = [:], annotations: Labels = [:], uid: String = "", isBeingDeleted: Bool = false
  ) -> [String] {
    var lines = ["metadata:", "  name: \(quoted(key.name))"]
    if !key.namespace.isEmpty { lines.append("  namespace: \(quoted(key.namespace))") }
    if !uid.isEmpty { lines.append("  uid: \(quoted(uid))") }
    if !labels.isEmpty { lines.append("  labels: \(self.labels(labels))") }
    if !annotations.isEmpty { lines.append("  annotations: \(self.labels(annotations))") }
    if isBeingDeleted { lines.append("  deletionTimestamp: \"2026-01-31T12:00:00Z\"") }
    return lines
  }

  private static func labels(_ labels: Labels) -> String {
    "{\(labels.pairs.map { "\(quoted($0.key)): \(quoted($0.value))" }.joined(separator: ", "))}"
  }

  private static func list(_ elements: [String]) -> String { "[\(elements.joined(separator: ", "))]" }

  private static func text(_ lines: [String]) -> String { lines.map { "\($0)\n" }.joined() }

  /// Always in quotes, so that no name or value is taken for a number, a boolean or nothing.
  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      if scalar == "\"" || scalar == "\\" { result += "\\" }
      result.unicodeScalars.append(scalar)
    }
    return result + "\""
  }
}
