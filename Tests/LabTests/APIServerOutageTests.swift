import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "An API server that is away", .serialized,
  .enabled(if: LabHarness.canRun("sluice", "sluice-agent", "apiserver-double")))
struct APIServerOutageTests {
  @Test("costs nothing that is in force, also where the agent restarts meanwhile; what comes after is programmed")
  func outage() throws {
    var configuration = LabHarness.configuration("outage", nodes: 1)
    configuration.usesAPIServer = true
    try LabHarness.withLab(configuration) { lab in
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let backend = try lab.addPod(StaticService.backend("backend"))
      let web = StaticService.echo("web", index: 1)
      try web.apply(to: lab)
      try web.scale(to: [backend], in: lab)
      try lab.waitUntilCommitted(web, [backend])
      try expectAnswers(lab, client, web)
      #expect(try lab.metrics("node1")["sluice_source_following"] == 1)

      lab.killAPIServer()
      try LabHarness.eventually("the outage is told") {
        try lab.dpctl(on: "node1", "status").stdout.contains("; enforcing last-known state")
      }
      #expect(try lab.metrics("node1")["sluice_source_following"] == 0)
      try expectAnswers(lab, client, web)
      try lab.killAgent("node1")
      try expectAnswers(lab, client, web)
      // From the journal and the kernel: there is nobody else to ask.
      try lab.startAgent("node1")
      try expectAnswers(lab, client, web)
      try lab.expectNoDifference(on: "node1")
      let status = try lab.dpctl(on: "node1", "status").stdout
      #expect(status.contains("DEGRADED  apiserver") && status.contains("; enforcing last-known state"), "\(status)")
      #expect(lab.agentLog("node1").contains("what was known when an agent last ran is put in force"))

      // It comes back with other certificates, another token, and versions that count from the beginning.
      let later = StaticService.echo("later", index: 2)
      try later.apply(to: lab)
      try later.scale(to: [backend], in: lab)
      try web.scale(to: [], in: lab)
      try lab.restartAPIServer()
      try LabHarness.eventually(milliseconds: 60_000, "the outage is over") {
        try lab.metrics("node1")["sluice_source_following"] == 1
      }
      try lab.waitUntilCommitted(later, [backend])
      try lab.waitUntilCommitted(web, [])
      try expectAnswers(lab, client, later)
      try lab.expectNoDifference(on: "node1")

      let folder = try lab.path("/var/lib/sluice/objects", on: "node1")
      #expect(Files.names(in: folder).contains("services.jsonl"))
      try lab.stopAgent("node1")
      let cleanup = try lab.exec(in: .node("node1"), ["\(LabHarness.binDirectory)/sluice-agent", "--cleanup"])
      #expect(cleanup.status == 0, "\(cleanup.stderr)")
      #expect(!Files.exists(folder))
    }
  }

  private func expectAnswers(_ lab: Lab, _ client: LabPod, _ service: StaticService) throws {
    for family in IPFamily.allCases {
      let report = try lab.probe(from: .pod(client.name), ProbeSpec(.tcp, to: try service.target(family), count: 20))
      #expect(report.backends == ["backend": 20], "\(service.name) \(family)")
    }
  }
}
