// The agent with the rights that its DaemonSet gives it, and no others.
import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "An agent with the rights of its DaemonSet", .serialized,
  .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct DeployedAgentTests {
  @Test("serves, enforces and ends connections to backends that are gone, on a node that was prepared for it")
  func serves() throws {
    let directory = "/tmp/\(LabHarness.uniqueName("sluice-deployed"))"
    defer { Files.removeTree(directory) }
    let capabilities = try Self.capabilities()
    #expect(capabilities.contains("net_admin"))
    let bounds = (["-all"] + capabilities.map { "+\($0)" }).joined(separator: ",")
    // As a runtime: kernel settings are read-only, and no right is there that was not given.
    try LabHarness.wrapPrograms(
      in: directory,
      [
        "sluice-agent": """
        case "$*" in *--prepare*) exec \(LabHarness.binDirectory)/sluice-agent "$@" ;; esac
        exec unshare --mount --propagation slave sh -c '
          mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys || exit 99
          exec setpriv --no-new-privs --inh-caps=-all --bounding-set=\(bounds) \(LabHarness.binDirectory)/sluice-agent "$@"' \
          agent "$@"
        """
      ])
    var configuration = LabHarness.configuration("deployed", nodes: 1)
    configuration.binDirectory = directory
    let starts = configuration.startsAgents
    configuration.startsAgents = false
    #expect(starts)
    try LabHarness.withLab(configuration) { lab in
      let plugins = "\(directory)/plugins"
      try Files.makeDirectories(plugins)
      let prepared = try lab.exec(
        in: .node("node1"), ["\(LabHarness.binDirectory)/sluice-agent", "--prepare", "--cni-bin-dir", plugins])
      try #require(prepared.status == 0, "\(prepared.stderr)")
      // Pods' namespaces appear in the container, as by HostToContainer.
      _ = try lab.exec(in: .node("node1"), ["/bin/mount", "--make-rshared", "/"])
      let installed = try lab.exec(in: .node("node1"), ["/usr/bin/stat", "-c", "%a %s", "\(plugins)/sluice"]).stdout
      let built = try lab.exec(
        in: .node("node1"), ["/usr/bin/stat", "-L", "-c", "%s", "\(LabHarness.binDirectory)/sluice"]
      ).stdout
      #expect(installed == "755 \(built)")

      try lab.startAgent("node1")
      let process = try #require(lab.agentProcessID("node1"))
      let rights = try #require(Files.text("/proc/\(process)/status")).split(separator: "\n").first {
        $0.hasPrefix("CapEff:")
      }
      let number = try #require(rights.flatMap { UInt64($0.dropFirst(7).filter { $0 != "\t" }, radix: 16) })
      #expect(number.nonzeroBitCount == capabilities.count)
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try (1...2).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let web = StaticService.echo("web", index: 1, nodePort: 30080)
      try web.apply(to: lab)
      try web.scale(to: pods, in: lab)
      try lab.waitUntilCommitted(web, pods)
      for family in IPFamily.allCases {
        for mode in [ProbeSpec.Mode.tcp, .udp] {
          let nodePort = try #require(Port(mode == .tcp ? 30080 : 30081))
          let targets: [(LabTarget, SocketAddress)] = [
            (.pod(client.name), try web.target(family)),
            (.client, SocketAddress(try lab.nodeAddress("node1", family), nodePort)),
          ]
          for (place, target) in targets {
            let report = try lab.probe(from: place, ProbeSpec(mode, to: target, count: 20))
            #expect(report.backends.count == 2, "\(mode) \(place) \(family): \(report.summary)")
          }
        }
      }
      // To end a pod's socket its network namespace is entered.
      var spec = EchoFlowSpec(.udp, to: try web.target(.v4))
      (spec.flows, spec.survivesErrors) = (4, true)
      let flows = try lab.startFlows(from: .pod(client.name), spec)
      usleep(200_000)
      try web.scale(to: [pods[0]], in: lab)
      try lab.waitUntilCommitted(web, [pods[0]])
      // A second look comes a second after the first.
      usleep(4_000_000)
      for report in try flows.stop() { #expect(report.pods.last == "backend-1", "\(report.pods)") }

      try lab.apply(
        "deny",
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: deny, namespace: shop}
        spec: {podSelector: {}, policyTypes: [Ingress]}
        """)
      try LabHarness.eventually("the policy is in force") {
        try lab.probe(from: .pod(client.name), ProbeSpec(.udp, to: try web.target(.v4))).answered == 0
      }
      try lab.expectNoDifference(on: "node1")
      #expect(!lab.agentLog("node1").contains(" warning "), "\(lab.agentLog("node1"))")
    }
  }

  /// `net_admin`, ... from the DaemonSet.
  private static func capabilities() throws -> [String] {
    let path = #filePath.split(separator: "/").dropLast(3).reduce("") { "\($0)/\($1)" }
    let yaml = try #require(Files.text("\(path)/deploy/kubernetes/daemon-set.yaml"))
    let lines = yaml.split(separator: "\n").drop { !$0.hasSuffix("add:") }.dropFirst()
    let names = lines.prefix { $0.contains("            ") }.map { $0.filter { $0 != " " } }.filter {
      $0.hasPrefix("-")
    }
    return names.map { $0.dropFirst().lowercased() }
  }
}
