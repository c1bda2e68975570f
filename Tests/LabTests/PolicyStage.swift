// The stage of the policy tests: a lab with agents, pods that serve everything they are asked for, and what is expected.
import Glibc
import KubernetesObjects
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

/// What passes from one end to another, or does not. An end is `namespace/pod`, a node, `client` (outside the cluster),
/// or, where it is asked, an address.
struct PolicyExpectation {
  var source: String
  var destination: String
  var protocols: [FlowProtocol]
  var families = IPFamily.allCases
  var isAllowed: Bool

  static func allowed(_ source: String, _ destination: String, _ protocols: FlowProtocol...) -> PolicyExpectation {
    make(source, destination, protocols, isAllowed: true)
  }

  static func denied(_ source: String, _ destination: String, _ protocols: FlowProtocol...) -> PolicyExpectation {
    make(source, destination, protocols, isAllowed: false)
  }

  /// TCP and UDP 80 where nothing else is said.
  private static func make(
    _ source: String, _ destination: String, _ protocols: [FlowProtocol], isAllowed: Bool
  ) -> PolicyExpectation {
    PolicyExpectation(
      source: source, destination: destination, protocols: protocols.isEmpty ? [.tcp(80), .udp(80)] : protocols,
      isAllowed: isAllowed)
  }

  func only(_ family: IPFamily) -> PolicyExpectation {
    var copy = self
    copy.families = [family]
    return copy
  }
}

final class PolicyStage {
  let lab: Lab
  private var hasServers: Set<String> = []

  init(_ lab: Lab) { self.lab = lab }

  /// Runs a test in a lab of two nodes whose client reaches pods directly. No agent may log an error.
  static func run(
    _ purpose: String, agentArguments: [String] = [], expectedErrors: [String] = [],
    _ body: (PolicyStage) throws -> Void
  ) throws {
    var configuration = LabHarness.configuration(purpose)
    configuration.agentArguments = agentArguments
    try LabHarness.withLab(configuration, expectedErrors: expectedErrors) { lab in
      let routes = try RouteSocketToPods(lab)
      for (number, node) in lab.configuration.nodes.enumerated() {
        for range in LabAddresses.podCIDRs(number) { try routes.add(range, via: node.name) }
      }
      try body(PolicyStage(lab))
    }
  }

  // MARK: Objects

  /// A pod that listens on 80 and 81, TCP and UDP.
  ///
  /// - Parameters:
  ///   - name: `namespace/pod`. The label `pod` is the pod's name where no labels are given.
  ///   - web: which of the TCP ports is called `web`; the other one is `other`.
  @discardableResult
  func pod(_ name: String, on node: String, labels: [String: String]? = nil, web: Int = 80) throws -> LabPod {
    let pod = try #require(PodName(name))
    var spec = PodSpec(pod.namespace, pod.name, node: node, labels: labels ?? ["pod": pod.name])
    for number in [80, 81] {
      let port = try #require(Port(number))
      spec.ports += [
        PodPort(number == web ? "web" : "other", .tcp, port, service: .echo), PodPort("udp-\(number)", .udp, port),
      ]
    }
    return try lab.addPod(spec)
  }

  /// Pods `a/x` on the first node, `a/y` and `b/x` on the second, `b/y` on the first, in namespaces labelled `ns`.
  func fourPods() throws {
    for (name, node) in [("a/x", "node1"), ("a/y", "node2"), ("b/x", "node2"), ("b/y", "node1")] {
      try pod(name, on: node)
    }
    for name in ["a", "b"] { try lab.setLabels(ofNamespace: name, ["ns": name]) }
  }

  /// Writes a policy of that `namespace/name`; `spec` is YAML in flow style.
  func policy(_ key: String, _ spec: String, audit: Bool = false) throws {
    let name = try #require(PodName(key))
    let annotations = audit ? ", annotations: {\(WellKnown.mode): audit}" : ""
    try lab.apply(
      file(key),
      """
      apiVersion: networking.k8s.io/v1
      kind: NetworkPolicy
      metadata: {name: \(name.name), namespace: \(name.namespace)\(annotations)}
      spec: \(spec)

      """)
  }

  func removePolicy(_ key: String) throws { try lab.removeManifest(file(key)) }

  private func file(_ key: String) -> String { "np_" + key.map { $0 == "/" ? "_" : String($0) }.joined() }

  /// A Service without a selector of its own kind: one pod behind ports 1080, and node port 30080.
  func service(_ name: String, number: Int, selects label: String) throws {
    let service = try #require(PodName(name))
    try lab.apply(
      "service_\(service.namespace)_\(service.name)",
      """
      apiVersion: v1
      kind: Service
      metadata: {name: \(service.name), namespace: \(service.namespace)}
      spec:
        type: NodePort
        ipFamilyPolicy: RequireDualStack
        ipFamilies: [IPv4, IPv6]
        clusterIPs: [10.96.0.\(number), "fd00:10:96::\(number)"]
        selector: {pod: \(label)}
        ports:
        - {name: tcp, protocol: TCP, port: 1080, targetPort: 80, nodePort: 30080}
        - {name: udp, protocol: UDP, port: 1080, targetPort: 80, nodePort: 30080}

      """)
  }

  /// Has a node or the client listen on 80 and 81, TCP and UDP.
  func serve(on end: String) throws {
    guard hasServers.insert(end).inserted else { return }
    _ = try lab.spawn(
      in: LabTarget(end),
      [LabHarness.dpctl, "lab", "serve", "--name", end, "--tcp", "80,81", "--udp", "80,81"],
      log: "\(lab.manifestsDirectory)/../\(end)-server.log")
  }

  func address(_ end: String, _ family: IPFamily) throws -> IPAddress {
    if let address = IPAddress(end) { return address }
    let address =
      switch LabTarget(end) {
      case .pod(let name): try lab.pod(name).address(family)
      case .node(let name): try lab.nodeAddress(name, family)
      default: LabAddresses.client.first { $0.family == family }
      }
    return try #require(address)
  }

  // MARK: Expecting

  /// Waits until everything is as expected, at most ten seconds, and then looks whether it stays so.
  func expect(_ expectations: PolicyExpectation..., sourceLocation: SourceLocation = #_sourceLocation) throws {
    try lab.awaitAPIServer()
    let deadline = monotonicNanoseconds() + 10_000_000_000
    while try !disagreements(expectations).isEmpty, monotonicNanoseconds() < deadline {}
    let wrong = try disagreements(expectations)
    #expect(wrong.isEmpty, "\(wrong.joined(separator: "\n"))", sourceLocation: sourceLocation)
  }

  /// Asks everything once, from all places at the same time.
  private func disagreements(_ expectations: [PolicyExpectation]) throws -> [String] {
    var places: [String: [(target: MatrixTarget, isAllowed: Bool)]] = [:]
    for expectation in expectations {
      for family in expectation.families {
        let address = try address(expectation.destination, family)
        guard address.family == family else { continue }
        for proto in expectation.protocols {
          places[expectation.source, default: []].append((try Self.target(proto, address), expectation.isAllowed))
        }
      }
    }
    let running = try places.map { source, list in
      let network = try lab.network(of: LabTarget(source))
      let (targets, expected) = (list.map(\.target), list.map(\.isAllowed))
      let work = BackgroundWork<[MatrixOutcome]> { _ in
        try network.run { try MatrixProber.ask(targets, expected: expected) }
      }
      return (source: source, list: list, work: work)
    }
    return try running.flatMap { source, list, work in
      zip(list, try work.wait()).compactMap { item, found in
        guard found != (item.isAllowed ? .answered : .silent) else { return nil }
        return "\(source) -> \(item.target): \(found), expected \(item.isAllowed ? "answered" : "silent")"
      }
    }
  }

  private static func target(_ proto: FlowProtocol, _ address: IPAddress) throws -> MatrixTarget {
    switch proto {
    case .tcp(let port): return MatrixTarget(.tcp, address, port)
    case .udp(let port): return MatrixTarget(.udp, address, port)
    default: return MatrixTarget(.icmp, address)
    }
  }

  /// What became of one question, whatever was expected.
  func outcome(_ proto: FlowProtocol, from source: String, to destination: String, _ family: IPFamily) throws
    -> MatrixOutcome
  {
    let target = try Self.target(proto, try address(destination, family))
    let outcomes = try lab.network(of: LabTarget(source)).run { try MatrixProber.ask([target], expected: [true]) }
    return try #require(outcomes.first)
  }

  /// What the agent of that node says is wrong with the manifests.
  func problems(on node: String) throws -> [String] {
    let answer = try lab.agentClient(node).request("GET", "/v1/status")
    let json = try JSONValue(parsing: String(decoding: answer.body, as: UTF8.self))
    return (json["source"]?["problems"]?.arrayValue ?? []).compactMap(\.stringValue)
  }

  /// After whatever has happened, on each node: objects, agent and kernel have the same policies.
  static func expectAgreement(of lab: Lab, sourceLocation: SourceLocation = #_sourceLocation) throws {
    for node in lab.configuration.nodes {
      try LabHarness.eventually("\(node.name): dpctl policy diff finds nothing", sourceLocation: sourceLocation) {
        let diff = try lab.exec(in: .node(node.name), [LabHarness.dpctl, "policy", "diff"])
        return diff.status == 0 && diff.stdout.isEmpty
      }
    }
  }

  // MARK: Counting

  /// How many datagrams have reached the pod's sockets, or would have, had there been one.
  func receivedDatagrams(by pod: PodName, _ family: IPFamily) throws -> Int {
    let file = "/proc/thread-self/net/\(family == .v4 ? "snmp" : "snmp6")"
    let text = try lab.network(of: .pod(pod)).run { Files.text(file) ?? "" }
    let lines = text.split(separator: "\n").map { $0.split { $0 == " " || $0 == "\t" } }
    if family == .v6 {
      let values = ["Udp6InDatagrams", "Udp6NoPorts"].map { name in
        lines.first { $0.first.map(String.init) == name }?.last.flatMap { Int($0) }
      }
      return try values.reduce(0) { try $0 + #require($1) }
    }
    // Two lines: the names, then the numbers.
    let udp = lines.filter { $0.first == "Udp:" }
    let (names, numbers) = (try #require(udp.first), try #require(udp.last))
    return zip(names, numbers).filter { ["InDatagrams", "NoPorts"].contains($0.0) }.compactMap { Int($0.1) }.reduce(
      0, +)
  }

  /// What the agent has counted of a reason, both families.
  func dropped(for reason: String, on node: String) throws -> Int {
    Int(try lab.metrics(node)["sluice_drop_packets_total{reason=\"\(reason)\",direction=\"\"}"] ?? 0)
  }
}
