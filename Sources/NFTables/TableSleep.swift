import NetworkTypes

/// Tables that no packet meets, while engines change: filled beside another engine, or left to be deleted at leisure.
/// Putting both families to sleep or waking them is one transaction that costs what there are hooks, not elements.
extension NFTablesEngine {
  /// Whether packets meet tables of ours.
  public func hasAwakeTable() throws(NFTablesError) -> Bool { try connection.hasAwakeTable() }

  /// From now on packets meet the tables. They are this engine's from now on, where it owns its tables.
  public mutating func wake() throws(NFTablesError) {
    sleeps = false
    let flags = try flagsOfNewTables()
    var operations: [Operation] = []
    for family in IPFamily.allCases {
      guard let table = try connection.ownTable(family), table.flags.contains(.dormant) else { continue }
      operations.append(.addTable(family, table.flags.contains(.persist) ? flags : []))
    }
    try commit(operations)
  }

  /// From now on no packet meets the tables of an agent that has ended.
  public mutating func sleep() throws(NFTablesError) {
    let flags = try flagsOfNewTables()
    var operations: [Operation] = []
    for family in IPFamily.allCases {
      guard let table = try connection.ownTable(family), !table.flags.contains(.dormant) else { continue }
      if let owner = table.owner { throw .ownedByOther(family, owner) }
      // Taken in the same step: an owner cannot put its tables to sleep.
      operations.append(.addTable(family, (table.flags.contains(.persist) ? flags : table.flags).union(.dormant)))
    }
    try commit(operations)
  }
}

extension TableFlags {
  /// Of tables that will be woken: the kernel lets nobody wake a table that is owned.
  var asleep: TableFlags { subtracting(.owner).union(.dormant) }
}

extension Connection {
  func hasAwakeTable() throws(NFTablesError) -> Bool {
    for family in IPFamily.allCases {
      if let table = try ownTable(family), !table.flags.contains(.dormant) { return true }
    }
    return false
  }
}
