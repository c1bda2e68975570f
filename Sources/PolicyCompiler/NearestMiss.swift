import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The rule that would have allowed a denied packet with the fewest changes.
public struct NearestMiss: Sendable, Hashable {
  public var rule: RuleReference
  /// `rule 1 needs role=api`, `rule 0 allows tcp 8080 only`, `rule 2 allows 10.0.0.0/8 except 10.1.0.0/16`.
  public var text: String
}

extension PolicyCompiler {
  /// Why no rule of a subject's policies allows a packet: an explanation of a denial, never the judge of one. A rule whose
  /// peers match comes first, then one whose ports match, then the one that lacks the least; nil where there is no rule.
  ///
  /// - Parameters:
  ///   - identity: the peer's, as the tables have it.
  ///   - isAudit: among the rules of audit policies, else among those that are enforced.
  public func nearestMiss(
    _ id: SubjectID, isAudit: Bool, peer: IPAddress, identity: IdentityID?, _ packet: PolicyPacket,
    in state: ClusterState
  ) -> NearestMiss? {
    guard let subject = subjects[id] else { return nil }
    let key = identity.flatMap { classes.key(of: $0) }
    let names = subject.key.direction == .egress ? key?.namedPorts ?? [] : subject.key.namedPorts
    let numbers = NamedPortNumbers(names.map { ($0.port, $0.numbers) }) { first, _ in first }
    let wanted = PortKey(proto: packet.proto, port: packet.destinationPort)
    var best: (distance: Distance, miss: NearestMiss)?
    for rule in subject.rules where rule.isAudit == isAudit {
      let lack = rule.lack(of: peer, matching: key?.peers ?? [], registry, pod(at: peer, state), state)
      let hasPort = rule.allows(wanted, numbers)
      guard let distance = Distance(lack: lack, hasPort: hasPort) else { continue }
      if let best, best.distance <= distance { continue }
      var text = "rule \(rule.reference.index) "
      switch lack {
      case nil: text += "allows \(rule.portText(numbers)) only"
      case let lack?: text += lack.text + (hasPort ? "" : ", and \(rule.portText(numbers))")
      }
      best = (distance, NearestMiss(rule: rule.reference, text: text))
    }
    return best?.miss
  }

  private func pod(at address: IPAddress, _ state: ClusterState) -> Pod? {
    guard case .pod(let key) = owner(of: address) else { return nil }
    return state.pod(key)
  }

  private struct Distance: Comparable {
    /// 0: only the port is wrong. 1: only the peer is. 2: both are.
    var kind: Int
    var changes: Int

    /// nil where nothing is wrong.
    init?(lack: PeerLack?, hasPort: Bool) {
      switch (lack, hasPort) {
      case (nil, true): return nil
      case (nil, false): (kind, changes) = (0, 1)
      case (let lack?, true): (kind, changes) = (1, lack.changes)
      case (let lack?, false): (kind, changes) = (2, lack.changes)
      }
    }
    static func < (left: Self, right: Self) -> Bool { (left.kind, left.changes) < (right.kind, right.changes) }
  }
}

/// What a peer would need for a rule to be about it.
private struct PeerLack {
  var changes: Int
  /// `needs role=api and namespace label team=a`.
  var text: String
}

extension CompiledRule {
  fileprivate func allows(_ port: PortKey, _ numbers: NamedPortNumbers) -> Bool {
    guard let ports else { return true }
    return ports.contains {
      switch $0 {
      case .range(let range): range.contains(port)
      case .named(let name): (numbers[name] ?? []).contains { PortKey(name.proto, $0) == port }
      }
    }
  }

  /// `tcp 80, tcp 8000-8080, every udp port, tcp http (8080)`.
  fileprivate func portText(_ numbers: NamedPortNumbers) -> String {
    let texts = (ports ?? []).map { port in
      switch port {
      case .range(let range):
        let proto = L4Protocol(rawValue: range.lowerBound.proto)?.description ?? "\(range.lowerBound.proto)"
        if range.lowerBound.port == 0, range.upperBound.port == .max { return "every \(proto) port" }
        return "\(proto) \(range.lowerBound.port)"
          + (range.lowerBound == range.upperBound ? "" : "-\(range.upperBound.port)")
      case .named(let name):
        let found = numbers[name].map { $0.map(\.description).joined(separator: ", ") }
        return "\(name.proto) \(name.name) (\(found ?? "no port of that name there"))"
      }
    }
    return texts.prefix(8).joined(separator: ", ") + (texts.count > 8 ? " and \(texts.count - 8) more" : "")
  }

  /// nil where one of the rule's peers is this one.
  ///
  /// - Parameter matching: the peers in force that the address's identity matches: what the tables were made from.
  fileprivate func lack(
    of address: IPAddress, matching: [PeerID], _ registry: PeerRegistry, _ pod: Pod?, _ state: ClusterState
  ) -> PeerLack? {
    guard let peers else { return nil }
    if peers.contains(where: { registry.ids[$0].map(matching.contains) ?? false }) { return nil }
    let lacks = peers.map { $0.lack(of: address, pod, state) }
    return lacks.min { $0.changes < $1.changes }
  }
}

extension Peer {
  fileprivate func lack(of address: IPAddress, _ pod: Pod?, _ state: ClusterState) -> PeerLack {
    switch self {
    case .block(let block):
      if let hole = block.except.first(where: { $0.contains(address) }), block.cidr.contains(address) {
        return PeerLack(changes: 1, text: "allows \(block.cidr) except \(hole)")
      }
      return PeerLack(changes: block.cidr.family == address.family ? 2 : 8, text: "allows \(block.cidr) only")
    case .pods(let selector, let scope):
      var needs = (selector ?? LabelSelector()).needs(of: pod?.labels)
      switch scope {
      case .own(let namespace): if pod?.key.namespace != namespace { needs.append("namespace \(namespace)") }
      case .selected(let namespaces):
        let labels = pod.map { state.labels(ofNamespace: $0.key.namespace) }
        needs += namespaces.needs(of: labels).map { need in
          let name = "\(WellKnown.namespaceName)="
          return need.hasPrefix(name) ? "namespace \(need.dropFirst(name.count))" : "namespace label \(need)"
        }
      }
      guard pod != nil else {
        // No label helps what is no pod.
        return PeerLack(
          changes: 16 + needs.count,
          text: "needs a pod" + (needs.isEmpty ? "" : " with " + needs.joined(separator: " and ")))
      }
      return PeerLack(changes: max(1, needs.count), text: "needs " + needs.joined(separator: " and "))
    }
  }
}

extension LabelSelector {
  /// What the labels lack for a match; for nil, all that the selector asks for.
  fileprivate func needs(of labels: Labels?) -> [String] {
    var needs: [String] = []
    for pair in matchLabels.pairs where labels == nil || labels?[pair.key] != pair.value {
      needs.append("\(pair.key)=\(pair.value)")
    }
    for requirement in matchExpressions where labels.map({ !requirement.matches($0) }) ?? true {
      let values = requirement.values.joined(separator: ",")
      switch requirement.comparison {
      case .isIn:
        needs.append(
          requirement.values.count == 1 ? "\(requirement.key)=\(values)" : "\(requirement.key) in (\(values))")
      case .isNotIn: needs.append("\(requirement.key) not in (\(values))")
      case .exists: needs.append("\(requirement.key) to exist")
      case .doesNotExist: needs.append("no \(requirement.key)")
      }
    }
    return needs
  }
}
