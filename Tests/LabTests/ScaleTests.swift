// 10,000 Services of 10 endpoints each: what the agent and the kernel hold, and what one more Service costs.
import Glibc
import Lab
import Testing

@Suite(.enabled(if: LabHarness.canRun("sluice", "sluice-agent"), "needs root and the built programs"), .serialized)
struct ScaleTests {
  @Test("ten thousand Services need as many chains and rules as a hundred, and less than 64 MB")
  func constantRules() throws {
    let few = try measure(services: 100)
    let many = try measure(services: 10_000)
    print("100 Services: \(few)\n10,000 Services: \(many)")
    #expect(many.services == 10_000)
    #expect(many.backends == 100_010)  // the first Service has both families
    #expect(few.chains == many.chains)
    #expect(few.rules == many.rules)
    #expect(many.rules > 20, "no rules: nothing was measured")
    #expect(many.residentBytes < 64 << 20)
    // One more Service: both families, ten endpoints each, through the API's own objects.
    for world in [few, many] {
      #expect(world.oneMore.messages > 0)
      #expect(world.oneMore.messages <= 10)
      #expect(world.oneMore.dumps == 0)
    }
    #expect(few.oneMore.messages == many.oneMore.messages)
  }

  @Test("by eBPF too, one more Service costs as many map updates among ten thousand as among a hundred")
  func constantUpdates() throws {
    let few = try measure(services: 100, engine: "ebpf")
    let many = try measure(services: 10_000, engine: "ebpf")
    print("eBPF: 100 Services: \(few)\n10,000 Services: \(many)")
    #expect(many.services == 10_000 && many.backends == 100_010)
    // Two frontends, two sets and ten backends in each of two families, and what they are found by.
    #expect((1...100).contains(few.oneMore.messages), "\(few.oneMore)")
    #expect(few.oneMore == many.oneMore)
  }

  private struct Cost: Equatable {
    var messages: Int
    var dumps: Int
  }

  private struct World: CustomStringConvertible {
    var services: Int
    var backends: Int
    var chains: Int
    var rules: Int
    var residentBytes: Int
    var oneMore: Cost
    var ready: String

    var description: String {
      "\(services) services, \(backends) backends, \(chains) chains, \(rules) rules, \(residentBytes >> 20) MB, "
        + "one more: \(oneMore.messages) messages, \(oneMore.dumps) dumps; \(ready)"
    }
  }

  private func measure(services: Int, engine: String = "nftables") throws -> World {
    var configuration = LabHarness.configuration("scale", nodes: 1, agents: false)
    configuration.startsAgents = false
    configuration.engine = engine
    return try LabHarness.withLab(configuration) { lab in
      for start in stride(from: 1, through: services, by: 100) {
        let yaml = (start..<min(start + 100, services + 1)).map { Self.service($0, dualStack: $0 == 1) }
        try Self.write(yaml.joined(separator: "---\n"), to: "\(lab.manifestsDirectory)/services-\(start).yaml")
      }
      try lab.startAgent("node1", waits: false)
      try LabHarness.eventually(milliseconds: 60_000, "the agent is ready") {
        lab.agentLog("node1").contains(" ready")
      }
      let metrics = try metrics(lab)
      let diff = try lab.exec(in: .node("node1"), [LabHarness.dpctl, "service", "diff"])
      #expect(diff.status == 0 && diff.stdout.isEmpty, "\(diff.stdout)\(diff.stderr)")
      let ruleset = try lab.exec(in: .node("node1"), ["nft", "--stateless", "list", "chains"]).stdout
      let rules = try lab.exec(in: .node("node1"), ["sh", "-c", Self.ruleCount]).stdout
      let resident = Int(metrics["process_resident_memory_bytes"] ?? 0)

      let before = try self.metrics(lab)
      let more = Self.service(services + 1, dualStack: true)
      try Self.write(more, to: "\(lab.manifestsDirectory)/services-more.yaml")
      try LabHarness.eventually("one more Service") { try self.metrics(lab)["sluice_services"] == Double(services + 1) }
      let after = try self.metrics(lab)
      func difference(_ name: String) -> Int { Int((after[name] ?? 0) - (before[name] ?? 0)) }
      return World(
        services: Int(metrics["sluice_services"] ?? 0), backends: Int(metrics["sluice_backends"] ?? 0),
        chains: ruleset.split(separator: "\n").filter { $0.contains("chain ") }.count,
        rules: Int(rules.split(separator: "\n").first.map { $0.filter(\.isNumber) } ?? "") ?? 0,
        residentBytes: resident,
        oneMore: Cost(messages: Self.messages(lab), dumps: difference("sluice_netlink_dumps_total")),
        ready: lab.agentLog("node1").split(separator: "\n").last { $0.contains(" ready") }.map(String.init) ?? "")
    }
  }

  /// Rules of both tables, without listing 100,000 elements.
  private static let ruleCount = """
    nft --terse list ruleset | grep -c comment
    """

  private func metrics(_ lab: Lab) throws -> [String: Double] {
    let (status, body) = try lab.agentClient("node1").request("GET", "/metrics", body: nil)
    #expect(status == 200)
    let text = String(decoding: body, as: UTF8.self)
    var values: [String: Double] = [:]
    for line in text.split(separator: "\n") where !line.hasPrefix("#") {
      let fields = line.split(separator: " ")
      if fields.count == 2 { values[String(fields[0])] = Double(fields[1]) }
    }
    return values
  }

  /// What the agent says its last change took.
  private static func messages(_ lab: Lab) -> Int {
    let line = lab.agentLog("node1").split(separator: "\n").last { $0.contains("event-to-kernel") } ?? ""
    let field = line.split(separator: " ").first { $0.hasPrefix("messages=") } ?? ""
    return Int(field.dropFirst("messages=".count)) ?? -1
  }

  private static func write(_ yaml: String, to path: String) throws {
    let file = fopen(path + ".tmp", "w")
    guard let file else { throw LabError.system(operation: "write", object: path, errno: errno) }
    fputs(yaml, file)
    fclose(file)
    rename(path + ".tmp", path)
  }

  /// Ten endpoints in each family.
  private static func service(_ number: Int, dualStack: Bool) -> String {
    let v4 = "10.\(96 + number / 65536).\(number / 256 % 256).\(number % 256)"
    let v6 = "fd00:10:96::\(String(number, radix: 16))"
    var yaml = """
      apiVersion: v1
      kind: Service
      metadata: {name: svc-\(number), namespace: scale}
      spec:
        clusterIP: \(v4)
        clusterIPs: [\(v4)\(dualStack ? ", \"\(v6)\"" : "")]
        ports: [{name: http, port: 80, protocol: TCP, targetPort: 8080}]

      """
    for family in dualStack ? ["IPv4", "IPv6"] : ["IPv4"] {
      yaml += """
        ---
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata:
          name: svc-\(number)-\(family.lowercased())
          namespace: scale
          labels: {kubernetes.io/service-name: svc-\(number)}
        addressType: \(family)
        ports: [{name: http, port: 8080, protocol: TCP}]
        endpoints:

        """
      for index in 0..<10 {
        let endpoint = number * 10 + index
        let address =
          family == "IPv4"
          ? "10.\(128 + endpoint / 65536).\(endpoint / 256 % 256).\(endpoint % 256)"
          : "fd00:10:244::\(String(endpoint >> 16, radix: 16)):\(String(endpoint & 0xffff, radix: 16))"
        yaml += """
          - addresses: ["\(address)"]
            conditions: {ready: true, serving: true, terminating: false}
            nodeName: node-\(endpoint % 100)

          """
      }
    }
    return yaml
  }
}
