import CLinux
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

/// A flow on its way from one engine to another.
public struct HandedFlow: Sendable, Hashable {
  /// As who began it sends.
  public var original: ConntrackTuple
  /// As answers come in: where it is not the mirror of `original`, it is translated.
  public var reply: ConntrackTuple
  public var state: FlowState
  /// A process of this node began it.
  public var isFromHost: Bool
  /// Where its backend was chosen from; nil where it was not, or where that is no more.
  public var set: BackendSetID?

  public init(original: ConntrackTuple, reply: ConntrackTuple, state: FlowState, isFromHost: Bool, set: BackendSetID?) {
    (self.original, self.reply, self.state) = (original, reply, state)
    (self.isFromHost, self.set) = (isFromHost, set)
  }

  /// The source port that it has between its translations, where its own would make it another flow: see `SeparateFlows`.
  public fileprivate(set) var innerPort: UInt16?

  /// Between destination translation and masquerade: what policy judges.
  public var judged: ConntrackTuple {
    // With another port but its own address it is not masqueraded: that keeps it apart from another connection.
    if original.protocolNumber == L4Protocol.tcp.rawValue, !isMasqueraded { return reply.reversed }
    return ConntrackTuple(
      source: original.source, destination: reply.source, protocolNumber: original.protocolNumber,
      sourcePort: innerPort ?? original.sourcePort, destinationPort: reply.sourcePort)
  }

  /// Who gets it sees another address.
  public var isMasqueraded: Bool { reply.destination != original.source }
}

/// Gives masqueraded flows that are one with another between their translations a tuple of their own. Netfilter tells a
/// client's connections from one port to a Service and to its node port apart by what they were and what they become;
/// programs know a flow by what it is in between.
public struct SeparateFlows {
  private var innerPorts: [ConntrackTuple: UInt16] = [:]
  private var taken: Set<ConntrackTuple> = []

  public init() {}

  /// - Parameter flows: what was not given before, or changed since.
  public mutating func separated(_ flows: [HandedFlow]) -> [HandedFlow] {
    var result = flows.filter { !$0.isMasqueraded }
    taken.formUnion(result.map(\.judged))
    for var flow in flows where flow.isMasqueraded {
      if let known = innerPorts[flow.original] {
        flow.innerPort = known
      } else {
        // Another that it may have: who gets it tells it from others by that one.
        var port = flow.reply.destinationPort
        while !taken.insert(flow.judged).inserted {
          flow.innerPort = port
          port = port == .max ? 1 : port + 1
        }
        innerPorts[flow.original] = flow.innerPort ?? flow.original.sourcePort
      }
      result.append(flow)
    }
    return result
  }
}

extension HandedFlow {
  public var isTranslated: Bool { reply != original.reversed }
}

/// Taking the packet path over from another engine, and handing it over.
extension PacketFlows {
  /// Of the programs that are in the kernel, whoever loaded them. nil where there are none, or another build's.
  public init?(_ pins: PinFolder) throws(SystemError) {
    guard let maps = try TrackingMaps(pins) else { return nil }
    self.maps = maps
  }

  // MARK: Who has the packet path

  /// Whether the programs let everything pass to another engine.
  public var standsAside: Bool {
    get throws(SystemError) { (try maps.state[PacketTable.State.mode] ?? 0) & Self.aside != 0 }
  }

  /// Returns when no packet is under way any more that was seen before.
  ///
  /// - Parameters:
  ///   - aside: whether another engine has the packet path.
  ///   - held: for how long pods' packets are held back, whoever has it. By then both engines' changes are done; or who
  ///     makes them is dead, and what was in force before holds.
  public func setMode(aside: Bool, held: Duration? = nil) throws(SystemError) {
    var mode: UInt32 = aside ? Self.aside : 0
    if let held {
      let end = MonotonicClock.now + UInt64(held / .nanoseconds(1))
      mode |= max(1, UInt32(truncatingIfNeeded: end >> Self.timeShift)) << 1
    }
    try maps.state.set(PacketTable.State.mode, mode)
    // One that programs let pass may be between them and somebody's rules: on a busy machine for milliseconds.
    _ = clinux_membarrier_global()
  }

  /// `MODE_ASIDE` and `MODE_TIME_SHIFT`.
  private static let aside: UInt32 = 1
  private static let timeShift: UInt64 = 24

  // MARK: Flows

  /// Has the programs know these flows. They judge each at its next packet.
  public func add(_ handed: [HandedFlow]) throws(SystemError) {
    var flows: [(key: TupleLayout, value: FlowLayout)] = []
    var attempts = flows
    var translations: [(key: TupleLayout, value: TranslationLayout)] = []
    let now = MonotonicClock.now
    for flow in handed {
      let judged = TupleLayout(flow.judged)
      let (key, isFromSecond) = judged.ordered
      var element = FlowLayout()
      element.seen = now
      if isFromSecond { element.flags |= FlowLayout.fromSecond }
      if flow.isFromHost { element.flags |= FlowLayout.fromHost }
      if flow.judged != flow.original {
        element.flags |= FlowLayout.balanced
        var translation = TranslationLayout()
        translation.set = flow.set.map { SetKeyLayout($0) } ?? SetKeyLayout()
        translation.to = judged
        translations.append((TupleLayout(flow.original, step: TupleLayout.destinationStep), translation))
        translation.to = TupleLayout(flow.original.reversed)
        translations.append((judged.reversed.at(TupleLayout.sourceStep), translation))
      }
      if flow.judged.reversed != flow.reply {
        element.flags |= FlowLayout.masqueraded
        var translation = TranslationLayout()
        translation.isMasquerade = 1
        translation.to = judged.reversed
        translations.append((TupleLayout(flow.reply, step: TupleLayout.destinationStep), translation))
        translation.to = TupleLayout(flow.reply.reversed)
        translations.append((judged.at(TupleLayout.sourceStep), translation))
      }
      element.state = flow.state.rawValue
      if flow.state == .opening { attempts.append((key, element)) } else { flows.append((key, element)) }
    }
    try maps.translations.set(translations)
    try maps.flows.set(flows)
    try maps.attempts.set(attempts)
  }

  /// Every TCP, UDP and SCTP flow that was answered and is not over, as another engine can go on with it. One whose
  /// translation a cache has lost is left out.
  public func handed() throws(SystemError) -> [HandedFlow] {
    let flows = try maps.flows.elements()
    let translations = try maps.translations.elements()
    let now = MonotonicClock.now
    return flows.compactMap { key, flow in
      guard !flow.isOver(proto: key.proto, at: now), flow.state == FlowState.open.rawValue,
        L4Protocol(rawValue: key.proto) != nil
      else { return nil }
      let judged = flow.flags & FlowLayout.fromSecond == 0 ? key : key.reversed
      var (original, reply) = (judged, judged.reversed)
      var set: BackendSetID?
      if flow.flags & FlowLayout.balanced != 0 {
        guard let answers = translations[judged.reversed.at(TupleLayout.sourceStep)] else { return nil }
        original = answers.to.reversed
        set = BackendSetID(answers.set)
      }
      if flow.flags & FlowLayout.masqueraded != 0 {
        guard let leaves = translations[judged.at(TupleLayout.sourceStep)] else { return nil }
        reply = leaves.to.reversed
      }
      guard let original = original.conntrackTuple, let reply = reply.conntrackTuple else { return nil }
      return HandedFlow(
        original: original, reply: reply, state: .open, isFromHost: flow.flags & FlowLayout.fromHost != 0, set: set)
    }
  }
}
