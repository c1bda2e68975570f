import NetworkTypes

/// Every set and map of a table `sluice`; each exists once per family.
enum MapName: String, Sendable, Hashable, CaseIterable {
  /// Address, protocol, port -> service number and flags, for everyone or (below) for traffic from outside only.
  case frontends
  case remoteFrontends = "remote-frontends"
  /// Backend set -> dispatch code: how many slots, which affinity chain, or reject or drop.
  case sets = "backend-sets"
  /// (Slot, backend set) -> address and port.
  case backends
  /// The same in two steps for sets with affinity: slot -> backend number -> address and port.
  case stickySlots = "sticky-slots"
  case stickyBackends = "sticky-backends"
  /// (Client, service) -> backend number. Written by packets.
  case affinity
  case dispatch
  case remoteDispatch = "remote-dispatch"
  case balancers
  case remoteBalancers = "remote-balancers"
  case serviceAddresses = "service-addresses"
  /// Addresses of Services that another proxy serves.
  case otherAddresses = "other-addresses"
  case serviceRanges = "service-ranges"
  /// Frontends with source ranges -> range list, and the lists.
  case guarded
  case sourceRanges = "source-ranges"
  /// Devices of local pods, and "" for packets generated here.
  case localInterfaces = "local-interfaces"
  case podSources = "pod-sources"
  case hairpin
  case clusterRanges = "cluster-ranges"
  /// Every address of this node.
  case ownAddresses = "own-addresses"
  /// Local pod's device -> subject, by direction.
  case egressSubjects = "egress-subjects"
  case ingressSubjects = "ingress-subjects"
  /// Pod's or node's address -> identity.
  case identities
  /// (Block table, address) -> identity, and which table is in force.
  case blocks
  case blockTable = "block-table"
  case podRanges = "pod-ranges"
  /// The revision in the marks of flows that have been judged by the tables as they are; one element.
  case revision
  /// (Subject, identity) -> attribution and port set.
  case pairs = "pair-values"
  /// (Port set, protocol, port) -> clause: single ports, and everything else.
  case ports
  case portRanges = "port-ranges"
  /// (Attribution, clause) -> what to do, counted; and -> the number that names it in a log line.
  case verdicts
  case clauseLabels = "clause-labels"
  /// `ClauseLabel.passes` of a label -> what becomes of the packet.
  case outcomes
}

/// nft's own data type numbers: they only make `nft list ruleset` readable.
private enum DisplayType: UInt32 {
  case integer = 4
  case ipv4 = 7
  case ipv6 = 8
  case ether = 9
  case l4Protocol = 12
  case service = 13
  case mark = 19
  case interfaceName = 41

  static func concatenated(_ types: [DisplayType]) -> UInt32 { types.reduce(0) { $0 << 6 | $1.rawValue } }
}

struct MapSpec: Sendable, Hashable {
  enum Value: Sendable, Hashable {
    /// A plain set.
    case none
    case verdict
    case data(length: UInt32, displayType: UInt32)
  }
  var name: MapName
  var keyLength: UInt32
  var keyDisplayType: UInt32
  var value: Value
  var isInterval = false
  /// Elements are written by packets and time out.
  var isDynamic = false
  /// Most elements packets may add: beyond it there is no stickiness.
  var sizeLimit: UInt32 = 0
  /// nft's user data: 1 host, 2 big-endian.
  var keyByteOrder: UInt32 = 2
  var dataByteOrder: UInt32 = 1

  static let affinityLimit: UInt32 = 1 << 20

  init(_ name: MapName, _ family: IPFamily) {
    self.name = name
    let address: DisplayType = family == .v4 ? .ipv4 : .ipv6
    let words = UInt32(family.addressBytes)
    let backend = Value.data(length: words + 4, displayType: DisplayType.concatenated([address, .service]))
    let mark = Value.data(length: 4, displayType: DisplayType.mark.rawValue)
    func keyed(_ length: UInt32, _ types: [DisplayType], _ value: Value) -> (UInt32, UInt32, Value) {
      (length, DisplayType.concatenated(types), value)
    }
    (keyLength, keyDisplayType, value) =
      switch name {
      case .frontends, .remoteFrontends, .guarded: keyed(words + 8, [address, .l4Protocol, .service], mark)
      case .sets: keyed(4, [.mark], mark)
      case .backends: keyed(8, [.mark, .mark], backend)
      case .stickySlots: keyed(8, [.mark, .mark], mark)
      case .stickyBackends: keyed(8, [.mark, .mark], backend)
      case .affinity: keyed(words + 4, [address, .mark], mark)
      case .dispatch, .remoteDispatch, .balancers, .remoteBalancers, .outcomes: keyed(4, [.mark], .verdict)
      case .serviceAddresses, .otherAddresses, .serviceRanges, .clusterRanges: keyed(words, [address], .none)
      // One integer: nft 1.0.6 crashes on intervals of a joined type that were not made as such.
      case .sourceRanges: keyed(4 + words, [.integer], .none)
      case .localInterfaces: keyed(16, [.interfaceName], .none)
      case .podSources: keyed(16 + 8 + words, [.interfaceName, .ether, address], .none)
      case .hairpin: keyed(words * 2, [address, address], .none)
      case .ownAddresses, .podRanges: keyed(words, [address], .none)
      case .egressSubjects, .ingressSubjects: keyed(16, [.interfaceName], mark)
      case .identities: keyed(words, [address], mark)
      case .blocks: keyed(4 + words, [.integer], mark)
      case .blockTable: keyed(4, [.mark], mark)
      case .pairs:
        keyed(8, [.mark, .mark], .data(length: 8, displayType: DisplayType.concatenated([.mark, .mark])))
      case .clauseLabels: keyed(8, [.mark, .mark], mark)
      case .ports: keyed(12, [.mark, .l4Protocol, .service], mark)
      case .portRanges: keyed(12, [.integer], mark)
      case .verdicts: keyed(8, [.mark, .mark], .verdict)
      case .revision: keyed(4, [.mark], .none)
      }
    switch name {
    case .localInterfaces, .sets, .backends, .stickySlots, .stickyBackends, .dispatch, .remoteDispatch, .balancers,
      .remoteBalancers, .egressSubjects, .ingressSubjects, .blockTable, .pairs, .clauseLabels, .verdicts, .outcomes,
      .revision:
      keyByteOrder = 1
    default: break
    }
    switch name {
    case .backends, .stickyBackends: dataByteOrder = 2
    case .affinity:
      isDynamic = true
      sizeLimit = Self.affinityLimit
    case .serviceRanges, .clusterRanges, .sourceRanges, .podRanges, .blocks, .portRanges: isInterval = true
    default: break
    }
  }
}
