import NetworkTypes

/// A class of UDP flows that must not live on: conntrack would send them where the tables no longer do.
public struct StaleFlows: Sendable, Hashable, CustomStringConvertible {
  public var key: FrontendKey
  /// Only flows translated to this backend; nil: all flows to the frontend, translated or not.
  public var backend: SocketAddress?

  public init(key: FrontendKey, backend: SocketAddress?) {
    self.key = key
    self.backend = backend
  }
  public var description: String { backend.map { "\(key) via \($0)" } ?? "\(key)" }
}

extension TableDelta {
  /// The UDP flows this delta leaves behind. `tables` is the state with the delta applied; `frontends` names the frontends
  /// of a service port in it.
  ///
  /// Flows must go when their backend stopped serving or their frontend may no longer use it; when a frontend appeared,
  /// means another service, or got its first backend, after flows to it had been tracked untranslated or to nobody; when
  /// their frontend went away; and when an address of this node begins or ends to serve NodePorts.
  public func staleFlows(
    after tables: Tables, frontendsOf frontends: (ServicePortID) -> [FrontendKey]
  ) -> Set<StaleFlows> {
    var stale: Set<StaleFlows> = []
    var affected = Set(self.frontends.keys)
    for id in sets.keys { affected.formUnion(frontends(id.service).filter { $0.destination.family == id.family }) }
    for key in affected where key.proto == .udp {
      let new = tables.services.frontends[key]
      let old = self.frontends[key].map(\.old) ?? new
      guard let old, let new, old.service == new.service else {
        stale.insert(StaleFlows(key: key, backend: nil))
        continue
      }
      let (before, after) = (scopes(of: old), scopes(of: new))
      func set(_ scope: BackendScope, isOld: Bool) -> BackendSet? {
        let id = BackendSetID(service: new.service, scope: scope, family: key.destination.family)
        guard isOld, let change = sets[id] else { return tables.services.sets[id] }
        return change.old
      }
      func reach(_ scopes: Set<BackendScope>, isOld: Bool) -> Set<SocketAddress> {
        Set(scopes.flatMap { scope in set(scope, isOld: isOld).map { $0.backends + $0.draining } ?? [] })
      }
      for gone in reach(before, isOld: true).subtracting(reach(after, isOld: false)) {
        stale.insert(StaleFlows(key: key, backend: gone))
      }
      let isFilled = before.intersection(after).contains { scope in
        set(scope, isOld: true)?.backends.isEmpty != false && set(scope, isOld: false)?.backends.isEmpty == false
      }
      if isFilled { stale.insert(StaleFlows(key: key, backend: nil)) }
    }
    // As rare as a change of the node's addresses: the one case that walks the table.
    for address in nodePortAddresses.added.union(nodePortAddresses.removed) {
      for key in tables.services.frontends.keys
      where key.proto == .udp && key.destination == .node(address.family) {
        stale.insert(StaleFlows(key: FrontendKey(.address(address), .udp, key.port), backend: nil))
      }
    }
    return stale
  }

  private func scopes(of frontend: Frontend) -> Set<BackendScope> { [frontend.nodeScope, frontend.outsideScope] }
}
