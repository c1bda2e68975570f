// The stage of the truth tables: nine pods on two nodes, what is asked of whom, and what the oracle expects.
import KubernetesObjects
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

/// A cluster whose objects the test writes, and everything in it that sends and listens.
///
///     node1: a/x a/z b/y c/x c/z        node2: a/y b/x b/z c/y        client: outside the cluster
///
/// Pods are labelled `pod=x` and so on, namespaces `ns=a`. Everything listens on 80 and 81, TCP and UDP, nodes and client
/// too. The container ports have names, and a name is another number on another pod:
///
///     pod   tcp 80   tcp 81   udp 80   udp 81
///     x     web      admin    dns      logs
///     y     admin    web      logs     dns
///     z     web      web      admin    (none)
///
/// Every pod has a Service of its own, whose ports 1080 and 1081 lead to 80 and 81.
final class PolicyMatrixScene {
  static let letters = ["x", "y", "z"]
  static let namespaces = ["a", "b", "c"]
  static let ports: [UInt16] = [80, 81]
  static let servicePortOffset: UInt16 = 1000

  /// Who asks, or is asked.
  enum End: Hashable, Sendable, CustomStringConvertible {
    case pod(ObjectKey)
    case node(String)
    case client

    var description: String {
      switch self {
      case .pod(let key): "\(key)"
      case .node(let name): name
      case .client: "client"
      }
    }
  }

  /// One cell: what is asked, and who is meant by it.
  struct Cell: Hashable, Sendable, CustomStringConvertible {
    var source: End
    var destination: End
    /// At the destination, behind a Service.
    var destinationAddress: IPAddress
    var proto: FlowProtocol
    var target: MatrixTarget
    var isThroughService: Bool

    var description: String {
      let path = isThroughService ? " through its Service" : ""
      return "\(source) -> \(destination), \(proto) \(target.address.family)\(path)"
    }
  }

  /// A source, and its cells in the order in which it asks.
  struct Row {
    var source: MatrixSource
    var cells: [Cell]
  }

  let lab: Lab
  /// The objects as they are in the manifests. `ownNode` means nothing here.
  private(set) var world: PolicyWorld
  /// As it is before any test has changed it.
  let baseWorld: PolicyWorld
  /// Without Services, and with them; started when they are first needed.
  private var startedRows: [Bool: [Row]] = [:]
  private var written: [String: String] = [:]

  init(_ lab: Lab) throws {
    self.lab = lab
    var world = PolicyWorld(ownNode: "")
    for (number, spec) in lab.configuration.nodes.enumerated() {
      var node = Node(name: spec.name)
      node.internalIPs = LabAddresses.node(number)
      node.podCIDRs = LabAddresses.podCIDRs(number)
      world.nodes.append(node)
    }
    world.namespaces = Self.namespaces.map { Namespace(name: $0, labels: ["ns": $0]) }
    for (number, namespace) in Self.namespaces.enumerated() {
      for (place, letter) in Self.letters.enumerated() {
        world.pods.append(try Self.addPod(to: lab, namespace, letter, node: (number + place) % 2))
      }
    }
    self.world = world
    baseWorld = world
    try serveOutsidePods()
    for pod in world.pods { try lab.apply("service_\(pod.key.namespace)_\(pod.key.name)", try serviceYAML(pod)) }
    try publish(world)
  }

  // MARK: Objects

  private static func addPod(to lab: Lab, _ namespace: String, _ letter: String, node: Int) throws -> Pod {
    var spec = PodSpec(
      namespace, letter, node: lab.configuration.nodes[node].name, labels: ["pod": letter])
    for number in ports {
      let port = try #require(Port(number))
      spec.ports += [PodPort("t\(number)", .tcp, port), PodPort("u\(number)", .udp, port)]
    }
    let started = try lab.addPod(spec)
    var pod = Pod(key: ObjectKey(namespace: namespace, name: letter))
    pod.uid = started.uid
    pod.nodeName = spec.node
    pod.labels = ["pod": letter]
    pod.podIPs = started.addresses
    pod.phase = .running
    pod.containerPorts = try namedPorts(of: letter)
    return pod
  }

  /// As the table above has it.
  static func namedPorts(of letter: String) throws -> [NamedContainerPort] {
    let names = [
      "x": ["web", "admin", "dns", "logs"], "y": ["admin", "web", "logs", "dns"], "z": ["web", "web", "admin", ""],
    ]
    var result: [NamedContainerPort] = []
    for (name, (proto, number)) in zip(
      names[letter] ?? [], [(L4Protocol.tcp, 80), (.tcp, 81), (.udp, 80), (.udp, 81)]) where !name.isEmpty
    {
      result.append(NamedContainerPort(name: name, proto: proto, port: try #require(Port(number))))
    }
    return result
  }

  private func serviceYAML(_ pod: Pod) throws -> String {
    let addresses = try IPFamily.allCases.map { "\"\(try serviceAddress(of: pod, $0))\"" }.joined(separator: ", ")
    let portLines = Self.ports.flatMap { port in
      ["TCP", "UDP"].map { proto in
        "  - {name: \(proto.lowercased())-\(port), protocol: \(proto), "
          + "port: \(port + Self.servicePortOffset), targetPort: \(port)}"
      }
    }
    return """
      apiVersion: v1
      kind: Service
      metadata: {name: \(pod.key.name), namespace: \(pod.key.namespace)}
      spec:
        ipFamilyPolicy: RequireDualStack
        ipFamilies: [IPv4, IPv6]
        clusterIPs: [\(addresses)]
        selector: {pod: \(pod.key.name)}
        ports:
      \(portLines.joined(separator: "\n"))

      """
  }

  private func serviceAddress(of pod: Pod, _ family: IPFamily) throws -> IPAddress {
    let number = try #require(baseWorld.pods.firstIndex { $0.key == pod.key }) + 10
    return try #require(IPAddress(family == .v4 ? "10.96.0.\(number)" : "fd00:10:96::\(number)"))
  }

  /// Nodes and client listen as the pods do; the client can reach pods by way of their nodes.
  private func serveOutsidePods() throws {
    let places = lab.configuration.nodes.map { (LabTarget.node($0.name), $0.name) } + [(.client, "client")]
    for (place, name) in places {
      let list = Self.ports.map(String.init).joined(separator: ",")
      _ = try lab.spawn(
        in: place, [LabHarness.dpctl, "lab", "serve", "--name", name, "--tcp", list, "--udp", list],
        log: "\(lab.manifestsDirectory)/../\(name)-server.log")
    }
    let route = try RouteSocketToPods(lab)
    for (number, node) in lab.configuration.nodes.enumerated() {
      for range in LabAddresses.podCIDRs(number) { try route.add(range, via: node.name) }
    }
  }

  /// Writes what has changed: policies into one file, everything else into a file per object.
  ///
  /// - Parameter policyTexts: manifests of policies, where the test has written them itself.
  func publish(_ new: PolicyWorld, policyTexts: [ObjectKey: String] = [:]) throws {
    world = new
    var files: [String: String] = [:]
    for namespace in new.namespaces {
      files["namespace_\(namespace.name)"] = WorldYAML.document(.namespace(namespace))
    }
    for pod in new.pods { files["pod_\(pod.key.namespace)_\(pod.key.name)"] = WorldYAML.document(.pod(pod)) }
    if !new.policies.isEmpty {
      files["policies"] = new.policies.map { policyTexts[$0.key] ?? WorldYAML.document(.networkPolicy($0)) }.joined()
    }
    for (name, text) in files.sorted(by: { $0.key < $1.key }) where written[name] != text { try lab.apply(name, text) }
    for name in written.keys.sorted() where files[name] == nil { try lab.removeManifest(name) }
    written = files
    try lab.awaitAPIServer()
  }

  // MARK: Cells

  private var ends: [End] {
    baseWorld.pods.map { .pod($0.key) } + baseWorld.nodes.map { .node($0.name) } + [.client]
  }

  /// Everything that can be asked, by source.
  func cells(services: Bool) throws -> [[Cell]] {
    try ends.map { source in try ends.flatMap { try cells(from: source, to: $0, services: services) } }
  }

  private func rows(services: Bool) throws -> [Row] {
    if let rows = startedRows[services] { return rows }
    let rows = try zip(ends, try cells(services: services)).map { source, cells in
      Row(source: try MatrixSource(lab, from: place(source), to: cells.map(\.target)), cells: cells)
    }
    startedRows[services] = rows
    return rows
  }

  func place(_ end: End) -> LabTarget {
    switch end {
    case .pod(let key): .pod(PodName(key.namespace, key.name))
    case .node(let name): .node(name)
    case .client: .client
    }
  }

  /// Only what begins or ends at a pod; Services are not asked from outside the cluster.
  private func cells(from source: End, to destination: End, services: Bool) throws -> [Cell] {
    var isFromPod = false
    if case .pod = source { isFromPod = true }
    var pod: Pod?
    if case .pod(let key) = destination { pod = baseWorld.pods.first { $0.key == key } }
    guard isFromPod || pod != nil else { return [] }
    var cells: [Cell] = []
    for family in IPFamily.allCases {
      let address = try self.address(of: destination, family)
      func add(_ proto: FlowProtocol, _ target: MatrixTarget, throughService: Bool = false) {
        cells.append(
          Cell(
            source: source, destination: destination, destinationAddress: address, proto: proto, target: target,
            isThroughService: throughService))
      }
      for port in Self.ports {
        add(.tcp(port), MatrixTarget(.tcp, address, port))
        add(.udp(port), MatrixTarget(.udp, address, port))
        guard services, source != .client, let pod else { continue }
        let virtual = try serviceAddress(of: pod, family)
        add(.tcp(port), MatrixTarget(.tcp, virtual, port + Self.servicePortOffset), throughService: true)
        add(.udp(port), MatrixTarget(.udp, virtual, port + Self.servicePortOffset), throughService: true)
      }
      add(.icmpEcho, MatrixTarget(.icmp, address))
    }
    return cells
  }

  func address(of end: End, _ family: IPFamily) throws -> IPAddress {
    let addresses =
      switch end {
      case .pod(let key): baseWorld.pods.first { $0.key == key }?.podIPs
      case .node(let name): baseWorld.nodes.first { $0.name == name }?.internalIPs
      case .client: LabAddresses.client
      }
    return try #require(addresses?.first { $0.family == family })
  }

  // MARK: Expectation

  /// What the specification says of a cell, at each end's node.
  func verdicts(_ cell: Cell) throws -> [(node: String, verdict: OracleVerdict)] {
    let source = try address(of: cell.source, cell.destinationAddress.family)
    return nodes(of: cell).map { node in
      var seen = world
      seen.ownNode = node
      let flow = PolicyFlow(
        origin: origin(of: cell.source, seenFrom: node), source: source, destination: cell.destinationAddress,
        proto: cell.proto)
      return (node, PolicyOracle(seen).judge(flow))
    }
  }

  /// Each end is judged by the node that it is on: the source's first.
  func isAllowed(_ cell: Cell) throws -> Bool { try verdicts(cell).allSatisfy(\.verdict.isAllowed) }

  private func nodes(of cell: Cell) -> [String] {
    var nodes: [String] = []
    for end in [cell.source, cell.destination] {
      var node: String?
      switch end {
      case .pod(let key): node = world.pods.first { $0.key == key }?.nodeName
      // What a node is sent is none of policy's business.
      case .node(let name): node = end == cell.source ? name : nil
      case .client: break
      }
      if let node, !nodes.contains(node) { nodes.append(node) }
    }
    return nodes
  }

  private func origin(of source: End, seenFrom node: String) -> FlowOrigin {
    switch source {
    case .pod(let key): world.pods.contains { $0.key == key && $0.nodeName == node } ? .localPod(key) : .wire
    case .node(let name): name == node ? .host : .wire
    case .client: .wire
    }
  }

  /// Everything that is asked, with the oracle's answer.
  func expectation(services: Bool) throws -> [[Bool]] {
    var known: [Cell: Bool] = [:]
    return try cells(services: services).map { row in
      try row.map { cell in
        // A flow through a Service is judged as the one to its backend.
        var direct = cell
        direct.target = MatrixTarget(.icmp, cell.destinationAddress)
        direct.isThroughService = false
        if let answer = known[direct] { return answer }
        let answer = try isAllowed(cell)
        known[direct] = answer
        return answer
      }
    }
  }

  // MARK: Asking

  /// Asks everything once; the cells whose outcome was another than expected.
  func wrongCells(
    _ expected: [[Bool]], services: Bool, _ patience: MatrixPatience = MatrixPatience()
  ) throws -> [(cell: Cell, expected: Bool, found: MatrixOutcome)] {
    let rows = try rows(services: services)
    for (row, answers) in zip(rows, expected) { try row.source.begin(expected: answers, patience) }
    var wrong: [(cell: Cell, expected: Bool, found: MatrixOutcome)] = []
    for (row, answers) in zip(rows, expected) {
      for ((cell, answer), found) in zip(zip(row.cells, answers), try row.source.finish())
      where found != (answer ? .answered : .silent) {
        wrong.append((cell, answer, found))
      }
    }
    return wrong
  }
}
