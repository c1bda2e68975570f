import BPFLoader
import DataplaneModel
import Logging
import NFTables
import Netlink
import NetworkTypes

/// One engine takes the packet path over from another: connections go on, and nothing passes that neither lets pass.
///
/// Both have their tables in the kernel by then, and one of them no packet meets. For some milliseconds pods' packets are
/// held back; in between, the flows that one knows are told to the other, and the roles change. A packet that both had a hand in
/// would have been translated twice, or by neither.
struct EngineSwitch {
  let conntrack: ConntrackSocket
  let tables: Tables
  let proxy: KubeProxyRemains
  let logger: Logger

  /// An agent that dies half-way leaves nobody waiting for longer. Whatever it leaves, its successor goes on with.
  private static let longestHold = Duration.seconds(2)

  // MARK: To eBPF

  /// Rules of an agent that has ended, or of kube-proxy, give way to programs that let everything pass so far.
  func toPackets(_ flows: PacketFlows) throws {
    var other = try NFTablesEngine()
    // Looked for while packets pass.
    let remains = try proxy.removable()
    let former = try other.hasAwakeTable() ? "nftables" : remains == nil ? nil : "kube-proxy"
    if try flows.standsAside, let former {
      // Most of them while packets still pass.
      let known = Set(Self.withoutShadows(try conntrack.entries().compactMap(handed)))
      var separate = SeparateFlows()
      try flows.add(separate.separated(Array(known)))
      let start = ContinuousClock.now
      try flows.setMode(aside: true, held: Self.longestHold)
      var isHandedOver = false
      defer { if !isHandedOver { try? flows.setMode(aside: true) } }
      let entries = try conntrack.entries()
      let handed = Self.withoutShadows(entries.compactMap(handed))
      try flows.add(separate.separated(handed.filter { !known.contains($0) }))
      // From here on programs judge; rules still do.
      try flows.setMode(aside: false, held: Self.longestHold)
      defer { try? flows.setMode(aside: false) }
      isHandedOver = true
      try other.sleep()
      forget(entries)
      proxy.remove(remains)
      // From the wire some have come since, and got no answer: what is tracked of them would be in the way of their next try.
      do throws(NetlinkError) {
        forget(try conntrack.entries().filter { $0.status & ConntrackStatus.seenReply == 0 })
      } catch {
        logger.warning("attempts of the change are still tracked", metadata: ["reason": "\(error)"])
      }
      logger.info(
        "packet path taken over from \(former)",
        metadata: ["flows": "\(handed.count)", "took": "\(milliseconds(ContinuousClock.now - start))"])
    }
    if try flows.standsAside { try flows.setMode(aside: false) }
    if let left = try proxy.removable() {
      // Of an agent that did not live to do it.
      forget(try conntrack.entries())
      proxy.remove(left)
    }
    try other.cleanUp()
  }

  /// Where somebody else has rules, conntrack would go on translating what programs now do.
  private func forget(_ entries: [ConntrackEntry]) {
    for entry in entries where entry.isTranslated && handed(entry) != nil { _ = try? conntrack.delete(entry) }
  }

  /// A packet that programs had translated and conntrack saw for the first time, in an earlier change of engines, looks like
  /// a flow of its own that nobody translates.
  static func withoutShadows(_ flows: [HandedFlow]) -> [HandedFlow] {
    let judged = Set(flows.filter(\.isTranslated).map(\.judged))
    return flows.filter { $0.isTranslated || !(judged.contains($0.judged) || judged.contains($0.judged.reversed)) }
  }

  /// nil: no flow of a pod or a Service, or one that only conntrack can go on with.
  private func handed(_ entry: ConntrackEntry) -> HandedFlow? {
    let isHosts = tables.node.ownAddresses.contains(entry.original.source)
    // The node's own packets are translated at sockets, when they connect.
    guard entry.zone == 0, !(isHosts && entry.isTranslated) else { return nil }
    let frontends = tables.frontends(of: entry.original)
    let ends = [entry.original.source, entry.original.destination, entry.reply.source]
    guard !frontends.isEmpty || ends.contains(where: tables.node.isLocalPod) else { return nil }
    let isPods = tables.node.isLocalPod(entry.original.source)
    let sets = frontends.map {
      BackendSetID(
        service: $0.service, scope: isPods || isHosts ? $0.nodeScope : $0.outsideScope,
        family: entry.original.destination.family)
    }
    let backend = Port(entry.reply.sourcePort).map { SocketAddress(entry.reply.source, $0) }
    let set = sets.first { set in backend.map { tables.services.sets[set]?.backends.contains($0) == true } ?? false }
    let isAnswered = entry.status & ConntrackStatus.seenReply != 0
    let isOver = entry.tcpState.map { $0 >= ConntrackTCPState.timeWait } ?? false
    return HandedFlow(
      original: entry.original, reply: entry.reply, state: isOver ? .closing : isAnswered ? .open : .opening,
      isFromHost: isHosts, set: set ?? sets.first)
  }

  // MARK: To nftables

  /// Programs of an agent that has ended give way to rules that no packet has met so far.
  func toTables(_ engine: inout NFTablesEngine, from flows: PacketFlows) throws {
    guard try !flows.standsAside else { return try engine.wake() }
    let start = ContinuousClock.now
    try flows.setMode(aside: false, held: Self.longestHold)
    var isHandedOver = false
    defer { if !isHandedOver { try? flows.setMode(aside: false) } }
    let handed = try flows.handed()
    try engine.wake()
    var failures = 0
    for flow in handed {
      do { try conntrack.add(ConntrackAddition(flow)) } catch {
        if failures == 0 {
          logger.warning("a flow is not handed over", metadata: ["error": "\(error)"])
        }
        failures += 1
      }
    }
    try flows.setMode(aside: true)
    isHandedOver = true
    logger.info(
      "packet path taken over from eBPF",
      metadata: [
        "flows": "\(handed.count - failures)", "lost": "\(failures)",
        "took": "\(milliseconds(ContinuousClock.now - start))",
      ])
  }
}

extension ConntrackEntry {
  fileprivate var isTranslated: Bool { reply != original.reversed }
}

extension ConntrackAddition {
  /// With what netfilter gives a flow that a packet was just seen of.
  fileprivate init(_ flow: HandedFlow) {
    let timeout: UInt32 = flow.original.protocolNumber == L4Protocol.udp.rawValue ? 120 : 86_400
    self.init(original: flow.original, reply: flow.reply, isAnswered: true, timeout: timeout)
  }
}
