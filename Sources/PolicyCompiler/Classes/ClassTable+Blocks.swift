import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The address spaces, cut by ipBlocks and pod ranges.
extension ClassTable {
  /// Who is who beyond pods and nodes.
  func blockTable(_ family: IPFamily) -> BlockTable {
    BlockTable(
      spaces[Self.space(of: family)].atoms.atoms.compactMap { atom in
        cellIDs[Self.key(of: atom)].map { BlockTable.Atom(atom.range, self[$0].identity) }
      })
  }

  mutating func setPodRanges(_ ranges: Set<CIDR>) {
    for space in spaces.indices {
      spaces[space].atoms.setPodRanges(ranges)
      if hasCells { countAtoms(space) }
    }
  }

  private static func key(of atom: Atoms.Atom) -> CellKey {
    CellKey(owner: atom.isPodRange ? .unknown : .world, blocks: atom.blocks)
  }

  /// Makes cells for atoms, and takes those away that have none.
  mutating func countAtoms(_ space: Int) {
    var counts: [CellID: Int] = [:]
    for atom in spaces[space].atoms.atoms {
      let key = Self.key(of: atom)
      counts[cellIDs[key] ?? addCell(key, inherited: inheritedAtoms[atom.range]), default: 0] += 1
    }
    let family = spaces[space].atoms.family
    for profile in [ProfileID.world, .unknown] {
      for identity in profiles.classes(of: profile) where identity.family == family {
        for cell in classes[identity]?.cells ?? [] { setAtoms(counts[cell] ?? 0, of: cell) }
      }
    }
  }

  private mutating func setAtoms(_ count: Int, of cell: CellID) {
    let difference = count - self[cell].atoms
    guard difference != 0 else { return }
    self[cell].atoms = count
    addWeight(difference, to: cell)
    if self[cell].weight == 0 { remove(cell) }
  }

  // MARK: Cutting

  /// A part of a set of blocks, which the same blocks come to and go from.
  private struct Part: Hashable, Comparable {
    var blocks: BlockSetID
    var change: Int
    static func < (left: Self, right: Self) -> Bool { (left.blocks, left.change) < (right.blocks, right.change) }
  }

  /// Gives atoms, and the cells in them, the sets of blocks that they should have. The largest part of each set keeps its
  /// number.
  ///
  /// - Parameter replaced: sets that are equal to another one now, which stands for them: atoms have that one already, cells
  ///   have not.
  /// - Returns: whether anything is cut otherwise.
  mutating func cut(
    _ space: Int, _ peers: PeerChanges, _ replaced: inout [BlockSetID: BlockSetID], _ affected: inout Set<CellID>
  ) -> Bool {
    let family = spaces[space].atoms.family
    guard [peers.addedBlocks, peers.removedBlocks].contains(where: { $0.values.contains { $0.cidr.family == family } })
    else { return false }
    let (pieces, changes) = spaces[space].atoms.pieces(added: peers.addedBlocks, removed: peers.removedBlocks)
    let cutSets = Set(pieces.lazy.filter { $0.change != 0 }.map(\.atom.blocks))
    var parts: [Part: [Atoms.Atom]] = [:]
    for piece in pieces where cutSets.contains(piece.atom.blocks) {
      parts[Part(blocks: piece.atom.blocks, change: piece.change), default: []].append(piece.atom)
    }
    var targets: [Part: BlockSetID] = [:]
    var contents: [BlockSetID: BlockSet] = [:]
    for (id, siblings) in Dictionary(grouping: parts.keys.sorted(), by: \.blocks).sorted(by: { $0.key < $1.key }) {
      let old = blockSets[id]
      for (position, part) in bySize(siblings, parts, space).enumerated() {
        let content = changes[part.change].applied(to: old)
        let target = position == 0 ? id : blockSets.add(content)
        targets[part] = target
        if target != id || part.change != 0 { contents[target] = content }
      }
    }
    for (part, atoms) in parts {
      guard let target = targets[part], target != part.blocks else { continue }
      split(atoms, of: part.blocks, into: target, space)
      affected.formUnion(cellsOfBlocks[target] ?? [])
    }
    for (part, atoms) in parts where targets[part] == part.blocks { setAtoms(atoms, of: part.blocks) }
    let equal = blockSets.change(contents)
    for old in equal.keys { affected.formUnion(cellsOfBlocks[old] ?? []) }
    replaced.merge(equal) { $1 }
    spaces[space].atoms.replace(
      pieces.lazy.map { piece in
        var atom = piece.atom
        atom.blocks = targets[Part(blocks: atom.blocks, change: piece.change)] ?? atom.blocks
        atom.blocks = equal[atom.blocks] ?? atom.blocks
        return atom
      })
    return true
  }

  /// All parts of one set, the one with the most addresses first, then the one with the most atoms.
  private func bySize(_ siblings: [Part], _ parts: [Part: [Atoms.Atom]], _ space: Int) -> [Part] {
    guard let id = siblings.first?.blocks, siblings.count > 1 else { return siblings }
    var sizes: [Part: (addresses: Int, atoms: Int)] = [:]
    // What does not change is the rest: perhaps nearly everything.
    var rest = blockSets.weight(of: id)
    for owner in [Owner.world, .unknown] { rest -= cell(owner, id).map { self[$0].atoms } ?? 0 }
    for part in siblings.reversed() {
      let atoms = parts[part] ?? []
      let count = part.change == 0 ? rest : atoms.reduce(0) { $0 + spaces[space].addresses.count(in: $1.range) }
      rest -= count
      sizes[part] = (count, atoms.count)
    }
    return siblings.sorted { left, right in
      let (one, other) = (sizes[left] ?? (0, 0), sizes[right] ?? (0, 0))
      return one == other ? left < right : one > other
    }
  }

  private func cell(_ owner: Owner, _ blocks: BlockSetID) -> CellID? { cellIDs[CellKey(owner: owner, blocks: blocks)] }

  /// Puts the addresses in some atoms into cells of another set. The cells are in the classes of those they come from.
  private mutating func split(_ atoms: [Atoms.Atom], of blocks: BlockSetID, into target: BlockSetID, _ space: Int) {
    var moving: [(IPAddress, CellID)] = []
    for atom in atoms { spaces[space].addresses.forEach(in: atom.range) { moving.append(($0, $1)) } }
    for (address, old) in moving {
      let new = twin(of: old, in: target)
      self[new].addresses.insert(address)
      addWeight(1, to: new)
      spaces[space].addresses.set(address, new)
      self[old].addresses.remove(address)
      addWeight(-1, to: old)
      if self[old].weight == 0 { remove(old) }
    }
    for owner in [Owner.world, .unknown] {
      if let old = cell(owner, blocks), atoms.contains(where: { Self.key(of: $0).owner == owner }) {
        _ = twin(of: old, in: target)
      }
    }
    setAtoms(atoms, of: target)
  }

  /// - Parameter atoms: all of this set.
  private mutating func setAtoms(_ atoms: [Atoms.Atom], of blocks: BlockSetID) {
    for owner in [Owner.world, .unknown] {
      if let cell = cell(owner, blocks) { setAtoms(atoms.count { Self.key(of: $0).owner == owner }, of: cell) }
    }
  }

  /// A cell of the same owner and class.
  private mutating func twin(of id: CellID, in blocks: BlockSetID) -> CellID {
    if let known = cellIDs[CellKey(owner: self[id].key.owner, blocks: blocks)] { return known }
    var twin = self[id]
    twin.key.blocks = blocks
    (twin.addresses, twin.atoms) = ([], 0)
    return add(twin)
  }

  // MARK: Merging

  /// Makes one of two sets that are equal. Equal cells are in one class already.
  mutating func merge(_ old: BlockSetID, into new: BlockSetID) {
    for id in cellsOfBlocks[old] ?? [] {
      let weight = self[id].weight
      blockSets.addWeight(-weight, to: old)
      blockSets.addWeight(weight, to: new)
      let key = CellKey(owner: self[id].key.owner, blocks: new)
      guard let other = cellIDs[key] else {
        rekey(id, key)
        continue
      }
      let isSmaller = weight <= self[other].weight
      let (small, large) = isSmaller ? (id, other) : (other, id)
      absorb(small, into: large)
      if !isSmaller { rekey(large, key) }
    }
    blockSets.remove(old)
  }

  private mutating func rekey(_ id: CellID, _ key: CellKey) {
    let old = self[id].key
    if cellIDs[old] == id { cellIDs[old] = nil }
    cellsOfBlocks.remove(id, from: old.blocks)
    self[id].key = key
    cellIDs[key] = id
    cellsOfBlocks[key.blocks, default: []].insert(id)
  }

  private mutating func absorb(_ small: CellID, into large: CellID) {
    let cell = self[small]
    for address in cell.addresses {
      if cell.reported != self[large].reported { note(address, whichWasIn: small) }
      spaces[Self.space(of: address.family)].addresses.set(address, large)
      self[large].addresses.insert(address)
    }
    self[large].atoms += cell.atoms
    if cell.isRelabelled { self[large].isRelabelled = true }
    classes[cell.identity]?.cells.remove(small)
    forget(small)
  }
}

extension Atoms.BlockChange {
  func applied(to set: BlockSet) -> BlockSet {
    var set = set
    set.peers.removeAll { removed.contains($0) }
    for peer in added { set.peers.insertSorted(peer) }
    return set
  }
}

extension [PeerID] {
  mutating func insertSorted(_ peer: PeerID) { insert(peer, at: lastIndex { $0 < peer }.map { $0 + 1 } ?? 0) }
}
