import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Addresses, and what their owners mean, one by one.
extension ClassTable {
  // MARK: Groups

  func knows(_ group: PodGroupID) -> Bool { groups[group] != nil }

  mutating func addGroup(_ id: PodGroupID, _ profile: Profile) {
    let profile = profiles.intern(profile)
    groups[id] = Group(profile: profile)
    groupsOfProfile[profile, default: []].insert(id)
  }

  /// A group's labels are for ever; its namespace's are not: what changes here makes other classes.
  mutating func setPeers(_ peers: [PeerID], of id: PodGroupID) {
    guard let group = groups[id] else { return }
    var profile = profiles[group.profile]
    guard profile.peers != peers else { return }
    profile.peers = peers
    assign(id, to: profiles.intern(profile))
    for cell in group.cells {
      let key = self[cell].key
      let place = Place(profile: self.profile(of: key.owner), blocks: key.blocks)
      let old = self[cell].identity
      let new = identities[place] ?? create(place, inherited: inherited(by: self[cell].addresses.first))
      move([cell], from: old, to: new)
      self[cell].isRelabelled = true
      endIfUnused(old)
    }
    forgetIfUnused(group.profile)
  }

  /// The group's cells are still in the classes that they were in.
  mutating func assign(_ id: PodGroupID, to profile: ProfileID) {
    guard let group = groups[id] else { return }
    let weight = group.cells.reduce(0) { $0 + self[$1].weight }
    profiles.addWeight(-weight, to: group.profile)
    profiles.addWeight(weight, to: profile)
    groupsOfProfile.remove(id, from: group.profile)
    groupsOfProfile[profile, default: []].insert(id)
    groups[id]?.profile = profile
  }

  mutating func forgetIfUnused(_ profile: ProfileID) {
    if groupsOfProfile[profile] == nil, profile > .unknown { profiles.remove(profile) }
  }

  // MARK: Addresses

  mutating func place(_ address: IPAddress, _ owner: Owner?) {
    let space = Self.space(of: address.family)
    let old = spaces[space].addresses[address]
    guard let owner else {
      guard let old else { return }
      note(address, whichWasIn: old)
      spaces[space].addresses.remove(address)
      return leave(address, old)
    }
    let key = CellKey(owner: owner, blocks: spaces[space].atoms.blocks(containing: address))
    if let old, self[old].key == key { return }
    let id = cellIDs[key] ?? addCell(key, inherited: inherited(by: address))
    note(address, whichWasIn: old)
    self[id].addresses.insert(address)
    spaces[space].addresses.set(address, id)
    addWeight(1, to: id)
    if let old { leave(address, old) }
  }

  private mutating func leave(_ address: IPAddress, _ cell: CellID) {
    self[cell].addresses.remove(address)
    addWeight(-1, to: cell)
    if self[cell].weight == 0 { remove(cell) }
  }

  /// What tables have for it is what they had before its first change.
  mutating func note(_ address: IPAddress, whichWasIn cell: CellID?) {
    let reported = cell.flatMap { self[$0].reported }
    if let earlier = arrivals.updateValue(reported, forKey: address) { arrivals.updateValue(earlier, forKey: address) }
  }

  // MARK: Cells

  /// A cell in the class that there is for it, or in a new one.
  mutating func addCell(_ key: CellKey, inherited: IdentityID?) -> CellID {
    let place = Place(profile: profile(of: key.owner), blocks: key.blocks)
    return add(Cell(key: key, identity: identities[place] ?? create(place, inherited: inherited)))
  }

  /// A cell without addresses and atoms.
  mutating func add(_ cell: Cell) -> CellID {
    let id = freeCells.popLast() ?? CellID(rawValue: Int32(cells.count))
    if Int(id.rawValue) == cells.count { cells.append(cell) } else { self[id] = cell }
    cellIDs[cell.key] = id
    cellsOfBlocks[cell.key.blocks, default: []].insert(id)
    if case .group(let group) = cell.key.owner { groups[group]?.cells.append(id) }
    classes[cell.identity]?.cells.insert(id)
    touched.append(id)
    return id
  }

  /// Of one that has no weight any more.
  mutating func remove(_ id: CellID) {
    let cell = self[id]
    classes[cell.identity]?.cells.remove(id)
    endIfUnused(cell.identity)
    forget(id)
    guard case .group(let group) = cell.key.owner, let entry = groups[group], entry.cells.isEmpty else { return }
    groups[group] = nil
    groupsOfProfile.remove(group, from: entry.profile)
    forgetIfUnused(entry.profile)
  }

  /// Whatever class it is in.
  mutating func forget(_ id: CellID) {
    let key = self[id].key
    if cellIDs[key] == id { cellIDs[key] = nil }
    cellsOfBlocks.remove(id, from: key.blocks)
    if case .group(let group) = key.owner { groups[group]?.cells.removeAll { $0 == id } }
    self[id].addresses = []
    self[id].atoms = 0
    freeCells.append(id)
  }

  mutating func addWeight(_ weight: Int, to id: CellID) {
    let (key, identity) = (self[id].key, self[id].identity)
    classes[identity]?.weight += weight
    profiles.addWeight(weight, to: profile(of: key.owner))
    blockSets.addWeight(weight, to: key.blocks)
  }

  /// Puts cells of one class into another; the first may be unused then.
  mutating func move(_ moving: [CellID], from old: IdentityID, to new: IdentityID) {
    var weight = 0
    for cell in moving {
      weight += self[cell].weight
      self[cell].identity = new
    }
    touched += moving
    classes[old]?.cells.subtract(moving)
    classes[old]?.weight -= weight
    classes[new]?.cells.formUnion(moving)
    classes[new]?.weight += weight
  }

  // MARK: Classes

  private func inherited(by address: IPAddress?) -> IdentityID? {
    inherited.isEmpty ? nil : address.flatMap { inherited[$0] }
  }

  mutating func create(_ place: Place, inherited: IdentityID?) -> IdentityID {
    let family = blockSets[place.blocks].family
    var identity = inherited
    if identity == nil || identity?.family != family || identity.flatMap({ classes[$0] }) != nil {
      identity = IdentityID(serial: serial, family: family)
      serial += 1
    }
    let id = identity ?? .any
    classes[id] = Class(place: place)
    settle(id, in: place)
    created.insert(id)
    return id
  }

  mutating func settle(_ id: IdentityID, in place: Place) {
    classes[id]?.place = place
    identities[place] = id
    profiles.insert(id, in: place.profile)
    blockSets.insert(id, in: place.blocks)
  }

  mutating func unsettle(_ id: IdentityID) {
    guard let place = classes[id]?.place else { return }
    if identities[place] == id { identities[place] = nil }
    profiles.remove(id, from: place.profile)
    blockSets.remove(id, from: place.blocks)
  }

  private mutating func endIfUnused(_ id: IdentityID) {
    if classes[id]?.cells.isEmpty == true, let key = key(of: id) { end(id, as: key) }
  }

  /// - Parameter key: what its last addresses were, or are now.
  mutating func end(_ id: IdentityID, as key: ClassKey) {
    unsettle(id)
    classes[id] = nil
    if created.remove(id) == nil { died[id] = key }
  }
}
