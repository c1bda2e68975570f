import DataplaneModel
import NetworkTypes

/// The chains in which a packet meets the policies of one pod. Per side two: one that looks for what is said of the very
/// peer, and one for what is said of any.
///
/// Every rule that looks the peer's identity up costs each element that is ever added to `identities` some 20 ns, as the
/// kernel walks the uses of a map for each (nft_add_set_elem): three per side.
extension Layout {
  /// Who is judged, and on which of a flow's packets.
  struct Side {
    var direction: PolicyDirection
    var isReply: Bool

    var chain: String { isReply ? "\(direction)-reply" : "\(direction)" }
    /// For peers without a pair of their own.
    var anyPeerChain: String { "\(chain)-any-peer" }
    /// The pod's device, the peer's address and the flow's destination port as this packet shows them.
    var device: MetaKey { (direction == .egress) != isReply ? .inputName : .outputName }
    var peerIsDestination: Bool { (direction == .egress) != isReply }
    var portOffset: UInt32 { isReply ? 0 : 2 }
    var subjects: MapName { direction == .egress ? .egressSubjects : .ingressSubjects }
    static let all = PolicyDirection.allCases.flatMap { direction in
      [Side(direction: direction, isReply: false), Side(direction: direction, isReply: true)]
    }
  }

  /// By what the peer is found. A pod or node is not looked for among blocks: its identity says which it lies in.
  enum Peer {
    case podOrNode
    case block
    /// By nothing: the subject's wildcard.
    case any

    var comment: String {
      switch self {
      case .podOrNode: "pod or node"
      case .block: "block"
      case .any: "any peer"
      }
    }
  }

  var judgingChains: [ChainSpec] {
    PolicyDirection.allCases.map { ChainSpec(name: "deny-\($0)", rules: denyRules) }
      + Side.all.flatMap { side in
        [
          ChainSpec(name: side.anyPeerChain, rules: clauseRules(side, .any) + notFound(side)),
          ChainSpec(name: side.chain, rules: judgingRules(side)),
        ]
      }
  }

  /// Maps are only ever asked for what they lead to: before Linux 6.5 a map cannot be asked, as a set can, whether it has a
  /// key, and no kernel can be asked whether it has none and what it leads to.
  private func judgingRules(_ side: Side) -> [RuleSpec] {
    let unrestricted = RuleSpec(
      comment: "no policy",
      expressions: subject(side) + [.compare(Self.subject, equal: true, [0, 0, 0, 0]), .verdict(.return)])
    // A peer that is gone ends no flow that it was allowed: one that was denied since has no mark.
    let peerIsGone = RuleSpec(
      comment: "a live flow whose peer is gone",
      expressions: live + judgedOnce + [
        address(of: side, to: Register(0)), .lookup(.podRanges, key: Register(0), to: nil, inverted: false),
        .verdict(.return),
      ])
    func others(_ peer: Peer) -> RuleSpec {
      RuleSpec(
        comment: "\(peer.comment), named by no rule",
        expressions: [.meta(.mark, to: savedMark)] + identity(side, peer) + [.verdict(.goto(side.anyPeerChain))])
    }
    return [unrestricted] + clauseRules(side, .podOrNode) + [others(.podOrNode), peerIsGone]
      + clauseRules(side, .block) + [others(.block)] + notFound(side)
  }

  /// Finds the clause for a kind of peer, by single port and by port range, and does what it says. Each is one rule:
  /// registers do not outlive it.
  private func clauseRules(_ side: Side, _ peer: Peer) -> [RuleSpec] {
    [MapName.ports, .portRanges].map { ports in
      RuleSpec(
        comment: "\(peer.comment), \(ports == .ports ? "port" : "port range")",
        expressions: clause(side, peer, ports) + [.verdictLookup(.verdicts, key: Self.attribution)]
          + report(side) + [.verdict(.goto("deny-\(side.direction)"))])
    }
  }

  /// Behind everything that finds a clause.
  private func notFound(_ side: Side) -> [RuleSpec] {
    [
      RuleSpec(comment: "a look-up failed", expressions: subject(side) + [.verdict(.goto("drop-no-verdict"))]),
      RuleSpec(comment: "the pod is not known", expressions: [.verdict(.goto("drop-unknown-endpoint"))]),
    ]
  }

  /// What is denied, and has been told.
  private var denyRules: [RuleSpec] {
    [
      RuleSpec(
        comment: "what is in force denies it",
        expressions: judgedOnce + [
          .conntrack(.mark, original: false, to: Register(0)), .and(Register(0), mask: ~policy.markMask),
          .setConntrackMark(from: Register(0)),
        ]),
      RuleSpec(comment: DropReason.policyDenied.rawValue, expressions: [.counter, .verdict(.drop)]),
    ]
  }

  // MARK: Pieces

  /// Keys stand in neighbours: (subject, identity), (attribution, clause).
  private static let subject = Register(8)
  private static let identity = Register(9)
  private static let attribution = Register(10)
  private static let clause = Register(11)
  private static let label = Register(12)

  /// Leaves the attribution and the clause in their registers; ends the rule where there is none on this way.
  private func clause(_ side: Side, _ peer: Peer, _ ports: MapName) -> [Expression] {
    var expressions = subject(side) + identity(side, peer)
    // nft does not see the second half of a value: it has to find something in that register.
    let portSet = Self.clause
    expressions += [
      .meta(.mark, to: portSet), .lookup(.pairs, key: Self.subject, to: Self.attribution, inverted: false),
    ]
    expressions += roundTrip(Self.attribution) + [.setMeta(.mark, from: portSet), .meta(.mark, to: Register(0))]
    expressions += restoreMark
    expressions += [
      .meta(.l4Protocol, to: Register(1)),
      .payload(.transport, offset: side.portOffset, length: 2, to: Register(2)),
    ]
    return expressions + lookup(ports, key: Register(0), to: Self.clause)
  }

  /// Tells who listens which clause it was, and goes on with what is denied; what passes all the same is judged no further.
  private func report(_ side: Side) -> [Expression] {
    [.lookup(.clauseLabels, key: Self.attribution, to: Self.label, inverted: false)] + roundTrip(Self.label)
      + [.log(prefix: Self.logPrefix(side.direction))] + restoreMark
      + [.and(Self.label, mask: ClauseLabel.passes), .verdictLookup(.outcomes, key: Self.label)]
  }

  /// What a line about a clause begins with: its mark is the clause's label, which says the rest.
  static func logPrefix(_ direction: PolicyDirection) -> String { "policy \(direction)" }

  private func subject(_ side: Side) -> [Expression] {
    [.meta(.mark, to: savedMark), .meta(side.device, to: Register(0))]
      + lookup(side.subjects, key: Register(0), to: Self.subject)
  }

  private func identity(_ side: Side, _ peer: Peer) -> [Expression] {
    switch peer {
    case .podOrNode:
      [address(of: side, to: Register(0))] + lookup(.identities, key: Register(0), to: Self.identity)
    case .block:
      zero(Register(0)) + lookup(.blockTable, key: Register(0), to: Register(0))
        + [address(of: side, to: Register(1))] + lookup(.blocks, key: Register(0), to: Self.identity)
    case .any: zero(Self.identity)
    }
  }

  /// A look-up with its round through the packet's mark, which is put back at once.
  private func lookup(_ map: MapName, key: Register, to: Register) -> [Expression] {
    [.lookup(map, key: key, to: to, inverted: false)] + roundTrip(to) + restoreMark
  }

  /// A constant that nft 1.0.6 can list as part of a key.
  private func zero(_ register: Register) -> [Expression] {
    [.meta(.mark, to: register), .and(register, mask: 0)] + roundTrip(register) + restoreMark
  }

  private func address(of side: Side, to register: Register) -> Expression {
    side.peerIsDestination ? destination(to: register) : source(to: register)
  }
}
