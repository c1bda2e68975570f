import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "Editing a manifest in the folder", .serialized, .enabled(if: LabHarness.canRun("sluice", "sluice-agent")))
struct LiveEditTests {
  /// An API server tells of a file's objects one by one.
  private static func configuration(_ purpose: String) -> LabConfiguration {
    var configuration = LabHarness.configuration(purpose, nodes: 1)
    configuration.usesAPIServer = false
    return configuration
  }

  @Test("changes the kernel, in order, and each log line names its Service and the time it took")
  func editsAreProgrammedInOrder() throws {
    try LabHarness.withLab(Self.configuration("edits")) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try (1...3).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let services = (1...5).map { StaticService.echo("edited-\($0)", index: $0) }
      for service in services {
        try service.apply(to: lab)
        try service.scale(to: pods, in: lab)
        try lab.waitUntilCommitted(service, pods)
      }
      let before = lab.programmedLines("node1").count
      var random = SeededRandom("edits")
      var expected: [String] = []
      var last: [String: LabPod] = [:]
      for edit in 0..<40 {
        let service = try #require(services.randomElement(using: &random))
        // Never the pod of the edit before: a change that changes nothing is not programmed.
        let pod = pods[edit % pods.count]
        guard last[service.name.name] != pod else { continue }
        last[service.name.name] = pod
        expected.append("\(service.name)")
        try service.scale(to: [pod], in: lab)
        try lab.waitUntilCommitted(service, [pod])
      }
      // The line is written after the commit that the agent was asked about.
      try LabHarness.eventually("all edits are in the log") {
        lab.programmedLines("node1").count >= before + expected.count
      }
      let lines = Array(lab.programmedLines("node1").dropFirst(before))
      #expect(lines.map(\.services) == expected)
      #expect(zip(lines, lines.dropFirst()).allSatisfy { $0.revision < $1.revision })
      for line in lines {
        #expect(line.eventToKernel.hasSuffix("ms"))
        #expect(try #require(Double(line.eventToKernel.dropLast(2))) > 0)
        // Backend set and backends of two ports in two families.
        #expect((1...40).contains(line.messages))
      }
      for service in services {
        let pod = try #require(last[service.name.name])
        for family in IPFamily.allCases {
          let report = try lab.probe(
            from: .pod(client.name), ProbeSpec(.tcp, to: try service.target(family), count: 20))
          #expect(report.backends == [pod.name.name: 20], "\(service.name) \(family): \(report.summary)")
        }
      }
      try lab.expectNoDifference(on: "node1")
    }
  }

  @Test("as fast as files can be written leaves the last version in the kernel")
  func lastEditWins() throws {
    try LabHarness.withLab(Self.configuration("burst")) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try (1...3).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let services = (1...3).map { StaticService.echo("burst-\($0)", index: $0) }
      for service in services { try service.apply(to: lab) }
      for round in 0..<200 {
        for (index, service) in services.enumerated() { try service.scale(to: [pods[(round + index) % 3]], in: lab) }
      }
      let written = monotonicNanoseconds()
      // No version before had two backends.
      let last = Array(pods.prefix(2))
      for service in services { try service.scale(to: last, in: lab) }
      for service in services {
        try lab.waitUntilCommitted(service, last)
        let report = try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: try service.target(.v4), count: 50))
        #expect(Set(report.backends.keys) == Set(last.map(\.name.name)), "\(service.name): \(report.summary)")
        #expect(report.answered == 50)
      }
      let revisions = lab.programmedLines("node1").map(\.revision)
      let milliseconds = (monotonicNanoseconds() - written) / 1_000_000
      print("burst: 603 edits, \(revisions.count) commits, the last \(milliseconds) ms after it was written")
      #expect(zip(revisions, revisions.dropFirst()).allSatisfy { $0 < $1 })
      try lab.expectNoDifference(on: "node1")
    }
  }

  @Test("to add one more Service costs at most 10 netlink messages and no dump")
  func oneMoreServiceIsCheap() throws {
    try LabHarness.withLab(Self.configuration("cheap")) { lab in
      let pods = try (1...2).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let port = StaticService.ServicePort(name: "tcp", protocol: .tcp, port: 80, target: 8081)
      func add(_ service: StaticService) throws {
        let yaml = service.yaml + "---\n" + service.slices(pods.map(\.addresses))
        try Files.replace("\(lab.manifestsDirectory)/\(service.name.name).yaml", yaml)
        try lab.waitUntilCommitted(service, pods)
      }
      try add(StaticService("first", index: 1, [port]))
      usleep(200_000)
      let (before, lines) = (try lab.metrics("node1"), lab.programmedLines("node1").count)
      try add(StaticService("one-more", index: 2, [port]))
      try LabHarness.eventually("it is in the log") { lab.programmedLines("node1").count > lines }
      // What waits for a grace period belongs to the cost.
      usleep(200_000)
      let after = try lab.metrics("node1")
      func growth(_ name: String) throws -> Int { try Int(#require(after[name]) - #require(before[name])) }
      let added = lab.programmedLines("node1").dropFirst(lines)
      #expect(added.map(\.services) == ["shop/one-more"])
      #expect(added.allSatisfy { $0.messages <= 10 }, "\(added)")
      // Once a second the agent asks for the tables' generation, which is a message too.
      #expect(try (1...12).contains(growth("sluice_netlink_messages_total")))
      #expect(try growth("sluice_netlink_dumps_total") == 0)
      #expect(try growth("kubeproxy_sync_proxy_rules_service_changes_total") == 1)
    }
  }
}
