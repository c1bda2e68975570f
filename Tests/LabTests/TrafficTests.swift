import Glibc
import Netlink
import NetworkTypes
import Testing

@testable import Lab

@Suite("Traffic tools", .enabled(if: geteuid() == 0))
struct TrafficTests {
  /// A server in a namespace of its own, served by a thread until the test is over.
  private func withServer<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
    let anonymous = try AnonymousNetworkNamespace()
    let route = try RouteSocket(in: anonymous.namespace)
    try LabNetwork.bringUpLoopback(route)
    let server = try anonymous.namespace.run {
      var configuration = TrafficServerConfiguration(name: "pod-a", node: "node1")
      configuration.tcp = [8081].compactMap { Port($0) }
      configuration.http = [8080].compactMap { Port($0) }
      configuration.udp = [8080].compactMap { Port($0) }
      return SendableServer(try TrafficServer(configuration))
    }
    let work = BackgroundWork { shouldStop in
      while !shouldStop() { try server.value.step(milliseconds: 20) }
    }
    defer { _ = try? work.stop() }
    return try anonymous.namespace.run(body)
  }

  /// Only the serving thread uses the server once it is there.
  private struct SendableServer: @unchecked Sendable {
    let value: TrafficServer
    init(_ value: TrafficServer) { self.value = value }
  }

  private static func target(_ text: String) throws -> SocketAddress { try #require(SocketAddress(parsing: text)) }

  @Test(
    "say who answered and whom the server saw",
    arguments: [
      (ProbeSpec.Mode.tcp, "127.0.0.1:8081"), (.tcp, "[::1]:8081"), (.http, "127.0.0.1:8080"), (.http, "[::1]:8080"),
      (.udp, "127.0.0.1:8080"), (.udp, "[::1]:8080"),
    ])
  func answers(mode: ProbeSpec.Mode, text: String) throws {
    let target = try Self.target(text)
    let report = try withServer { try Probe.run(ProbeSpec(mode, to: target, count: 500)) }
    #expect(report.backends == ["pod-a": 500], "\(report.summary)")
    #expect(report.clients == [target.address])
    #expect(report.serverPorts == [target.port])
  }

  @Test("use the source address and port they are told to")
  func bindsSource() throws {
    var spec = ProbeSpec(.tcp, to: try Self.target("127.0.0.1:8081"), count: 20)
    spec.concurrency = 1
    spec.sourceAddress = IPAddress("127.0.0.9")
    spec.sourcePort = Port(4444)
    let report = try withServer { [spec] in try Probe.run(spec) }
    #expect(report.results.allSatisfy { $0.client?.description == "127.0.0.9:4444" })
    #expect(report.answered == 20, "a port closed with a reset can be used again at once: \(report.summary)")
  }

  @Test("tell refused, unreachable and silent apart")
  func outcomes() throws {
    let (refused, unreachable) = (try Self.target("127.0.0.1:9"), try Self.target("192.0.2.1:80"))
    try withServer {
      for mode in ProbeSpec.Mode.allCases {
        #expect(try Probe.run(ProbeSpec(mode, to: refused, count: 3)).outcomes == [.refused: 3])
        #expect(try Probe.run(ProbeSpec(mode, to: unreachable, count: 3)).outcomes == [.unreachable: 3])
      }
      // A UDP socket that nobody reads: nothing comes back, not even an error.
      let silent = try Socket(.v4, SOCK_DGRAM)
      #expect(silent.bind(.unspecified(.v4), port: 9) == 0)
      var spec = ProbeSpec(.udp, to: refused, count: 3)
      spec.timeoutMilliseconds = 50
      #expect(try Probe.run(spec).outcomes == [.timedOut: 3])
    }
  }

  @Test("keep flows alive and notice nothing where nothing happens", arguments: [ProbeSpec.Mode.tcp, .udp])
  func flows(mode: ProbeSpec.Mode) throws {
    var spec = EchoFlowSpec(mode, to: try Self.target(mode == .tcp ? "[::1]:8081" : "[::1]:8080"))
    spec.flows = 3
    spec.intervalMilliseconds = 2
    let reports = try withServer { [spec] in
      let end = monotonicNanoseconds() + 200_000_000
      return try EchoFlow.run(spec) { monotonicNanoseconds() > end }
    }
    #expect(reports.count == 3)
    LabHarness.expectUninterrupted(reports)
    #expect(reports.allSatisfy { $0.pods == ["pod-a"] })
  }

  @Test("notice a flow that breaks")
  func brokenFlow() throws {
    let anonymous = try AnonymousNetworkNamespace()
    try LabNetwork.bringUpLoopback(try RouteSocket(in: anonymous.namespace))
    let target = try Self.target("127.0.0.1:8081")
    let reports = try anonymous.namespace.run {
      let listener = try Socket(.v4, SOCK_STREAM)
      #expect(listener.bind(target.address, port: target.port.number) == 0)
      #expect(listen(listener.descriptor, 1) == 0)
      return try EchoFlow.run(EchoFlowSpec(.tcp, to: target)) {
        // Whoever accepts and closes at once resets the flow.
        var entry = pollfd(fd: listener.descriptor, events: Int16(POLLIN), revents: 0)
        if poll(&entry, 1, 0) == 1 { close(accept(listener.descriptor, nil, nil)) }
        return false
      }
    }
    #expect(reports.map(\.broken) == [.reset])
  }
}

@Suite("The lab's manifests")
struct ManifestTests {
  private static func service(_ ports: String, namespace: String = "shop") throws -> LabService {
    let yaml = """
      kind: Service
      metadata: {name: web, namespace: \(namespace)}
      spec: {ipFamilies: [IPv4, IPv6], selector: {app: web}, ports: [\(ports)]}
      """
    return try #require(try LabService.read(yaml: yaml, file: "web.yaml").first)
  }

  private static func pod(_ name: String, http: Int, index: Int = 1) throws -> LabPod {
    var pod = LabPod(
      spec: PodSpec(
        "shop", name, node: "node1", labels: ["app": "web"], ports: [PodPort("http", .tcp, try #require(Port(http)))]),
      uid: "uid", containerID: "id")
    pod.addresses = ["10.0.\(index / 250).\(index % 250 + 1)", "fd00::\(index + 1)"].compactMap { IPAddress($0) }
    pod.isReady = true
    return pod
  }

  @Test("put pods whose named port has different numbers into different slices")
  func namedPorts() throws {
    let pods = [try Self.pod("a", http: 8080), try Self.pod("b", http: 9090, index: 2)]
    let slices = SliceController.slices(
      of: try Self.service("{name: web, port: 80, targetPort: http}"), pods: pods, zones: ["node1": "zone-a"])
    #expect(slices.compactMap { $0["addressType"]?.stringValue } == ["IPv4", "IPv4", "IPv6", "IPv6"])
    #expect(slices.compactMap { $0["ports"]?.arrayValue?.first?["port"]?.intValue } == [8080, 9090, 8080, 9090])
    #expect(Set(slices.compactMap { $0["metadata"]?["name"]?.stringValue }).count == 4)
  }

  @Test("hold at most 100 endpoints per slice")
  func manyEndpoints() throws {
    let pods = try (0..<250).map { try Self.pod("p\($0)", http: 8080, index: $0) }
    let slices = SliceController.slices(of: try Self.service("{port: 80, targetPort: 8080}"), pods: pods, zones: [:])
    #expect(slices.compactMap { $0["endpoints"]?.arrayValue?.count } == [100, 100, 50, 100, 100, 50])
  }

  @Test("select by labels and namespace, and leave Services without a selector to their users")
  func selection() throws {
    let pod = try Self.pod("a", http: 8080)
    #expect(try Self.service("{port: 80}").selects(pod))
    #expect(try !Self.service("{port: 80}", namespace: "other").selects(pod))
    let without = try LabService.read(yaml: "kind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 1}]}", file: "x")
    #expect(without == [])
  }

  @Test("read Services from several documents and from lists, and name the file of a broken one")
  func readsServices() throws {
    let yaml = """
      kind: ConfigMap
      ---
      kind: List
      items:
      - {kind: Service, metadata: {name: a}, spec: {selector: {x: y}, clusterIP: "fd00::1", ports: [{port: 53, protocol: UDP}]}}
      """
    let service = try #require(try LabService.read(yaml: yaml, file: "f").first)
    #expect(service.name == PodName("default", "a"))
    #expect(service.families == [.v6])
    #expect(service.ports.first?.protocol == .udp)
    #expect(throws: LabError.self) { try LabService.read(yaml: "a: [", file: "f") }
  }

  @Test("are YAML as people write it, with quotes where a reader would take a string for something else")
  func yaml() {
    let text = YAML.document([
      "name": "web", "on": "true", "ip": "10.0.0.1", "empty": [], "list": [["a": 1, "b": ["c": false]], "x"],
    ])
    #expect(
      text == """
        name: web
        "on": "true"
        ip: "10.0.0.1"
        empty: []
        list:
        - a: 1
          b:
            c: false
        - x

        """)
  }

  @Test("survive being written to and read from a state file")
  func podState() throws {
    var pod = try Self.pod("a", http: 8080)
    pod.isTerminating = true
    pod.cniResult = ["ips": []]
    #expect(LabPod(json: pod.json) == pod)
  }
}
