import DataplaneModel
import NetworkTypes

/// What is in the kernel before this engine has written anything: what an agent that starts goes on with, and whom it finds
/// beside itself.
extension NFTablesEngine {
  /// Names of tables in both families, for finding other service proxies.
  public func tableNames() throws(NFTablesError) -> [String] {
    var names: [String] = []
    for family in IPFamily.allCases { names += try connection.tableNames(family) }
    return names
  }

  /// The slots of every backend set in the kernel: the order a restarted agent goes on with.
  public func slotsInForce() throws(NFTablesError) -> [BackendSetID: [SocketAddress]] {
    var slots: [BackendSetID: [(UInt32, SocketAddress)]] = [:]
    for family in IPFamily.allCases where try connection.tableNames(family).contains(Layout.tableName) {
      try connection.readElements(family, .backends) { entry in
        guard case .backend(let slot, let key, let backend) = entry,
          let service = ServicePortID(key & FrontendFlag.serviceMask)
        else { return }
        let scope: BackendScope = key & FrontendFlag.local != 0 ? .local : .cluster
        slots[BackendSetID(service: service, scope: scope, family: family), default: []].append((slot, backend))
      }
    }
    return slots.mapValues { $0.sorted { $0.0 < $1.0 }.map(\.1) }
  }

  /// The identities in the kernel: a restarted agent goes on with their numbers.
  ///
  /// `largestSerial` is that of any number in use, 0 where there is none: pairs may still wait for their removal.
  public func identitiesInForce() throws(NFTablesError) -> (
    addresses: [IPAddress: IdentityID], atoms: [AddressRange: IdentityID], largestSerial: UInt32
  ) {
    var (addresses, atoms): ([IPAddress: IdentityID], [AddressRange: IdentityID]) = ([:], [:])
    var largest: UInt32 = 0
    for family in IPFamily.allCases {
      let maps = try connection.readTable(family).maps
      guard [MapName.identities, .blocks].allSatisfy({ maps[$0.rawValue] != nil }) else { continue }
      try connection.readElements(family, .identities) { entry in
        if case .identity(let address, let identity) = entry { addresses[address] = IdentityID(rawValue: identity) }
      }
      try connection.readElements(family, .blocks) { entry in
        if case .block(_, let range, let identity) = entry { atoms[range] = IdentityID(rawValue: identity) }
      }
      // Earlier builds had another map of pairs: none of its elements is met by the rules that are written now.
      guard maps[MapName.pairs.rawValue] != nil else { continue }
      try connection.readElements(family, .pairs) { entry in
        if case .pair(_, let key, _) = entry { largest = max(largest, key.identity.serial) }
      }
    }
    for identity in addresses.values { largest = max(largest, identity.serial) }
    for identity in atoms.values { largest = max(largest, identity.serial) }
    return (addresses, atoms, largest)
  }

  /// The largest service number in the kernel, 0 where there is none.
  public func largestServiceNumber() throws(NFTablesError) -> UInt32 {
    var largest: UInt32 = 0
    for family in IPFamily.allCases where try connection.tableNames(family).contains(Layout.tableName) {
      try connection.readElements(family, .sets) { entry in
        if case .set(_, let key, _) = entry { largest = max(largest, key & FrontendFlag.serviceMask) }
      }
    }
    return largest
  }
}
