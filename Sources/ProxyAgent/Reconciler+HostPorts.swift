import DataplaneModel
import LocalAPI
import Netlink
import NetworkTypes
import ServiceCompiler

/// Ports of the node that lead to local pods, by what the plugin was told of them.
extension Reconciler {
  /// Recompiles the ports that these mappings name.
  func compileHostPorts(of mappings: [PortMapping], into delta: inout TableDelta) {
    let ports = Set(mappings.map(\.hostPort))
    guard !ports.isEmpty else { return }
    // The elder has it where a killed ADD and a restart have brought two together.
    let records = endpoints.values.sorted { ($0.createdAt, $0.fileName) < ($1.createdAt, $1.fileName) }
    for port in ports {
      var served: [PortMapping] = []
      var targets: [HostPortTarget] = []
      for record in records {
        for mapping in record.portMappings where mapping.hostPort == port && isHere(mapping) {
          guard !served.contains(where: mapping.overlaps) else { continue }
          served.append(mapping)
          targets.append(
            HostPortTarget(
              mapping.proto, hostIP: mapping.hostIP,
              backends: IPFamily.allCases.compactMap { family in
                record.addresses.first { $0.family == family }.map { SocketAddress($0, mapping.containerPort) }
              }))
        }
      }
      compiler.compile(hostPort: port, targets, tables: tables, into: &delta)
    }
    compiler.numbering.sync()
  }

  /// An address that is not this node's is somebody else's: nobody may take what is sent there.
  private func isHere(_ mapping: PortMapping) -> Bool {
    mapping.hostIP.map { $0 == .unspecified($0.family) || ownAddresses.contains($0) } ?? true
  }

  /// Those whose place depends on the node's addresses.
  var boundHostPorts: [PortMapping] {
    endpoints.values.flatMap(\.portMappings).filter { $0.hostIP.map { $0 != .unspecified($0.family) } ?? false }
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
