import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// What makes two pods the same subject: the policies that select them, by content, and what their named ports mean.
struct SubjectKey: Hashable, Sendable {
  struct Policy: Hashable, Sendable {
    var key: ObjectKey
    var content: UInt64
  }
  var direction: PolicyDirection
  /// Sorted by key.
  var policies: [Policy]
  /// Ingress: numbers of the port names that the policies ask for, on the selected pod.
  var namedPorts: [ClassKey.NamedPortValue]
  /// It has more pairs than may be kept: nothing is allowed.
  var isClosed = false

  func add(to hash: inout ContentHash) {
    hash.add(direction.rawValue)
    for policy in policies {
      hash.add("\(policy.key)")
      hash.add(policy.content)
    }
    for port in namedPorts {
      hash.add(port.port.name)
      hash.add(port.port.proto.rawValue)
      for number in port.numbers { hash.add(number.number) }
    }
    hash.add(UInt8(isClosed ? 1 : 0))
  }
}

/// A subject that is in the tables.
struct Subject {
  var key: SubjectKey
  /// Pods that have it.
  var uses = 0
  /// In the order in which they decide.
  var rules: [CompiledRule]
  var isolating: [PolicyReference]
  var auditing: [PolicyReference]
  /// Each peer with the positions of the rules that name it.
  var rulesOfPeer: [PeerID: [Int]] = [:]
  var rulesForAnyone: [Int] = []
  /// Egress: port names whose meaning depends on the peer.
  var peerPorts: Set<NamedPort> = []
  var pairs: Set<IdentityID> = []
  var wildcard: PairValue?
  /// Pair values by what they follow from: a thousand identities that match one rule share one.
  var known: [Match: PairValue] = [:]

  struct Match: Hashable {
    var rules: [Int]
    var namedPorts: [ClassKey.NamedPortValue]
  }

  init(_ key: SubjectKey, _ policies: [NetworkPolicy]) {
    self.key = key
    let direction = key.direction
    rules = policies.flatMap { $0.rules(direction) }.sorted { $0.reference < $1.reference }
    func references(_ mode: NetworkPolicy.Mode) -> [PolicyReference] {
      policies.filter { $0.mode == mode }.map { PolicyReference($0.key) }.sorted()
    }
    (isolating, auditing) = (references(.enforce), references(.audit))
    for (index, rule) in rules.enumerated() where rule.peers == nil { rulesForAnyone.append(index) }
    if direction == .egress { peerPorts = Set(rules.flatMap(\.namedPorts)) }
  }

  /// What a class of peers matches; nil: nothing that just anybody does not.
  func match(_ peer: ClassKey) -> Match? {
    var matching = rulesForAnyone
    for id in peer.profile.peers { if let rules = rulesOfPeer[id] { matching += rules } }
    for id in peer.blocks.peers { if let rules = rulesOfPeer[id] { matching += rules } }
    let named =
      key.direction == .egress ? peer.namedPorts.filter { peerPorts.contains($0.port) } : key.namedPorts
    let isSpecific = matching.count > rulesForAnyone.count || (key.direction == .egress && !named.isEmpty)
    guard isSpecific else { return nil }
    return Match(rules: Set(matching).sorted(), namedPorts: named)
  }

  var wildcardMatch: Match {
    Match(rules: rulesForAnyone, namedPorts: key.direction == .ingress ? key.namedPorts : [])
  }

  /// The port set and attribution that follow from a match.
  func build(_ match: Match) -> (PortSet, Attribution) {
    if key.isClosed {
      return (
        PortSet([PortSet.Entry(PortKey.first...PortKey.last, Clause(.overLimit))]),
        Attribution(direction: key.direction, rules: [], isolating: isolating, auditing: auditing)
      )
    }
    let numbers: [NamedPort: [Port]] = Dictionary(match.namedPorts.map { ($0.port, $0.numbers) }) { first, _ in first }
    let matching = match.rules.map { index -> PortSetBuilder.Rule in
      let rule = rules[index]
      let ports = rule.ports?.flatMap { port -> [ClosedRange<PortKey>] in
        switch port {
        case .range(let range): [range]
        case .named(let named):
          (numbers[named] ?? []).map { PortKey(named.proto, $0)...PortKey(named.proto, $0) }
        }
      }
      return PortSetBuilder.Rule(reference: rule.reference, isAudit: rule.isAudit, ports: ports)
    }
    return PortSetBuilder(direction: key.direction, isolating: isolating, auditing: auditing).build(matching)
  }
}
