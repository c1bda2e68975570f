// Connections that have one tuple once they are translated.
import Glibc
import NetworkTypes
import Testing

@testable import Lab

/// Three connections of a client from one port, which all lead to one backend.
struct OnePort {
  private var flows: [(way: String, work: BackgroundWork<[EchoFlowReport]>)] = []
  private let backend: String

  /// - Parameter order: of who begins: 0 is the ClusterIP, 1 the node port, 2 the backend itself.
  init(
    from client: LabPod, to pod: LabPod, _ service: ServiceSpec, _ family: IPFamily, port: UInt16, _ order: [Int],
    gapMilliseconds: Int = 500, _ lab: Lab
  ) throws {
    backend = pod.name.name
    let targetPort = try #require(ServiceScene.targetPorts[.tcp])
    let ways: [(String, IPAddress, Int)] = [
      ("ClusterIP", try service.clusterIP(family), service.port),
      ("node port", try lab.nodeAddress("node1", family), try #require(service.nodePort)),
      ("backend", try #require(pod.address(family)), targetPort),
    ]
    for (name, address, number) in order.map({ ways[$0] }) {
      var spec = EchoFlowSpec(.tcp, to: SocketAddress(address, try #require(Port(number))))
      (spec.sourcePort, spec.gapMilliseconds) = (Port(Int(port)), gapMilliseconds)
      flows.append(("\(name) \(family)", try lab.startFlows(from: .pod(client.name), spec)))
    }
  }

  func expectAnswered(_ name: String, atLeast: Int = 5) throws {
    // So that each has something to say; how long it takes is not asked.
    usleep(300_000)
    let stops = flows.map { flow in (flow.way, BackgroundWork { _ in try flow.work.stop() }) }
    for (way, stop) in stops {
      let report = try #require(try stop.wait().first)
      let words = "\(name), \(way): \(report.json.serialized())"
      #expect(report.broken == nil && report.gaps.isEmpty && report.pods == [backend], "\(words)")
      #expect(report.received >= atLeast && report.received == report.sent, "\(words)")
    }
  }
}
