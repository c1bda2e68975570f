import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// What must hold after every edit of any cluster. Each failure names its seed.
@Suite("Random clusters")
struct RandomClusterTests {
  /// One that never changes, and one that nobody has seen.
  static let seeds: [UInt64] = [20_260_131, .random(in: 0 ... .max)]

  /// Runs `check` after each step; `edited` is nil where the node changed, and with it perhaps every Service. The state
  /// of the cluster is one object: `before` differs in its tables and its compiler only.
  private static func run(
    _ seed: UInt64, steps: Int = 400,
    _ check: (inout RandomCluster, _ before: World, _ after: World, _ edited: Set<ObjectKey>?, TableDelta, Comment)
      throws -> Void
  ) throws {
    var random = RandomCluster(seed: seed)
    var world = try World()
    for step in 0..<steps {
      let before = world
      let delta = world.change(random.edits())
      try check(&random, before, world, world.lastCompiled, delta, "seed \(seed), step \(step)")
    }
    // The run was about something.
    #expect(!world.tables.services.frontends.isEmpty || !world.state.services.isEmpty, "seed \(seed)")
  }

  @Test("tables kept up by edits are those compiled from scratch, and so is all the compiler reports", arguments: seeds)
  func fromScratch(_ seed: UInt64) throws {
    try Self.run(seed) { _, _, world, _, _, about in
      var compiler = ServiceCompiler(nodeName: "here", numbering: world.compiler.numbering)
      var fresh = Tables()
      fresh.apply(compiler.compile(world.state.services.keys, in: world.state, tables: fresh))
      let (kept, scratch) = (world.tables.services, fresh.services)
      let comparisons = [
        "frontends": kept.frontends == scratch.frontends,
        "addresses": kept.serviceAddresses == scratch.serviceAddresses,
        "sets": kept.sets.mapValues(SetContent.init) == scratch.sets.mapValues(SetContent.init),
        "names": world.compiler.names == compiler.names,
        "health": world.compiler.healthChecks == compiler.healthChecks,
        "conflicts": world.compiler.conflicts(nodePortAddresses: []) == compiler.conflicts(nodePortAddresses: []),
        "local": world.compiler.withoutLocalEndpoint.filter { !$0.value.isEmpty }
          == compiler.withoutLocalEndpoint.filter { !$0.value.isEmpty },
        "keys": world.compiler.names.keys.allSatisfy {
          Set(world.compiler.frontendKeys(of: $0)) == Set(compiler.frontendKeys(of: $0))
        },
      ]
      #expect(comparisons.filter { !$0.value }.keys.sorted() == [], about)
    }
  }

  /// A backend set without its order.
  private struct SetContent: Equatable {
    let backends: Set<SocketAddress>
    let draining: Set<SocketAddress>
    let rest: BackendSet
    init(_ set: BackendSet) {
      backends = Set(set.backends)
      draining = Set(set.draining)
      rest = BackendSet(backends: [], emptyAction: set.emptyAction, affinityTimeout: set.affinityTimeout)
    }
  }

  @Test("a packet meets what services.md says, read without any table", arguments: seeds)
  func plainReading(_ seed: UInt64) throws {
    var kinds: Set<String> = []
    try Self.run(seed) { random, _, world, _, _, about in
      let reading = PlainReading(state: world.state, node: world.tables.node)
      for _ in 0..<40 {
        let packet = random.packet()
        let (walked, expected) = (world.tables.walk(packet), reading.outcomes(packet))
        #expect(walked == expected, "\(packet); \(about)")
        for outcome in expected { kinds.insert(outcome.description.split(separator: ":")[0].description) }
        for case .dropped(let reason) in expected { kinds.insert(reason.rawValue) }
        for case .rejected(let reason) in expected { kinds.insert(reason.rawValue) }
      }
    }
    let all = DropReason.ofServices.map(\.rawValue) + RejectReason.allCases.map(\.rawValue)
    #expect(all.filter { !kinds.contains($0) } == [], "every outcome was met; seed \(seed)")
  }

  @Test("a delta touches the Services that were edited, and no other", arguments: seeds)
  func locality(_ seed: UInt64) throws {
    try Self.run(seed) { _, before, world, edited, delta, about in
      guard let edited else { return }
      func owner(_ id: ServicePortID?) -> ObjectKey? {
        id.flatMap { world.compiler.names[$0] ?? before.compiler.names[$0] }?.service
      }
      #expect(delta.sets.keys.allSatisfy { owner($0.service).map(edited.contains) ?? false }, about)
      #expect(
        delta.frontends.values.allSatisfy { change in
          [change.old, change.new].contains { owner($0?.service).map(edited.contains) ?? false }
        }, about)
    }
  }

  @Test("slots keep their backend while it stays, and a growing set changes none", arguments: seeds)
  func slots(_ seed: UInt64) throws {
    try Self.run(seed) { _, _, _, _, delta, about in
      for case (let id, let change) in delta.sets {
        guard let old = change.old?.backends, let new = change.new?.backends else { continue }
        let staying = Set(new)
        #expect(Set(new).count == new.count, "\(id); \(about)")
        for (slot, (left, right)) in zip(old, new).enumerated() where left != right {
          #expect(!staying.contains(left), "\(id) slot \(slot); \(about)")
        }
      }
    }
  }

  @Test(
    "frontends find their sets, with a timeout exactly where there is affinity, and no set is left over",
    arguments: seeds)
  func invariants(_ seed: UInt64) throws {
    try Self.run(seed) { _, _, world, _, delta, about in
      let services = world.tables.services
      for (key, frontend) in services.frontends {
        for scope in [frontend.nodeScope, frontend.outsideScope] {
          let id = BackendSetID(service: frontend.service, scope: scope, family: key.destination.family)
          let set = services.sets[id]
          #expect(set != nil, "\(key); \(about)")
          #expect((set?.affinityTimeout != nil) == frontend.hasAffinity, "\(key); \(about)")
        }
      }
      #expect(services.sets.keys.allSatisfy { world.compiler.names[$0.service] != nil }, about)
      #expect(delta.frontends.values.allSatisfy { $0.old != $0.new }, about)
      #expect(delta.sets.values.allSatisfy { $0.old != $0.new }, about)
      #expect(delta.serviceAddresses.added.isDisjoint(with: delta.serviceAddresses.removed), about)
    }
  }

  @Test("no UDP flow outlives the backend it was sent to", arguments: seeds)
  func staleFlows(_ seed: UInt64) throws {
    try Self.run(seed) { _, before, world, _, delta, about in
      let stale = delta.staleFlows(after: world.tables) { world.compiler.frontendKeys(of: $0) }
      func reachable(_ world: World, _ key: FrontendKey) -> Set<SocketAddress> {
        let services = world.tables.services
        guard let frontend = services.frontends[key] else { return [] }
        return [frontend.nodeScope, frontend.outsideScope].reduce(into: []) { found, scope in
          let set = services.sets[BackendSetID(service: frontend.service, scope: scope, family: key.destination.family)]
          found.formUnion((set?.backends ?? []) + (set?.draining ?? []))
        }
      }
      for (key, old) in before.tables.services.frontends where key.proto == .udp {
        let new = world.tables.services.frontends[key]
        if stale.contains(StaleFlows(key: key, backend: nil)) { continue }
        let lost = reachable(before, key).subtracting(reachable(world, key))
        #expect(lost.allSatisfy { stale.contains(StaleFlows(key: key, backend: $0)) }, "\(key); \(about)")
        #expect(old.service == new?.service, "\(key); \(about)")
      }
    }
  }
}
