import DataplaneModel
import NetworkTypes

/// The flags of a frontend's value; the service number stands below them.
enum FrontendFlag {
  /// Flows of pods are masqueraded too.
  static let masquerade: UInt32 = 1 << 31
  static let sticky: UInt32 = 1 << 30
  /// The local backend set.
  static let local: UInt32 = 1 << 29
  static let serviceMask: UInt32 = 1 << 28 - 1
  /// What names a backend set in `sets` on the way in ...
  static let entryMask: UInt32 = sticky | local | serviceMask
  /// ... and everywhere else.
  static let setMask: UInt32 = local | serviceMask
}

/// What `sets` says about a backend set. Numbers below `hash` are slot counts; above it slot counts of a hashed set.
enum DispatchCode {
  static let hash: UInt32 = 0x2000_0000
  static let affinity: UInt32 = 0x4000_0000
  static let reject: UInt32 = 0x8000_0000
  static let drop: UInt32 = 0x8000_0001
}

/// A chain that exists because some backend set needs it.
struct ChainUse: Sendable, Hashable, Comparable {
  enum Kind: UInt8, Sendable {
    /// A slot at random.
    case balance
    /// A slot by a hash of the client.
    case hash
    case affinity
  }
  var family: IPFamily
  var kind: Kind
  /// For traffic from outside that sees other backends than the node itself (externalTrafficPolicy Local).
  var isRemote: Bool
  /// Slot count, or affinity timeout in seconds.
  var number: UInt32

  var name: String { "\(kind)-\(isRemote ? "remote-" : "")\(number)" }
  var dispatchCode: UInt32 {
    switch kind {
    case .balance: number
    case .hash: DispatchCode.hash | number
    case .affinity: DispatchCode.affinity | number
    }
  }

  static func < (left: ChainUse, right: ChainUse) -> Bool {
    (left.family, left.kind.rawValue, left.isRemote ? 1 : 0, left.number)
      < (right.family, right.kind.rawValue, right.isRemote ? 1 : 0, right.number)
  }
}

/// The rules of one family's table: constant, but for one chain per distinct slot count and affinity timeout.
///
/// Only a flow's first packet comes here (nat hooks), `forged` apart. Registers: r0... hold look-up keys, r10...r14
/// intermediate values, r15 the packet's mark. Every looked-up number makes a round through `meta mark` because nft 1.0.6
/// aborts on listing a rule that uses a looked-up register as part of a key; the packet's own mark is put back in the
/// same rule, before anything can fail.
struct Layout: Sendable {
  let family: IPFamily
  /// Source of flows masqueraded towards a local pod.
  var internalAddress: IPAddress?
  var policy = PolicyLayout()

  init(family: IPFamily, internalAddress: IPAddress?, policy: PolicyLayout = PolicyLayout()) {
    self.family = family
    self.internalAddress = internalAddress
    self.policy = policy
  }

  private var words: Int { family.addressBytes / 4 }
  var addressWords: Int { words }
  var savedMark: Register { Register(15) }

  static let tableName = "sluice"

  var maps: [MapSpec] { MapName.allCases.map { MapSpec($0, family) } }

  // MARK: Chains

  /// Chains in an order in which each names only earlier ones.
  var chains: [ChainSpec] {
    [
      ChainSpec(
        name: "reject-flow",
        rules: [
          RuleSpec(
            comment: "no endpoint, or no such port",
            expressions: [
              .meta(.l4Protocol, to: Register(0)), .compare(Register(0), equal: true, [L4Protocol.tcp.rawValue]),
              .counter, .resetTCP,
            ]),
          RuleSpec(comment: "no endpoint, or no such port", expressions: [.counter, .reject(family)]),
        ]),
      ChainSpec(name: "drop-no-local-endpoint", rules: [dropRule(.noLocalEndpoint)]),
      ChainSpec(name: "drop-source-range", rules: [dropRule(.sourceRange)]),
      ChainSpec(name: "drop-unallocated", rules: [dropRule(.unallocatedServiceAddress)]),
      ChainSpec(name: "drop-forged", rules: [dropRule(.forgedSource)]),
      ChainSpec(name: "drop-forged-advertisement", rules: [dropRule(.forgedAdvertisement)]),
      ChainSpec(name: "masquerade-flow", rules: masqueradeRules),
      ChainSpec(name: "service-source", rules: serviceSourceRules),
      ChainSpec(name: "services", rules: serviceRules),
      ChainSpec(
        name: "prerouting", hook: HookSpec(kind: .nat, hook: 0, priority: -100),
        rules: [RuleSpec(comment: "new flows", expressions: [.verdict(.jump("services"))])]),
      ChainSpec(
        name: "output", hook: HookSpec(kind: .nat, hook: 3, priority: -100),
        rules: [RuleSpec(comment: "new flows of this node", expressions: [.verdict(.jump("services"))])]),
      ChainSpec(name: "postrouting", hook: HookSpec(kind: .nat, hook: 4, priority: 100), rules: postroutingRules),
      ChainSpec(name: "forged", hook: HookSpec(kind: .filter, hook: 0, priority: -300), rules: forgedRules),
    ] + policyChains
  }

  func chain(for use: ChainUse) -> ChainSpec {
    ChainSpec(
      name: use.name, rules: use.kind == .affinity ? affinityRules(use) : balanceRules(use))
  }

  /// Drops, tells whoever listens, and counts.
  func dropRule(_ reason: DropReason) -> RuleSpec {
    RuleSpec(comment: reason.rawValue, expressions: [.log(prefix: reason.rawValue), .counter, .verdict(.drop)])
  }

  private var serviceRules: [RuleSpec] {
    [
      RuleSpec(
        comment: "loadBalancerSourceRanges",
        expressions: [.meta(.mark, to: savedMark)] + key(lookup: .guarded, to: Register(0)) + restoreMark
          + [
            source(to: Register(1)), .lookup(.sourceRanges, key: Register(0), to: nil, inverted: true),
            .verdict(.goto("drop-source-range")),
          ]),
      RuleSpec(
        comment: "from outside, externalTrafficPolicy Local",
        expressions: notLocal + dispatch(via: .remoteFrontends, .remoteDispatch)),
      RuleSpec(comment: "services", expressions: dispatch(via: .frontends, .dispatch)),
      RuleSpec(
        comment: "undefined port",
        expressions: [
          destination(to: Register(0)), .lookup(.serviceAddresses, key: Register(0), to: nil, inverted: false),
          .verdict(.goto("reject-flow")),
        ]),
      RuleSpec(
        comment: "another proxy's Service",
        expressions: [
          destination(to: Register(0)), .lookup(.otherAddresses, key: Register(0), to: nil, inverted: false),
          .verdict(.return),
        ]),
      RuleSpec(
        comment: "unallocated",
        expressions: [
          destination(to: Register(0)), .lookup(.serviceRanges, key: Register(0), to: nil, inverted: false),
          .verdict(.goto("drop-unallocated")),
        ]),
    ]
  }

  private func dispatch(via map: MapName, _ dispatch: MapName) -> [Expression] {
    [.meta(.mark, to: savedMark)] + key(lookup: map, to: Register(0)) + restoreMark
      + [
        .and(Register(0), mask: FrontendFlag.entryMask),
        .lookup(.sets, key: Register(0), to: Register(0), inverted: false),
      ]
      + roundTrip(Register(0)) + restoreMark + [.verdictLookup(dispatch, key: Register(0))]
  }

  /// Spreads over `use.number` slots. Sets with affinity have no `backends`: for them the first rule fails, the second
  /// picks a backend number and remembers it, and the third serves when nothing can be remembered.
  private func balanceRules(_ use: ChainUse) -> [RuleSpec] {
    let map: MapName = use.isRemote ? .remoteFrontends : .frontends
    let (slot, set, value) = (Register(0), Register(1), Register(10))
    let toSet =
      [.meta(.mark, to: savedMark)] + key(lookup: map, to: value)
      + number(masked: FrontendFlag.setMask, of: value, to: set)
    let choose: [Expression] = use.kind == .hash ? hash(use.number, to: slot) : [.random(modulus: use.number, to: slot)]
    let pick: [Expression] =
      toSet + restoreMark + choose + [.lookup(.stickySlots, key: slot, to: Register(11), inverted: false)]
      + roundTrip(Register(11))
    return [
      RuleSpec(comment: "1 of \(use.number)", expressions: toSet + restoreMark + choose + translate(.backends)),
      RuleSpec(
        comment: "1 of \(use.number), remembered",
        expressions: pick + number(masked: FrontendFlag.serviceMask, of: value, to: Register(words)) + restoreMark
          + [
            source(to: Register(0)),
            .addElement(.affinity, key: Register(0), data: Register(11), timeoutMilliseconds: 5000),
            .verdict(.return),
          ]),
      RuleSpec(
        comment: "1 of \(use.number), affinity map full",
        expressions: pick + number(masked: FrontendFlag.setMask, of: value, to: Register(1))
          + [.setMeta(.mark, from: Register(11)), .meta(.mark, to: Register(0))] + restoreMark
          + translate(.stickyBackends)),
    ]
  }

  /// What `MaglevTable.slot` says of the client's address and port.
  private func hash(_ slots: UInt32, to slot: Register) -> [Expression] {
    let client = Register(2)
    return [
      source(to: client), .payload(.transport, offset: 0, length: 2, to: Register(2 + words)),
      .hash(client, length: UInt32(words + 1) * 4, modulus: slots, seed: MaglevTable.seed, to: slot),
    ]
  }

  /// A client that is known, whose backend still is in the set, goes there and its time starts anew. Any other is
  /// forgotten, balanced (which remembers it), and served by the same rule again.
  private func affinityRules(_ use: ChainUse) -> [RuleSpec] {
    let map: MapName = use.isRemote ? .remoteFrontends : .frontends
    let value = Register(10)
    let toClient =
      [.meta(.mark, to: savedMark)] + key(lookup: map, to: value)
      + number(masked: FrontendFlag.serviceMask, of: value, to: Register(words)) + [source(to: Register(0))]
    let backend = Register(11)
    // The translation is looked up before the time starts anew: a stale entry must not be kept alive.
    let hit: [Expression] =
      toClient + [.lookup(.affinity, key: Register(0), to: backend, inverted: false)] + roundTrip(backend)
      + number(masked: FrontendFlag.setMask, of: value, to: Register(1))
      + [
        .setMeta(.mark, from: backend), .meta(.mark, to: Register(0)),
        .lookup(.stickyBackends, key: Register(0), to: Register(5), inverted: false),
      ] + number(masked: FrontendFlag.serviceMask, of: value, to: Register(words)) + restoreMark
      + [
        source(to: Register(0)),
        .updateElement(
          .affinity, key: Register(0), data: backend, timeoutMilliseconds: UInt64(use.number) * 1000),
        .destinationNAT(family, address: Register(5), port: Register(5 + words)),
      ]
    let known = RuleSpec(comment: "known client, \(use.number) s", expressions: restoring(hit))
    return [
      known,
      RuleSpec(
        comment: "unknown client, or its backend is gone",
        expressions: toClient + restoreMark + [.immediate([0, 0, 0, 0], to: Register(11))]
          + [.deleteElement(.affinity, key: Register(0), data: Register(11)), .and(value, mask: FrontendFlag.setMask)]
          + [.lookup(.sets, key: value, to: Register(0), inverted: false)] + roundTrip(Register(0)) + restoreMark
          + [.verdictLookup(use.isRemote ? .remoteBalancers : .balancers, key: Register(0))]),
      known,
      RuleSpec(
        comment: "lost between two look-ups: the client's next try is served",
        expressions: [.counter, .verdict(.drop)]),
    ]
  }

  private var postroutingRules: [RuleSpec] {
    [
      RuleSpec(
        comment: "flows through a Service",
        expressions: [
          .conntrack(.status, original: false, to: Register(0)), .and(Register(0), mask: 0x20),  // IPS_DST_NAT
          .compare(Register(0), equal: false, [0, 0, 0, 0]), .verdict(.jump("service-source")),
        ]),
      RuleSpec(comment: "generated here", expressions: fromHost + [.verdict(.accept)]),
      RuleSpec(
        comment: "pods leaving the cluster",
        expressions: [
          .meta(.inputName, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: false),
          destination(to: Register(0)), .lookup(.clusterRanges, key: Register(0), to: nil, inverted: true),
          .verdict(.goto("masquerade-flow")),
        ]),
    ]
  }

  private var serviceSourceRules: [RuleSpec] {
    [
      RuleSpec(
        comment: "a pod that reaches itself",
        expressions: [
          source(to: Register(0)), destination(to: Register(words)),
          .lookup(.hairpin, key: Register(0), to: nil, inverted: false), .verdict(.goto("masquerade-flow")),
        ]),
      RuleSpec(comment: "generated here", expressions: fromHost + [.verdict(.goto("masquerade-flow"))]),
      RuleSpec(
        comment: "externalTrafficPolicy Local keeps the client's address",
        expressions: notLocal + [.meta(.mark, to: savedMark)] + originalKey(lookup: .remoteFrontends) + restoreMark
          + [.verdict(.accept)]),
      RuleSpec(comment: "from outside", expressions: notLocal + [.verdict(.goto("masquerade-flow"))]),
      RuleSpec(
        comment: "pods through an external frontend, externalTrafficPolicy Cluster",
        expressions: [.meta(.mark, to: savedMark)] + originalKey(lookup: .frontends) + restoreMark
          + [
            .and(Register(0), mask: FrontendFlag.masquerade), .compare(Register(0), equal: false, [0, 0, 0, 0]),
            .verdict(.goto("masquerade-flow")),
          ]),
    ]
  }

  private var masqueradeRules: [RuleSpec] {
    var rules: [RuleSpec] = []
    if let internalAddress {
      rules.append(
        RuleSpec(
          comment: "a pod's device has no address to take",
          expressions: [
            .meta(.outputName, to: Register(0)),
            .lookup(.localInterfaces, key: Register(0), to: nil, inverted: false),
            .immediate(internalAddress.bytes, to: Register(0)), .sourceNAT(family, address: Register(0)),
          ]))
    }
    return rules + [RuleSpec(comment: "to the device's address", expressions: [.masquerade])]
  }

  /// Anti-spoofing: a pod sends with its own hardware and IP address only. Link-local and unspecified IPv6 sources are
  /// neighbour discovery's, and are never routed on.
  private var forgedRules: [RuleSpec] {
    var rules = forgedByAnyoneRules
    if family == .v6 {
      let linkLocal: [Expression] = [
        .payload(.network, offset: 8, length: 2, to: Register(0)), .and(Register(0), mask: 0x0000_c0ff),
        .compare(Register(0), equal: true, [0xfe, 0x80, 0, 0]), .verdict(.accept),
      ]
      rules.append(RuleSpec(comment: "link-local", expressions: linkLocal))
      rules.append(
        RuleSpec(
          comment: "duplicate address detection",
          expressions: [
            source(to: Register(0)), .compare(Register(0), equal: true, Array(repeating: 0, count: 16)),
            .verdict(.accept),
          ]))
    }
    rules.append(
      RuleSpec(
        comment: "a pod with another's address",
        expressions: [
          .meta(.inputName, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: false),
          .payload(.link, offset: 6, length: 6, to: Register(4)), source(to: Register(6)),
          .lookup(.podSources, key: Register(0), to: nil, inverted: true), .verdict(.goto("drop-forged")),
        ]))
    return rules
  }

  // MARK: Pieces

  func source(to register: Register) -> Expression {
    .payload(.network, offset: family == .v4 ? 12 : 8, length: UInt32(family.addressBytes), to: register)
  }

  func destination(to register: Register) -> Expression {
    .payload(.network, offset: family == .v4 ? 16 : 24, length: UInt32(family.addressBytes), to: register)
  }

  /// Passes where the packet came in by a device that is no local pod's.
  private var notLocal: [Expression] {
    [.meta(.inputName, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: true)]
  }

  /// Passes where the packet was generated here: it has no input device (true in postrouting since 5.7).
  private var fromHost: [Expression] {
    [.meta(.inputInterface, to: Register(0)), .compare(Register(0), equal: true, [0, 0, 0, 0])]
  }

  /// Looks the packet's destination up in a map with the frontends' key.
  private func key(lookup map: MapName, to register: Register) -> [Expression] {
    [
      destination(to: Register(0)), .meta(.l4Protocol, to: Register(words)),
      .payload(.transport, offset: 2, length: 2, to: Register(words + 1)),
      .lookup(map, key: Register(0), to: register, inverted: false),
    ] + roundTrip(register)
  }

  /// The same with the destination the flow had before translation.
  private func originalKey(lookup map: MapName) -> [Expression] {
    [
      .conntrack(family == .v4 ? .destinationIPv4 : .destinationIPv6, original: true, to: Register(0)),
      .meta(.l4Protocol, to: Register(words)),
      .conntrack(.protocolDestination, original: true, to: Register(words + 1)),
      .lookup(map, key: Register(0), to: Register(0), inverted: false),
    ] + roundTrip(Register(0))
  }

  /// Gives nft a name for the register's value (see the type's comment).
  func roundTrip(_ register: Register) -> [Expression] {
    [.setMeta(.mark, from: register), .meta(.mark, to: register)]
  }

  private func number(masked mask: UInt32, of value: Register, to register: Register) -> [Expression] {
    [.setMeta(.mark, from: value), .meta(.mark, to: register), .and(register, mask: mask)] + roundTrip(register)
  }

  var restoreMark: [Expression] { [.setMeta(.mark, from: savedMark)] }

  /// A look-up that fails ends the rule: the mark has to be back before each.
  private func restoring(_ expressions: [Expression]) -> [Expression] {
    var result: [Expression] = []
    for expression in expressions {
      if case .lookup(let map, _, _, _) = expression, map == .affinity || map == .stickyBackends {
        result += restoreMark
      }
      result.append(expression)
    }
    return result
  }

  private func translate(_ map: MapName) -> [Expression] {
    [
      .lookup(map, key: Register(0), to: Register(0), inverted: false),
      .destinationNAT(family, address: Register(0), port: Register(words)),
    ]
  }
}
