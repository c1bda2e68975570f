import Glibc
import NetworkTypes
import Testing

@testable import Lab

@Suite("A lab", .serialized, .enabled(if: LabHarness.canRun()))
struct LabLifecycleTests {
  @Test("leaves the machine as it was")
  func leavesNothing() throws {
    let configuration = LabHarness.configuration("life", agents: false)
    let before = try MachineSnapshot.take(lab: configuration.name)
    let lab = try Lab(configuration)
    try lab.up()
    let during = try MachineSnapshot.take(lab: configuration.name)
    #expect(
      Set(before.differences(to: during).map { $0.split(separator: ":")[0] }) == ["+ cgroups", "+ folders"],
      "while it is up, only its own cgroups and folders are there")
    try lab.down()
    #expect(before.differences(to: try MachineSnapshot.take(lab: configuration.name)) == [])
  }

  @Test(
    "is removed completely after its maker was killed at any time",
    arguments: [0, 10, 20, 30, 45, 60, 80, 100, 150, 400])
  func isRemovedAfterCrash(milliseconds: UInt32) throws {
    let name = LabHarness.uniqueName("crash")
    let before = try MachineSnapshot.take(lab: name)
    let maker = try startForeground(name)
    usleep(milliseconds * 1000)
    maker.signal(SIGKILL)
    maker.wait(milliseconds: 5000)
    let result = try runDpctl(["lab", "down", "--name", name])
    #expect(result.status == 0, "\(result.stderr)")
    // A holder that was just being started when its maker died finds its cgroup gone, and ends.
    try LabHarness.eventually("nothing is left") {
      try Lab.down(name)
      return try before.differences(to: MachineSnapshot.take(lab: name)).isEmpty
    }
    #expect(try !Lab.allNames().contains(name))
  }

  @Test("in the foreground goes down in order at Ctrl-C", arguments: [SIGINT, SIGTERM])
  func goesDownAtSignal(signal: Int32) throws {
    let name = LabHarness.uniqueName("signal")
    let before = try MachineSnapshot.take(lab: name)
    let maker = try startForeground(name)
    try LabHarness.eventually("the lab is up") { (try? Lab(attachingTo: name).network(of: .node("node2"))) != nil }
    maker.signal(signal)
    maker.wait(milliseconds: 10_000)
    #expect(before.differences(to: try MachineSnapshot.take(lab: name)) == [])
  }

  @Test("gives every node the default paths for itself")
  func nodesHavePrivatePaths() throws {
    try LabHarness.withLab(LabHarness.configuration("paths", agents: false)) { lab in
      for folder in ["/run/sluice", "/run/netns", "/var/lib/sluice", "/etc/cni/net.d", "/opt/cni/bin"] {
        let written = try lab.exec(in: .node("node1"), ["/bin/sh", "-c", "echo mine > \(folder)/marker"])
        #expect(written.status == 0, "\(written.stderr)")
        #expect(try lab.exec(in: .node("node1"), ["/bin/cat", "\(folder)/marker"]).stdout == "mine\n")
        #expect(try lab.exec(in: .node("node2"), ["/bin/cat", "\(folder)/marker"]).status != 0)
        #expect(access("\(folder)/marker", F_OK) != 0, "\(folder) of the machine itself")
      }
      let manifests = try lab.exec(in: .node("node2"), ["/bin/ls", lab.manifestsDirectory])
      #expect(manifests.stdout == "node_node1.yaml\nnode_node2.yaml\n", "the manifests are every node's")
      let devices = try lab.exec(in: .node("node1"), ["/bin/ls", "/sys/class/net"])
      #expect(devices.stdout == "eth0\nlo\n")
      let group = try lab.exec(in: .node("node1"), ["/bin/cat", "/proc/self/cgroup"])
      #expect(group.stdout.contains("/sluice-lab/\(lab.name)/node1/exec"))
    }
  }

  @Test("joins nodes and client by the switch, in both families", arguments: IPFamily.allCases)
  func hostsReachEachOther(family: IPFamily) throws {
    try LabHarness.withLab(LabHarness.configuration("switch", agents: false)) { lab in
      let port = try #require(Port(7000))
      let server = try lab.spawn(
        in: .node("node2"), [LabHarness.dpctl, "lab", "serve", "--name", "n2", "--tcp", "7000"],
        log: "\(lab.manifestsDirectory)/../n2.log")
      defer { server.signal(SIGKILL) }
      let target = SocketAddress(try lab.nodeAddress("node2", family), port)
      for place in [LabTarget.node("node1"), .client, .switch] {
        try LabHarness.eventually("\(place) reaches node2") {
          try lab.probe(from: place, ProbeSpec(.tcp, to: target)).backends == ["n2": 1]
        }
      }
      // The client has a route to its own network and to nothing else.
      let pod = SocketAddress(try #require(LabAddresses.podCIDRs(0).first { $0.family == family }).last, port)
      #expect(try lab.probe(from: .client, ProbeSpec(.tcp, to: pod)).outcomes == [.unreachable: 1])
    }
  }

  @Test("refuses a second lab of the same name, and a bad name")
  func refusesDuplicates() throws {
    try LabHarness.withLab(LabHarness.configuration("twice", nodes: 1, agents: false)) { lab in
      let second = try Lab(lab.configuration)
      #expect(throws: LabError.exists(kind: "lab", name: lab.name)) { try second.up() }
      let first = try lab.exec(in: .node("node1"), ["/bin/true"])
      #expect(first.status == 0, "the refusal has not harmed the first one")
    }
    #expect(throws: LabError.self) {
      try Lab(LabConfiguration(name: "../x", nodes: 1, binDirectory: LabHarness.binDirectory))
    }
  }

  private func startForeground(_ name: String) throws -> ChildProcess {
    try ChildProcess.start(
      [
        LabHarness.dpctl, "lab", "up", "--foreground", "--no-agents", "--name", name, "--bin-dir",
        LabHarness.binDirectory,
      ], name: "dpctl lab up", in: nil, descriptors: [nil, nil, nil])
  }

  private func runDpctl(_ arguments: [String]) throws -> ExecResult {
    try ChildProcess.run([LabHarness.dpctl] + arguments, name: "dpctl", in: nil, milliseconds: 30_000)
  }
}

@Suite("Pods of a lab", .serialized, .enabled(if: LabHarness.canRun("sluice")))
struct LabPodTests {
  @Test("attached by the plugin alone reach each other on their node, in both families and all protocols")
  func podsReachEachOther() throws {
    try LabHarness.withLab(LabHarness.configuration("pods", nodes: 1, agents: false)) { lab in
      let server = try lab.addPod(Self.spec("server"))
      let client = try lab.addPod(Self.spec("client"))
      #expect(server.addresses.map(\.family).sorted() == [.v4, .v6])
      for address in server.addresses {
        for (mode, number) in [(ProbeSpec.Mode.http, 8080), (.tcp, 8081), (.udp, 8080)] {
          let target = SocketAddress(address, try #require(Port(number)))
          let report = try lab.probe(from: .pod(client.name), ProbeSpec(mode, to: target, count: 50))
          #expect(report.backends == ["server": 50], "\(mode) \(target): \(report.summary)")
          #expect(report.clients == Set(client.addresses.filter { $0.family == address.family }))
        }
      }
      try lab.checkAttachment(server.name)
      try lab.removePod(server.name, graceful: false)
      try lab.removePod(client.name, graceful: false)
      #expect(try lab.exec(in: .node("node1"), ["/bin/ls", "/run/netns"]).stdout == "")
    }
  }

  @Test("appear in their Services' slices only while they listen, and leave in order")
  func slicesFollowPods() throws {
    try LabHarness.withLab(LabHarness.configuration("slices", nodes: 1, agents: false)) { lab in
      try lab.apply("service", Self.service)
      #expect(try slices(lab).contains("endpoints: []"))
      let pod = try lab.addPod(Self.spec("server"))
      #expect(try slices(lab).contains("ready: true"))
      try lab.setReady(pod.name, false)
      #expect(try !slices(lab).contains("ready: true"))
      try lab.setReady(pod.name, true)
      try lab.terminate(pod.name)
      let terminating = try slices(lab)
      #expect(terminating.contains("ready: false\n    serving: true\n    terminating: true"))
      try lab.removePod(pod.name, graceMilliseconds: 10)
      #expect(try slices(lab).contains("endpoints: []"))
      try lab.removeManifest("service")
      #expect(access("\(lab.manifestsDirectory)/slices_shop_server.yaml", F_OK) != 0)
    }
  }

  @Test("serve flows that notice nothing while other pods come and go")
  func flowsLive() throws {
    try LabHarness.withLab(LabHarness.configuration("flows", nodes: 1, agents: false)) { lab in
      let server = try lab.addPod(Self.spec("server"))
      let client = try lab.addPod(Self.spec("client"))
      let flows = try server.addresses.map { address in
        let spec = EchoFlowSpec(.tcp, to: SocketAddress(address, try #require(Port(8081))))
        return try lab.startFlows(from: .pod(client.name), spec)
      }
      for number in 0..<3 {
        let other = try lab.addPod(Self.spec("other-\(number)"))
        try lab.removePod(other.name, graceful: false)
      }
      for flow in flows { LabHarness.expectUninterrupted(try flow.stop()) }
    }
  }

  private func slices(_ lab: Lab) throws -> String {
    try LabBinary.readText("\(lab.manifestsDirectory)/slices_shop_server.yaml")
  }

  private static func spec(_ name: String) -> PodSpec {
    var spec = PodSpec("shop", name, node: "node1", labels: ["app": name])
    spec.ports = [("http", L4Protocol.tcp, 8080), ("echo", .tcp, 8081), ("events", .udp, 8080)].compactMap {
      name, transport, number in Port(number).map { PodPort(name, transport, $0) }
    }
    return spec
  }

  private static let service = """
    apiVersion: v1
    kind: Service
    metadata: {name: server, namespace: shop}
    spec:
      clusterIPs: [10.96.0.1, "fd00:10:96::1"]
      selector: {app: server}
      ports: [{name: http, port: 80, targetPort: http}]
    """
}
