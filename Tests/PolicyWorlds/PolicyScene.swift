import ClusterSource
import KubernetesObjects
import NetworkTypes

/// A small cluster for hand-worked examples, seen from the node `here`. Its policies are YAML, read with the API's
/// defaults.
///
///     pod         addresses                       node   labels              container ports
///     shop/web    10.244.1.2  fd00:10:244:1::2    here   app=web tier=front  http 8080
///     shop/api    10.244.1.3  fd00:10:244:1::3    here   app=api             http 80, http 8081, dns 53/udp, dns 5353
///     shop/db     10.244.2.2  fd00:10:244:2::2    there  app=db tier=        http 9090
///     bank/web    10.244.2.3  fd00:10:244:2::3    there  app=web
///     bank/till   10.244.1.4  fd00:10:244:1::4    here   app=till
///     lab/bare    10.244.2.4  fd00:10:244:2::4    there
///
/// The namespaces' label `team` is red in `shop`, blue in `bank`, missing in `lab`. The nodes are 172.18.0.1 and
/// 172.18.0.2, fd00:172:18::1 and fd00:172:18::2.
struct PolicyScene {
  var world = PolicyWorld(ownNode: "here")

  struct NotDecoded: Error, CustomStringConvertible { let description: String }

  /// - Parameters:
  ///   - policies: the `spec` of each policy, by name, in `namespace`.
  ///   - audit: the names of those that only audit.
  init(_ policies: [String: String], namespace: String = "shop", audit: Set<String> = []) throws {
    for (number, name) in ["here", "there"].enumerated() {
      var node = Node(name: name)
      node.internalIPs = [Self.address("172.18.0.\(number + 1)"), Self.address("fd00:172:18::\(number + 1)")]
      node.podCIDRs = ["10.244.\(number + 1).0/24", "fd00:10:244:\(number + 1)::/64"].compactMap { CIDR($0) }
      world.nodes.append(node)
    }
    world.namespaces = [
      Namespace(name: "shop", labels: ["team": "red"]), Namespace(name: "bank", labels: ["team": "blue"]),
      Namespace(name: "lab"),
    ]
    add("shop/web", 1, 2, ["app": "web", "tier": "front"], [("http", .tcp, 8080)])
    add(
      "shop/api", 1, 3, ["app": "api"],
      [("http", .tcp, 80), ("http", .tcp, 8081), ("dns", .udp, 53), ("dns", .tcp, 5353)])
    add("shop/db", 2, 2, ["app": "db", "tier": ""], [("http", .tcp, 9090)])
    add("bank/web", 2, 3, ["app": "web"], [])
    add("bank/till", 1, 4, ["app": "till"], [])
    add("lab/bare", 2, 4, [:], [])
    for (name, spec) in policies {
      let text = """
        {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
         metadata: {name: '\(name)', namespace: '\(namespace)'}, spec: \(spec)}
        """
      let decoded = decodeObject(try parseYAMLDocument(Array(text.utf8)), file: "np.yaml")
      guard case .object(.networkPolicy(var policy), let problems, _) = decoded, problems.isEmpty else {
        throw NotDecoded(description: "\(decoded)\n\(text)")
      }
      policy.mode = audit.contains(name) ? .audit : .enforce
      world.policies.append(policy)
    }
  }

  /// A pod that runs on the first or second node.
  mutating func add(
    _ name: String, _ node: Int, _ host: Int, _ labels: Labels, _ ports: [(String, L4Protocol, UInt16)] = []
  ) {
    var pod = Pod(key: Self.key(name))
    pod.nodeName = node == 1 ? "here" : "there"
    pod.labels = labels
    pod.podIPs = [Self.address("10.244.\(node).\(host)"), Self.address("fd00:10:244:\(node)::\(host)")]
    pod.phase = .running
    pod.containerPorts = ports.compactMap { name, proto, number in
      Port(number).map { NamedContainerPort(name: name, proto: proto, port: $0) }
    }
    world.pods.append(pod)
  }

  // MARK: Changes

  mutating func change(_ pod: String, _ body: (inout Pod) -> Void) {
    for index in world.pods.indices where world.pods[index].key == Self.key(pod) { body(&world.pods[index]) }
  }

  mutating func change(namespace: String, _ body: (inout Namespace) -> Void) {
    for index in world.namespaces.indices where world.namespaces[index].name == namespace {
      body(&world.namespaces[index])
    }
  }

  // MARK: Questions

  /// What the oracle says of a flow between two ends: `shop/web` (its first address, or `shop/web v6`), an address (of
  /// another machine, when it sends), or `host`, the node itself.
  func judge(_ from: String, _ to: String, _ proto: FlowProtocol = .tcp(80)) -> OracleVerdict {
    let destination = address(of: to, .v4)
    let origin: FlowOrigin =
      if from == "host" { .host } else if let pod = pod(from), pod.nodeName == "here" { .localPod(pod.key) } else {
        .wire
      }
    return PolicyOracle(world).judge(
      PolicyFlow(
        origin: origin, source: address(of: from, destination.family), destination: destination, proto: proto))
  }

  func egress(_ from: String, _ to: String, _ proto: FlowProtocol = .tcp(80)) -> String {
    "\(judge(from, to, proto).egress)"
  }

  func ingress(_ from: String, _ to: String, _ proto: FlowProtocol = .tcp(80)) -> String {
    "\(judge(from, to, proto).ingress)"
  }

  private func pod(_ name: String) -> Pod? {
    world.pods.first { $0.key.description == name.split(separator: " ").first ?? "" }
  }

  /// - Parameter family: of the two addresses of a sender, that of the destination is meant.
  private func address(of end: String, _ family: IPFamily) -> IPAddress {
    let family = end.hasSuffix(" v6") ? .v6 : family
    if end == "host" { return Self.address(family == .v4 ? "172.18.0.1" : "fd00:172:18::1") }
    guard let pod = pod(end) else { return Self.address(end) }
    return pod.podIPs.first { $0.family == family } ?? .unspecified(family)
  }

  static func key(_ text: String) -> ObjectKey {
    let parts = text.split(separator: "/").map(String.init)
    return ObjectKey(namespace: parts.first ?? "", name: parts.last ?? "")
  }

  static func address(_ text: String) -> IPAddress {
    guard let address = IPAddress(text) else {
      preconditionFailure("not an address: \(text)")
    }
    return address
  }
}
