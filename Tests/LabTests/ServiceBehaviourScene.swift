// The stage of the service tests: a lab with agents, a Service to write, and what to ask and expect of it.
import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import Lab

/// What Services must do, shown with real agents, the real plugin and real packets. One after the other: two cores.
@Suite("Services", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
enum ServiceBehaviour {}

/// A Service as its YAML. Its ports `tcp` and `udp` lead to the pods' ports of the same names.
struct ServiceSpec {
  static let namespace = "shop"
  var name = "web"
  /// The last number of its addresses.
  var number = 10
  var type = "ClusterIP"
  var port = 80
  var nodePort: Int?
  var hasVirtualIPs = false
  /// Lines of `metadata.annotations`.
  var annotations: [String] = []
  /// Lines of `spec` as they stand in YAML, such as `internalTrafficPolicy: Local`.
  var lines: [String] = []

  init(type: String = "ClusterIP", _ lines: String...) {
    self.type = type
    self.lines = lines
    if type != "ClusterIP" { nodePort = 30080 }
    hasVirtualIPs = type == "LoadBalancer"
  }

  func clusterIP(_ family: IPFamily) throws -> IPAddress {
    try #require(IPAddress(family == .v4 ? "10.96.0.\(number)" : "fd00:10:96::\(number)"))
  }
  func virtualIP(_ family: IPFamily) throws -> IPAddress {
    try #require(IPAddress(family == .v4 ? "203.0.113.\(number)" : "2001:db8::\(number)"))
  }

  func yaml() throws -> String {
    let addresses = try IPFamily.allCases.map { "\"\(try clusterIP($0))\"" }.joined(separator: ", ")
    let number = nodePort.map { ", nodePort: \($0)" } ?? ""
    let ports = ["tcp", "udp"].map { name in
      "  - {name: \(name), protocol: \(name.uppercased()), port: \(port), targetPort: \(name)\(number)}"
    }
    let ingress = try IPFamily.allCases.map { "{ip: \"\(try virtualIP($0))\"}" }.joined(separator: ", ")
    let status = hasVirtualIPs ? ["status: {loadBalancer: {ingress: [\(ingress)]}}"] : []
    let text =
      [
        "apiVersion: v1", "kind: Service", "metadata:", "  name: \(name)", "  namespace: \(Self.namespace)",
        "  annotations: {\(annotations.joined(separator: ", "))}", "spec:",
        "  type: \(type)", "  ipFamilyPolicy: RequireDualStack", "  ipFamilies: [IPv4, IPv6]",
        "  clusterIPs: [\(addresses)]", "  selector: {app: \(name)}",
      ] + lines.map { "  \($0)" } + ["  ports:"] + ports + status
    return text.joined(separator: "\n") + "\n"
  }
}

/// A family and a protocol: most things are shown for all four.
struct Traffic: CustomStringConvertible {
  var family: IPFamily
  var transport: L4Protocol
  static let all = IPFamily.allCases.flatMap { family in
    [L4Protocol.tcp, .udp].map { Traffic(family: family, transport: $0) }
  }
  var mode: ProbeSpec.Mode { transport == .tcp ? .tcp : .udp }
  var description: String { "\(transport) \(family)" }
}

final class ServiceScene {
  /// Long enough for an answer; whoever is served takes a hundredth of it.
  static let dropMilliseconds = 250
  static let targetPorts: [L4Protocol: Int] = [.tcp: 8081, .udp: 8082]

  let lab: Lab
  private var barrier = 0
  /// Below the range the kernel chooses from.
  private var nextSourcePort = 12_000

  private init(_ lab: Lab) { self.lab = lab }

  /// Runs a test in a lab of two nodes and checks afterwards, on each: no error in the agent's log, objects, agent and
  /// kernel agree, and packets were dropped for these reasons and for no other.
  ///
  /// - Parameters:
  ///   - socketLB: whose connections are translated at the socket.
  ///   - expectedDrops: the names of the chains whose counters must have counted.
  static func run(
    _ purpose: String, agentArguments: [String] = [], socketLB: String? = nil, expectedDrops: Set<String> = [],
    sourceLocation: SourceLocation = #_sourceLocation, _ body: (ServiceScene) throws -> Void
  ) throws {
    var configuration = LabHarness.configuration(purpose)
    configuration.agentArguments = agentArguments
    if let socketLB { configuration.socketLB = socketLB }
    try LabHarness.withLab(configuration) { lab in
      let scene = ServiceScene(lab)
      try body(scene)
      try scene.sync()
      try LabHarness.expectAgreement(of: lab, sourceLocation: sourceLocation)
      try LabHarness.expectDrops(of: lab, expectedDrops, sourceLocation: sourceLocation)
    }
  }

  /// A server on TCP and UDP that is no pod: in the client, the switch or a node. It is there when this returns.
  func startServer(_ name: String, in place: LabTarget, port: Int) throws -> ChildProcess {
    let server = try lab.spawn(
      in: place, [LabHarness.dpctl, "lab", "serve", "--name", name, "--tcp", "\(port)", "--udp", "\(port)"],
      log: "\(lab.manifestsDirectory)/../\(name).log")
    for traffic in Traffic.all {
      let here = IPAddress(traffic.family == .v4 ? "127.0.0.1" : "::1")
      try LabHarness.eventually("\(name) serves \(traffic)") {
        try probe(traffic, from: place, to: try #require(here), port, count: 1).answered == 1
      }
    }
    return server
  }

  // MARK: Objects

  /// A backend of the Service of that name, answering on its TCP and its UDP port.
  @discardableResult
  func backend(
    _ name: String, on node: String, app: String = "web", tcp: Int = targetPorts[.tcp] ?? 0,
    udp: Int = targetPorts[.udp] ?? 0, ready: Bool = true
  ) throws -> LabPod {
    var spec = PodSpec(ServiceSpec.namespace, name, node: node, labels: ["app": app])
    spec.ports = [
      PodPort("tcp", .tcp, try #require(Port(tcp)), service: .echo), PodPort("udp", .udp, try #require(Port(udp))),
    ]
    spec.startsReady = ready
    return try lab.addPod(spec)
  }

  /// A pod that only asks.
  func clientPod(_ name: String, on node: String) throws -> LabPod {
    try lab.addPod(PodSpec(ServiceSpec.namespace, name, node: node, labels: ["app": "client"]))
  }

  func apply(_ service: ServiceSpec) throws {
    try lab.apply(service.name, try service.yaml())
    try sync()
  }

  /// Returns once every agent has put into the kernel what was in the manifests when this was called.
  ///
  /// Changes are handled in order: a Service written last is there when all that came before is.
  func sync() throws {
    // Services and slices are not all that counts: pods, nodes.
    try lab.awaitAPIServer()
    barrier += 1
    let number = barrier
    try lab.apply(
      "zz-barrier",
      """
      apiVersion: v1
      kind: Service
      metadata: {name: barrier, namespace: barrier}
      spec: {clusterIPs: [10.96.255.254], ports: [{port: \(number)}]}
      ---
      apiVersion: discovery.k8s.io/v1
      kind: EndpointSlice
      metadata: {name: barrier, namespace: barrier, labels: {kubernetes.io/service-name: barrier}}
      addressType: IPv4
      ports: [{name: "", port: \(number)}]
      endpoints: [{addresses: [10.244.255.254]}]
      """)
    for node in lab.configuration.nodes {
      let agent = try lab.agentClient(node.name)
      try LabHarness.eventually("the agent of \(node.name) has seen barrier \(number)") {
        let answer = try agent.request("GET", "/v1/services?namespace=barrier&name=barrier")
        let text = String(decoding: answer.body, as: UTF8.self)
        // An API server tells of Services and slices apart.
        return text.contains("\"portNumber\":\(number),") && text.contains("\"10.244.255.254:\(number)\"")
      }
    }
  }

  // MARK: Network outside the agents' reach

  private func link(_ name: String, of target: LabTarget) throws -> (route: RouteSocket, index: Int) {
    let route = try RouteSocket(in: try lab.network(of: target))
    return (route, try #require(try route.link(named: name)).index)
  }

  /// Gives a place one more address.
  func addAddress(_ address: IPAddress, to target: LabTarget, device: String = "eth0") throws {
    let (route, index) = try link(device, of: target)
    try route.addAddress(InterfaceAddress(host: address), interfaceIndex: index, withoutDAD: true)
    guard address.family == .v6, device != "lo" else { return }
    // Linux joins the group that neighbours ask for the address in a work item of its own, a moment later.
    let group = "ff0200000000000000000001ff" + address.bytes.suffix(3).map(Self.hexadecimal).joined()
    let network = try lab.network(of: target)
    try LabHarness.eventually("neighbours find \(address)") {
      let memberships = try network.run { Files.text("/proc/thread-self/net/igmp6") ?? "" }
      return memberships.contains(group)
    }
  }

  private static func hexadecimal(_ byte: UInt8) -> String {
    (byte < 16 ? "0" : "") + String(byte, radix: 16)
  }

  /// The same, and what the place sends to nodes, client and `others` comes from that address: what a UDP server there
  /// needs.
  func addAddressAnswering(
    _ address: IPAddress, to target: LabTarget, device: String, others: [IPAddress]
  ) throws {
    try addAddress(address, to: target, device: device)
    let (route, index) = try link(device, of: target)
    let nodes = try lab.configuration.nodes.map { try lab.nodeAddress($0.name, address.family) }
    for peer in nodes + LabAddresses.client + others where peer.family == address.family {
      try route.replaceRoute(
        Route(destination: CIDR(host: peer), interfaceIndex: index, preferredSource: address))
    }
  }

  /// Lets the client outside the cluster send packets for these addresses to a node, as a router of the site would.
  func routeFromClient(_ text: String, via node: String) throws {
    let range = try #require(CIDR(text))
    let (route, index) = try link("eth0", of: .client)
    try route.replaceRoute(
      Route(destination: range, gateway: try lab.nodeAddress(node, range.family), interfaceIndex: index))
  }

  // MARK: Asking

  func probe(
    _ traffic: Traffic, from place: LabTarget, to address: IPAddress, _ port: Int = 80, count: Int = 6,
    source: IPAddress? = nil, milliseconds: Int = 3000
  ) throws -> ProbeReport {
    var spec = ProbeSpec(traffic.mode, to: SocketAddress(address, try #require(Port(port))), count: count)
    spec.sourceAddress = source
    spec.timeoutMilliseconds = milliseconds
    if traffic.transport == .udp, nextSourcePort + count < 30_000 {
      // A port of an earlier probe would go on with that one's flow, as it should, instead of starting a new one.
      spec.firstSourcePort = Port(nextSourcePort)
      nextSourcePort += count
    }
    return try lab.probe(from: place, spec)
  }

  /// Every request is answered, by exactly these pods (nil: by any), which see exactly this client.
  func expectServed(
    _ traffic: Traffic, from place: LabTarget, to address: IPAddress, _ port: Int = 80, by pods: Set<String>? = nil,
    seeing client: IPAddress? = nil, source: IPAddress? = nil, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    // 40 requests miss one of three backends once in three million times.
    let count = (pods?.count ?? 1) > 1 ? 40 : 6
    let report = try probe(traffic, from: place, to: address, port, count: count, source: source)
    let hasServed =
      report.answered == count && pods.map { $0 == Set(report.backends.keys) } ?? true
      && client.map { report.clients == [$0] } ?? true
    let found = "\(report.summary), as \(report.clients.sorted().map(\.description))"
    let expected = "expected \(pods.map { "\($0.sorted())" } ?? "any"), as \(client.map { "\($0)" } ?? "any")"
    #expect(
      hasServed, "\(traffic) from \(place) to \(address) port \(port): \(found); \(expected)",
      sourceLocation: sourceLocation)
  }

  /// Nothing comes back: no answer, and no error either.
  func expectDropped(
    _ traffic: Traffic, from place: LabTarget, to address: IPAddress, _ port: Int = 80, source: IPAddress? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let report = try probe(
      traffic, from: place, to: address, port, count: 3, source: source, milliseconds: Self.dropMilliseconds)
    let what = Comment(rawValue: "\(traffic) from \(place) to \(address) port \(port): \(report.summary)")
    #expect(report.outcomes == [.timedOut: 3], what, sourceLocation: sourceLocation)
  }

  /// The client is told at once: within 100 ms (500 ms on a machine that others use), where one that waits for its own
  /// retransmission takes a second.
  ///
  /// Two requests only: Linux limits ICMP errors to six at once for each client, then one a second.
  func expectRefused(
    _ traffic: Traffic, from place: LabTarget, to address: IPAddress, _ port: Int = 80, source: IPAddress? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let report = try probe(
      traffic, from: place, to: address, port, count: 2, source: source, milliseconds: 900)
    let what = Comment(rawValue: "\(traffic) from \(place) to \(address) port \(port): \(report.summary)")
    let quickest = report.results.map { Int($0.latency / 1_000_000) }.min() ?? .max
    #expect(
      report.outcomes == [.refused: 2] && quickest < (LabHarness.sharesMachine ? 500 : 100), what,
      sourceLocation: sourceLocation)
  }

  /// A long-lived flow from a place; `survivesErrors` is for UDP.
  func startFlow(
    _ traffic: Traffic, from place: LabTarget, to address: IPAddress, _ port: Int = 80, survivesErrors: Bool = false
  ) throws -> BackgroundWork<[EchoFlowReport]> {
    var spec = EchoFlowSpec(traffic.mode, to: SocketAddress(address, try #require(Port(port))))
    spec.survivesErrors = survivesErrors
    // Two cores and everything at once: a scheduling delay is no interruption.
    spec.gapMilliseconds = 500
    return try lab.startFlows(from: place, spec)
  }

  func target(_ pod: LabPod) -> LabTarget { .pod(pod.name) }

  /// Whether connections from there to Services are translated where they are made, and no packet of theirs is.
  func isAtSocket(_ place: LabTarget) -> Bool {
    switch (place, lab.configuration.socketMode) {
    case (.pod, "all"), (.node, "all"), (.node, "host"): true
    default: false
    }
  }
}
