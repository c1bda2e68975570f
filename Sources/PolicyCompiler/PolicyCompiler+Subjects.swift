import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Which policies are about each local pod: its subjects, and how long they stay in force.
extension PolicyCompiler {
  mutating func updateSubjects(
    of interface: String, _ state: ClusterState, _ now: ContinuousClock.Instant, _ fresh: inout [SubjectID],
    _ work: inout RegistryWork, _ delta: inout TableDelta
  ) {
    let old = subjectsOf[interface]
    guard let local = locals[interface] else {
      subjectsOf[interface] = nil
      if let old { for direction in PolicyDirection.allCases { release(old[direction], now) } }
      return
    }
    guard local.pod != nil else {
      subjectsOf[interface] = .unrestricted
      if let old { for direction in PolicyDirection.allCases { release(old[direction], now) } }
      return
    }
    guard let pod = object(of: local, state) else {
      // A pod whose object is gone runs on under the policies it had, until its sandbox is gone too. In one that has
      // finished nothing runs.
      if let key = local.pod, state.pod(key)?.isSelectable == false, let old {
        subjectsOf[interface] = nil
        for direction in PolicyDirection.allCases { release(old[direction], now) }
      }
      return
    }
    let selecting = policies.matching(
      namespace: pod.key.namespace, namespaceLabels: state.labels(ofNamespace: pod.key.namespace), labels: pod.labels
    ).sorted()
    var new = Subjects()
    for direction in PolicyDirection.allCases {
      let id = subject(direction, pod, selecting, state, &fresh, &work, &delta)
      if direction == .ingress { new.ingress = id } else { new.egress = id }
    }
    if let old {
      for direction in PolicyDirection.allCases { release(old[direction], now) }
      if old != new { delta.rejudgesFlows = true }
    }
    subjectsOf[interface] = new
  }

  /// The subject of a pod in one direction, with one use more.
  private mutating func subject(
    _ direction: PolicyDirection, _ pod: Pod, _ selecting: [ObjectKey], _ state: ClusterState,
    _ fresh: inout [SubjectID], _ work: inout RegistryWork, _ delta: inout TableDelta
  ) -> SubjectID {
    let isolating = selecting.compactMap { state.networkPolicy($0) }.filter { $0.isolates(direction) }
    guard !isolating.isEmpty else { return .unrestricted }
    var key = SubjectKey(
      direction: direction, policies: isolating.map { .init(key: $0.key, content: content($0, direction)) },
      namedPorts: [])
    if direction == .ingress {
      let names = Set(isolating.flatMap { $0.rules(.ingress).flatMap(\.namedPorts) })
      if !names.isEmpty {
        key.namedPorts = Self.values(pod.containerPorts.numbers(of: names))
      }
    }
    key.isClosed = closed[key] != nil
    if let number = subjectNumbers.number(of: key) {
      let id = SubjectID(rawValue: number)
      retain(id)
      return id
    }
    let id = SubjectID(rawValue: subjectNumbers.retain(key) { $0.add(to: &$1) }.number)
    var subject = Subject(key, isolating)
    for (index, rule) in subject.rules.enumerated() {
      for peer in rule.peers ?? [] {
        let peer = retain(peer, &work)
        subject.rulesOfPeer[peer, default: []].append(index)
        subjectsOfPeer[peer, default: []].insert(id)
      }
    }
    for port in subject.peerPorts {
      if registry.retain(port) { work.namedPorts.insert(port) }
      subjectsOfPort[port, default: []].insert(id)
    }
    subject.uses = 1
    subjects[id] = subject
    fresh.append(id)
    return id
  }

  private mutating func content(_ policy: NetworkPolicy, _ direction: PolicyDirection) -> UInt64 {
    if let known = contentHashes[policy.key]?[direction] { return known }
    let hash = policy.contentHash(direction)
    contentHashes[policy.key, default: [:]][direction] = hash
    return hash
  }

  private mutating func retain(_ peer: Peer, _ work: inout RegistryWork) -> PeerID {
    let (id, isNew) = registry.retain(peer)
    if isNew { work.added.insert(id) }
    return id
  }

  mutating func retain(_ id: SubjectID) {
    subjects[id]?.uses += 1
    idle[id] = nil
  }

  mutating func release(_ id: SubjectID, _ now: ContinuousClock.Instant) {
    guard id != .unrestricted, let uses = subjects[id]?.uses else { return }
    subjects[id]?.uses = uses - 1
    if uses == 1 { idle[id] = now }
  }

  func isOver(_ id: SubjectID, since: ContinuousClock.Instant, _ now: ContinuousClock.Instant) -> Bool {
    guard now - since < linger, let key = subjects[id]?.key, closed[key] == nil else { return true }
    return !key.policies.allSatisfy { contentHashes[$0.key]?[key.direction] == $0.content }
  }

  /// Puts subjects out of force that have been idle for long, or that a changed policy has left behind.
  mutating func retire(
    _ now: ContinuousClock.Instant, _ work: inout RegistryWork, _ tables: borrowing Tables,
    _ delta: inout TableDelta
  ) {
    for (id, since) in idle {
      guard let subject = subjects[id], isOver(id, since: since, now) else { continue }
      idle[id] = nil
      removePairs(of: id, tables, &delta)
      for (peer, rules) in subject.rulesOfPeer {
        subjectsOfPeer.remove(id, from: peer)
        for _ in rules {
          if let gone = registry.release(peer) { work.removed[peer] = gone }
        }
      }
      for port in subject.peerPorts {
        subjectsOfPort.remove(id, from: port)
        if registry.release(port) { work.namedPorts.insert(port) }
      }
      subjects[id] = nil
      _ = subjectNumbers.release(subject.key)
      if subject.key.isClosed {
        var open = subject.key
        open.isClosed = false
        closed[open] = nil
      }
    }
  }
}
