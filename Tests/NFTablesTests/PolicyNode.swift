import DataplaneModel
import KubernetesObjects
import NetworkTypes

@testable import NFTables

@testable import PolicyWorlds

/// A world of policies in the kernel: compiled, put there by an engine, and asked with packets.
struct PolicyNode {
  let rig: PolicyRig
  private(set) var compiled: CompiledWorld
  /// The world's, and this node's own addresses.
  private(set) var tables = Tables()
  var engine: NFTablesEngine

  private let ownership: TableOwnership

  var world: PolicyWorld { compiled.world }

  /// - Parameters:
  ///   - keepsEstablished: the engine's option.
  ///   - ownership: shared where the test changes tables behind the engine's back.
  ///   - extra: what else the tables are to say: Services, for instance.
  init(
    _ world: PolicyWorld, keepsEstablished: Bool = false, ownership: TableOwnership = .owned,
    extra: (inout TableDelta) -> Void = { _ in }
  ) throws {
    self.ownership = ownership
    let own = world.nodes.first { $0.name == world.ownNode }
    rig = try PolicyRig(nodeAddresses: own?.internalIPs ?? [])
    compiled = CompiledWorld(world)
    var delta = compiled.tables.asDelta
    delta.ownAddresses.added = rig.ownAddresses
    extra(&delta)
    tables.apply(delta)
    engine = try NFTablesEngine(keepsEstablished: keepsEstablished, ownership: ownership)
    try rig.follow(tables.node)
    _ = try engine.resync(tables)
  }

  /// As an agent: new devices first, then tables and kernel, then old devices.
  /// - Returns: what of it the engine was given.
  @discardableResult
  mutating func apply(_ changes: [ObjectChange]) throws -> TableDelta {
    compiled.apply(changes)
    let before = tables.node
    tables.apply(compiled.lastDelta)
    try rig.follow(before.joined(with: tables.node))
    _ = try engine.apply(compiled.lastDelta, tables: tables)
    try rig.follow(tables.node)
    return compiled.lastDelta
  }

  /// The tables go on, the kernel stays behind.
  mutating func advance(_ changes: [ObjectChange]) {
    compiled.apply(changes)
    tables.apply(compiled.lastDelta)
  }

  /// As `apply`, for changes without new devices.
  mutating func attempt(_ changes: [ObjectChange]) throws(NFTablesError) {
    compiled.apply(changes)
    tables.apply(compiled.lastDelta)
    _ = try engine.apply(compiled.lastDelta, tables: tables)
  }

  /// Another engine takes over what it finds.
  mutating func restart() throws(NFTablesError) -> (report: ApplyReport, drift: [Drift]) {
    engine = try NFTablesEngine(ownership: ownership)
    return try engine.resync(tables)
  }

  /// What leads back to an earlier world.
  func changes(to world: PolicyWorld) -> [ObjectChange] {
    let policies = Set(world.policies.map(\.key))
    let pods = Set(world.pods.map(\.key))
    return world.objects.map { .upsert($0) }
      + self.world.policies.map(\.key).filter { !policies.contains($0) }.map { .delete(.networkPolicy, $0) }
      + self.world.pods.map(\.key).filter { !pods.contains($0) }.map { .delete(.pod, $0) }
  }

  // MARK: Packets

  /// A flow's first packet, as its sender sends it.
  func packet(_ flow: PolicyFlow) -> (packet: ProbePacket, from: PolicyRig.Place) {
    let port = rig.nextPort()
    let content: ProbeContent =
      switch flow.proto {
      case .tcp(let destination): .tcp(source: port, destination: destination, .synchronize)
      case .udp(let destination): .udp(source: port, destination: destination)
      case .sctp(let destination): .sctp(source: port, destination: destination)
      case .icmpEcho: .echo(port)
      case .other(let number): .other(number)
      }
    let place: PolicyRig.Place =
      switch flow.origin {
      case .host: .node
      case .wire: .outside
      case .localPod(let key): .pod(CompiledWorld.interface(key))
      }
    return (ProbePacket(source: flow.source, destination: flow.destination, content: content), place)
  }

  /// Where the tables let a flow's first packet arrive, nil: nowhere.
  func destination(_ flow: PolicyFlow) -> PolicyRig.Place? {
    guard !isForged(flow), tables.judge(flow.packet).isAllowed else { return nil }
    if let endpoint = tables.node.endpoint(with: flow.destination) { return .pod(endpoint.interface) }
    return rig.ownAddresses.contains(flow.destination) ? .node : .outside
  }

  /// Of which `judge` is not asked: what nobody but this node or its pods may send from outside.
  func isForged(_ flow: PolicyFlow) -> Bool {
    flow.origin == .wire && (rig.ownAddresses.contains(flow.source) || tables.node.isLocalPod(flow.source))
  }
}

extension NodeTable {
  /// Endpoints of both; where they differ, the other's.
  fileprivate func joined(with other: NodeTable) -> NodeTable {
    var tables = Tables()
    var delta = TableDelta()
    for (name, endpoint) in endpoints.merging(other.endpoints, uniquingKeysWith: { $1 }) {
      delta.endpoints[name] = Change(old: nil, new: endpoint)
    }
    tables.apply(delta)
    return tables.node
  }
}
