import DataplaneModel
import KubernetesObjects
import NFTables
import PolicyCompiler

/// What an agent does between an event and the engine.
struct Agent {
  let state = ClusterState(ownNodeName: BigCluster.ownNode)
  var compiler: PolicyCompiler
  private(set) var tables = Tables()
  private(set) var lastDelta = TableDelta()
  /// nil: compile only.
  private var kernel: Kernel?

  init(inForce: IdentitiesInForce = IdentitiesInForce(), linger: Duration = .seconds(600)) {
    compiler = PolicyCompiler(inForce: inForce, linger: linger)
  }

  /// Programs the kernel with the tables as they are, and from now on with every change.
  mutating func start() throws -> Duration {
    let clock = ContinuousClock()
    return try clock.measure { kernel = try Kernel(tables) }
  }

  /// How many differences there are between tables and kernel, and how long it took to see.
  mutating func verify() throws -> (differences: Int, time: Duration) {
    let start = ContinuousClock.now
    let count = try kernel?.verify(tables) ?? 0
    return (count, .now - start)
  }

  /// What a change took: on a processor, but for the kernel's part, which is by the clock.
  struct Times {
    var compile: Duration
    /// From the delta to the kernel's acknowledgement.
    var kernel: Duration
    /// Into the indexed state and the tables.
    var other: Duration
    /// What is removed later because packets under way may still look it up; in nobody's way.
    var removals: Duration

    var total: Duration { compile + kernel + other }
  }

  /// Takes changes as one batch: into the state, through the compiler, into the tables.
  ///
  @discardableResult
  mutating func apply(_ changes: [ObjectChange]) throws -> Times {
    var effect = ChangeEffect()
    var endpoints: [String: LocalPod?] = [:]
    let stored = CPUTime.measure {
      for change in changes {
        effect.formUnion(state.apply(change))
        switch change {
        case .upsert(.pod(let pod)) where pod.nodeName == BigCluster.ownNode:
          let local = LocalPod(
            interface: "slc-\(pod.key)", pod: pod.key, uid: pod.uid, addresses: pod.podIPs)
          endpoints[local.interface] = local
        case .delete(.pod, let key) where compiler.subjects(of: "slc-\(key)") != nil:
          endpoints["slc-\(key)"] = .some(nil)
        default: break
        }
      }
    }
    let compiled = CPUTime.measure {
      lastDelta = compiler.compile(effect, endpoints: endpoints, in: state, tables: tables)
    }
    let applied = CPUTime.measure { tables.apply(lastDelta) }
    let programmed = try program()
    return Times(
      compile: compiled, kernel: programmed.now, other: stored + applied, removals: programmed.later)
  }

  private mutating func program() throws -> (now: Duration, later: Duration) {
    try kernel?.program(lastDelta, tables) ?? (.zero, .zero)
  }

  /// Puts out of force what nothing uses any more, at a time when all that lingers is over.
  @discardableResult
  mutating func expire() throws -> Times {
    var delta: TableDelta?
    let time = CPUTime.measure {
      delta = compiler.expire(in: state, tables: tables, now: .now + .seconds(100_000))
    }
    lastDelta = delta ?? TableDelta()
    let applied = CPUTime.measure { tables.apply(lastDelta) }
    let programmed = try program()
    return Times(compile: time, kernel: programmed.now, other: applied, removals: programmed.later)
  }
}

extension IdentitiesInForce {
  /// As an engine reads them back at start.
  init(_ tables: Tables) {
    let atoms = tables.identities.blocks.values.flatMap(\.atoms)
    self.init(
      addresses: tables.identities.addresses,
      atoms: Dictionary(atoms.map { ($0.range, $0.identity) }) { first, _ in first })
  }
}
