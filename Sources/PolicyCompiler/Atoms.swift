import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// The address space of one family, cut where the blocks in force and the pod ranges begin and end.
struct Atoms {
  struct Atom: Equatable {
    var range: AddressRange
    /// The blocks that contain it, sorted.
    var blocks: [PeerID]
    var isPodRange: Bool
  }
  let atoms: [Atom]

  init(_ family: IPFamily, blocks: [PeerID: IPBlock], podRanges: Set<CIDR>) {
    guard let all = CIDR(.unspecified(family), prefixLength: 0) else {
      atoms = []
      return
    }
    var cuts: [UInt128: [Event]] = [all.first.number: []]
    let end = all.last.number
    func cover(_ range: AddressRange, _ start: Event, _ stop: Event) {
      cuts[range.first.number, default: []].append(start)
      if range.last.number < end { cuts[range.last.number + 1, default: []].append(stop) }
    }
    for (id, block) in blocks where block.cidr.family == family {
      for range in block.ranges { cover(range, .begin(id), .end(id)) }
    }
    for range in AddressRange.merging(podRanges.filter { $0.family == family }.map(AddressRange.init)) {
      cover(range, .beginPods, .endPods)
    }
    let starts = cuts.keys.sorted()
    var (active, isPodRange): ([PeerID], Bool) = ([], false)
    var atoms: [Atom] = []
    for (index, start) in starts.enumerated() {
      for event in cuts[start] ?? [] {
        switch event {
        case .begin(let id): active.insert(id, at: active.firstIndex { $0 > id } ?? active.count)
        case .end(let id): active.removeAll { $0 == id }
        case .beginPods: isPodRange = true
        case .endPods: isPodRange = false
        }
      }
      let last = index + 1 < starts.count ? starts[index + 1] - 1 : end
      guard let first = IPAddress(family: family, number: start), let last = IPAddress(family: family, number: last),
        let range = AddressRange(first: first, last: last)
      else { continue }
      if let previous = atoms.last, previous.blocks == active, previous.isPodRange == isPodRange,
        let joined = AddressRange(first: previous.range.first, last: last)
      {
        atoms[atoms.count - 1].range = joined
      } else {
        atoms.append(Atom(range: range, blocks: active, isPodRange: isPodRange))
      }
    }
    self.atoms = atoms
  }

  private enum Event {
    case begin(PeerID)
    case end(PeerID)
    case beginPods
    case endPods
  }

  func blocks(containing address: IPAddress) -> [PeerID] {
    var (low, high) = (0, atoms.count)
    while low < high {
      let middle = (low + high) / 2
      if atoms[middle].range.last < address { low = middle + 1 } else { high = middle }
    }
    return low < atoms.count ? atoms[low].blocks : []
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
      if let first = IPAddress(family: family, number: first), let last = IPAddress(family: family, number: last),
        let range = AddressRange(first: first, last: last)
      {
        result.append(range)
      }
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
