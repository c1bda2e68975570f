import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Peers come into force and go out of it: profiles and sets of blocks get other contents, are cut, and become one.
extension ClassTable {
  struct PeerChanges {
    /// Selectors, with the groups that they match.
    var added: [PeerID: [PodGroupID]] = [:]
    var removed: Set<PeerID> = []
    /// What port names that are asked for from now on mean.
    var addedPorts: [PodGroupID: [ClassKey.NamedPortValue]] = [:]
    var removedPorts: Set<NamedPort> = []
    var addedBlocks: [PeerID: IPBlock] = [:]
    var removedBlocks: [PeerID: IPBlock] = [:]
  }

  /// No address has another owner, and no owner other labels: to a subject that is in force before and after, two addresses
  /// that were one class are the same still. So any part of a class may keep its number; the largest one does.
  mutating func follow(_ changes: PeerChanges) {
    var affected: Set<CellID> = []
    let unused = regroup(changes, &affected)
    var replaced: [BlockSetID: BlockSetID] = [:]
    let cutSpaces = spaces.indices.filter { cut($0, changes, &replaced, &affected) }
    renumber(affected, replaced)
    for (old, new) in replaced { merge(old, into: new) }
    for profile in unused { forgetIfUnused(profile) }
    for space in hasCells ? cutSpaces : Array(spaces.indices) { countAtoms(space) }
    hasCells = true
  }

  // MARK: Profiles

  /// What groups get in addition.
  private struct Addition: Hashable, Comparable {
    var peers: [PeerID] = []
    var ports: [ClassKey.NamedPortValue] = []

    /// Less is first.
    static func < (left: Self, right: Self) -> Bool {
      if left.peers != right.peers { return left.peers.lexicographicallyPrecedes(right.peers) }
      return left.ports.map(\.port).lexicographicallyPrecedes(right.ports.map(\.port))
    }

    func added(to profile: Profile) -> Profile {
      var profile = profile
      profile.peers.append(contentsOf: peers)
      profile.peers.sort()
      profile.namedPorts.append(contentsOf: ports)
      profile.namedPorts.sort { $0.port < $1.port }
      return profile
    }
  }

  /// Gives groups the profiles that they should have. The largest part of each profile keeps its number.
  ///
  /// - Returns: profiles that may have no groups any more.
  private mutating func regroup(_ changes: PeerChanges, _ affected: inout Set<CellID>) -> [ProfileID] {
    var additions: [PodGroupID: Addition] = [:]
    for (peer, ids) in changes.added.sorted(by: { $0.key < $1.key }) {
      for id in ids where knows(id) { additions[id, default: Addition()].peers.append(peer) }
    }
    for (id, ports) in changes.addedPorts where knows(id) { additions[id, default: Addition()].ports = ports }
    var parts: [ProfileID: [Addition: [PodGroupID]]] = [:]
    for (id, addition) in additions {
      if let profile = groups[id]?.profile { parts[profile, default: [:]][addition, default: []].append(id) }
    }
    var losing = changes.removed.reduce(into: Set()) { $0.formUnion(profiles.having($1)) }
    for port in changes.removedPorts { losing.formUnion(profiles.having(port)) }

    var contents: [ProfileID: Profile] = [:]
    for id in losing.union(parts.keys).sorted() {
      var base = profiles[id]
      base.peers.removeAll { changes.removed.contains($0) }
      base.namedPorts.removeAll { changes.removedPorts.contains($0.port) }
      var parts = parts[id] ?? [:]
      var weights = parts.mapValues { $0.reduce(0) { $0 + weight(of: $1) } }
      let hasRest = parts.values.reduce(0) { $0 + $1.count } < groupsOfProfile[id]?.count ?? 0
      if hasRest { weights[Addition()] = profiles.weight(of: id) - weights.values.reduce(0, +) }
      let order = weights.keys.sorted { (weights[$1] ?? 0, $0) < (weights[$0] ?? 0, $1) }
      if hasRest, order.first != Addition() {
        parts[Addition()] = Array((groupsOfProfile[id] ?? []).subtracting(parts.values.joined()))
      }
      for (position, addition) in order.enumerated() {
        let content = addition.added(to: base)
        let part = position == 0 ? id : profiles.add(content)
        contents[part] = content
        guard part != id else { continue }
        for member in parts[addition] ?? [] { reassign(member, to: part, &affected) }
      }
    }
    let replaced = profiles.change(contents)
    for (old, new) in replaced {
      for member in groupsOfProfile[old] ?? [] { reassign(member, to: new, &affected) }
    }
    return Array(replaced.keys)
  }

  private mutating func reassign(_ group: PodGroupID, to profile: ProfileID, _ affected: inout Set<CellID>) {
    assign(group, to: profile)
    affected.formUnion(groups[group]?.cells ?? [])
  }

  private func weight(of group: PodGroupID) -> Int { (groups[group]?.cells ?? []).reduce(0) { $0 + self[$1].weight } }
}
