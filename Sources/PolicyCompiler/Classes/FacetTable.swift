import DataplaneModel

/// One of the two things that distinguish classes.
protocol Facet: Hashable, Sendable {
  var peers: [PeerID] { get }
  var namedPorts: [ClassKey.NamedPortValue] { get }
}

struct FacetID<Content: Facet>: Hashable, Comparable, Sendable {
  let rawValue: Int32
  static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// Facets under numbers that stay while their contents change: a peer that matches all of a facet costs one entry here,
/// however many addresses that are.
struct FacetTable<Content: Facet>: Sendable {
  typealias ID = FacetID<Content>

  private struct Entry {
    var content: Content
    var classes: Set<IdentityID> = []
    /// Addresses, and atoms.
    var weight = 0
  }

  /// By number; what is free keeps its last content.
  private var entries: [Entry] = []
  private var freeIDs: [ID] = []
  private var ids: [Content: ID] = [:]
  private var byPeer: [PeerID: Set<ID>] = [:]
  private var byNamedPort: [NamedPort: Set<ID>] = [:]

  /// IDs are of facets that are there, as everywhere here.
  subscript(id: ID) -> Content { entries[Int(id.rawValue)].content }
  func classes(of id: ID) -> Set<IdentityID> { entries[Int(id.rawValue)].classes }
  func weight(of id: ID) -> Int { entries[Int(id.rawValue)].weight }

  var all: [ID] { Set(entries.indices.map { ID(rawValue: Int32($0)) }).subtracting(freeIDs).sorted() }
  func id(of content: Content) -> ID? { ids[content] }
  func having(_ peer: PeerID) -> Set<ID> { byPeer[peer] ?? [] }
  func having(_ port: NamedPort) -> Set<ID> { byNamedPort[port] ?? [] }

  mutating func addWeight(_ weight: Int, to id: ID) { entries[Int(id.rawValue)].weight += weight }
  mutating func insert(_ identity: IdentityID, in id: ID) { entries[Int(id.rawValue)].classes.insert(identity) }
  mutating func remove(_ identity: IdentityID, from id: ID) { entries[Int(id.rawValue)].classes.remove(identity) }

  /// The facet with this content: the one that there is, or a new one.
  mutating func intern(_ content: Content) -> ID {
    if let known = ids[content] { return known }
    let id = add(content)
    ids[content] = id
    return id
  }

  /// A facet beside the one that may have the same content already; `change` makes one of them.
  mutating func add(_ content: Content) -> ID {
    let id = freeIDs.popLast() ?? ID(rawValue: Int32(entries.count))
    if Int(id.rawValue) == entries.count {
      entries.append(Entry(content: content))
    } else {
      entries[Int(id.rawValue)] = Entry(content: content)
    }
    index(id, content)
    return id
  }

  mutating func remove(_ id: ID) {
    let content = self[id]
    unindex(id, content)
    if ids[content] == id { ids[content] = nil }
    freeIDs.append(id)
  }

  /// Gives facets other contents, all at once. Where several have the same then, the heaviest stands for them.
  ///
  /// - Returns: the others, each with the one that stands for it.
  mutating func change(_ contents: [ID: Content]) -> [ID: ID] {
    var holders: [Content: [ID]] = [:]
    for (id, content) in contents {
      let old = self[id]
      if ids[old] == id { ids[old] = nil }
      if old != content {
        unindex(id, old)
        entries[Int(id.rawValue)].content = content
        index(id, content)
      }
      holders[content, default: []].append(id)
    }
    var replaced: [ID: ID] = [:]
    for (content, var all) in holders {
      if let other = ids[content] { all.append(other) }
      let order = all.sorted { (weight(of: $1), $0) < (weight(of: $0), $1) }
      ids[content] = order[0]
      for other in order.dropFirst() { replaced[other] = order[0] }
    }
    return replaced
  }

  private mutating func index(_ id: ID, _ content: Content) {
    for peer in content.peers { byPeer[peer, default: []].insert(id) }
    for value in content.namedPorts { byNamedPort[value.port, default: []].insert(id) }
  }

  private mutating func unindex(_ id: ID, _ content: Content) {
    for peer in content.peers { byPeer.remove(id, from: peer) }
    for value in content.namedPorts { byNamedPort.remove(id, from: value.port) }
  }
}

extension Dictionary {
  /// An empty set is no entry.
  mutating func remove<Element>(_ element: Element, from key: Key) where Value == Set<Element> {
    self[key]?.remove(element)
    if self[key]?.isEmpty == true { self[key] = nil }
  }
}
