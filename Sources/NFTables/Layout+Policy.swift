import DataplaneModel
import NetworkTypes

/// What of policy is written into rules, not into elements.
struct PolicyLayout: Sendable, Hashable {
  /// The bits of conntrack marks that are ours.
  var markMask: UInt32 = NFTablesEngine.defaultMarkMask
  /// What stands in them for a flow that has been judged by the tables as they are; within the mask.
  var revision: UInt32
  /// Flows that were allowed once are never judged again.
  var keepsEstablished = false

  init(markMask: UInt32 = NFTablesEngine.defaultMarkMask, revision: UInt32? = nil, keepsEstablished: Bool = false) {
    self.markMask = markMask
    self.revision = revision ?? Self.unit(markMask)
    self.keepsEstablished = keepsEstablished
  }

  /// At random, never 0.
  static func anyRevision(_ mask: UInt32) -> UInt32 {
    let revision = UInt32.random(in: 1 ... .max) & mask
    return revision == 0 ? unit(mask) : revision
  }

  private static func unit(_ mask: UInt32) -> UInt32 { mask & (~mask &+ 1) }

  /// The next revision. Never 0, which flows have that nobody judged. After all there are, it begins anew.
  var next: PolicyLayout {
    var next = self
    next.revision = (revision &+ Self.unit(markMask)) & markMask
    if next.revision == 0 { next.revision = Self.unit(markMask) }
    return next
  }

  /// The revision in a rule of `stamp-flow`, as libnftnl words it.
  static func revision(inRule text: String) -> UInt32? {
    guard let sign = text.firstRange(of: "^ 0x") else { return nil }
    return UInt32(text[sign.upperBound...].prefix { $0.isHexDigit }, radix: 16)
  }

}

/// Policy's chains. Every packet of a flow whose mark has the current revision is accepted at once; any other is judged:
/// by the egress policies of the pod that began the flow, then by the ingress policies of the pod that it goes to.
/// Answers are judged as their flow, with source and destination exchanged.
extension Layout {
  static let logGroup: UInt16 = 5116
  /// Devices that the CNI plugin made: whatever goes through one that no map knows is dropped.
  static let interfacePrefix = "slc"

  private enum State {
    static let established: UInt32 = 2
    static let new: UInt32 = 8
    static let related: UInt32 = 4
  }

  var policyChains: [ChainSpec] {
    var chains = [
      ChainSpec(name: "current-flows", rules: [currentFlowRule]),
      stampChain,
      ChainSpec(name: "drop-unknown-endpoint", rules: [dropRule(.unknownEndpoint)]),
      ChainSpec(name: "drop-no-verdict", rules: [dropRule(.noVerdict)]),
    ]
    chains += judgingChains
    chains.append(
      ChainSpec(
        name: "judge-answer",
        rules: [
          RuleSpec(comment: "of a pod's flow", expressions: local(.outputName) + [.verdict(.jump("egress-reply"))]),
          RuleSpec(comment: "to a pod's peer", expressions: local(.inputName) + [.verdict(.jump("ingress-reply"))]),
          RuleSpec(comment: "judged", expressions: [.verdict(.goto("stamp-flow"))]),
        ]))
    chains.append(
      ChainSpec(
        name: "judge",
        rules: [
          RuleSpec(comment: "answers", expressions: answer + [.verdict(.goto("judge-answer"))]),
          RuleSpec(comment: "from a pod", expressions: local(.inputName) + [.verdict(.jump("egress"))]),
          RuleSpec(comment: "to a pod", expressions: local(.outputName) + [.verdict(.jump("ingress"))]),
          // Not what is only related: an error about a flow that was denied would bring it back.
          RuleSpec(
            comment: "judged", expressions: state(State.new | State.established) + [.verdict(.goto("stamp-flow"))]),
        ]))
    let judged = RuleSpec(comment: "judged already", expressions: [.verdict(.jump("current-flows"))])
    // The mark is the flow's. Flows between this node and its pods have one only where a pod began them.
    func errors(_ of: [Expression]) -> RuleSpec {
      RuleSpec(
        comment: "errors of a flow",
        expressions: state(State.related) + of + [
          .meta(.l4Protocol, to: Register(0)),
          .compare(Register(0), equal: true, [family == .v4 ? 1 : 58]), .verdict(.accept),
        ])
    }
    let settled = [judged, errors([])]
    chains.append(
      ChainSpec(
        name: "policy-forward", hook: HookSpec(kind: .filter, hook: 2, priority: 0),
        rules: [judged, errors(judgedOnce)] + [
          RuleSpec(
            comment: "a pod to itself",
            expressions: [
              source(to: Register(0)), destination(to: Register(addressWords)),
              .lookup(.hairpin, key: Register(0), to: nil, inverted: false), .verdict(.accept),
            ]),
          RuleSpec(
            comment: "from no known pod", expressions: made(.inputName) + [.verdict(.goto("drop-unknown-endpoint"))]),
          RuleSpec(
            comment: "to no known pod", expressions: made(.outputName) + [.verdict(.goto("drop-unknown-endpoint"))]),
          RuleSpec(comment: "from a pod", expressions: local(.inputName) + [.verdict(.goto("judge"))]),
          RuleSpec(comment: "to a pod", expressions: local(.outputName) + [.verdict(.goto("judge"))]),
        ]))
    chains.append(
      ChainSpec(
        name: "policy-input", hook: HookSpec(kind: .filter, hook: 1, priority: 0),
        rules: settled + neighbourDiscoveryRules + [
          RuleSpec(comment: "answers to this node", expressions: answer + [.verdict(.accept)]),
          RuleSpec(comment: "from a pod", expressions: local(.inputName) + [.verdict(.jump("egress"))]),
          RuleSpec(comment: "judged", expressions: local(.inputName) + [.verdict(.goto("stamp-flow"))]),
          RuleSpec(
            comment: "from no known pod", expressions: made(.inputName) + [.verdict(.goto("drop-unknown-endpoint"))]),
        ]))
    chains.append(
      ChainSpec(
        name: "policy-output", hook: HookSpec(kind: .filter, hook: 3, priority: 0),
        rules: settled + [
          RuleSpec(
            comment: "answers to a pod",
            expressions: answer + local(.outputName) + [.verdict(.jump("egress-reply"))]),
          RuleSpec(
            comment: "judged", expressions: answer + local(.outputName) + [.verdict(.goto("stamp-flow"))]),
        ]))
    return chains
  }

  // MARK: Revisions

  /// Finds the revision in a set: a rule with a verdict that changed would cost what there is (see `clauseEntries`).
  private var currentFlowRule: RuleSpec {
    RuleSpec(
      comment: "flows that the tables have judged as they are",
      expressions: state(State.established) + [
        .conntrack(.mark, original: false, to: Register(0)), .and(Register(0), mask: policy.markMask),
        policy.keepsEstablished
          ? .compare(Register(0), equal: false, [0, 0, 0, 0])
          : .lookup(.revision, key: Register(0), to: nil, inverted: false),
        .verdict(.accept),
      ])
  }

  /// The one rule that changes with each revision.
  var stampChain: ChainSpec { ChainSpec(name: "stamp-flow", rules: [stampRule]) }

  private var stampRule: RuleSpec {
    RuleSpec(
      comment: "judged",
      expressions: [
        .conntrack(.mark, original: false, to: Register(0)),
        .replaceBits(Register(0), mask: ~policy.markMask, bits: policy.revision), .setConntrackMark(from: Register(0)),
      ])
  }

  // MARK: Pieces

  private func state(_ bits: UInt32) -> [Expression] {
    [
      .conntrack(.state, original: false, to: Register(0)), .and(Register(0), mask: bits),
      .compare(Register(0), equal: false, [0, 0, 0, 0]),
    ]
  }

  /// Passes for flows that were allowed when they were last judged.
  var judgedOnce: [Expression] {
    [
      .conntrack(.mark, original: false, to: Register(0)), .and(Register(0), mask: policy.markMask),
      .compare(Register(0), equal: false, [0, 0, 0, 0]),
    ]
  }

  /// Passes for packets of a flow that has been answered.
  var live: [Expression] { state(State.established) }

  /// Passes for packets of a live flow that go the other way.
  private var answer: [Expression] {
    live + [
      .conntrack(.direction, original: false, to: Register(0)), .compare(Register(0), equal: true, [1]),
    ]
  }

  /// Passes where the device is a known pod's, or, where the hook has no such device, always: see `localInterfaces`.
  private func local(_ device: MetaKey) -> [Expression] {
    [.meta(device, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: false)]
  }

  /// Passes for what is no copy of this node's own multicast or broadcast: those come in by the device they went out by.
  private var unicast: [Expression] {
    switch family {
    // The kernel itself drops a broadcast frame with a unicast packet in it that has its own address.
    case .v4: [.meta(.packetType, to: Register(0)), .compare(Register(0), equal: true, [0])]
    case .v6: [.payload(.network, offset: 24, length: 1, to: Register(0)), .compare(Register(0), equal: false, [0xff])]
    }
  }

  /// Passes where the CNI plugin made the device, and no map knows it.
  private func made(_ device: MetaKey) -> [Expression] {
    [
      .meta(device, to: Register(0)), .compare(Register(0), equal: true, Array(Self.interfacePrefix.utf8)),
      .meta(device, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: true),
    ]
  }

  /// Neighbour discovery with its node, and multicast membership: no policy is about them.
  private var neighbourDiscoveryRules: [RuleSpec] {
    guard family == .v6 else { return [] }
    func icmp(_ type: UInt8) -> [Expression] {
      [
        .meta(.l4Protocol, to: Register(0)), .compare(Register(0), equal: true, [58]),
        .payload(.transport, offset: 0, length: 1, to: Register(0)), .compare(Register(0), equal: true, [type]),
      ]
    }
    let discovery = [
      ("router solicitation", UInt8(133)), ("neighbour solicitation", 135), ("neighbour advertisement", 136),
    ]
    let membership = [("multicast report", UInt8(131)), ("multicast leave", 132), ("multicast report v2", 143)]
    return discovery.map { name, type in
      RuleSpec(
        comment: name,
        expressions: icmp(type) + [
          .payload(.network, offset: 7, length: 1, to: Register(0)), .compare(Register(0), equal: true, [255]),
          .verdict(.accept),
        ])
    } + membership.map { name, type in RuleSpec(comment: name, expressions: icmp(type) + [.verdict(.accept)]) }
  }

  /// Before conntrack: what nobody but this node, or no pod at all, may send.
  var forgedByAnyoneRules: [RuleSpec] {
    var rules = [
      RuleSpec(
        comment: "from outside with this node's address",
        expressions: unicast + [
          .meta(.inputName, to: Register(0)), .compare(Register(0), equal: false, Array("lo\0".utf8)),
          source(to: Register(0)), .lookup(.ownAddresses, key: Register(0), to: nil, inverted: false),
          .verdict(.goto("drop-forged")),
        ]),
      RuleSpec(
        comment: "from outside with a pod's address",
        expressions: [
          .meta(.inputName, to: Register(0)), .lookup(.localInterfaces, key: Register(0), to: nil, inverted: true),
          source(to: Register(0)), source(to: Register(addressWords)),
          .lookup(.hairpin, key: Register(0), to: nil, inverted: false), .verdict(.goto("drop-forged")),
        ]),
    ]
    guard family == .v6 else { return rules }
    for (name, type) in [("router advertisement of a pod", UInt8(134)), ("redirect of a pod", 137)] {
      rules.append(
        RuleSpec(
          comment: name,
          expressions: local(.inputName) + [
            .meta(.l4Protocol, to: Register(0)), .compare(Register(0), equal: true, [58]),
            .payload(.transport, offset: 0, length: 1, to: Register(0)), .compare(Register(0), equal: true, [type]),
            .verdict(.goto("drop-forged-advertisement")),
          ]))
    }
    return rules
  }
}
