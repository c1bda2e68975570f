import Glibc
import NetworkTypes

/// Who may change our tables.
public enum TableOwnership: Sendable, Hashable {
  /// The engine's own socket alone, where the kernel can do that; else as `shared`.
  case owned
  /// Everybody who may write to nf_tables.
  case shared
}

/// Who may change our tables as they are in the kernel.
public enum TableAccess: String, Sendable, Hashable {
  /// This engine alone.
  case owned
  /// Everybody, as was asked for.
  case shared
  /// Everybody: the kernel cannot make tables that outlive their owner (before Linux 6.9).
  case unsupported
  /// Everybody: somebody without ownership made a table, and no kernel lets it be owned later.
  case inherited
}

/// A table's flags in the kernel's numbers (`enum nft_table_flags` of include/uapi/linux/netfilter/nf_tables.h).
struct TableFlags: OptionSet, Hashable, Sendable {
  var rawValue: UInt32

  /// No packet meets it.
  static let dormant = TableFlags(rawValue: 1 << 0)
  /// Only the socket that made or took it may change it (Linux 5.12). Alone it would end with that socket.
  static let owner = TableFlags(rawValue: 1 << 1)
  /// It outlives its owner, and can then be taken by another (Linux 6.9; older headers do not have it).
  static let persist = TableFlags(rawValue: 1 << 2)
}

extension NFTablesEngine {
  /// Takes our tables, where there are any that nobody owns, in place: packets see nothing of it.
  ///
  /// - Parameter patience: how long the tables' owner may take to go. nf_tables tells nobody when it has gone.
  /// - Throws: `EPERM`, with the table's name, where another socket has it.
  public mutating func takeOwnership(patience: Duration = .zero) throws(NFTablesError) {
    // An owner cannot wake its tables: the kernel refuses it any change of flags.
    if sleeps, try !connection.hasAwakeTable() {
      _ = try flagsOfNewTables()
      return
    }
    let deadline = ContinuousClock.now + patience
    while true {
      do throws(NFTablesError) {
        return try takeFreeTables()
      } catch  where error.isAboutOwner && ContinuousClock.now < deadline {
        usleep(10_000)
      }
    }
  }

  private mutating func takeFreeTables() throws(NFTablesError) {
    let wanted = try flagsOfNewTables()
    var operations: [Operation] = []
    for family in IPFamily.allCases {
      guard let table = try connection.ownTable(family), table.owner != connection.portID else { continue }
      if let owner = table.owner { throw .ownedByOther(family, owner) }
      // The kernel refuses any other change of these flags: docs/decisions.md. A dormant table must not wake up unseen.
      guard wanted.contains(.owner), table.flags.contains(.persist) else { continue }
      operations.append(.addTable(family, wanted.union(table.flags.intersection(.dormant))))
    }
    try commit(operations)
  }

  /// What tables get that this engine makes. Asks the kernel once what it can.
  mutating func flagsOfNewTables() throws(NFTablesError) -> TableFlags {
    if let newTableFlags { return newTableFlags }
    let flags: TableFlags =
      if try connection.canMakeTable(with: [.owner, .persist]) {
        // One that persists can be taken later, in place, by an agent that is told to.
        ownership == .owned ? [.owner, .persist] : .persist
      } else {
        []
      }
    newTableFlags = flags
    return flags
  }

  /// Who may change our tables now. One small listing per family.
  ///
  /// - Returns: nil where there is none yet.
  public mutating func tableAccess() throws(NFTablesError) -> TableAccess? {
    var tables: [KernelTableHeader] = []
    for family in IPFamily.allCases { if let table = try connection.ownTable(family) { tables.append(table) } }
    if tables.isEmpty { return nil }
    if tables.allSatisfy({ $0.owner == connection.portID }) { return .owned }
    if ownership == .shared { return .shared }
    return try flagsOfNewTables().isEmpty ? .unsupported : .inherited
  }
}
