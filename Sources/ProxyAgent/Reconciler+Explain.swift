import DataplaneModel
import KubernetesObjects
import LocalAPI
import NFTables
import NetworkTypes
import PolicyCompiler

/// What becomes of a flow's first packet on this node, and why: what the compiled tables say, and beside it the kernel's
/// own look-ups. Nothing here evaluates a policy.
extension Reconciler {
  /// One end of the packet.
  private struct End {
    var text: String
    var address: IPAddress
    var pod: Pod?
    /// The packet begins at a process of this node.
    var isHost = false
  }

  /// Paths told of when a Service has more backends.
  private static let shownPaths = 20

  func explain(_ request: ExplainRequest) throws -> JSONValue {
    guard isSynced else { throw LocalAPIRefusal("the agent has not read the cluster's objects yet") }
    let family = try family(of: request)
    let source = try end(request.source, request.sourceText, "source", family)
    let destination = try end(request.destination, request.destinationText, "destination", family)
    let sender = source.isHost ? nil : tables.node.endpoint(with: source.address)
    let origin: Origin = source.isHost ? .host : sender == nil ? .outside : .pod
    var paths: [(backend: SocketAddress?, packet: PolicyPacket)] = []
    var service = JSONValue.null
    var end: String?
    func path(to address: IPAddress, _ port: UInt16, backend: SocketAddress?) {
      paths.append(
        (
          backend,
          PolicyPacket(
            origin: origin, source: source.address, destination: address, proto: request.transport.number(family),
            destinationPort: port)
        ))
    }
    if case .ports(let proto, let port) = request.transport {
      let packet = Packet(
        origin: origin, source: source.address, destination: destination.address, proto: proto, sourcePort: 40_000,
        destinationPort: port.number, interface: sender?.interface)
      let outcomes = tables.walk(packet)
      (service, end) = describe(outcomes, packet, request)
      for case .translated(let backend, _) in outcomes {
        path(to: backend.address, backend.port.number, backend: backend)
      }
      paths.sort {
        ($0.backend ?? SocketAddress(source.address, port)) < ($1.backend ?? SocketAddress(source.address, port))
      }
      if end == nil, paths.isEmpty { path(to: destination.address, port.number, backend: nil) }
    } else {
      path(to: destination.address, 0, backend: nil)
    }
    let judgements = paths.map { tables.judge($0.packet) }
    var rows: [JSONValue] = []
    for (path, judgement) in zip(paths, judgements).prefix(Self.shownPaths) {
      rows.append(try row(path.backend, path.packet, judgement))
    }
    count(engine.takeReport())
    let allowed = judgements.count { $0.isAllowed }
    return [
      "apiVersion": "sluice.dev/v1", "source": side(source, isSource: true),
      "destination": side(destination, isSource: false), "service": service, "paths": .array(rows),
      "morePaths": .int(Int64(paths.count - rows.count)),
      "verdict": .string(end ?? (allowed == judgements.count ? "allowed" : allowed == 0 ? "denied" : "mixed")),
    ]
  }

  // MARK: Who

  private func family(of request: ExplainRequest) throws -> IPFamily {
    let ends = [
      ("source", request.source, request.sourceText), ("destination", request.destination, request.destinationText),
    ]
    let candidates = request.family.map { [$0] } ?? IPFamily.allCases
    var shared = candidates
    for (argument, party, text) in ends {
      let has = try families(party, argument, text)
      if !candidates.contains(where: has.contains) {
        throw RequestProblem.notFound(
          argument, "'\(text)' has no \(candidates.map(\.description).joined(separator: " or ")) address")
      }
      shared.removeAll { !has.contains($0) }
    }
    guard let family = shared.first else {
      throw RequestProblem(
        "destination", "'\(request.sourceText)' and '\(request.destinationText)' have no address family in common")
    }
    return family
  }

  private func families(_ party: ExplainRequest.Party, _ argument: String, _ text: String) throws -> Set<IPFamily> {
    switch party {
    case .address(let address): [address.family]
    case .world: Set(IPFamily.allCases)
    case .host: Set(IPFamily.allCases.filter { hostAddress($0) != nil })
    case .named, .pod, .service: Set(try addresses(of: party, argument, text).addresses.map(\.family))
    }
  }

  /// A pod's or a Service's addresses.
  private func addresses(
    of party: ExplainRequest.Party, _ argument: String, _ text: String
  ) throws -> (addresses: [IPAddress], pod: Pod?) {
    let (pod, service): (ObjectKey?, ObjectKey?) =
      switch party {
      case .named(let key): (key, argument == "destination" ? key : nil)
      case .pod(let key): (key, nil)
      case .service(let key): (nil, key)
      default: (nil, nil)
      }
    if let pod = pod.flatMap({ state.pod($0) }) {
      guard pod.phase != .succeeded, pod.phase != .failed else {
        throw RequestProblem.notFound(argument, "Pod \(pod.key) has ended (\(pod.phase.rawValue))")
      }
      let attached = endpoints.values.filter { $0.podKey == pod.key }.flatMap(\.addresses)
      return (pod.podIPs + attached.filter { !pod.podIPs.contains($0) }, pod)
    }
    if let service = service.flatMap({ state.service($0) }) {
      guard !service.clusterIPs.isEmpty else {
        throw RequestProblem(argument, "Service \(service.key) has no cluster address")
      }
      return (service.clusterIPs, nil)
    }
    let kinds = [pod.map { _ in "Pod" }, service.map { _ in "Service" }].compactMap { $0 }.joined(separator: " or ")
    throw RequestProblem.notFound(argument, "no \(kinds) of the name '\(text)'")
  }

  private func end(
    _ party: ExplainRequest.Party, _ text: String, _ argument: String, _ family: IPFamily
  ) throws -> End {
    switch party {
    case .address(let address):
      var end = End(text: text, address: address)
      if case .pod(let key) = policies.owner(of: address) { end.pod = state.pod(key) }
      end.isHost = argument == "source" && tables.node.ownAddresses.contains(address)
      return end
    case .world: return End(text: text, address: worldAddress(family))
    case .host:
      guard let address = hostAddress(family) else {
        throw RequestProblem(argument, "this node has no \(family) address")
      }
      return End(text: text, address: address, isHost: true)
    case .named, .pod, .service:
      let (addresses, pod) = try addresses(of: party, argument, text)
      guard let address = addresses.first(where: { $0.family == family }) else {
        throw RequestProblem.notFound(argument, "'\(text)' has no \(family) address")
      }
      let isHost = argument == "source" && pod?.hostNetwork == true && tables.node.ownAddresses.contains(address)
      return End(text: text, address: address, pod: pod, isHost: isHost)
    }
  }

  private func hostAddress(_ family: IPFamily) -> IPAddress? {
    tables.node.internalAddresses[family] ?? tables.node.ownAddresses.filter { $0.family == family }.min()
  }

  /// An address that stands for all those that no ipBlock in force contains; of the documentation ranges if it may be.
  private func worldAddress(_ family: IPFamily) -> IPAddress {
    let examples = (family == .v4 ? ["192.0.2.1", "198.51.100.1", "203.0.113.1"] : ["2001:db8::1"])
      .compactMap { IPAddress($0) }
    let atoms = tables.identities.blocks[family]?.atoms ?? []
    let starts = atoms.map(\.range.first).filter {
      !$0.isUnspecified && !$0.isLoopback && !$0.isMulticast && !$0.isLinkLocal
    }
    return (examples + starts).first { address in
      tables.identities.identity(of: address).map { policies.isAnyWorld($0) } ?? false
    } ?? examples.first ?? .unspecified(family)
  }

  private func side(_ end: End, isSource: Bool) -> JSONValue {
    let isLocal =
      end.isHost || tables.node.isLocalPod(end.address) || tables.node.ownAddresses.contains(end.address)
    let isFrontend = !isSource && tables.services.serviceAddresses.contains(end.address)
    return [
      "text": .string(end.text), "address": .string(end.address.description),
      "kind": .string(end.isHost ? "host" : isFrontend ? "service" : kind(of: end.address)),
      "identity": isFrontend
        ? .null : tables.identities.identity(of: end.address).map { .int(Int64($0.rawValue)) } ?? .null,
      "labels": end.pod.map { .string($0.labels.description) } ?? .null, "local": .bool(isLocal),
    ]
  }

  // MARK: Services

  /// What the tables do for the destination as a Service; the whole request's verdict where that is the end.
  private func describe(
    _ outcomes: Set<ServiceOutcome>, _ packet: Packet, _ request: ExplainRequest
  ) -> (json: JSONValue, end: String?) {
    var (outcome, reason, end): (String, JSONValue, String?) = ("untouched", .null, nil)
    for one in outcomes {
      switch one {
      case .translated: outcome = "translated"
      case .untouched: break
      case .rejected(let why): (outcome, reason, end) = ("rejected", .string(why.rawValue), "rejected")
      case .dropped(let why): (outcome, reason, end) = ("dropped", .string(why.rawValue), "dropped")
      }
    }
    var name: ObjectKey?
    switch request.destination {
    case .service(let key): name = key
    case .named(let key) where state.pod(key) == nil: name = key
    default: name = service(at: packet)
    }
    if name == nil, outcome == "untouched" { return (.null, nil) }
    let address =
      packet.destination.family == .v4 ? "\(packet.destination)" : "[\(packet.destination)]"
    return (
      [
        "text": .string(name?.description ?? request.destinationText),
        "frontend": .string("\(address):\(packet.destinationPort)/\(packet.proto)"), "outcome": .string(outcome),
        "reason": reason,
      ], end
    )
  }

  private func service(at packet: Packet) -> ObjectKey? {
    guard let port = Port(packet.destinationPort) else { return nil }
    var keys = [FrontendKey(.address(packet.destination), packet.proto, port)]
    if tables.node.nodePortAddresses.contains(packet.destination) {
      keys.append(FrontendKey(.node(packet.destination.family), packet.proto, port))
    }
    let frontends = keys.compactMap { tables.services.frontends[$0] }
    return frontends.min { $0.kind < $1.kind }.flatMap { compiler.names[$0.service]?.service }
  }

  // MARK: Policies

  private func row(
    _ backend: SocketAddress?, _ packet: PolicyPacket, _ judgement: PolicyJudgement
  ) throws -> JSONValue {
    let kernel = try engine.judgeInKernel(packet, tables: tables)
    var name: ObjectKey?
    if case .pod(let pod) = policies.owner(of: packet.destination) { name = pod }
    func answer(_ direction: PolicyDirection, _ kernel: KernelDecision?) -> JSONValue {
      let expected = judgement[direction]
      var json = describe(expected, direction, packet)
      guard let kernel else {
        json["kernel"] = .null
        return .object(json)
      }
      var text = describe(kernel.decision, direction, packet)["text"]?.stringValue ?? ""
      if kernel.isAllowed != kernel.decision.isAllowed {
        text += "; but its verdict lets the packet \(kernel.isAllowed ? "pass" : "fall")"
      }
      json["kernel"] = ["text": .string(text), "agrees": .bool(kernel.agrees(with: expected))]
      return .object(json)
    }
    return [
      "backend": backend.map { .string($0.description) } ?? .null,
      "backendText": backend == nil ? .null : name.map { .string($0.description) } ?? .null,
      "egress": answer(.egress, kernel.egress), "ingress": answer(.ingress, kernel.ingress),
      "allowed": .bool(judgement.isAllowed),
    ]
  }

  /// One decision in words and parts.
  private func describe(
    _ decision: PolicyDecision, _ direction: PolicyDirection, _ packet: PolicyPacket
  ) -> JSONObject {
    let subject = direction == .egress ? packet.source : packet.destination
    let peer = direction == .egress ? packet.destination : packet.source
    func answer(
      _ verdict: String, _ text: String, applies: Bool = true, policies: [PolicyReference] = [],
      rule: RuleReference? = nil, nearest: NearestMiss? = nil
    ) -> JSONObject {
      [
        "applies": .bool(applies), "verdict": .string(verdict), "text": .string(text),
        "policies": .array(policies.map { .string($0.description) }),
        "rule": rule.map { ["policy": .string($0.policy.description), "index": .int(Int64($0.index))] } ?? .null,
        "nearest": nearest.map {
          [
            "policy": .string($0.rule.policy.description), "index": .int(Int64($0.rule.index)),
            "text": .string($0.text),
          ]
        } ?? .null,
      ]
    }
    switch decision {
    case .notLocal: return answer("not-local", notLocalText(subject, direction, packet), applies: false)
    case .exempt:
      let why =
        packet.source == packet.destination ? "a pod always reaches itself" : "this node always reaches its pods"
      return answer("exempt", "ALLOW \(why)", applies: false)
    case .unrestricted: return answer("unrestricted", "ALLOW no policy isolates the pod")
    case .dropped(let reason): return answer("dropped", "DROP \(reason.rawValue): \(reason.explanation)")
    case .decided(let key, let pair):
      guard let attribution = tables.policies.attributions[key.attribution] else {
        return answer("dropped", "unknown attribution \(key.attribution), clause \(key.clause)")
      }
      let by = attribution.policies(of: key.clause)
      let names = by.map(\.description).joined(separator: ", ")
      switch key.clause.kind {
      case .allow:
        let rule = attribution.rule(of: key.clause)
        return answer(
          "allow", "ALLOW \(rule?.description ?? "unknown rule \(key.clause.index)")", policies: by, rule: rule)
      case .notIsolated: return answer("unrestricted", "ALLOW no policy that is enforced isolates the pod")
      case .overLimit:
        return answer("deny", "DENY isolated by \(names); closed, as its policies have too many peers", policies: by)
      case .defaultDeny, .auditDeny:
        let isAudit = key.clause.kind == .auditDeny
        let miss = policies.nearestMiss(
          pair.subject, isAudit: isAudit, peer: peer, identity: tables.identities.identity(of: peer), packet, in: state)
        let intro = isAudit ? "AUDIT would be denied by \(names)" : "DENY isolated by \(names)"
        let why: String
        if let miss {
          let policy = by.count > 1 ? "\(miss.rule.policy) " : ""
          why = "no rule matches \(peerText(peer)); nearest: \(policy)\(miss.text)"
        } else {
          why = "no rule allows anything"
        }
        return answer(isAudit ? "audit-deny" : "deny", "\(intro); \(why)", policies: by, nearest: miss)
      }
    }
  }

  private func notLocalText(_ address: IPAddress, _ direction: PolicyDirection, _ packet: PolicyPacket) -> String {
    if direction == .egress, packet.origin == .host { return "this node's own processes have no egress policy" }
    guard case .pod(let key) = policies.owner(of: address), let pod = state.pod(key) else {
      return "\(address) is no pod of this node"
    }
    return pod.nodeName.map { "\(key) is judged on its own node, \($0)" } ?? "\(key) is no pod of this node"
  }

  /// A pod by its labels, anything else by its address.
  private func peerText(_ address: IPAddress) -> String {
    guard case .pod(let key) = policies.owner(of: address), let pod = state.pod(key), !pod.labels.isEmpty else {
      return "\(address)"
    }
    return pod.labels.description
  }
}
