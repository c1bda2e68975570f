import Glibc
import Lab
import Netlink
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "sluice-agent --cleanup", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct CleanupTests {
  private static let node = "node1"
  private static let networkConfiguration = "/etc/cni/net.d/05-sluice.conflist"

  /// A lab of two nodes whose agents were never started, without the plugin's configuration and folders that a lab
  /// prepares: as nodes are before Sluice.
  private func withUntouchedNodes(_ purpose: String, _ body: (Lab) throws -> Void) throws {
    try LabHarness.withLab(LabHarness.configuration(purpose, agents: false)) { lab in
      for node in lab.configuration.nodes {
        unlink(try lab.path(Self.networkConfiguration, on: node.name))
        for folder in ["/run/sluice", "/var/lib/sluice"] { rmdir(try lab.path(folder, on: node.name)) }
      }
      try body(lab)
    }
  }

  private func cleanUp(_ lab: Lab, on node: String = node) throws -> ExecResult {
    try lab.exec(
      in: .node(node), ["\(LabHarness.binDirectory)/sluice-agent", "--cleanup", "--cni-conf-dir", "/etc/cni/net.d"])
  }

  private func write(_ setting: String, _ value: String, _ lab: Lab) throws {
    let result = try lab.exec(in: .node(Self.node), ["/bin/sh", "-c", "echo \(value) > /proc/sys/net/\(setting)"])
    #expect(result.status == 0, "\(result.stderr)")
  }

  /// Pods and Services of every shape, with traffic through them.
  private func useEverything(_ lab: Lab) throws -> [LabPod] {
    let pods = try (1...3).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
    let web = StaticService.echo("web", index: 1, nodePort: 30080)
    try web.apply(to: lab)
    try web.scale(to: pods, in: lab)
    try lab.waitUntilCommitted(web, pods)
    try lab.apply(
      "shapes",
      """
      apiVersion: v1
      kind: Service
      metadata: {name: shapes, namespace: shop}
      spec:
        type: LoadBalancer
        clusterIPs: [10.96.0.2, "fd00:10:96::2"]
        ipFamilyPolicy: RequireDualStack
        externalIPs: [192.0.2.9]
        externalTrafficPolicy: Local
        healthCheckNodePort: 30999
        sessionAffinity: ClientIP
        loadBalancerSourceRanges: [192.168.100.0/24]
        ports: [{name: tcp, port: 80, targetPort: 8081, nodePort: 30090}]
      status: {loadBalancer: {ingress: [{ip: 192.0.2.10}]}}
      ---
      apiVersion: discovery.k8s.io/v1
      kind: EndpointSlice
      metadata: {name: shapes-1, namespace: shop, labels: {kubernetes.io/service-name: shapes}}
      addressType: IPv4
      ports: [{name: tcp, port: 8081}]
      endpoints: [{addresses: ["\(try #require(pods[0].address(.v4)))"], nodeName: node1}]
      ---
      apiVersion: networking.k8s.io/v1
      kind: ServiceCIDR
      metadata: {name: kubernetes}
      spec: {cidrs: [10.96.0.0/16, "fd00:10:96::/112"]}
      """)
    let shapes = SocketAddress(try #require(IPAddress("10.96.0.2")), try #require(Port(80)))
    try LabHarness.eventually("the Service of all shapes answers") {
      try lab.probe(from: .pod(pods[1].name), ProbeSpec(.tcp, to: shapes)).answered == 1
    }
    for mode in [ProbeSpec.Mode.tcp, .udp] {
      for family in IPFamily.allCases {
        let port = try #require(Port(mode == .tcp ? 30080 : 30081))
        let nodePort = SocketAddress(try lab.nodeAddress(Self.node, family), port)
        #expect(try lab.probe(from: .client, ProbeSpec(mode, to: nodePort, count: 20)).answered == 20)
        for place in [LabTarget.pod(pods[0].name), .node(Self.node)] {
          let report = try lab.probe(from: place, ProbeSpec(mode, to: try web.target(family), count: 20))
          #expect(report.answered == 20, "\(mode) \(family) from \(place): \(report.summary)")
        }
      }
    }
    return pods
  }

  @Test("leaves the node as it was before its first agent, byte for byte", arguments: [false, true])
  func leavesNoTrace(isHardened: Bool) throws {
    try withUntouchedNodes("cleanup") { lab in
      if isHardened {
        // A machine that does not forward yet. Switching forwarding on and off again changes other settings too.
        for (setting, value) in [
          ("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0"), ("ipv4/conf/all/accept_redirects", "0"),
          ("ipv6/conf/eth0/accept_redirects", "0"), ("netfilter/nf_conntrack_tcp_timeout_established", "777"),
        ] { try write(setting, value, lab) }
      }
      let before = try NodeSnapshot.take(of: Self.node, lab)
      try lab.startAgent(Self.node)
      let pods = try useEverything(lab)
      try lab.killAgent(Self.node)
      try lab.startAgent(Self.node)
      let during = before.differences(to: try NodeSnapshot.take(of: Self.node, lab))
      for section in ["files", "folders", "links", "neighbours", "nftables", "routes", "settings"] {
        #expect(during.contains { $0.hasPrefix("+ \(section): ") }, "nothing to clean up in \(section)")
      }
      for pod in pods { try lab.removePod(pod.name, graceful: false) }
      try lab.stopAgent(Self.node)
      // What agents leave that are killed while they replace a file.
      for file in ["run/sluice/.node.json", "var/lib/sluice/.sysctls.json", "etc/cni/net.d/.05-sluice.conflist"] {
        try Files.replace(try lab.path("/\(file).1.2", on: Self.node), "torn")
      }
      let result = try cleanUp(lab)
      #expect(result.status == 0, "\(result.stdout)\(result.stderr)")
      let after = try NodeSnapshot.take(of: Self.node, lab)
      #expect(before.differences(to: after) == [])
      #expect(before == after)
    }
  }

  @Test("changes nothing where Sluice never was, and nothing the second time")
  func isIdempotent() throws {
    try withUntouchedNodes("idempotent") { lab in
      let before = try NodeSnapshot.take(of: Self.node, lab)
      for _ in 0..<2 {
        let result = try cleanUp(lab)
        #expect(result.status == 0, "\(result.stdout)\(result.stderr)")
        #expect(before.differences(to: try NodeSnapshot.take(of: Self.node, lab)) == [])
      }
    }
  }

  @Test("keeps attached pods attached, other people's tables and routes in place, and finishes once the pods are gone")
  func keepsWhatIsNotItsOwn() throws {
    try withUntouchedNodes("keeps") { lab in
      let foreign = """
        nft add table ip foreign && nft add chain ip foreign c && nft add rule ip foreign c counter accept &&
        ip route add 203.0.113.0/24 via 192.168.100.1 && ip -6 route add 2001:db8::/64 via fd00:100::1 &&
        echo '{}' > /etc/cni/net.d/99-other.conf
        """
      let made = try lab.exec(in: .node(Self.node), ["/bin/sh", "-c", foreign])
      #expect(made.status == 0, "\(made.stderr)")
      let before = try NodeSnapshot.take(of: Self.node, lab)
      try lab.startAgent(Self.node)
      let pods = try useEverything(lab)
      let configuration = try LabBinary.readText(try lab.path(Self.networkConfiguration, on: Self.node))
      try lab.killAgent(Self.node)
      let first = try cleanUp(lab)
      #expect(first.status == 0, "\(first.stdout)\(first.stderr)")
      for family in IPFamily.allCases {
        let address = SocketAddress(try #require(pods[1].address(family)), try #require(Port(8081)))
        let report = try lab.probe(from: .pod(pods[0].name), ProbeSpec(.tcp, to: address, count: 10))
        #expect(report.backends == ["backend-2": 10], "\(report.summary)")
      }
      #expect(try !lab.nft(on: Self.node, "list", "tables").stdout.contains("sluice"))
      // The runtime keeps the configuration it attached with, and DEL works without an agent.
      try Files.replace(try lab.path(Self.networkConfiguration, on: Self.node), configuration)
      for pod in pods { try lab.removePod(pod.name, graceful: false) }
      let second = try cleanUp(lab)
      #expect(second.status == 0, "\(second.stdout)\(second.stderr)")
      #expect(before.differences(to: try NodeSnapshot.take(of: Self.node, lab)) == [])
    }
  }
}

/// Everything Sluice could have left on a node: what the machine's snapshot has, seen from inside the node, and in
/// addition the content of all files in the folders that are the node's own.
enum NodeSnapshot {
  private static let folders = [
    "/run/sluice", "/run/netns", "/var/lib/sluice", "/var/lib/cni", "/etc/cni", "/opt/cni", "/sys/fs/bpf",
  ]

  static func take(of node: String, _ lab: Lab) throws -> MachineSnapshot {
    let place = try lab.surroundings(of: .node(node))
    let name = lab.name
    return try place.network.run(mountNamespace: place.mounts) {
      var snapshot = try MachineSnapshot.take(lab: name)
      // Those of the whole process, not of this thread.
      snapshot.sections["mounts"] = nil
      // The lab's own folder for pods; the agent has no part in cgroups.
      snapshot.sections["cgroups"]?.removeAll { $0.hasSuffix("/sluice-lab/\(name)/\(node)/pods") }
      snapshot.sections["files"] = folders.flatMap(entries).sorted()
      return snapshot
    }
  }

  private static func entries(below path: String) -> [String] {
    var info = stat()
    guard lstat(path, &info) == 0 else { return [] }
    let owner = "mode \(String(info.st_mode, radix: 8)) owner \(info.st_uid):\(info.st_gid)"
    guard info.st_mode & S_IFMT == S_IFDIR else {
      // The plugin's program is large and replaced as a whole or not at all. What a map has changes with each packet.
      let isMap = path.hasPrefix("/sys/fs/bpf/")
      let content =
        info.st_size > 1 << 20 || isMap
        ? "\(info.st_size) bytes, inode \(info.st_ino)" : Files.text(path).map { "\"\($0)\"" } ?? "unreadable"
      return ["\(path) \(owner) \(content)"]
    }
    return ["\(path) \(owner)"] + Files.names(in: path).flatMap { entries(below: "\(path)/\($0)") }
  }
}
