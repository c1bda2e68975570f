import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The address space of one family, cut where the blocks in force and the pod ranges begin and end.
struct Atoms {
  struct Atom: Equatable {
    var range: AddressRange
    /// The blocks that contain it.
    var blocks: BlockSetID
    var isPodRange: Bool
  }

  let family: IPFamily
  /// Sorted, disjoint, without gaps; neighbours differ.
  private(set) var atoms: [Atom] = []

  /// The whole space as one.
  init(_ family: IPFamily, _ blocks: BlockSetID) {
    self.family = family
    guard let all = CIDR(.unspecified(family), prefixLength: 0) else { return }
    atoms = [Atom(range: AddressRange(all), blocks: blocks, isPodRange: false)]
  }

  func blocks(containing address: IPAddress) -> BlockSetID {
    var (low, high) = (0, atoms.count - 1)
    while low < high {
      let middle = (low + high) / 2
      if atoms[middle].range.last < address { low = middle + 1 } else { high = middle }
    }
    return atoms[low].blocks
  }

  // MARK: Pod ranges

  mutating func setPodRanges(_ ranges: Set<CIDR>) {
    var regions: [Region<Bool>] = [Region(start: 0, value: false)]
    for range in AddressRange.merging(ranges.filter { $0.family == family }.map(AddressRange.init)) {
      regions.append(Region(start: range.first.number, value: true))
      if let behind = next(behind: range.last) { regions.append(Region(start: behind, value: false)) }
    }
    var cut: [Atom] = []
    forEachPiece(regions) { range, atom, isPodRange in
      cut.append(Atom(range: range, blocks: atom.blocks, isPodRange: isPodRange))
    }
    replace(cut)
  }

  // MARK: Blocks

  /// What changes for an address: blocks that come into force or go out of it, sorted.
  struct BlockChange: Hashable {
    var added: [PeerID] = []
    var removed: [PeerID] = []
  }

  /// Part of an atom.
  struct Piece {
    var atom: Atom
    /// Position in `changes`.
    var change: Int
  }

  /// The space as it is, cut where the given blocks begin and end too. The first change is none.
  func pieces(added: [PeerID: IPBlock], removed: [PeerID: IPBlock]) -> (pieces: [Piece], changes: [BlockChange]) {
    var events: [(start: UInt128, id: PeerID, isAdded: Bool, isBegin: Bool)] = []
    for (blocks, isAdded) in [(added, true), (removed, false)] {
      for (id, block) in blocks where block.cidr.family == family {
        for range in block.ranges {
          events.append((range.first.number, id, isAdded, true))
          if let behind = next(behind: range.last) { events.append((behind, id, isAdded, false)) }
        }
      }
    }
    events.sort { $0.start < $1.start }
    var (changes, numbers) = ([BlockChange()], [BlockChange(): 0])
    var active = BlockChange()
    var regions: [Region<Int>] = [Region(start: 0, value: 0)]
    for (position, event) in events.enumerated() {
      let path = event.isAdded ? \BlockChange.added : \BlockChange.removed
      if event.isBegin {
        active[keyPath: path].insertSorted(event.id)
      } else {
        active[keyPath: path].removeAll { $0 == event.id }
      }
      if position + 1 < events.count, events[position + 1].start == event.start { continue }
      let number = numbers[active] ?? changes.count
      if number == changes.count {
        changes.append(active)
        numbers[active] = number
      }
      regions.append(Region(start: event.start, value: number))
    }
    var pieces: [Piece] = []
    pieces.reserveCapacity(atoms.count + regions.count)
    forEachPiece(regions) { range, atom, change in
      pieces.append(Piece(atom: Atom(range: range, blocks: atom.blocks, isPodRange: atom.isPodRange), change: change))
    }
    return (pieces, changes)
  }

  /// Takes pieces of the whole space, and joins equal neighbours.
  mutating func replace(_ pieces: some Sequence<Atom>) {
    var joined: [Atom] = []
    joined.reserveCapacity(atoms.count)
    for piece in pieces {
      if let previous = joined.last, previous.blocks == piece.blocks, previous.isPodRange == piece.isPodRange,
        let range = AddressRange(first: previous.range.first, last: piece.range.last)
      {
        joined[joined.count - 1].range = range
      } else {
        joined.append(piece)
      }
    }
    atoms = joined
  }

  // MARK: Cutting

  /// From here to the next one.
  private struct Region<Value> {
    var start: UInt128
    var value: Value
  }

  /// Calls `body` for each part of an atom that lies in one region. Regions are sorted; of several with one start the last
  /// one counts.
  private func forEachPiece<Value>(_ regions: [Region<Value>], _ body: (AddressRange, Atom, Value) -> Void) {
    var region = 0
    for atom in atoms {
      var first = atom.range.first
      let last = atom.range.last
      while true {
        while region + 1 < regions.count, regions[region + 1].start <= first.number { region += 1 }
        guard region + 1 < regions.count, regions[region + 1].start <= last.number else { break }
        let cut = regions[region + 1].start
        if let range = AddressRange(first: first, last: family.last(cut - 1)) {
          body(range, atom, regions[region].value)
        }
        first = family.first(cut)
      }
      if let range = AddressRange(first: first, last: last) { body(range, atom, regions[region].value) }
    }
  }

  /// nil at the end of the space.
  private func next(behind address: IPAddress) -> UInt128? {
    let end = UInt128.max >> UInt128(128 - family.addressBits)
    return address.number < end ? address.number + 1 : nil
  }
}

extension IPFamily {
  /// The address with a number. The IPv4-mapped range is no part of the IPv6 space: what begins within it begins behind it.
  fileprivate func first(_ number: UInt128) -> IPAddress {
    IPAddress(family: self, number: number) ?? IPAddress(family: self, number: 0x1_0000_0000_0000) ?? .unspecified(self)
  }

  /// Likewise, of what ends within the IPv4-mapped range: it ends before.
  fileprivate func last(_ number: UInt128) -> IPAddress {
    IPAddress(family: self, number: number) ?? IPAddress(family: self, number: 0xfffe_ffff_ffff) ?? .unspecified(self)
  }
}

extension IPBlock {
  /// What is left of the block without its exceptions: disjoint, sorted.
  var ranges: [AddressRange] {
    var result: [AddressRange] = []
    let family = cidr.family
    var start: UInt128? = cidr.first.number
    let end = cidr.last.number
    func append(_ first: UInt128, _ last: UInt128) {
      if let range = AddressRange(first: family.first(first), last: family.last(last)) { result.append(range) }
    }
    for hole in AddressRange.merging(except.filter { cidr.contains($0) }.map(AddressRange.init)) {
      guard let from = start else { break }
      if hole.first.number > from { append(from, hole.first.number - 1) }
      start = hole.last.number < end ? hole.last.number + 1 : nil
    }
    if let start { append(start, end) }
    return result
  }
}
