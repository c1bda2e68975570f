import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// A local pod that one of the node's ports leads to.
public struct HostPortTarget: Hashable, Sendable {
  public var proto: L4Protocol
  /// nil: at the node's addresses; unspecified: at those of its family.
  public var hostIP: IPAddress?
  /// Where the pod listens: at most one of each family.
  public var backends: [SocketAddress]

  public init(_ proto: L4Protocol, hostIP: IPAddress?, backends: [SocketAddress]) {
    self.proto = proto
    self.hostIP = hostIP
    self.backends = backends
  }
}

/// Host ports are frontends like those of Services, each with one backend. They are named after the port: its number outlives
/// the pod.
extension ServiceCompiler {
  /// No Service has such a name: theirs begin with a letter.
  static func hostPortName(_ port: Port) -> ObjectKey { ObjectKey(namespace: "hostport", name: "\(port)") }

  /// Whether all pods that have a port of the node are served by it: their numbers may have not been to be had.
  public func isServed(hostPort port: Port) -> Bool { unnumbered[Self.hostPortName(port)] == nil }

  /// Recompiles a port of the node.
  ///
  /// - Parameters:
  ///   - targets: all that have it on this node now, no two for the same packets.
  ///   - delta: to be joined: a Service may have changed its claim to the same port in one step with this.
  public mutating func compile(
    hostPort port: Port, _ targets: [HostPortTarget], tables: borrowing Tables, into delta: inout TableDelta
  ) {
    let key = Self.hostPortName(port)
    var compiled = CompiledService()
    for target in targets {
      let name = ServicePortName(service: key, port: target.hostIP.map(\.description) ?? "", proto: target.proto)
      guard let id = numbering.number(of: name) else {
        compiled.unnumbered.append(name)
        continue
      }
      compiled.names[id] = name
      for backend in target.backends where target.hostIP.map({ $0.family == backend.address.family }) ?? true {
        compiled.add(target, id, backend, port, service: key)
      }
    }
    hostPorts[key] = compiled.claims.isEmpty ? nil : compiled
    update(key, compiled, tables, &delta)
  }
}

extension CompiledService {
  fileprivate mutating func add(
    _ target: HostPortTarget, _ id: ServicePortID, _ backend: SocketAddress, _ port: Port, service: ObjectKey
  ) {
    let family = backend.address.family
    var destination = FrontendAddress.node(family)
    if let address = target.hostIP, address != .unspecified(family) { destination = .address(address) }
    // Clients keep their address: a policy of the pod is about them.
    let frontend = Frontend(
      service: id, kind: .hostPort, nodeScope: .local, outsideScope: .local, masquerade: .hostOnly)
    claims.append(
      Claim(
        key: FrontendKey(destination, target.proto, port), frontend: frontend, service: service, creationTimestamp: 0))
    sets[BackendSetID(service: id, scope: .local, family: family)] = BackendSet(
      backends: [backend], emptyAction: .reject)
  }
}
