import DataplaneModel
import NetworkTypes

/// Whose sockets are translated.
struct SocketOwners: Sendable {
  /// Of the network namespace of the node's own processes.
  var hostCookie: UInt64
  var servesPods: Bool
}

/// Every element that bpf/sock.c's maps should have, and what of them a delta changes.
struct SocketTable {
  var frontends: [FrontendKeyLayout: FrontendLayout] = [:]
  var sets: [SetKeyLayout: BackendSetLayout] = [:]
  var slots: [SlotKeyLayout: BackendLayout] = [:]
  var members: [MemberKeyLayout: UInt32] = [:]
  var sources: [SourceKeyLayout: UInt32] = [:]
  var nodeAddresses: [AddressLayout: UInt32] = [:]
  var clients: [UInt64: ClientLayout] = [:]

  init() {}

  init(_ tables: Tables, lists: RangeLists, owners: SocketOwners) {
    for (key, frontend) in tables.services.frontends {
      frontends[FrontendKeyLayout(key)] = Self.frontend(frontend, lists)
    }
    for (id, set) in tables.services.sets { add(id, set) }
    lists.forEach { number, ranges in addSources(number, ranges) }
    for address in tables.node.nodePortAddresses { nodeAddresses[AddressLayout(address)] = 1 }
    var cookies = Set(tables.node.endpoints.values.compactMap(\.netnsCookie))
    cookies.insert(owners.hostCookie)
    for cookie in cookies { clients[cookie] = Self.client(cookie, tables, owners) }
  }

  /// `enum` in tables.h.
  private static let (drains, takesFlows): (UInt32, UInt32) = (0, 1)

  static func frontend(_ frontend: Frontend, _ lists: RangeLists) -> FrontendLayout {
    FrontendLayout(frontend, sourceList: frontend.sourceRanges.map { lists.number(of: $0) } ?? 0)
  }

  /// Who a network namespace is. A pod with two networks has one namespace: its first device by name speaks for it.
  static func client(_ cookie: UInt64, _ tables: Tables, _ owners: SocketOwners) -> ClientLayout? {
    if cookie == owners.hostCookie {
      return ClientLayout(addresses: Array(tables.node.internalAddresses.values), isHost: true)
    }
    guard owners.servesPods else { return nil }
    let own = tables.node.endpoints.values.filter { $0.netnsCookie == cookie }
    return own.min { $0.interface < $1.interface }.map { ClientLayout(addresses: $0.addresses, isHost: false) }
  }

  mutating func add(_ id: BackendSetID, _ set: BackendSet) {
    sets[SetKeyLayout(id)] = BackendSetLayout(set)
    for (slot, backend) in set.slots.enumerated() { slots[SlotKeyLayout(id, slot)] = BackendLayout(backend) }
    for backend in set.draining { members[MemberKeyLayout(id, backend)] = Self.drains }
    for backend in set.backends { members[MemberKeyLayout(id, backend)] = Self.takesFlows }
  }

  mutating func addSources(_ list: UInt32, _ ranges: [AddressRange]) {
    for range in ranges {
      for prefix in range.prefixes { sources[SourceKeyLayout(list: list, prefix)] = 1 }
    }
  }
}

/// What a delta does to the maps. `before` and `after` have the elements that the change is about and no others.
struct SocketChange {
  var before = SocketTable()
  var after = SocketTable()

  /// - Parameter lists: numbers of source lists; those that come are retained, those that go released.
  init(_ delta: TableDelta, after tables: Tables, lists: inout RangeLists, owners: SocketOwners) {
    for (key, change) in delta.frontends {
      if let ranges = change.new?.sourceRanges {
        let number = lists.retain(ranges)
        if lists.uses(of: ranges) == 1 { after.addSources(number, ranges) }
      }
      if let new = change.new { after.frontends[FrontendKeyLayout(key)] = SocketTable.frontend(new, lists) }
      if let old = change.old { before.frontends[FrontendKeyLayout(key)] = SocketTable.frontend(old, lists) }
      if let ranges = change.old?.sourceRanges, let gone = lists.release(ranges) {
        before.addSources(gone.number, gone.ranges)
      }
    }
    for (id, change) in delta.sets {
      if let old = change.old { before.add(id, old) }
      if let new = change.new { after.add(id, new) }
    }
    for address in delta.nodePortAddresses.removed { before.nodeAddresses[AddressLayout(address)] = 1 }
    for address in delta.nodePortAddresses.added { after.nodeAddresses[AddressLayout(address)] = 1 }
    var cookies = Set(
      delta.endpoints.values.flatMap { [$0.old, $0.new] }.compactMap { $0?.netnsCookie })
    if !delta.internalAddresses.isEmpty { cookies.insert(owners.hostCookie) }
    for cookie in cookies where owners.servesPods || cookie == owners.hostCookie {
      // Whatever stood there: one element is written or removed.
      before.clients[cookie] = ClientLayout()
      after.clients[cookie] = SocketTable.client(cookie, tables, owners)
    }
  }
}
