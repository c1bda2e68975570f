import DataplaneModel

/// Which class has which number when classes are cut and become one.
extension ClassTable {
  /// Cells that come from one class and belong to one.
  fileprivate struct Part {
    struct Key: Hashable {
      var from: IdentityID
      var to: Place
    }
    var key: Key
    var weight: Int
    /// Those that need not move; nil: they are not listed yet.
    var cells: [CellID]?
  }

  /// Puts cells into the classes in which they belong. A class has the number of one of its parts: the largest, as long as
  /// no other class has a larger part of what had that number. So few addresses change their identity.
  ///
  /// - Parameters:
  ///   - affected: all cells that may belong elsewhere.
  ///   - replaced: sets of blocks that are equal to another, with that one.
  mutating func renumber(_ affected: Set<CellID>, _ replaced: [BlockSetID: BlockSetID]) {
    var moving: [Part.Key: Part] = [:]
    for id in affected where cellIDs[self[id].key] == id {
      let to = place(of: id, replaced)
      guard classes[self[id].identity]?.place != to else { continue }
      let key = Part.Key(from: self[id].identity, to: to)
      moving[key, default: Part(key: key, weight: 0, cells: [])].add(id, self[id].weight)
    }
    guard !moving.isEmpty else { return }
    var parts = Array(moving.values) + rests(of: moving)
    parts.sort { $0.isBefore($1) }

    var taken: Set<IdentityID> = []
    var numbers: [Place: IdentityID] = [:]
    for part in parts where numbers[part.key.to] == nil && taken.insert(part.key.from).inserted {
      numbers[part.key.to] = part.key.from
    }
    // Before anything moves: what comes into a class is no rest of it.
    for (index, part) in parts.enumerated() where part.cells == nil && numbers[part.key.to] != part.key.from {
      parts[index].cells = (classes[part.key.from]?.cells ?? []).filter { place(of: $0, replaced) == part.key.to }
    }
    for id in Set(parts.map(\.key.from)) { unsettle(id) }
    for (place, id) in numbers { settle(id, in: place) }
    for part in parts {
      let to = part.key.to
      let target = numbers[to] ?? create(to, inherited: nil)
      numbers[to] = target
      guard target != part.key.from else { continue }
      move(part.cells ?? [], from: part.key.from, to: target)
    }
    // What has nothing left became part of others, and each of them knows whom that concerns.
    for part in parts where classes[part.key.from]?.cells.isEmpty == true {
      if let heir = numbers[part.key.to], let key = key(of: heir) { end(part.key.from, as: key) }
    }
  }

  private func place(of cell: CellID, _ replaced: [BlockSetID: BlockSetID]) -> Place {
    let key = self[cell].key
    return Place(profile: profile(of: key.owner), blocks: replaced[key.blocks] ?? key.blocks)
  }

  /// What does not move of the classes that cells come from and go to.
  private func rests(of moving: [Part.Key: Part]) -> [Part] {
    var left: [IdentityID: (cells: Int, weight: Int)] = [:]
    for part in moving.values {
      let from = part.key.from
      let entry = left[from] ?? (classes[from]?.cells.count ?? 0, classes[from]?.weight ?? 0)
      left[from] = (entry.cells - (part.cells?.count ?? 0), entry.weight - part.weight)
      guard let target = identities[part.key.to], left[target] == nil else { continue }
      left[target] = (classes[target]?.cells.count ?? 0, classes[target]?.weight ?? 0)
    }
    return left.compactMap { id, rest in
      guard rest.cells > 0, let place = classes[id]?.place else { return nil }
      return Part(key: Part.Key(from: id, to: place), weight: rest.weight, cells: nil)
    }
  }
}

extension ClassTable.Part {
  fileprivate mutating func add(_ cell: CellID, _ weight: Int) {
    cells?.append(cell)
    self.weight += weight
  }

  /// The heaviest first; of equal ones what need not move.
  fileprivate func isBefore(_ other: Self) -> Bool {
    if weight != other.weight { return weight > other.weight }
    if (cells == nil) != (other.cells == nil) { return cells == nil }
    if key.from != other.key.from { return key.from < other.key.from }
    return (key.to.profile, key.to.blocks) < (other.key.to.profile, other.key.to.blocks)
  }
}
