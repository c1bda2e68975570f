import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The values pairs have, shared: a value lives as long as some subject may use it.
struct PairValues {
  private var portSets = Interner<PortSet>()
  private var attributions = Interner<Attribution>()
  private var labels = Interner<ClauseKey>()
  private var uses: [PairValue: Int] = [:]
  private var contents: [PairValue: (PortSet, Attribution)] = [:]

  var portSetCount: Int { portSets.count }

  mutating func retain(_ ports: PortSet, _ attribution: Attribution, _ delta: inout TableDelta) -> PairValue {
    if let set = portSets.number(of: ports), let by = attributions.number(of: attribution) {
      let value = PairValue(portSet: PortSetID(rawValue: set), attribution: AttributionID(rawValue: by))
      if let known = uses[value] {
        uses[value] = known + 1
        return value
      }
    }
    let (set, isNewSet) = portSets.retain(ports) { $0.add(to: &$1) }
    let (by, isNewAttribution) = attributions.retain(
      attribution, lowestBit: AttributionID.lowestBit(of: attribution.direction)
    ) { $0.add(to: &$1) }
    let value = PairValue(portSet: PortSetID(rawValue: set), attribution: AttributionID(rawValue: by))
    uses[value] = 1
    contents[value] = (ports, attribution)
    if isNewSet { delta.portSets.add(value.portSet, ports) }
    if isNewAttribution { delta.attributions.add(value.attribution, attribution) }
    for clause in Set(ports.entries.map(\.clause)) {
      let key = ClauseKey(value.attribution, clause)
      let (label, isNew) = labels.retain(key, lowestBit: ClauseLabel.lowestBit(of: clause)) {
        $1.add($0.attribution.rawValue)
        $1.add($0.clause.rawValue)
      }
      if isNew { delta.clauses.add(key, label) }
    }
    return value
  }

  mutating func release(_ value: PairValue, _ delta: inout TableDelta) {
    guard let count = uses[value], let (ports, attribution) = contents[value] else { return }
    uses[value] = count == 1 ? nil : count - 1
    guard count == 1 else { return }
    contents[value] = nil
    for clause in Set(ports.entries.map(\.clause)) {
      let key = ClauseKey(value.attribution, clause)
      if let label = labels.number(of: key), labels.release(key) { delta.clauses.remove(key, label) }
    }
    if portSets.release(ports) { delta.portSets.remove(value.portSet, ports) }
    if attributions.release(attribution) { delta.attributions.remove(value.attribution, attribution) }
  }
}

extension PolicyCompiler {
  /// All pairs of a subject that has none yet.
  mutating func compilePairs(
    of id: SubjectID, _ now: ContinuousClock.Instant, _ tables: borrowing Tables, _ delta: inout TableDelta
  ) {
    guard let subject = subjects[id], subject.wildcard == nil else { return }
    var identities: Set<IdentityID> = []
    if !subject.key.isClosed {
      for peer in subject.rulesOfPeer.keys { identities.formUnion(classes.matching(peer)) }
      for port in subject.peerPorts { identities.formUnion(classes.declaring(port)) }
      guard pairCount + identities.count <= pairLimit else {
        return close(id, needing: identities.count, now, tables, &delta)
      }
    }
    let wildcard = value(of: id, subject.wildcardMatch, &delta)
    subjects[id]?.wildcard = wildcard
    if let wildcard { addPair(PairKey(id, .any), wildcard, &delta) }
    for identity in identities { compilePair(id, identity, &delta) }
  }

  private mutating func compilePair(_ id: SubjectID, _ identity: IdentityID, _ delta: inout TableDelta) {
    guard let key = classes.key(of: identity), let match = subjects[id]?.match(key),
      let value = value(of: id, match, &delta), value != subjects[id]?.wildcard,
      subjects[id]?.pairs.insert(identity).inserted == true
    else { return }
    addPair(PairKey(id, identity), value, &delta)
  }

  private mutating func value(
    of id: SubjectID, _ match: Subject.Match, _ delta: inout TableDelta
  ) -> PairValue? {
    if let known = subjects[id]?.known[match] { return known }
    guard let (ports, attribution) = subjects[id]?.build(match) else { return nil }
    let value = values.retain(ports, attribution, &delta)
    subjects[id]?.known[match] = value
    return value
  }

  private mutating func addPair(_ key: PairKey, _ value: PairValue, _ delta: inout TableDelta) {
    if key.identity != .any { pairCount += 1 }
    delta.pairs.add(key, value)
  }

  mutating func removePairs(of id: SubjectID, _ tables: borrowing Tables, _ delta: inout TableDelta) {
    guard let subject = subjects[id] else { return }
    for identity in subject.pairs { removePair(PairKey(id, identity), tables, &delta) }
    if subject.wildcard != nil { removePair(PairKey(id, .any), tables, &delta) }
    for value in subject.known.values { values.release(value, &delta) }
  }

  private mutating func removePair(_ key: PairKey, _ tables: borrowing Tables, _ delta: inout TableDelta) {
    guard let value = delta.pairs[key]?.new ?? tables.policies.pairs[key] else { return }
    if key.identity != .any { pairCount -= 1 }
    delta.pairs.remove(key, value)
  }

  /// A subject with too many pairs: another takes its place, which allows nothing and says why.
  private mutating func close(
    _ id: SubjectID, needing pairs: Int, _ now: ContinuousClock.Instant, _ tables: borrowing Tables,
    _ delta: inout TableDelta
  ) {
    guard let open = subjects[id], !open.key.isClosed, closed[open.key] == nil else { return }
    closed[open.key] = pairs
    var key = open.key
    key.isClosed = true
    let number: SubjectID
    if let known = subjectNumbers.number(of: key) {
      number = SubjectID(rawValue: known)
    } else {
      number = SubjectID(rawValue: subjectNumbers.retain(key) { $0.add(to: &$1) }.number)
      var subject = open
      subject.key = key
      (subject.pairs, subject.wildcard, subject.known) = ([], nil, [:])
      (subject.rulesOfPeer, subject.peerPorts, subject.uses) = ([:], [], 0)
      subjects[number] = subject
    }
    for (interface, subjects) in subjectsOf where subjects[open.key.direction] == id {
      if open.key.direction == .ingress {
        subjectsOf[interface]?.ingress = number
      } else {
        subjectsOf[interface]?.egress = number
      }
      release(id, now)
      retain(number)
    }
    delta.rejudgesFlows = true
    compilePairs(of: number, now, tables, &delta)
  }

  /// Interfaces of closed subjects for which there is room again: they are compiled anew.
  mutating func reopen() -> Set<String> {
    var interfaces: Set<String> = []
    for (key, pairs) in closed where pairCount + pairs <= pairLimit {
      closed[key] = nil
      var closedKey = key
      closedKey.isClosed = true
      guard let number = subjectNumbers.number(of: closedKey) else { continue }
      for (interface, subjects) in subjectsOf where subjects[key.direction].rawValue == number {
        interfaces.insert(interface)
      }
      // One at a time: the next look at the room sees what this one took.
      break
    }
    return interfaces
  }

  // MARK: Classes

  /// Gives classes that are new their pairs, takes those of classes that are gone, and moves addresses.
  mutating func follow(
    _ changes: ClassTable.Changes, _ now: ContinuousClock.Instant, _ tables: borrowing Tables,
    _ delta: inout TableDelta
  ) {
    for identity in changes.created.sorted() {
      guard let key = classes.key(of: identity) else { continue }
      for id in users(of: key) where subjects[id]?.wildcard != nil && subjects[id]?.pairs.contains(identity) == false {
        if pairCount < pairLimit {
          compilePair(id, identity, &delta)
        } else {
          close(id, needing: (subjects[id]?.pairs.count ?? 0) + 1, now, tables, &delta)
        }
      }
    }
    delta.identities = changes.moves
    for move in changes.relabelled where !delta.rejudgesFlows {
      if let old = move.old, let new = move.new, differ(old, new, tables, delta) { delta.rejudgesFlows = true }
    }
    for (identity, key) in changes.died {
      for id in users(of: key) where subjects[id]?.pairs.remove(identity) != nil {
        removePair(PairKey(id, identity), tables, &delta)
      }
    }
  }

  /// The subjects that say of a class what they do not say of just anybody.
  private func users(of key: ClassKey) -> Set<SubjectID> {
    var users: Set<SubjectID> = []
    for peer in key.profile.peers { users.formUnion(subjectsOfPeer[peer] ?? []) }
    for peer in key.blocks.peers { users.formUnion(subjectsOfPeer[peer] ?? []) }
    for port in key.namedPorts { users.formUnion(subjectsOfPort[port.port] ?? []) }
    return users
  }

  /// Whether any subject makes a difference between them.
  private func differ(
    _ old: IdentityID, _ new: IdentityID, _ tables: borrowing Tables, _ delta: TableDelta
  ) -> Bool {
    // A subject that is new has no flows yet, or its endpoints' change says so by itself.
    for (id, subject) in subjects where subject.uses > 0 && tables.policies.pairs[PairKey(id, .any)] != nil {
      let before = tables.policies.pairs[PairKey(id, old)] ?? subject.wildcard
      let key = PairKey(id, new)
      if before != (delta.pairs[key]?.new ?? tables.policies.pairs[key] ?? subject.wildcard) { return true }
    }
    return false
  }
}

extension Dictionary {
  /// Notes an entry that was not there when the delta began, or that it had removed.
  fileprivate mutating func add<Content>(_ key: Key, _ content: Content) where Value == Change<Content> {
    let old = self[key]?.old
    self[key] = old == content ? nil : Change(old: old, new: content)
  }

  /// Notes that an entry goes; one that the delta itself had added was never there.
  fileprivate mutating func remove<Content>(_ key: Key, _ content: Content) where Value == Change<Content> {
    if let change = self[key], change.old == nil {
      self[key] = nil
    } else {
      self[key] = Change(old: self[key]?.old ?? content, new: nil)
    }
  }
}
