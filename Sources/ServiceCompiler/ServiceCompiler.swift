import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Turns Services and EndpointSlices into changes of the tables.
///
/// Pure but for what it remembers of each Service: which frontends it claimed, so that a change of one Service costs what
/// that Service costs. One owner; deltas must be applied to the tables in the order in which they are made.
public struct ServiceCompiler<Numbering: ServiceNumbering> {
  /// A Service whose claim lost.
  public struct Conflict: Hashable, Sendable, CustomStringConvertible {
    public var loser: ObjectKey
    public var winner: ObjectKey
    public var kind: FrontendKind
    public var key: FrontendKey
    public var description: String {
      "\(kind == .hostPort ? "Host port" : "Service") \(loser): \(kind) \(key) is already taken by Service \(winner)"
    }
  }

  private struct Remembered {
    var claims: [FrontendKey] = []
    var sets: [BackendSetID] = []
    var addresses: [IPAddress] = []
    var otherAddresses: [IPAddress] = []
    var names: [ServicePortID] = []
  }

  public let nodeName: String
  public internal(set) var numbering: Numbering
  /// Names of the service ports in the tables.
  public private(set) var names: [ServicePortID: ServicePortName] = [:]
  public private(set) var healthChecks: [ObjectKey: ServiceHealthCheck] = [:]
  /// Counts changes of `healthChecks`, so that nobody has to compare them all.
  public private(set) var healthCheckRevision = 0
  /// Services whose traffic policy finds no local endpoint, by policy.
  public private(set) var withoutLocalEndpoint: [String: Set<ObjectKey>] = [:]
  /// Service ports that are not programmed because no number was to be had.
  public private(set) var unnumbered: [ObjectKey: [ServicePortName]] = [:]
  private var remembered: [ObjectKey: Remembered] = [:]
  /// By the name under which a port is listed.
  var hostPorts: [ObjectKey: CompiledService] = [:]
  private var claims: [FrontendKey: [Claim]] = [:]
  private var contested: Set<FrontendKey> = []
  private var addressUses: [IPAddress: Int] = [:]
  /// Addresses of Services that another proxy serves.
  private var otherUses: [IPAddress: Int] = [:]
  /// LoadBalancer and external claims by address: some may be this node's.
  private var externalKeys: [IPAddress: Set<FrontendKey>] = [:]
  /// Slot orders found in the kernel at start; each is used once.
  private var inheritedSlots: [BackendSetID: [SocketAddress]] = [:]

  public init(nodeName: String, numbering: Numbering, slotsInForce: [BackendSetID: [SocketAddress]] = [:]) {
    self.nodeName = nodeName
    self.numbering = numbering
    inheritedSlots = slotsInForce
  }

  /// Recompiles the named Services as they now are in `state`. `tables` is what all earlier deltas made.
  public mutating func compile(
    _ services: some Sequence<ObjectKey>, in state: ClusterState, tables: borrowing Tables
  ) -> TableDelta {
    var delta = TableDelta()
    let zone = state.ownNode?.zone
    let nodeAddresses = state.ownNode?.internalIPs ?? []
    var seen: Set<ObjectKey> = []
    for key in services where seen.insert(key).inserted {
      let compiled =
        state.service(key).map {
          CompiledService(
            $0, slices: state.slices(ofService: key), nodeName: nodeName, zone: zone, nodeAddresses: nodeAddresses,
            numbering: &numbering)
        } ?? CompiledService()
      update(key, compiled, tables, &delta)
    }
    return delta
  }

  /// Slot orders that nothing asked for any more.
  public mutating func forgetInheritedSlots() { inheritedSlots = [:] }

  /// Frontends that claim a service port's number.
  public func frontendKeys(of id: ServicePortID) -> [FrontendKey] {
    guard let name = names[id] else { return [] }
    return remembered[name.service]?.claims.filter { claims[$0]?.first?.frontend.service == id } ?? []
  }

  /// Claims that lost, in a stable order; to NodePorts too, which claim a port of each of `nodePortAddresses`.
  public func conflicts(nodePortAddresses: Set<IPAddress>) -> [Conflict] {
    var conflicts: [Conflict] = []
    func lose(_ claim: Claim, to winner: Claim) {
      conflicts.append(
        Conflict(loser: claim.service, winner: winner.service, kind: claim.frontend.kind, key: claim.key))
    }
    for key in contested {
      guard let all = claims[key], let winner = all.first else { continue }
      for claim in all.dropFirst() { lose(claim, to: winner) }
    }
    for address in nodePortAddresses {
      for key in externalKeys[address] ?? [] {
        let nodePort = FrontendKey(.node(address.family), key.proto, key.port)
        guard let claim = claims[key]?.first, claim.frontend.kind > .nodePort, let onNode = claims[nodePort]?.first
        else { continue }
        // A port of the node may be a pod's: then the Service has it.
        if claim.frontend.kind < onNode.frontend.kind { lose(onNode, to: claim) } else { lose(claim, to: onNode) }
      }
    }
    return conflicts.sorted { ($0.loser, "\($0.key)") < ($1.loser, "\($1.key)") }
  }

  /// Compiles every Service anew, one after the other, and names what the tables have otherwise. For `dpctl`: it costs
  /// what the cluster costs.
  public func differences(in state: ClusterState, from tables: borrowing Tables) -> [String] {
    var found: [String] = []
    var numbering = GivenNumbers(names)
    var (setCount, claimCount) = (0, 0)
    for key in Set(state.services.keys).union(remembered.keys) {
      let fresh =
        state.service(key).map {
          CompiledService(
            $0, slices: state.slices(ofService: key), nodeName: nodeName, zone: state.ownNode?.zone,
            nodeAddresses: state.ownNode?.internalIPs ?? [], numbering: &numbering)
        } ?? hostPorts[key] ?? CompiledService()
      let known = remembered[key] ?? Remembered()
      setCount += fresh.sets.count
      claimCount += fresh.claims.count
      if Set(known.claims) != Set(fresh.claims.map(\.key)) { found.append("Service \(key): frontends") }
      for claim in fresh.claims where claims[claim.key]?.contains(claim) != true {
        found.append("Service \(key): frontend \(claim.key)")
      }
      for (id, set) in fresh.sets {
        guard let have = tables.services.sets[id] else {
          found.append("Service \(key): backend set \(id) is missing")
          continue
        }
        // Slots have a history; who is in the set has not.
        if set.withSlots(following: have.backends) != have { found.append("Service \(key): backend set \(id)") }
      }
    }
    for (key, all) in claims where tables.services.frontends[key] != all.first?.frontend {
      found.append("frontend \(key)")
    }
    if tables.services.sets.count != setCount { found.append("backend sets that no Service has") }
    if claims.values.reduce(0, { $0 + $1.count }) != claimCount { found.append("claims that no Service has") }
    if tables.services.frontends.count != claims.count { found.append("frontends that no Service claims") }
    return found
  }

  mutating func update(
    _ key: ObjectKey, _ compiled: CompiledService, _ tables: borrowing Tables, _ delta: inout TableDelta
  ) {
    let before = remembered[key] ?? Remembered()
    updateSets(before.sets, compiled.sets, tables, &delta)
    updateClaims(key, before.claims, compiled.claims, tables, &delta)
    Self.update(&addressUses, before.addresses, compiled.addresses, &delta.serviceAddresses)
    Self.update(&otherUses, before.otherAddresses, compiled.otherAddresses, &delta.otherAddresses)
    for id in before.names where compiled.names[id] == nil { names[id] = nil }
    names.merge(compiled.names) { $1 }
    if healthChecks[key] != compiled.healthCheck {
      healthChecks[key] = compiled.healthCheck
      healthCheckRevision += 1
    }
    unnumbered[key] = compiled.unnumbered.isEmpty ? nil : compiled.unnumbered
    for policy in ["internal", "external"] {
      if compiled.policiesWithoutLocalEndpoint.contains(policy) {
        withoutLocalEndpoint[policy, default: []].insert(key)
      } else {
        withoutLocalEndpoint[policy]?.remove(key)
      }
    }
    let isEmpty =
      compiled.claims.isEmpty && compiled.sets.isEmpty && compiled.addresses.isEmpty
      && compiled.otherAddresses.isEmpty
    remembered[key] =
      isEmpty
      ? nil
      : Remembered(
        claims: compiled.claims.map(\.key), sets: Array(compiled.sets.keys), addresses: compiled.addresses,
        otherAddresses: compiled.otherAddresses, names: Array(compiled.names.keys))
  }

  private mutating func updateSets(
    _ before: [BackendSetID], _ after: [BackendSetID: BackendSet], _ tables: borrowing Tables,
    _ delta: inout TableDelta
  ) {
    for id in before where after[id] == nil {
      delta.sets[id] = Change(old: tables.services.sets[id], new: nil)
    }
    for (id, set) in after {
      let old = tables.services.sets[id]
      let slots = old?.backends ?? inheritedSlots.removeValue(forKey: id) ?? []
      let new = set.withSlots(following: slots)
      if new != old { delta.sets[id] = Change(old: old, new: new) }
    }
  }

  private mutating func updateClaims(
    _ service: ObjectKey, _ before: [FrontendKey], _ after: [Claim], _ tables: borrowing Tables,
    _ delta: inout TableDelta
  ) {
    for key in before {
      claims[key]?.removeAll { $0.service == service }
    }
    for claim in after { claims[claim.key, default: []].append(claim) }
    for key in Set(before).union(after.lazy.map(\.key)) {
      var all = claims[key] ?? []
      if all.count > 1 {
        all.sort(by: Claim.precedes)
        claims[key] = all
        contested.insert(key)
      } else {
        contested.remove(key)
        if all.isEmpty { claims[key] = nil }
      }
      let old = tables.services.frontends[key]
      let new = all.first?.frontend
      if case .address(let address) = key.destination, (new ?? old)?.kind ?? .clusterIP > .nodePort {
        if new == nil { externalKeys[address]?.remove(key) } else { externalKeys[address, default: []].insert(key) }
        if externalKeys[address]?.isEmpty == true { externalKeys[address] = nil }
      }
      // Several Services of one call may meet at one key: the last word counts, against the tables' state.
      delta.frontends[key] = new != old ? Change(old: old, new: new) : nil
    }
  }

  /// Counts who uses an address; the first use adds it, the last one's end removes it.
  private static func update(
    _ uses: inout [IPAddress: Int], _ before: [IPAddress], _ after: [IPAddress], _ change: inout SetChange<IPAddress>
  ) {
    for address in after {
      uses[address, default: 0] += 1
      guard uses[address] == 1 else { continue }
      if change.removed.remove(address) == nil { change.added.insert(address) }
    }
    for address in before {
      uses[address, default: 1] -= 1
      guard uses[address] == 0 else { continue }
      uses[address] = nil
      if change.added.remove(address) == nil { change.removed.insert(address) }
    }
  }
}

/// Numbers as they have been given: a comparison must not give new ones.
private struct GivenNumbers: ServiceNumbering {
  private let numbers: [ServicePortName: ServicePortID]
  init(_ names: [ServicePortID: ServicePortName]) {
    numbers = Dictionary(names.map { ($0.value, $0.key) }) { first, _ in first }
  }
  mutating func number(of name: ServicePortName) -> ServicePortID? { numbers[name] }
}
