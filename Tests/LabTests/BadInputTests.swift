import Glibc
import Lab
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@testable import Lab

@Suite("Bad input", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct BadInputTests {
  /// What must be said about it, and where: parts of one line.
  struct BadManifest: CustomTestStringConvertible {
    var name: String
    var expected: [String]
    /// Put in place of the good Service `shop/victim`, whose slice stays behind it, or of its slice.
    var yaml: String
    var replacesSlice = false
    var testDescription: String { name }
  }

  private static let victim = StaticService(
    "victim", index: 50, [StaticService.ServicePort(name: "tcp", protocol: .tcp, port: 80, target: 8081)])

  private static func service(_ spec: String, name: String = "victim") -> String {
    "apiVersion: v1\nkind: Service\nmetadata: {name: \(name), namespace: shop}\nspec: \(spec)\n"
  }

  private static func slice(_ rest: String) -> String {
    """
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: victim-ipv4, namespace: shop, labels: {kubernetes.io/service-name: victim}}
    \(rest)

    """
  }

  static let badManifests = [
    BadManifest(name: "YAML syntax", expected: ["victim.yaml:2: is not YAML"], yaml: "kind: Service\n  metadata: [\n"),
    BadManifest(
      name: "a wrong type", expected: ["Service shop/victim: spec.ports: ", "list"],
      yaml: service("{clusterIP: 10.96.0.50, ports: eighty}")),
    BadManifest(
      name: "an unknown protocol", expected: ["Service shop/victim: spec.ports[0].protocol: ", "ICMP"],
      yaml: service("{clusterIP: 10.96.0.50, ports: [{port: 80, protocol: ICMP}]}")),
    BadManifest(
      name: "a port out of range", expected: ["Service shop/victim: spec.ports[0].port: ", "70000"],
      yaml: service("{clusterIP: 10.96.0.50, ports: [{port: 70000}]}")),
    BadManifest(
      name: "a node port out of range", expected: ["Service shop/victim: spec.ports[0].nodePort: ", "-1"],
      yaml: service("{type: NodePort, clusterIP: 10.96.0.50, ports: [{port: 80, nodePort: -1}]}")),
    BadManifest(
      name: "a bad address", expected: ["Service shop/victim: spec.clusterIP", "10.96.0.300"],
      yaml: service("{clusterIP: 10.96.0.300, ports: [{port: 80}]}")),
    BadManifest(
      name: "a duplicate port", expected: ["Service shop/victim: spec.ports[1]", "a"],
      yaml: service("{clusterIP: 10.96.0.50, ports: [{name: a, port: 80}, {name: a, port: 81}]}")),
    BadManifest(
      name: "a missing name", expected: ["victim.yaml:", "metadata.name: "],
      yaml: "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop}\nspec: {ports: [{port: 80}]}\n"),
    BadManifest(
      name: "a missing kind", expected: ["victim.yaml:", "kind: is missing"], yaml: "metadata: {name: victim}\n"),
    BadManifest(
      name: "a slice without a known address type", expected: ["EndpointSlice shop/victim-ipv4: addressType: ", "IPX"],
      yaml: slice("addressType: IPX\nports: [{name: tcp, port: 8081}]\nendpoints: []"), replacesSlice: true),
  ]

  /// Runs `body` beside a Service that has to answer before and after, and with objects, agent and kernel in agreement.
  private func withGoodService(
    _ purpose: String, agentArguments: [String] = [], _ body: (Lab, LabPod) throws -> Void
  ) throws {
    var configuration = LabHarness.configuration(purpose, nodes: 1)
    configuration.agentArguments = agentArguments
    // Files and lines are what this is about.
    configuration.usesAPIServer = false
    try LabHarness.withLab(configuration) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let backend = try lab.addPod(StaticService.backend("backend"))
      for service in [StaticService.echo("good", index: 1, nodePort: 30080), Self.victim] {
        try service.apply(to: lab)
        try service.scale(to: [backend], in: lab)
        try lab.waitUntilCommitted(service, [backend])
      }
      try expectAnswers(lab, client)
      try body(lab, client)
      try expectAnswers(lab, client)
      try lab.expectNoDifference(on: "node1")
    }
  }

  private func expectAnswers(_ lab: Lab, _ client: LabPod, _ comment: Comment? = nil) throws {
    let good = StaticService.echo("good", index: 1)
    for family in IPFamily.allCases {
      for target in [try good.target(family), try Self.victim.target(family)] {
        let report = try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: target, count: 5))
        #expect(report.backends == ["backend": 5], comment)
      }
      let nodePort = SocketAddress(try lab.nodeAddress("node1", family), try #require(Port(30081)))
      #expect(try lab.probe(from: .client, ProbeSpec(.udp, to: nodePort, count: 5)).answered == 5, comment)
    }
  }

  // MARK: Manifests

  @Test("in a manifest is reported with file, object and field, and costs nothing that was programmed")
  func manifests() throws {
    try withGoodService("manifests") { lab, client in
      let backend = try lab.pod(PodName("shop", "backend"))
      // Service and slices in one file: what is wrong with one document must not cost the other.
      let goodSlices = Self.victim.slices([backend.addresses])
      try Files.replace("\(lab.manifestsDirectory)/victim.yaml", Self.victim.yaml + "---\n" + goodSlices)
      unlink("\(lab.manifestsDirectory)/victim-slices.yaml")
      try LabHarness.eventually("the slices are in one file") { try lab.metrics("node1")["sluice_problems"] == 0 }
      let otherSlice = try #require(goodSlices.split(separator: "---\n").last)
      var said: [String: String] = [:]
      for bad in Self.badManifests {
        let seen = problems(lab).count
        let yaml =
          bad.replacesSlice
          ? Self.victim.yaml + "---\n" + bad.yaml + "---\n" + otherSlice : bad.yaml + "---\n" + goodSlices
        try Files.replace("\(lab.manifestsDirectory)/victim.yaml", yaml)
        try LabHarness.eventually("\(bad.name) is reported") { problems(lab).count > seen }
        let lines = problems(lab).dropFirst(seen)
        let line = try #require(lines.first)
        #expect(bad.expected.allSatisfy { line.contains($0) }, "\(bad.name): \(lines)")
        #expect(line.contains("victim.yaml"), "\(bad.name): \(line)")
        said[String(line), default: ""] += bad.name
        // What was read of the object before stays in force: the file's other family too.
        try expectAnswers(lab, client, "\(bad.name)")
        try lab.expectNoDifference(on: "node1", "\(bad.name)")
        let status = try lab.dpctl(on: "node1", "status")
        #expect(status.stdout.contains("DEGRADED") && status.stdout.contains("victim.yaml"), "\(status.stdout)")
        #expect(try #require(try lab.metrics("node1")["sluice_problems"]) >= 1)
        try Files.replace("\(lab.manifestsDirectory)/victim.yaml", Self.victim.yaml + "---\n" + goodSlices)
        try LabHarness.eventually("nothing is wrong any more") { try lab.metrics("node1")["sluice_problems"] == 0 }
      }
      #expect(said.count == Self.badManifests.count, "each has an error of its own: \(said)")
    }
  }

  @Test("in one endpoint, or an object that is in two files, is reported and leaves the rest in force")
  func partsOfManifests() throws {
    try withGoodService("parts") { lab, client in
      let backend = try lab.pod(PodName("shop", "backend"))
      for address in ["127.0.0.1", "169.254.1.9", "0.0.0.0", "224.0.0.1", "fd00::1", "10.0.0.300"] {
        let seen = problems(lab).count
        let slices = Self.victim.slices([backend.addresses]).replacing(
          "endpoints: [{addresses: [\"\(try #require(backend.address(.v4)))\"]}]",
          with: "endpoints: [{addresses: [\"\(try #require(backend.address(.v4)))\"]}, {addresses: [\"\(address)\"]}]")
        #expect(slices.contains(address))
        try Files.replace("\(lab.manifestsDirectory)/victim-slices.yaml", slices)
        try LabHarness.eventually("\(address) is reported") { problems(lab).count > seen }
        let line = try #require(problems(lab).last)
        #expect(line.contains("EndpointSlice shop/victim-ipv4: endpoints[1].addresses"), "\(line)")
        #expect(line.contains(address), "\(line)")
        #expect(try lab.backends(of: Self.victim.name, on: "node1").values.allSatisfy { $0.count == 1 })
        try expectAnswers(lab, client, "\(address)")
      }
      try Self.victim.scale(to: [backend], in: lab)

      let seen = problems(lab).count
      let other = StaticService("victim", index: 51, Self.victim.ports)
      try Files.replace("\(lab.manifestsDirectory)/zz-copy.yaml", other.yaml)
      try LabHarness.eventually("the copy is reported") { problems(lab).count > seen }
      let line = try #require(problems(lab).last)
      #expect(line.contains("zz-copy.yaml") && line.contains("Service shop/victim") && line.contains("victim.yaml too"))
      try expectAnswers(lab, client)
      unlink("\(lab.manifestsDirectory)/zz-copy.yaml")
      try LabHarness.eventually("nothing is wrong any more") { try lab.metrics("node1")["sluice_problems"] == 0 }
    }
  }

  private func problems(_ lab: Lab) -> [Substring] {
    lab.agentLog("node1").split(separator: "\n").filter { $0.hasSuffix("] object ignored") }
  }

  // MARK: Flags

  @Test("in the agent's flags and config file ends it with a message that names flag or key")
  func flags() throws {
    try withGoodService("flags") { lab, client in
      let folder = try lab.path("/run/sluice", on: "node1")
      for (name, text) in [
        ("unknown", "engine: nftables\ncolour: red\n"), ("type", "verifyInterval: often\n"),
        ("list", "manifests: [a, b]\n"), ("twice", "nodeName: a\nnodeName: b\n"), ("scalar", "nftables\n"),
        ("syntax", "engine: [\n"),
        ("address", "metricsAddress: localhost\n"), ("cidr", "clusterCidr: 10.0.0.0/8,10.1.0.0\n"),
      ] { try Files.replace("\(folder)/config-\(name)", text) }
      let node = ["--node-name", "node1"]
      let complete = node + ["--manifests", lab.manifestsDirectory]
      let cases: [(arguments: [String], expected: [String])] = [
        (["--manifests", lab.manifestsDirectory], ["--node-name"]), (node, ["--manifests"]),
        (["--node-name", "", "--manifests", lab.manifestsDirectory], ["--node-name", "empty"]),
        (node + ["--manifests", "/none"], ["--manifests", "/none"]),
        (complete + ["--metrics-address", "localhost"], ["--metrics-address", "localhost"]),
        (complete + ["--metrics-address", "127.0.0.1:0"], ["--metrics-address", "127.0.0.1:0"]),
        (complete + ["--healthz-address", "[::1"], ["--healthz-address", "[::1"]),
        (complete + ["--engine", "iptables"], ["--engine", "iptables", "nftables"]),
        (complete + ["--cluster-cidr", "10.0.0.0/33"], ["--cluster-cidr", "10.0.0.0/33"]),
        (complete + ["--nodeport-addresses", "eth0"], ["--nodeport-addresses", "eth0"]),
        (complete + ["--masquerade-egress", "perhaps"], ["--masquerade-egress", "perhaps"]),
        (complete + ["--own-tables", "ours"], ["--own-tables", "ours"]),
        (complete + ["--verify-interval", "0"], ["--verify-interval"]),
        (complete + ["--log-level", "loud"], ["--log-level", "loud"]),
        (complete + ["--socket", "/run/" + String(repeating: "x", count: 110)], ["--socket", "107 bytes"]),
        (complete + ["--frobnicate"], ["--frobnicate"]), (complete + ["--config", "/none"], ["--config", "/none"]),
        (complete + ["--config", "/run/sluice/config-unknown"], ["config-unknown:2", "colour"]),
        (complete + ["--config", "/run/sluice/config-type"], ["config-type:1", "verifyInterval", "often"]),
        (complete + ["--config", "/run/sluice/config-list"], ["config-list", "manifests", "one value"]),
        (complete + ["--config", "/run/sluice/config-twice"], ["config-twice", "nodeName"]),
        (complete + ["--config", "/run/sluice/config-scalar"], ["config-scalar", "mapping"]),
        (complete + ["--config", "/run/sluice/config-syntax"], ["config-syntax", "line"]),
        (complete + ["--config", "/run/sluice/config-address"], ["config-address:1", "metricsAddress", "localhost"]),
        (complete + ["--config", "/run/sluice/config-cidr"], ["config-cidr:1", "clusterCidr", "10.1.0.0"]),
      ]
      var said: Set<String> = []
      for (arguments, expected) in cases {
        let result = try lab.exec(in: .node("node1"), ["\(LabHarness.binDirectory)/sluice-agent"] + arguments)
        #expect(result.status != 0, "\(arguments)")
        let text = result.stdout + result.stderr
        for word in expected { #expect(text.contains(word), "\(arguments): \(text)") }
        #expect(said.insert(text).inserted, "not its own error: \(arguments): \(text)")
      }
      #expect(lab.isAgentRunning("node1"))
      #expect(try lab.dpctl(on: "node1", "status").status == 0, "the agent that runs is still reached")
      _ = client
    }
  }

  // MARK: dpctl

  @Test("of dpctl ends with the exit code operators expect: 0, 1, 2, 3, 4, 124")
  func exitCodes() throws {
    try withGoodService("dpctl", agentArguments: ForeignHand.agentArguments) { lab, _ in
      let cases: [(status: Int32, arguments: [String], expected: String)] = [
        (0, ["status"], "Agent"), (0, ["service", "list"], "shop/good"), (0, ["svc"], "shop/victim"),
        (0, ["service", "get", "shop/good", "-o", "json"], "10.96.0.1"), (0, ["service", "diff"], ""),
        (0, ["endpoint", "list"], "shop"), (0, ["--help"], "SUBCOMMANDS"), (0, ["--version"], "."),
        (1, ["service", "get", "shop/none"], "shop/none"), (2, ["service", "get", "shop/"], "shop/"),
        (2, ["service", "get", "shop/NONE"], "NONE"), (2, ["frobnicate"], "frobnicate"),
        (2, ["service", "list", "--frob"], "--frob"), (2, ["status", "-o", "xml"], "xml"),
        (2, ["service", "get"], "service"), (2, ["status", "--timeout", "soon"], "soon"),
        // How much a running agent logs.
        (0, ["log-level"], "info"), (0, ["log-level", "warning"], ""), (0, ["log-level"], "warning"),
        (2, ["log-level", "loud"], "'loud' is none of trace"), (0, ["log-level"], "warning"),
        (0, ["log-level", "info"], ""),
        (3, ["status", "--socket", "/none"], "/none"), (3, ["service", "list", "--socket", "/none"], "/none"),
      ]
      for (status, arguments, expected) in cases {
        let result = try lab.exec(in: .node("node1"), [LabHarness.dpctl] + arguments)
        #expect(result.status == status, "\(arguments): \(result.stdout)\(result.stderr)")
        #expect((result.stdout + result.stderr).contains(expected) || expected.isEmpty, "\(arguments): \(result)")
      }
      let nobody = try lab.exec(
        in: .node("node1"), ["/usr/bin/setpriv", "--reuid", "65534", "--clear-groups", LabHarness.dpctl, "status"])
      #expect(nobody.status == 4, "\(nobody)")
      let agent = try #require(lab.agentProcessID("node1"))
      kill(agent, SIGSTOP)
      let slow = try lab.dpctl(on: "node1", "service", "list", "--timeout", "1")
      kill(agent, SIGCONT)
      #expect(slow.status == 124, "\(slow)")

      // Somebody else's change: 1 until the agent has repaired it, which may be before dpctl asks.
      let hand = ForeignHand.backends(lab.configuration.engine)
      var sawDifference = false
      for _ in 0..<10 where !sawDifference {
        try hand.strike(lab)
        let diff = try lab.dpctl(on: "node1", "service", "diff")
        sawDifference =
          diff.status == 1 && diff.stdout.contains("agent and kernel") && diff.stdout.contains(hand.named[0])
      }
      #expect(sawDifference)
      try LabHarness.eventually("repaired") { try lab.dpctl(on: "node1", "service", "diff").status == 0 }
      try lab.killAgent("node1")
      let dead = try lab.dpctl(on: "node1", "status")
      let left = lab.configuration.engine == "ebpf" ? "BPF maps are in place" : "nftables tables are in place"
      #expect(dead.status == 3 && dead.stdout.contains(left), "\(dead)")
      try lab.startAgent("node1")
    }
  }

  // MARK: CNI

  @Test("of the plugin is answered as the CNI specification says, naming variable or field, and leaves nothing")
  func plugin() throws {
    try withGoodService("cni") { lab, client in
      let configuration = try JSONValue(
        parsing: try LabBinary.readText(try lab.path("/etc/cni/net.d/05-sluice.conflist", on: "node1")))
      var plugin = try #require(configuration["plugins"]?.arrayValue?.first?.objectValue)
      plugin["name"] = configuration["name"]
      plugin["cniVersion"] = "1.0.0"
      let good = JSONValue.object(plugin).serialized()
      func changed(_ key: String, _ value: JSONValue) -> String {
        var changed = plugin
        changed[key] = value
        return JSONValue.object(changed).serialized()
      }
      let empty = "/run/netns/empty"
      let place = try lab.surroundings(of: .node("node1"))
      try place.network.run(mountNamespace: place.mounts) { _ = try NetworkNamespace.create(at: empty) }
      let before = try NodeSnapshot.take(of: "node1", lab)

      func run(_ input: String, _ changes: [String: String] = [:]) throws -> (status: Int32, code: Int64?, text: String)
      {
        var variables = [
          "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "bad-1", "CNI_NETNS": empty, "CNI_IFNAME": "eth0",
          "CNI_PATH": "/opt/cni/bin",
        ]
        variables.merge(changes) { $1 }
        let list = variables.filter { !$0.value.isEmpty }.map { "\($0.key)=\($0.value)" }
        let result = try lab.exec(
          in: .node("node1"), ["/usr/bin/env", "-i"] + list + ["/opt/cni/bin/sluice"], input: input)
        return (result.status, try? JSONValue(parsing: result.stdout)["code"]?.intValue, result.stdout)
      }
      let pair: JSONValue = ["type": "sluice", "ranges": [[["subnet": "10.244.99.0/30"]]]]
      let cases: [(input: String, variables: [String: String], code: Int64, expected: String)] = [
        (good, ["CNI_CONTAINERID": ""], 4, "CNI_CONTAINERID"), (good, ["CNI_IFNAME": ""], 4, "CNI_IFNAME"),
        (good, ["CNI_NETNS": ""], 4, "CNI_NETNS"), (good, ["CNI_COMMAND": "FROB"], 4, "CNI_COMMAND"),
        (good, ["CNI_NETNS": "/run/netns/none"], 4, "CNI_NETNS"), (good, ["CNI_ARGS": "a"], 4, "CNI_ARGS"),
        ("{", [:], 6, "network configuration"), ("", [:], 6, "network configuration"),
        (changed("cniVersion", "7.0.0"), [:], 1, "cniVersion"), (changed("name", "a/b"), [:], 7, "name"),
        (changed("mtu", "large"), [:], 7, "mtu"), (changed("ipam", ["type": "frob"]), [:], 105, "ipam.type"),
        (changed("ipam", ["ranges": [[["subnet": "10.0.0.0"]]]]), [:], 7, "subnet"),
        (good, ["CNI_NETNS": client.netnsPath], 101, "eth0"), (good, ["CNI_NETNS": "/proc/1/ns/net/x"], 4, "CNI_NETNS"),
      ]
      for (input, variables, code, expected) in cases {
        let answer = try run(input, variables)
        #expect(answer.status != 0 && answer.code == code, "\(variables) \(input): \(answer.text)")
        #expect(answer.text.contains(expected), "\(variables) \(input): \(answer.text)")
        let left = before.differences(to: try NodeSnapshot.take(of: "node1", lab))
          // Addresses that were taken and given back at once are remembered as lately used.
          .filter { !$0.contains("/released") }
        #expect(left == [], "\(variables) \(input)")
      }

      // A range of two addresses, and a third pod.
      let others = ["bad-2", "bad-3"]
      for name in others {
        try place.network.run(mountNamespace: place.mounts) {
          _ = try NetworkNamespace.create(at: "/run/netns/\(name)")
        }
        let added = try run(changed("ipam", pair), ["CNI_CONTAINERID": name, "CNI_NETNS": "/run/netns/\(name)"])
        #expect(added.status == 0, "\(added.text)")
      }
      let exhausted = try run(changed("ipam", pair))
      #expect(exhausted.code == 11 && exhausted.text.contains("10.244.99.1"), "\(exhausted.text)")
      for name in others {
        let deleted = try run(
          changed("ipam", pair),
          ["CNI_COMMAND": "DEL", "CNI_CONTAINERID": name, "CNI_NETNS": "/run/netns/\(name)"])
        #expect(deleted.status == 0, "\(deleted.text)")
      }
      try place.network.run(mountNamespace: place.mounts) {
        for name in ["empty"] + others { try NetworkNamespace.remove(at: "/run/netns/\(name)") }
      }
    }
  }
}
