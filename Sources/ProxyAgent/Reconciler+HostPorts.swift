import DataplaneModel
import LocalAPI
import Netlink
import NetworkTypes
import ServiceCompiler

/// Ports of the node that lead to local pods, by what the plugin was told of them.
extension Reconciler {
  /// What the tables have otherwise of the ports that these mappings name.
  func hostPortDelta(of mappings: [PortMapping]) -> TableDelta {
    var delta = TableDelta()
    for port in Set(mappings.map(\.hostPort)) {
      var targets: [HostPortTarget] = []
      for record in endpoints.values {
        for mapping in record.portMappings where mapping.hostPort == port {
          targets.append(
            HostPortTarget(
              mapping.proto, hostIP: mapping.hostIP,
              backends: IPFamily.allCases.compactMap { family in
                record.addresses.first { $0.family == family }.map { SocketAddress($0, mapping.containerPort) }
              }))
        }
      }
      // Each port has frontends and sets of its own.
      let change = compiler.compile(hostPort: port, targets, tables: tables)
      delta.frontends.merge(change.frontends) { $1 }
      delta.sets.merge(change.sets) { $1 }
    }
    return delta
  }

  /// Throws where another pod of this node has a port that this one asks for.
  func requireFreeHostPorts(_ record: EndpointRecord) throws {
    guard !record.portMappings.isEmpty else { return }
    for other in endpoints.values where other.fileName != record.fileName {
      let taken = record.portMappings.first { mine in other.portMappings.contains { mine.overlaps($0) } }
      guard let taken else { continue }
      // One that went without a word holds nothing any more.
      if case .success(nil) = Result(catching: { try addresses.link(named: other.hostInterface) }) {
        try unpublish(containerID: other.containerID, interfaceName: other.interfaceName)
        continue
      }
      let holder = other.podKey.map { "Pod \($0)" } ?? "container \(other.containerID)"
      throw LocalAPIRefusal("host port \(taken) is taken by \(holder)")
    }
  }
}
