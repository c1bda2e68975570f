// What the tests of scaling, live edits, crashes and clean-up share: Services whose slices the test writes itself, and
// looks into a running agent.
import Glibc
import Lab
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab

/// A dual-stack Service without a selector: the lab leaves its EndpointSlices to the test, so that slices decide and
/// pods keep serving.
struct StaticService {
  struct ServicePort {
    var name: String
    var `protocol`: L4Protocol
    var port: Int
    var target: Int
    var nodePort: Int?
  }

  var name: PodName
  /// ClusterIPs are `10.96.0.index` and `fd00:10:96::index`, the index in decimal.
  var index: Int
  var ports: [ServicePort]

  init(_ name: String, index: Int, _ ports: [ServicePort]) {
    self.name = PodName("shop", name)
    self.index = index
    self.ports = ports
  }

  /// TCP and UDP on port 80, both to 8081 of the pods; NodePorts `nodePort` and `nodePort + 1` where one is given.
  static func echo(_ name: String, index: Int, nodePort: Int? = nil) -> StaticService {
    StaticService(
      name, index: index,
      [
        ServicePort(name: "tcp", protocol: .tcp, port: 80, target: 8081, nodePort: nodePort),
        ServicePort(name: "udp", protocol: .udp, port: 80, target: 8081, nodePort: nodePort.map { $0 + 1 }),
      ])
  }

  func address(_ family: IPFamily) throws -> IPAddress {
    try #require(IPAddress(family == .v4 ? "10.96.0.\(index)" : "fd00:10:96::\(index)"))
  }

  func target(_ family: IPFamily, port: Int = 80) throws -> SocketAddress {
    SocketAddress(try address(family), try #require(Port(port)))
  }

  var yaml: String {
    let list = ports.map { port in
      "{name: \(port.name), protocol: \(port.protocol.kubernetesName), port: \(port.port), targetPort: \(port.target)"
        + (port.nodePort.map { ", nodePort: \($0)" } ?? "") + "}"
    }
    return """
      apiVersion: v1
      kind: Service
      metadata: {name: \(name.name), namespace: \(name.namespace)}
      spec:
        type: \(ports.contains { $0.nodePort != nil } ? "NodePort" : "ClusterIP")
        ipFamilyPolicy: RequireDualStack
        clusterIPs: [10.96.0.\(index), "fd00:10:96::\(index)"]
        ports: [\(list.joined(separator: ", "))]

      """
  }

  /// One slice per family, with these endpoints and no others.
  func slices(_ endpoints: [[IPAddress]]) -> String {
    let list = ports.map { "{name: \($0.name), protocol: \($0.protocol.kubernetesName), port: \($0.target)}" }
    return IPFamily.allCases.map { family in
      let addresses = endpoints.joined().filter { $0.family == family }.map { "{addresses: [\"\($0)\"]}" }
      return """
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata:
          name: \(name.name)-\("\(family)".lowercased())
          namespace: \(name.namespace)
          labels: {kubernetes.io/service-name: \(name.name)}
        addressType: \(family)
        ports: [\(list.joined(separator: ", "))]
        endpoints: [\(addresses.joined(separator: ", "))]

        """
    }.joined(separator: "---\n")
  }

  /// Writes the Service's own file.
  func apply(to lab: Lab) throws { try Files.replace("\(lab.manifestsDirectory)/\(name.name).yaml", yaml) }

  /// Writes the slices' file: these pods serve, and no others.
  func scale(to pods: [LabPod], in lab: Lab) throws {
    try Files.replace("\(lab.manifestsDirectory)/\(name.name)-slices.yaml", slices(pods.map(\.addresses)))
  }

  /// A pod whose server answers on the target ports.
  static func backend(_ name: String, node: String = "node1") throws -> PodSpec {
    let port = try #require(Port(8081))
    return PodSpec("shop", name, node: node, ports: [PodPort("tcp", .tcp, port), PodPort("udp", .udp, port)])
  }
}

/// One `programmed` line of an agent's log.
struct ProgrammedLine: Equatable {
  var services: String
  var revision: Int
  var messages: Int
  /// As logged, with its unit.
  var eventToKernel: String

  /// nil for lines of another kind.
  init?(_ line: Substring) {
    guard line.hasSuffix("] programmed") else { return nil }
    let pairs = line.split(separator: " ").compactMap { word -> (String, String)? in
      let parts = word.split(separator: "=", maxSplits: 1)
      return parts.count == 2 ? (String(parts[0]), String(parts[1])) : nil
    }
    let fields = Dictionary(pairs) { $1 }
    guard let services = fields["services"], let revision = fields["revision"].flatMap({ Int($0) }),
      let messages = fields["messages"].flatMap({ Int($0) }), let time = fields["event-to-kernel"]
    else { return nil }
    self.services = services
    self.revision = revision
    self.messages = messages
    eventToKernel = time
  }
}

extension Lab {
  func programmedLines(_ node: String) -> [ProgrammedLine] {
    agentLog(node).split(separator: "\n").compactMap { ProgrammedLine($0) }
  }

  /// What the node's agent has in force for a Service: backends of each frontend as `address:port`. The agent answers
  /// between two changes, never within one, so what it says is in the kernel.
  func backends(of service: PodName, on node: String) throws -> [String: Set<String>] {
    let target = "/v1/services?namespace=\(service.namespace)&name=\(service.name)"
    let (status, body) = try agentClient(node).request("GET", target)
    let items = try #require(status == 200 ? try JSONValue(parsing: body)["items"]?.arrayValue : nil)
    let pairs = items.map { item in
      let frontend = ["address", "protocol", "portNumber"].map { item[$0]?.serialized() ?? "" }
      let backends = item["fromNode"]?["addresses"]?.arrayValue ?? []
      return (frontend.joined(separator: " "), Set(backends.compactMap(\.stringValue)))
    }
    return Dictionary(pairs) { $1 }
  }

  /// Waits until a Service has exactly these endpoints in the node's kernel.
  ///
  /// - Returns: CLOCK_MONOTONIC, not earlier than the commit.
  @discardableResult
  func waitUntilCommitted(
    _ service: StaticService, _ pods: [LabPod], on node: String = "node1", milliseconds: Int = 30_000
  ) throws -> UInt64 {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    let frontends = service.ports.reduce(0) { $0 + ($1.nodePort == nil ? 2 : 4) }
    var wanted: [[String]] = []
    for port in service.ports {
      for family in IPFamily.allCases {
        let addresses = pods.compactMap { $0.address(family) }
        wanted.append(addresses.map { family == .v4 ? "\($0):\(port.target)" : "[\($0)]:\(port.target)" }.sorted())
      }
    }
    let wantedSets = Set(wanted.map { Set($0) })
    while true {
      let current = try backends(of: service.name, on: node)
      if current.count == frontends, Set(current.values) == wantedSets { return monotonicNanoseconds() }
      guard monotonicNanoseconds() < deadline else {
        throw LabError.timedOut("\(service.name) on \(node) is \(current), not \(wanted)")
      }
      usleep(500)
    }
  }

  /// `dpctl` on a node, as an operator there would run it.
  func dpctl(on node: String, _ arguments: String...) throws -> ExecResult {
    try exec(in: .node(node), [LabHarness.dpctl] + arguments)
  }

  /// `nft` on a node: the machine's own program in the node's namespace.
  func nft(on node: String, _ arguments: String...) throws -> ExecResult {
    let program = try #require(["/usr/sbin/nft", "/sbin/nft"].first { Files.exists($0) })
    return try exec(in: .node(node), [program] + arguments)
  }

  /// Objects, agent and kernel agree.
  func expectNoDifference(
    on node: String, _ comment: Comment? = nil, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let diff = try dpctl(on: node, "service", "diff")
    #expect(diff.status == 0, comment, sourceLocation: sourceLocation)
    #expect(diff.stdout + diff.stderr == "", comment, sourceLocation: sourceLocation)
  }

  /// The agent's metrics without labels, by name.
  func metrics(_ node: String) throws -> [String: Double] {
    let text = try #require(try network(of: .node(node)).run { try Self.get(loopbackPort: 10249, "/metrics") })
    let pairs = text.split(separator: "\n").compactMap { line -> (String, Double)? in
      let words = line.split(separator: " ")
      guard words.count == 2, let value = Double(words[1].filter { !$0.isWhitespace }) else { return nil }
      return (String(words[0]), value)
    }
    return Dictionary(pairs) { $1 }
  }

  /// A whole HTTP answer from 127.0.0.1 of the calling thread's namespace; nil without a complete one in 10 s.
  private static func get(loopbackPort: UInt16, _ path: String) throws -> String? {
    let socket = try Socket(.v4, SOCK_STREAM)
    guard let port = Port(loopbackPort) else { return nil }
    let code = socket.connect(SocketAddress(IPAddress(v4: 0x7f00_0001), port))
    guard code == 0 || code == EINPROGRESS else { return nil }
    var entry = pollfd(fd: socket.descriptor, events: Int16(POLLOUT), revents: 0)
    guard poll(&entry, 1, 10_000) == 1, socket.pendingError() == 0 else { return nil }
    _ = socket.send(Array("GET \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".utf8))
    var answer: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65_536)
    entry.events = Int16(POLLIN)
    while poll(&entry, 1, 10_000) == 1 {
      let count = socket.receive(&buffer)
      guard count > 0 else { return count == 0 ? String(decoding: answer, as: UTF8.self) : nil }
      answer += buffer[0..<count]
    }
    return nil
  }
}

/// A generator whose seed is printed, so that a failure can be played again: `SLUICE_TEST_SEED`.
struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64

  init(_ purpose: String) {
    let given = getenv("SLUICE_TEST_SEED").flatMap { UInt64(String(cString: $0)) }
    state = given ?? UInt64.random(in: 0...UInt64(UInt32.max))
    print("\(purpose): SLUICE_TEST_SEED=\(state)")
  }

  /// SplitMix64.
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
    return word ^ (word >> 31)
  }
}
