import DataplaneModel
import KubernetesObjects
import NetworkTypes
import PolicyCompiler

/// A world as the compiler holds it: what an agent would have after the same events.
struct CompiledWorld {
  private(set) var world: PolicyWorld
  let state: ClusterState
  var compiler: PolicyCompiler
  private(set) var tables = Tables()
  private(set) var lastDelta = TableDelta()
  private var locals: [String: LocalPod] = [:]

  init(
    _ world: PolicyWorld, inForce: IdentitiesInForce = IdentitiesInForce(), linger: Duration = .zero,
    pairLimit: Int = 1_000_000
  ) {
    self.world = world
    state = ClusterState(ownNodeName: world.ownNode)
    compiler = PolicyCompiler(inForce: inForce, pairLimit: pairLimit, linger: linger)
    feed(world.objects.map { .upsert($0) })
  }

  mutating func apply(_ changes: [ObjectChange]) {
    for change in changes { world.apply(change) }
    feed(changes)
  }

  private mutating func feed(_ changes: [ObjectChange]) {
    var effect = ChangeEffect()
    for change in changes { effect.formUnion(state.apply(change)) }
    var wanted: [String: LocalPod] = [:]
    for pod in world.localPods {
      let interface = Self.interface(pod.key)
      wanted[interface] = LocalPod(interface: interface, pod: pod.key, uid: pod.uid, addresses: pod.podIPs)
    }
    var endpoints: [String: LocalPod?] = [:]
    for name in Set(wanted.keys).union(locals.keys) where wanted[name] != locals[name] {
      endpoints[name] = .some(wanted[name])
    }
    locals = wanted
    var delta = compiler.compile(effect, endpoints: endpoints, in: state, tables: tables)
    for (name, local) in wanted {
      let endpoint = LocalEndpoint(
        interface: name, mac: Self.mac, addresses: local.addresses, subjects: compiler.subjects(of: name))
      if tables.node.endpoints[name] != endpoint {
        delta.endpoints[name] = Change(old: tables.node.endpoints[name], new: endpoint)
      }
    }
    for (name, endpoint) in tables.node.endpoints where wanted[name] == nil {
      delta.endpoints[name] = Change(old: endpoint, new: nil)
    }
    tables.apply(delta)
    lastDelta = delta
  }

  static func interface(_ pod: ObjectKey) -> String { "slc-\(pod.namespace)-\(pod.name)" }
  private static let mac = MACAddress(bytes: [2, 0, 0, 0, 0, 1]) ?? MACAddress("02:00:00:00:00:01").unsafelyUnwrapped

  /// What the tables say, in the oracle's words; an explanation where they say something it has no word for.
  func judge(_ flow: PolicyFlow) -> Result<OracleVerdict, Unexpected> {
    let judgement = tables.judge(flow.packet)
    do throws(Unexpected) {
      return .success(
        OracleVerdict(
          egress: try said(judgement.egress, of: flow.source),
          ingress: try said(judgement.ingress, of: flow.destination)))
    } catch {
      return .failure(error)
    }
  }

  struct Unexpected: Error, Equatable { var text: String }

  private func said(
    _ decision: PolicyDecision, of address: IPAddress
  ) throws(Unexpected) -> OracleVerdict.Direction {
    switch decision {
    // Its sandbox is still there, and closed; no policy is about it.
    case .dropped(.unknownEndpoint) where world.pod(at: address)?.nodeName != world.ownNode:
      return .init(.notApplicable)
    case .notLocal: return .init(.notApplicable)
    case .exempt: return .init(.exempt)
    case .unrestricted: return .init(.notIsolated)
    case .dropped(let reason): throw Unexpected(text: "dropped: \(reason.rawValue)")
    case .decided(let key, _):
      guard let attribution = tables.policies.attributions[key.attribution] else {
        throw Unexpected(text: "no attribution \(key.attribution)")
      }
      func keys(_ policies: [PolicyReference]) -> [ObjectKey] {
        policies.map { ObjectKey(namespace: $0.namespace, name: $0.name) }
      }
      switch key.clause.kind {
      case .allow:
        guard let rule = attribution.rule(of: key.clause) else { throw Unexpected(text: "no rule \(key)") }
        return .init(.allowed(policy: keys([rule.policy])[0], rule: rule.index))
      case .notIsolated: return .init(.notIsolated)
      case .defaultDeny: return .init(.denied(isolatedBy: keys(attribution.isolating)))
      case .auditDeny: return .init(.notIsolated, auditDenial: keys(attribution.auditing))
      case .overLimit: throw Unexpected(text: "over the limit")
      }
    }
  }
}

extension PolicyFlow {
  var packet: PolicyPacket {
    let origin: Origin =
      switch origin {
      case .host: .host
      case .localPod: .pod
      case .wire: .outside
      }
    let (number, port): (UInt8, UInt16) =
      switch proto {
      case .tcp(let port): (6, port)
      case .udp(let port): (17, port)
      case .sctp(let port): (132, port)
      case .icmpEcho: (destination.family == .v4 ? 1 : 58, 0)
      case .other(let number): (number, 0)
      }
    return PolicyPacket(
      origin: origin, source: source, destination: destination, proto: number, destinationPort: port)
  }
}
