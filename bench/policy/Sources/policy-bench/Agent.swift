import DataplaneModel
import KubernetesObjects
import PolicyCompiler

/// What an agent does between an event and the engine.
struct Agent {
  let state = ClusterState(ownNodeName: BigCluster.ownNode)
  var compiler: PolicyCompiler
  private(set) var tables = Tables()
  private(set) var lastDelta = TableDelta()

  init(inForce: IdentitiesInForce = IdentitiesInForce(), linger: Duration = .seconds(600)) {
    compiler = PolicyCompiler(inForce: inForce, linger: linger)
  }

  /// Takes changes as one batch: into the state, through the compiler, into the tables.
  ///
  /// - Returns: how long the compiler took, and the rest.
  @discardableResult
  mutating func apply(_ changes: [ObjectChange]) -> (compile: Duration, other: Duration) {
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
    return (compiled, stored + applied)
  }

  /// Puts out of force what nothing uses any more, at a time when all that lingers is over.
  @discardableResult
  mutating func expire() -> Duration {
    var delta: TableDelta?
    let time = CPUTime.measure {
      delta = compiler.expire(in: state, tables: tables, now: .now + .seconds(100_000))
    }
    lastDelta = delta ?? TableDelta()
    tables.apply(lastDelta)
    return time
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
