import DataplaneModel
import Netlink
import NetworkTypes

/// What is in the kernel before this engine has written anything: what an agent that starts goes on with.
extension PacketEngine {
  public func largestServiceNumber() throws(SystemError) -> UInt32 {
    try maps.frontends.elements().values.map(\.service).max() ?? 0
  }

  public func slotsInForce() throws(SystemError) -> [BackendSetID: [SocketAddress]] {
    let counts = try maps.sets.elements()
    var slots: [BackendSetID: [(UInt32, SocketAddress)]] = [:]
    for (key, backend) in try maps.slots.elements() {
      guard let id = BackendSetID(key.set), let backend = backend.socketAddress,
        key.slot < counts[key.set]?.count ?? 0
      else { continue }
      slots[id, default: []].append((key.slot, backend))
    }
    return slots.mapValues { $0.sorted { $0.0 < $1.0 }.map(\.1) }
  }

  public func identitiesInForce() throws(SystemError) -> (
    addresses: [IPAddress: IdentityID], atoms: [AddressRange: IdentityID], largestSerial: UInt32
  ) {
    var (addresses, atoms): ([IPAddress: IdentityID], [AddressRange: IdentityID]) = ([:], [:])
    var largest: UInt32 = 0
    for (address, identity) in try maps.identities.elements() {
      guard let address = address.address else { continue }
      addresses[address] = IdentityID(rawValue: identity)
      largest = max(largest, IdentityID(rawValue: identity).serial)
    }
    var inForce: Set<UInt32> = []
    for family in IPFamily.allCases {
      if let table = try maps.tracking.state[PacketTable.State.blocks(family)], table != 0 { inForce.insert(table) }
    }
    for (key, identity) in try maps.blocks.elements() {
      largest = max(largest, IdentityID(rawValue: identity).serial)
      guard inForce.contains(key.table), let range = key.range else { continue }
      atoms[AddressRange(range)] = IdentityID(rawValue: identity)
    }
    for key in try maps.pairs.elements().keys { largest = max(largest, IdentityID(rawValue: key.identity).serial) }
    return (addresses, Self.joined(atoms), largest)
  }

  /// Neighbours of one identity were one range before the kernel had it as prefixes.
  private static func joined(_ prefixes: [AddressRange: IdentityID]) -> [AddressRange: IdentityID] {
    var joined: [AddressRange: IdentityID] = [:]
    for (identity, ranges) in Dictionary(grouping: prefixes.keys, by: { prefixes[$0] }) {
      guard let identity else { continue }
      for range in AddressRange.merging(ranges) { joined[range] = identity }
    }
    return joined
  }

  // MARK: Others

  /// Nobody else knows our maps, and nobody tells who writes to one.
  public func wasChangedByOthers() throws(SystemError) -> Bool { false }
  public mutating func noteOwnTransactions(_ count: Int) {}
  public func takeReport() -> ApplyReport { ApplyReport() }

  public func isAboutPolicy(_ drift: Drift) -> Bool {
    !["frontends", "sets", "slots", "members", "sources", "node_addresses", "clients", "uplinks"].contains {
      drift.object.hasPrefix("map \($0):")
    }
  }
}
