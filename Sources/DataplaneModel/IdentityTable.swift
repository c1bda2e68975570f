import NetworkTypes

/// Number of an identity: a class of addresses of one family that no policy in force on this node tells apart. Never
/// re-used while the agent lives; a restarted one goes on with the numbers it finds in the kernel.
public struct IdentityID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Not an identity: any peer at all.
  public static let any = IdentityID(rawValue: 0)
  /// The first that a class can have.
  public static let firstSerial: UInt32 = 8

  /// The lowest bit is the family.
  public init(serial: UInt32, family: IPFamily) { rawValue = serial << 1 | (family == .v6 ? 1 : 0) }
  public var serial: UInt32 { rawValue >> 1 }
  /// nil for `any`, which has both.
  public var family: IPFamily? { self == .any ? nil : rawValue & 1 == 0 ? .v4 : .v6 }

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { self == .any ? "any" : "\(rawValue)" }
}

/// What the addresses of an identity belong to. "Host" is none of these: it is an origin, not an address.
public enum IdentityKind: UInt8, Sendable, Hashable, CaseIterable, CustomStringConvertible {
  case pod
  /// A node's InternalIP.
  case node
  case world
  /// In a pod range, but no known pod has it.
  case unknown

  public var description: String {
    switch self {
    case .pod: "pod"
    case .node: "node"
    case .world: "world"
    case .unknown: "unknown"
    }
  }
}

/// Who is who beyond pods and nodes: the whole address space of one family, cut where ipBlocks and pod ranges begin and
/// end. Immutable: a change makes another table, so that a packet meets the old or the new one as a whole.
public struct BlockTable: Sendable, Hashable {
  public struct Atom: Sendable, Hashable {
    public var range: AddressRange
    public var identity: IdentityID
    public init(_ range: AddressRange, _ identity: IdentityID) {
      self.range = range
      self.identity = identity
    }
  }
  /// Derived from the content.
  public let number: UInt32
  /// Sorted, disjoint, without gaps.
  public let atoms: [Atom]

  public init(_ atoms: [Atom]) {
    self.atoms = atoms
    var hash = ContentHash()
    for atom in atoms {
      hash.add(atom.range.first)
      hash.add(atom.range.last)
      hash.add(atom.identity.rawValue)
    }
    number = hash.number
  }

  /// nil only where the table has no atom at all.
  public func identity(of address: IPAddress) -> IdentityID? {
    var (low, high) = (0, atoms.count)
    while low < high {
      let middle = (low + high) / 2
      if atoms[middle].range.last < address { low = middle + 1 } else { high = middle }
    }
    return low < atoms.count && atoms[low].range.contains(address) ? atoms[low].identity : nil
  }
}

/// Address -> identity: what the field calls the ipcache.
public struct IdentityTable: Sendable, Equatable {
  /// Pods' and nodes' addresses, one by one.
  public internal(set) var addresses: [IPAddress: IdentityID] = [:]
  /// Everything else.
  public internal(set) var blocks: [IPFamily: BlockTable] = [:]
  /// Ranges pods' addresses come from, all nodes'.
  public internal(set) var podRanges: Set<CIDR> = []

  public init() {}

  /// nil where no policy has been compiled yet.
  public func identity(of address: IPAddress) -> IdentityID? {
    addresses[address] ?? blocks[address.family]?.identity(of: address)
  }

  /// Every number that stands for something. Costs what there is.
  public var numbers: Set<IdentityID> {
    Set(addresses.values).union(blocks.values.flatMap { $0.atoms.map(\.identity) })
  }

  /// In a pod range, and no pod that we know of.
  public func isUnknown(_ address: IPAddress) -> Bool {
    addresses[address] == nil && podRanges.contains { $0.contains(address) }
  }
}

/// A 32-bit number that follows from content alone, so that it survives a restart (FNV-1a, never 0).
public struct ContentHash: Sendable {
  private var state: UInt64 = 14_695_981_039_346_656_037

  public init() {}

  public mutating func add(_ byte: UInt8) { state = (state ^ UInt64(byte)) &* 1_099_511_628_211 }
  public mutating func add(_ number: some FixedWidthInteger) {
    withUnsafeBytes(of: number.littleEndian) { for byte in $0 { add(byte) } }
  }
  public mutating func add(_ address: IPAddress) {
    add(address.high)
    add(address.low)
  }
  public mutating func add(_ text: String) {
    for byte in text.utf8 { add(byte) }
    // No text contains it: "a" and "bc" differ from "ab" and "c".
    add(UInt8(0xff))
  }

  /// All 64 bits.
  public var wide: UInt64 { state }
  public var number: UInt32 { max(1, UInt32(truncatingIfNeeded: state ^ state >> 32)) }
}
