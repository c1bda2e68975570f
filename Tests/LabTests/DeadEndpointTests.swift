import Glibc
import Lab
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@testable import Lab

/// Pods that went without a DEL: a runtime that crashed, a node that was switched off.
@Suite("What pods leave that nobody takes down", .enabled(if: LabHarness.canRun("sluice-agent", "sluice")))
struct DeadEndpointTests {
  @Test("is taken down by the agent: record, addresses, host port; what lives, or is being attached, stays")
  func dead() throws {
    var configuration = LabHarness.configuration("dead", nodes: 1)
    configuration.agentArguments = ["--verify-interval", "1"]
    try LabHarness.withLab(configuration) { lab in
      func pod(_ name: String, hostPort: Int) throws -> LabPod {
        let port = PodPort.HostPort(try #require(Port(hostPort)))
        return try lab.addPod(
          PodSpec(
            "shop", name, node: "node1",
            ports: [PodPort("tcp", .tcp, try #require(Port(80)), service: .echo, hostPort: port)]))
      }
      let (dead, alive) = (try pod("dead", hostPort: 8080), try pod("alive", hostPort: 8081))
      let state = try lab.path("/var/lib/sluice", on: "node1")
      let store = try #require(try AddressStore.all(stateDirectory: state).first)
      let records = EndpointRecordStore(directory: try lab.path("/run/sluice/endpoints", on: "node1"))
      // Two that never came to have a device: one long ago, one just now.
      let pool = try #require(CIDR("192.0.2.0/24").flatMap { AddressPool([AddressRange($0)]) })
      for (name, time) in [("killed", 1), ("beginning", Int64(time(nil)))] {
        let owner = AddressReservation(
          network: "sluice", containerID: name, interfaceName: "eth0", netnsPath: "/nowhere", netnsInode: 1, bootID: "",
          createdAt: time)
        _ = try store.reserve(owner, from: [pool])
      }
      func owners() throws -> Set<String> { Set(try store.owners().compactMap(\.reservation?.containerID)) }
      #expect(try owners() == [dead.containerID, alive.containerID, "killed", "beginning"])

      try RouteSocket(in: try lab.network(of: .node("node1"))).deleteLink(
        named: AttachmentName(dead.containerID, "eth0").hostInterface)
      try LabHarness.eventually("the dead pod's record goes") {
        try records.list().records.map(\.containerID) == [alive.containerID]
      }
      try LabHarness.eventually("an old reservation without a device goes") { try !owners().contains("killed") }
      // The address rests until it is certain that no ADD is about to use it.
      #expect(try owners() == [dead.containerID, alive.containerID, "beginning"])
      for (port, answers) in [(8080, 0), (8081, 3)] {
        for family in IPFamily.allCases {
          var spec = ProbeSpec(
            .tcp, to: SocketAddress(try lab.nodeAddress("node1", family), try #require(Port(port))), count: 3)
          spec.timeoutMilliseconds = 1000
          #expect(try lab.probe(from: .client, spec).answered == answers, "port \(port)")
        }
      }
      try LabHarness.expectAgreement(of: lab)
    }
  }
}
