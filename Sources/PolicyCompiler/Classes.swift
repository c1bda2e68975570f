import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// What distinguishes one identity from another, for the policies in force.
struct ClassKey: Hashable, Sendable {
  var kind: IdentityKind
  /// "" for what is no pod.
  var namespace: String
  var family: IPFamily
  /// The peers in force that match, sorted.
  var peers: [PeerID]
  /// What the port names asked for mean there, sorted by name.
  var namedPorts: [NamedPortValue]

  struct NamedPortValue: Hashable, Sendable {
    var port: NamedPort
    var numbers: [Port]
  }
}

/// Addresses that come and go, in classes: identities. Costs what changes, but for what a new peer has to move.
///
/// Addresses of one pod group and one set of ipBlocks form a *cell*; a class is made of cells. So a policy that splits
/// no class touches no address.
struct ClassTable {
  /// Whose an address is.
  enum Owner: Hashable {
    case group(PodGroupID)
    case node
  }

  struct CellKey: Hashable {
    var owner: Owner
    var family: IPFamily
    /// The blocks that contain the address, by their number in `signatures`.
    var blocks: Int32
  }

  private struct Cell {
    var identity: IdentityID
    var addresses: Set<IPAddress> = []
  }

  private struct Class {
    var key: ClassKey
    var cells: Set<CellKey> = []
    /// It is in a block table.
    var hasAtoms = false
  }

  /// What a group means to the peers in force.
  private struct Group {
    var namespace: String
    var peers: [PeerID]
    var namedPorts: [ClassKey.NamedPortValue]
    var cells: Set<CellKey> = []
  }

  private var cells: [CellKey: Cell] = [:]
  private var cellOf: [IPAddress: CellKey] = [:]
  private var classes: [IdentityID: Class] = [:]
  private var identities: [ClassKey: IdentityID] = [:]
  private var groups: [PodGroupID: Group] = [:]
  private var signatures: [[PeerID]: Int32] = [[]: 0]
  private var blocksOf: [[PeerID]] = [[]]
  private(set) var byPeer: [PeerID: Set<IdentityID>] = [:]
  private(set) var byNamedPort: [NamedPort: Set<IdentityID>] = [:]
  private var serial: UInt32
  /// Numbers that the kernel had at start. Each serves one class.
  private var inherited: [IPAddress: IdentityID]
  private var inheritedAtoms: [AddressRange: IdentityID]

  /// What changed since `takeChanges`.
  private(set) var created: Set<IdentityID> = []
  private(set) var died: Set<IdentityID> = []
  private var moves: [IPAddress: (from: IdentityID?, to: IdentityID?)] = [:]

  init(inForce: IdentitiesInForce) {
    inherited = inForce.addresses
    inheritedAtoms = inForce.atoms
    let all = Array(inForce.addresses.values) + Array(inForce.atoms.values)
    serial = max(IdentityID.firstSerial, (all.map(\.serial).max() ?? 0) + 1)
  }

  var addressCount: Int { cellOf.count }
  var classCount: Int { classes.count }
  var allIdentities: some Sequence<IdentityID> { classes.keys }

  func key(of identity: IdentityID) -> ClassKey? { classes[identity]?.key }
  func identity(of address: IPAddress) -> IdentityID? { cellOf[address].flatMap { cells[$0]?.identity } }
  func groups(of identity: IdentityID) -> [PodGroupID] {
    (classes[identity]?.cells ?? []).compactMap { if case .group(let id) = $0.owner { id } else { nil } }.sorted()
  }
  func addressCount(of identity: IdentityID) -> Int {
    (classes[identity]?.cells ?? []).reduce(0) { $0 + (cells[$1]?.addresses.count ?? 0) }
  }

  /// Numbers found in the kernel that no class has asked for.
  mutating func forgetInherited() {
    inherited = [:]
    inheritedAtoms = [:]
  }

  // MARK: Changes to report

  struct Changes {
    var created: Set<IdentityID>
    var died: Set<IdentityID>
    var moves: [IPAddress: Change<IdentityID>]
  }

  mutating func takeChanges() -> Changes {
    defer {
      (created, died) = ([], [])
      moves = [:]
    }
    var result: [IPAddress: Change<IdentityID>] = [:]
    for (address, move) in moves where move.from != move.to {
      result[address] = Change(old: move.from, new: move.to)
    }
    return Changes(created: created.subtracting(died), died: died.subtracting(created), moves: result)
  }

  // MARK: Groups

  func knows(_ group: PodGroupID) -> Bool { groups[group] != nil }

  mutating func addGroup(
    _ id: PodGroupID, namespace: String, peers: [PeerID], namedPorts: [ClassKey.NamedPortValue]
  ) {
    groups[id] = Group(namespace: namespace, peers: peers, namedPorts: namedPorts)
  }

  /// A group's labels are for ever; its namespace's are not: what changes here makes other classes.
  mutating func setPeers(_ peers: [PeerID], of id: PodGroupID) {
    guard let group = groups[id], group.peers != peers else { return }
    groups[id]?.peers = peers
    for cell in group.cells { move(cell, to: classFor(cell)) }
  }

  /// What groups mean to peers changes because peers come into force or go out of it. A class that changes as a whole keeps
  /// its number: to the policies that were and stay in force nothing has changed.
  mutating func update(
    _ updates: [PodGroupID: (peers: [PeerID], namedPorts: [ClassKey.NamedPortValue])]
  ) {
    var affected: [IdentityID: Set<CellKey>] = [:]
    for (id, update) in updates {
      guard let group = groups[id], group.peers != update.peers || group.namedPorts != update.namedPorts else {
        continue
      }
      groups[id]?.peers = update.peers
      groups[id]?.namedPorts = update.namedPorts
      for cell in group.cells {
        if let identity = cells[cell]?.identity { affected[identity, default: []].insert(cell) }
      }
    }
    for (identity, moving) in affected.sorted(by: { $0.key < $1.key }) {
      guard let old = classes[identity] else { continue }
      var targets: [ClassKey: [CellKey]] = [:]
      for cell in moving { targets[classKey(for: cell), default: []].append(cell) }
      if targets.count == 1, let key = targets.keys.first, moving == old.cells, !old.hasAtoms, identities[key] == nil {
        rename(identity, to: key)
        continue
      }
      for (key, cells) in targets {
        guard let first = cells.first else { continue }
        let target = identities[key] ?? create(key, example: self.cells[first]?.addresses.first)
        for cell in cells { move(cell, to: target) }
      }
    }
  }

  func peers(of group: PodGroupID) -> [PeerID] { groups[group]?.peers ?? [] }
  func namedPorts(of group: PodGroupID) -> [ClassKey.NamedPortValue] { groups[group]?.namedPorts ?? [] }

  // MARK: Addresses

  /// - Parameter blocks: those that contain the address, sorted.
  mutating func place(_ address: IPAddress, _ owner: Owner?, blocks: [PeerID]) {
    let old = cellOf[address]
    guard let owner else {
      if let old { leave(address, old) }
      return
    }
    let key = CellKey(owner: owner, family: address.family, blocks: signature(blocks))
    guard key != old else { return }
    if cells[key] == nil {
      let classKey = classKey(for: key)
      let identity = identities[classKey] ?? create(classKey, example: address)
      cells[key] = Cell(identity: identity)
      classes[identity]?.cells.insert(key)
      if case .group(let id) = owner { groups[id]?.cells.insert(key) }
    }
    cells[key]?.addresses.insert(address)
    cellOf[address] = key
    let identity = cells[key]?.identity
    if let old {
      note(address, from: cells[old]?.identity, to: identity)
      empty(old, of: address)
    } else {
      note(address, from: nil, to: identity)
    }
  }

  private mutating func leave(_ address: IPAddress, _ key: CellKey) {
    note(address, from: cells[key]?.identity, to: nil)
    cellOf[address] = nil
    empty(key, of: address)
  }

  private mutating func empty(_ key: CellKey, of address: IPAddress) {
    cells[key]?.addresses.remove(address)
    guard let cell = cells[key], cell.addresses.isEmpty else { return }
    cells[key] = nil
    if case .group(let id) = key.owner {
      groups[id]?.cells.remove(key)
      if groups[id]?.cells.isEmpty == true { groups[id] = nil }
    }
    classes[cell.identity]?.cells.remove(key)
    endIfUnused(cell.identity)
  }

  private mutating func note(_ address: IPAddress, from: IdentityID?, to: IdentityID?) {
    moves[address] = (moves[address]?.from ?? (moves[address] == nil ? from : nil), to)
  }

  // MARK: Atoms

  /// The identity of what is no pod's and no node's address.
  mutating func identity(of atom: Atoms.Atom) -> IdentityID {
    let key = ClassKey(
      kind: atom.isPodRange ? .unknown : .world, namespace: "", family: atom.range.first.family, peers: atom.blocks,
      namedPorts: [])
    return identities[key] ?? create(key, inherited: inheritedAtoms[atom.range])
  }

  /// Says which classes block tables name from now on.
  mutating func setAtomClasses(_ used: Set<IdentityID>, _ family: IPFamily) {
    for (id, entry) in classes where entry.key.family == family && entry.key.kind != .pod && entry.key.kind != .node {
      classes[id]?.hasAtoms = used.contains(id)
      if !used.contains(id) { endIfUnused(id) }
    }
  }

  // MARK: Classes

  private func classKey(for cell: CellKey) -> ClassKey {
    let blocks = blocksOf[Int(cell.blocks)]
    switch cell.owner {
    case .node: return ClassKey(kind: .node, namespace: "", family: cell.family, peers: blocks, namedPorts: [])
    case .group(let id):
      let group = groups[id]
      return ClassKey(
        kind: .pod, namespace: group?.namespace ?? "", family: cell.family,
        peers: blocks.isEmpty ? group?.peers ?? [] : ((group?.peers ?? []) + blocks).sorted(),
        namedPorts: group?.namedPorts ?? [])
    }
  }

  private mutating func classFor(_ cell: CellKey) -> IdentityID {
    let key = classKey(for: cell)
    return identities[key] ?? create(key, example: cells[cell]?.addresses.first)
  }

  private mutating func create(_ key: ClassKey, example: IPAddress?) -> IdentityID {
    create(key, inherited: example.flatMap { inherited[$0] })
  }

  private mutating func create(_ key: ClassKey, inherited: IdentityID?) -> IdentityID {
    var identity = inherited
    if identity == nil || identity?.family != key.family || identity.flatMap({ classes[$0] }) != nil {
      identity = IdentityID(serial: serial, family: key.family)
      serial += 1
    }
    let id = identity ?? .any
    classes[id] = Class(key: key)
    identities[key] = id
    index(key, id)
    created.insert(id)
    return id
  }

  private mutating func rename(_ id: IdentityID, to key: ClassKey) {
    guard let old = classes[id]?.key else { return }
    unindex(old, id)
    identities[old] = nil
    classes[id]?.key = key
    identities[key] = id
    index(key, id)
  }

  private mutating func move(_ cell: CellKey, to target: IdentityID) {
    guard let old = cells[cell]?.identity, old != target else { return }
    for address in cells[cell]?.addresses ?? [] { note(address, from: old, to: target) }
    cells[cell]?.identity = target
    classes[old]?.cells.remove(cell)
    classes[target]?.cells.insert(cell)
    endIfUnused(old)
  }

  private mutating func endIfUnused(_ id: IdentityID) {
    guard let entry = classes[id], entry.cells.isEmpty, !entry.hasAtoms else { return }
    classes[id] = nil
    identities[entry.key] = nil
    unindex(entry.key, id)
    if created.remove(id) == nil { died.insert(id) }
  }

  private mutating func index(_ key: ClassKey, _ id: IdentityID) {
    for peer in key.peers { byPeer[peer, default: []].insert(id) }
    for port in key.namedPorts { byNamedPort[port.port, default: []].insert(id) }
  }

  private mutating func unindex(_ key: ClassKey, _ id: IdentityID) {
    for peer in key.peers {
      byPeer[peer]?.remove(id)
      if byPeer[peer]?.isEmpty == true { byPeer[peer] = nil }
    }
    for port in key.namedPorts {
      byNamedPort[port.port]?.remove(id)
      if byNamedPort[port.port]?.isEmpty == true { byNamedPort[port.port] = nil }
    }
  }

  private mutating func signature(_ blocks: [PeerID]) -> Int32 {
    if let known = signatures[blocks] { return known }
    let number = Int32(blocksOf.count)
    blocksOf.append(blocks)
    signatures[blocks] = number
    return number
  }

  // MARK: Looking at addresses

  /// Calls `body` with every address in any of the ranges (merged and sorted), and whose it is.
  func forEachAddress(in ranges: [AddressRange], _ body: (IPAddress, Owner) -> Void) {
    guard !ranges.isEmpty else { return }
    for (address, cell) in cellOf where ranges.contain(address) { body(address, cell.owner) }
  }
}

extension [AddressRange] {
  /// Of sorted, disjoint ranges.
  fileprivate func contain(_ address: IPAddress) -> Bool {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if self[middle].last < address { low = middle + 1 } else { high = middle }
    }
    return low < count && self[low].contains(address)
  }
}

/// Identities that the kernel has when an agent starts: its classes keep their numbers.
public struct IdentitiesInForce: Sendable {
  public var addresses: [IPAddress: IdentityID]
  public var atoms: [AddressRange: IdentityID]

  public init(addresses: [IPAddress: IdentityID] = [:], atoms: [AddressRange: IdentityID] = [:]) {
    self.addresses = addresses
    self.atoms = atoms
  }
}
