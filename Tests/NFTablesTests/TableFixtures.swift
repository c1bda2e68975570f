import DataplaneModel
import NetworkTypes

/// Short ways to write tables in tests.
func ip(_ text: String) -> IPAddress {
  guard let address = IPAddress(text) else { preconditionFailure("not an address: \(text)") }
  return address
}
func cidr(_ text: String) -> CIDR {
  guard let cidr = CIDR(text) else { preconditionFailure("not a prefix: \(text)") }
  return cidr
}
func at(_ text: String, _ port: Int) -> SocketAddress {
  guard let port = Port(port) else { preconditionFailure("not a port: \(port)") }
  return SocketAddress(ip(text), port)
}
func id(_ number: Int) -> ServicePortID {
  guard let id = ServicePortID(number) else { preconditionFailure("not a service number: \(number)") }
  return id
}

extension Tables {
  /// Changes tables as a compiler would, and returns the delta.
  mutating func change(_ body: (inout TableDelta) -> Void) -> TableDelta {
    var delta = TableDelta()
    body(&delta)
    apply(delta)
    return delta
  }
}

extension TableDelta {
  mutating func set(
    _ service: Int, _ family: IPFamily = .v4, scope: BackendScope = .cluster, backends: [SocketAddress],
    was old: BackendSet? = nil, empty: EmptyAction = .reject, affinity: UInt32? = nil
  ) {
    sets[BackendSetID(service: id(service), scope: scope, family: family)] = Change(
      old: old, new: BackendSet(backends: backends, emptyAction: empty, affinityTimeout: affinity))
  }

  mutating func clusterIP(
    _ service: Int, _ address: String, _ proto: L4Protocol = .tcp, _ port: Int = 80, affinity: Bool = false
  ) {
    frontends[FrontendKey(.address(ip(address)), proto, at(address, port).port)] = Change(
      old: nil,
      new: Frontend(
        service: id(service), kind: .clusterIP, nodeScope: .cluster, outsideScope: .cluster,
        masquerade: .exceptPods, hasAffinity: affinity))
    serviceAddresses.added.insert(ip(address))
  }
}
