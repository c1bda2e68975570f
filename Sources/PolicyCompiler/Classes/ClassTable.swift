import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// A cell's number while it has addresses or atoms.
struct CellID: Hashable, Sendable {
  let rawValue: Int32
}

/// Addresses that come and go, in classes: identities.
///
/// Two things distinguish classes: a *profile*, which is what a group of pods means to the peers in force, and the *set of
/// ipBlocks* that contain an address. Addresses of one pod group and one set of blocks form a cell, and so do atoms of one
/// kind and one set; a class is made of cells. A peer that matches all of a profile, or a block that contains all of a set,
/// changes these and touches nothing else; what it cuts is cut, cell by cell (ClassTable+Peers.swift).
struct ClassTable: Sendable {
  /// Whose an address is, or of which kind an atom.
  enum Owner: Hashable {
    case group(PodGroupID)
    case node
    case world
    case unknown
  }

  struct CellKey: Hashable {
    var owner: Owner
    var blocks: BlockSetID
  }

  struct Cell {
    var key: CellKey
    var identity: IdentityID
    /// The identity that tables have for its addresses, those in `arrivals` apart.
    var reported: IdentityID?
    /// Has another identity because its group means something else: whether that matters to live flows is to be seen.
    var isRelabelled = false
    var addresses: Set<IPAddress> = []
    var atoms = 0

    var weight: Int { addresses.count + atoms }
  }

  struct Place: Hashable {
    var profile: ProfileID
    var blocks: BlockSetID
  }

  struct Class {
    var place: Place
    var cells: Set<CellID> = []
    /// Addresses, and atoms.
    var weight = 0
  }

  struct Group {
    var profile: ProfileID
    var cells: [CellID] = []
  }

  /// The address space of one family.
  struct Space {
    var atoms: Atoms
    var addresses: AddressIndex
  }

  /// By number; what is free is empty.
  var cells: [Cell] = []
  var freeCells: [CellID] = []
  var cellIDs: [CellKey: CellID] = [:]
  var cellsOfBlocks: [BlockSetID: Set<CellID>] = [:]
  var classes: [IdentityID: Class] = [:]
  var identities: [Place: IdentityID] = [:]
  var groups: [PodGroupID: Group] = [:]
  var groupsOfProfile: [ProfileID: Set<PodGroupID>] = [:]
  var profiles = FacetTable<Profile>()
  var blockSets = FacetTable<BlockSet>()
  /// IPv4 and IPv6. Until `hasCells` atoms are in no cell: the blocks of the first round come first.
  var spaces: [Space]
  var hasCells = false
  var serial: UInt32
  /// Numbers that the kernel had at start. Each serves one class.
  var inherited: [IPAddress: IdentityID]
  var inheritedAtoms: [AddressRange: IdentityID]

  /// What changed since `takeChanges`.
  var created: Set<IdentityID> = []
  var died: [IdentityID: ClassKey] = [:]
  /// Addresses that came, went, or went to another cell, with the identity that tables have for them.
  var arrivals: [IPAddress: IdentityID?] = [:]
  /// Cells with another identity, and new ones; some twice, some that are gone.
  var touched: [CellID] = []

  init(inForce: IdentitiesInForce) {
    inherited = inForce.addresses
    inheritedAtoms = inForce.atoms
    let all = Array(inForce.addresses.values) + Array(inForce.atoms.values)
    serial = max(IdentityID.firstSerial, max(all.map(\.serial).max() ?? 0, inForce.largestSerial) + 1)
    spaces = []
    for kind in [IdentityKind.node, .world, .unknown] { _ = profiles.intern(Profile(kind: kind)) }
    for family in [IPFamily.v4, .v6] {
      let none = blockSets.intern(BlockSet(family: family))
      spaces.append(Space(atoms: Atoms(family, none), addresses: AddressIndex(family)))
    }
  }

  // MARK: Looking up

  subscript(id: CellID) -> Cell {
    _read { yield cells[Int(id.rawValue)] }
    _modify { yield &cells[Int(id.rawValue)] }
  }

  static func space(of family: IPFamily) -> Int { family == .v4 ? 0 : 1 }

  func identity(of address: IPAddress) -> IdentityID? {
    spaces[Self.space(of: address.family)].addresses[address].map { self[$0].identity }
  }

  func profile(of owner: Owner) -> ProfileID {
    switch owner {
    case .group(let id): groups[id]?.profile ?? .unknown
    case .node: .node
    case .world: .world
    case .unknown: .unknown
    }
  }

  var addressCount: Int { spaces.reduce(0) { $0 + $1.addresses.count } }
  var classCount: Int { classes.count }
  var allIdentities: some Sequence<IdentityID> { classes.keys }

  func key(of identity: IdentityID) -> ClassKey? {
    classes[identity].map { ClassKey(profile: profiles[$0.place.profile], blocks: blockSets[$0.place.blocks]) }
  }

  func groups(of identity: IdentityID) -> [PodGroupID] {
    let owners = (classes[identity]?.cells ?? []).map { self[$0].key.owner }
    return Set(owners.compactMap { if case .group(let id) = $0 { id } else { nil } }).sorted()
  }

  func addressCount(of identity: IdentityID) -> Int {
    (classes[identity]?.cells ?? []).reduce(0) { $0 + self[$1].addresses.count }
  }

  /// The classes that a peer matches.
  func matching(_ peer: PeerID) -> Set<IdentityID> {
    profiles.having(peer).reduce(into: Set()) { $0.formUnion(profiles.classes(of: $1)) }
      .union(blockSets.having(peer).reduce(into: Set()) { $0.formUnion(blockSets.classes(of: $1)) })
  }

  /// The classes to which a port's name means something.
  func declaring(_ port: NamedPort) -> Set<IdentityID> {
    profiles.having(port).reduce(into: Set()) { $0.formUnion(profiles.classes(of: $1)) }
  }

  // MARK: Changes to report

  struct Changes {
    var created: Set<IdentityID>
    /// Each with what it was, or became part of.
    var died: [IdentityID: ClassKey]
    var moves: [IPAddress: Change<IdentityID>]
    /// The different ones among `moves` that follow from another owner or other labels: what comes from peers alone makes no
    /// difference to subjects that were in force.
    var relabelled: Set<Change<IdentityID>>
  }

  mutating func takeChanges() -> Changes {
    var changes = Changes(created: created, died: died, moves: [:], relabelled: [])
    changes.moves.reserveCapacity(arrivals.count + touched.reduce(0) { $0 + self[$1].addresses.count })
    for (address, old) in arrivals {
      let new = identity(of: address)
      guard old != new else { continue }
      changes.moves[address] = Change(old: old, new: new)
      if old != nil, new != nil { changes.relabelled.insert(Change(old: old, new: new)) }
    }
    for id in touched {
      let cell = self[id]
      if let old = cell.reported, old != cell.identity {
        let move = Change<IdentityID>(old: old, new: cell.identity)
        for address in cell.addresses where arrivals.isEmpty || arrivals[address] == nil {
          changes.moves[address] = move
        }
        if cell.isRelabelled { changes.relabelled.insert(move) }
      }
      self[id].reported = cell.identity
      self[id].isRelabelled = false
    }
    (created, died, arrivals, touched) = ([], [:], [:], [])
    return changes
  }

  /// Numbers found in the kernel that no class has asked for.
  mutating func forgetInherited() {
    inherited = [:]
    inheritedAtoms = [:]
  }
}
