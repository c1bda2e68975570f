import NetworkTypes

/// The addresses of one family with their cells, found one by one and by ranges: in pages of 256 neighbours.
struct AddressIndex: Sendable {
  let family: IPFamily
  private(set) var count = 0
  private var pages: [UInt128: [Entry]] = [:]

  private struct Entry {
    var low: UInt8
    var cell: CellID
  }

  init(_ family: IPFamily) { self.family = family }

  subscript(address: IPAddress) -> CellID? {
    let (page, low) = Self.place(address)
    guard let entries = pages[page] else { return nil }
    let position = Self.position(of: low, in: entries)
    return position < entries.count && entries[position].low == low ? entries[position].cell : nil
  }

  mutating func set(_ address: IPAddress, _ cell: CellID) {
    let (page, low) = Self.place(address)
    if Self.set(low, cell, in: &pages[page, default: []]) { count += 1 }
  }

  mutating func remove(_ address: IPAddress) {
    let (page, low) = Self.place(address)
    guard let index = pages.index(forKey: page) else { return }
    let position = Self.position(of: low, in: pages.values[index])
    guard position < pages.values[index].count, pages.values[index][position].low == low else { return }
    pages.values[index].remove(at: position)
    if pages.values[index].isEmpty { pages.remove(at: index) }
    count -= 1
  }

  /// How many addresses lie in a range; pages that lie in it as a whole are not looked into.
  func count(in range: AddressRange) -> Int {
    var result = 0
    forEachPage(in: range) { _, entries, part in
      result += part.count == 256 ? entries.count : entries.count { part.contains($0.low) }
    }
    return result
  }

  func forEach(in range: AddressRange, _ body: (IPAddress, CellID) -> Void) {
    forEachPage(in: range) { page, entries, part in
      for entry in entries where part.contains(entry.low) {
        if let address = IPAddress(family: family, number: page << 8 | UInt128(entry.low)) { body(address, entry.cell) }
      }
    }
  }

  /// Calls `body` with pages that meet the range, and the part of them that lies in it.
  private func forEachPage(in range: AddressRange, _ body: (UInt128, [Entry], ClosedRange<UInt8>) -> Void) {
    let (first, last) = (Self.place(range.first), Self.place(range.last))
    func visit(_ page: UInt128, _ entries: [Entry]) {
      body(page, entries, (page == first.page ? first.low : 0)...(page == last.page ? last.low : .max))
    }
    if last.page - first.page < UInt128(pages.count) {
      for page in first.page...last.page { if let entries = pages[page] { visit(page, entries) } }
    } else {
      for (page, entries) in pages where first.page <= page && page <= last.page { visit(page, entries) }
    }
  }

  private static func place(_ address: IPAddress) -> (page: UInt128, low: UInt8) {
    let number = address.number
    return (number >> 8, UInt8(truncatingIfNeeded: number))
  }

  private static func position(of low: UInt8, in entries: [Entry]) -> Int {
    var (from, to) = (0, entries.count)
    while from < to {
      let middle = (from + to) / 2
      if entries[middle].low < low { from = middle + 1 } else { to = middle }
    }
    return from
  }

  /// Whether the address is new.
  private static func set(_ low: UInt8, _ cell: CellID, in entries: inout [Entry]) -> Bool {
    let position = position(of: low, in: entries)
    if position < entries.count, entries[position].low == low {
      entries[position].cell = cell
      return false
    }
    entries.insert(Entry(low: low, cell: cell), at: position)
    return true
  }
}
