import BPFLoader
import DataplaneModel
import Dispatch
import Foundation
import Glibc
import Logging
import NFTables
import Netlink
import NetworkTypes
import ServiceLifecycle

/// Reads what the rules log, and hands it to the reconciler, who knows the names.
///
/// Only as fast as it is worth: under a flood of denied packets, naming each would take the agent's time from its work.
/// What is beyond `eventsPerSecond` is counted as lost, and so is what the socket has no room for meanwhile.
struct FollowPolicyLog: Service {
  static let eventsPerSecond = 5_000
  static let retryDelay = Duration.seconds(5)

  let reconciler: Reconciler
  let logger: Logger

  func run() async throws {
    let reader = LogReader(
      reconciler: reconciler, ring: reconciler.events, logger: logger, open: reconciler.configuration.openEvents)
    // A thread of its own: waiting for the kernel must not hold one of the pool's.
    let thread = Thread { reader.run() }
    thread.name = "policy-log"
    thread.start()
    try? await gracefulShutdown()
    reader.stop()
    reconciler.events.close()
  }
}

/// Where the packet path tells what it does.
protocol EventSource: Sendable {
  associatedtype Event: NamedByReconciler
  /// - Returns: what came, nothing where the time is over; and how many were lost since the source was opened.
  func take(timeoutMilliseconds: Int) throws -> (events: [Event], lost: UInt64)
}

/// What only the reconciler has names for.
protocol NamedByReconciler: Sendable {
  func named(by reconciler: isolated Reconciler) -> PolicyEvent
}

extension PacketLogSocket: EventSource {
  func take(timeoutMilliseconds: Int) throws -> (events: [PacketLogMessage], lost: UInt64) {
    let news = try next(timeoutMilliseconds: timeoutMilliseconds)
    return (news.messages, news.lost)
  }
}

/// The ring counts what it loses for as long as it is there.
private struct RingSource: EventSource {
  let reader: EventReader
  let lostBefore: UInt64

  init(_ folder: String) throws {
    reader = try EventReader(pins: try PinFolder(folder))
    lostBefore = try reader.lostEvents
  }

  func take(timeoutMilliseconds: Int) throws -> (events: [PacketEvent], lost: UInt64) {
    (try reader.next(timeoutMilliseconds: timeoutMilliseconds), try reader.lostEvents - lostBefore)
  }
}

extension AgentConfiguration {
  fileprivate var openEvents: @Sendable () throws -> any EventSource {
    { [engine, bpffs] in
      switch engine {
      case .nftables: try PacketLogSocket(group: NFTablesEngine.logGroup)
      case .ebpf: try RingSource(bpffs)
      }
    }
  }
}

/// The thread's work.
private final class LogReader: Sendable {
  private let reconciler: Reconciler
  private let ring: EventRing
  private let logger: Logger
  private let open: @Sendable () throws -> any EventSource
  private let stopped = DispatchSemaphore(value: 0)

  init(
    reconciler: Reconciler, ring: EventRing, logger: Logger, open: @escaping @Sendable () throws -> any EventSource
  ) {
    (self.reconciler, self.ring, self.logger, self.open) = (reconciler, ring, logger, open)
  }

  func stop() { stopped.signal() }

  func run() {
    var warned = ""
    while true {
      do {
        let source = try open()
        if !warned.isEmpty { logger.info("dropped packets are followed again") }
        warned = ""
        inform { await $0.setFollowsLog(true) }
        guard try follow(source) else { return }
      } catch {
        inform { await $0.setFollowsLog(false) }
        // What happens until the group is read again is not counted by anybody: at least one event is said to be lost.
        if warned.isEmpty { ring.noteLost(1, at: .now) }
        if warned != "\(error)" {
          warned = "\(error)"
          logger.warning("dropped packets cannot be followed", metadata: ["error": "\(error)"])
        }
        if !wait(FollowPolicyLog.retryDelay) { return }
      }
    }
  }

  /// false: the agent ends.
  private func follow(_ source: some EventSource) throws -> Bool {
    var lost: UInt64 = 0
    var untold: UInt64 = 0
    var budget = Budget(perSecond: FollowPolicyLog.eventsPerSecond)
    while wait(.zero) {
      let news = try source.take(timeoutMilliseconds: 500)
      let allowed = budget.take(news.events.count)
      untold += news.lost - lost + UInt64(news.events.count - allowed)
      lost = news.lost
      // In a flood nothing is told until the next second: one event then says how much was lost.
      if allowed > 0 || news.events.isEmpty {
        ring.noteLost(untold, at: .now)
        untold = 0
      }
      if allowed > 0 { inform { [events = Array(news.events.prefix(allowed))] in await $0.note(events) } }
      // What is not told is not read either: the kernel counts what it has no room for, and that costs nothing here.
      if allowed < news.events.count, !wait(budget.untilNextSecond()) { return false }
    }
    return false
  }

  /// Waits until the reconciler has done it: what comes meanwhile waits in the socket, which counts what it has no room for.
  private func inform(_ body: @escaping @Sendable (Reconciler) async -> Void) {
    let done = DispatchSemaphore(value: 0)
    Task { [reconciler] in
      await body(reconciler)
      done.signal()
    }
    done.wait()
  }

  /// false: the agent ends.
  private func wait(_ duration: Duration) -> Bool {
    guard stopped.wait(timeout: .now() + .milliseconds(Int(duration / .milliseconds(1)))) == .timedOut else {
      stopped.signal()
      return false
    }
    return true
  }
}

/// So many in each second.
struct Budget {
  let perSecond: Int
  private var second: Int64 = .min
  private var left = 0

  init(perSecond: Int) { self.perSecond = perSecond }

  /// - Returns: how many of `count` there is room for.
  mutating func take(_ count: Int, now: ContinuousClock.Instant = .now) -> Int {
    let second = (now - Self.start).components.seconds
    if second != self.second { (self.second, left) = (second, perSecond) }
    defer { left -= min(left, count) }
    return min(left, count)
  }
  func untilNextSecond(now: ContinuousClock.Instant = .now) -> Duration {
    let passed = now - Self.start
    return .seconds(passed.components.seconds + 1) - passed
  }
  private static let start = ContinuousClock.now
}

extension Reconciler {
  func setFollowsLog(_ follows: Bool) { followsLog = follows }

  /// Somebody begins, or ends, to listen to kinds of events that are told on request.
  ///
  /// - Throws: `RequestProblem` where the engine cannot tell them.
  func listen(to kinds: Set<PolicyEvent.Kind>, by step: Int) throws {
    let kinds = kinds.intersection(PolicyEvent.Kind.onRequest)
    guard !kinds.isEmpty else { return }
    guard engine is PacketEngine else {
      let names = kinds.map { "'\($0.rawValue)'" }.sorted().joined(separator: ", ")
      throw RequestProblem("type", "\(names) events: not by the nftables engine, which logs drops and audits only")
    }
    for kind in kinds { listeners[kind, default: 0] += step }
    try tellListeners()
  }

  /// Programs outlive their agent, and with it those who listened.
  func tellListeners() throws {
    guard let packets = engine as? PacketEngine else { return }
    try packets.listen(to: Set(listeners.filter { $0.value > 0 }.keys.flatMap(\.packetKinds)))
  }

  /// Takes what the packet path told: by now the names are what they are.
  func note(_ told: [some NamedByReconciler]) { events.append(told.map { $0.named(by: self) }) }

  func side(_ address: IPAddress, _ port: UInt16?, isOrigin: Bool) -> PolicyEvent.Side {
    let identity = tables.identities.identity(of: address)
    var side = PolicyEvent.Side(
      address: address, port: port, pod: nil, kind: kind(of: address), identity: identity)
    if case .pod(let pod) = policies.owner(of: address) { side.pod = pod }
    if isOrigin { side.kind = "host" }
    return side
  }

  /// What an address is, as `IdentityKind` and its contract word it.
  func kind(of address: IPAddress) -> String {
    let kind = tables.identities.identity(of: address).flatMap { policies.kind(of: $0) } ?? .world
    return kind == .world && tables.node.ownAddresses.contains(address)
      ? IdentityKind.node.description : kind.description
  }

  static func interfaceName(_ index: UInt32) -> String? {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(IF_NAMESIZE)) { buffer in
      guard let start = buffer.baseAddress, let name = if_indextoname(index, start) else { return nil }
      return String(cString: name)
    }
  }
}

extension PacketLogMessage: NamedByReconciler {
  func named(by reconciler: isolated Reconciler) -> PolicyEvent {
    var event = PolicyEvent(time: timestamp ?? .now, kind: .drop)
    event.revision = reconciler.revision
    event.reason = prefix
    if let direction = NFTablesEngine.policyDirection(ofLogPrefix: prefix) {
      event.direction = direction
      // An audit's is what the policy would have done it for.
      event.reason = DropReason.policyDenied.rawValue
      event.kind = mark & ClauseLabel.passes == 0 ? .drop : .audit
      if let meaning = reconciler.clauses.meaning(of: mark) {
        event.policies = meaning.attribution.policies(of: meaning.clause)
        event.isDefaultDeny = meaning.clause.kind == .defaultDeny || meaning.clause.kind == .auditDeny
      }
    }
    let interfaces = [inputInterface, outputInterface].compactMap { $0.flatMap(Reconciler.interfaceName) }
    event.interface = interfaces.first { reconciler.tables.node.endpoints[$0] != nil }
    guard let headers = PacketHeaders(payload) else { return event }
    event.source = reconciler.side(headers.source, headers.sourcePort, isOrigin: inputInterface == nil)
    event.destination = reconciler.side(headers.destination, headers.destinationPort, isOrigin: false)
    event.proto = headers.protocolNumber
    event.flags = headers.tcpFlags
    event.icmpType = headers.icmpType
    event.length = headers.totalLength
    return event
  }
}

extension PolicyEvent.Kind {
  /// What programs call it.
  fileprivate var packetKinds: [PacketEvent.Kind] {
    PacketEvent.Kind.allCases.filter { PolicyEvent.Kind($0) == self }
  }

  fileprivate init(_ kind: PacketEvent.Kind) {
    switch kind {
    case .drop: self = .drop
    case .audit: self = .audit
    case .verdict: self = .verdict
    case .translation, .reject: self = .lb
    case .trace: self = .trace
    }
  }
}

extension PacketEvent: NamedByReconciler {
  func named(by reconciler: isolated Reconciler) -> PolicyEvent {
    var event = PolicyEvent(time: .now, kind: PolicyEvent.Kind(kind))
    event.revision = reconciler.revision
    switch kind {
    case .drop: event.reason = reason?.rawValue ?? ""
    case .audit: event.reason = DropReason.policyDenied.rawValue
    case .reject: event.reason = "rejected"
    case .verdict, .translation, .trace: break
    }
    (event.isReply, event.place) = (isAnswer, place)
    if let clause {
      event.direction = direction
      if let meaning = reconciler.clauses.meaning(of: clause) {
        event.policies = meaning.attribution.policies(of: meaning.clause)
        event.isDefaultDeny = meaning.clause.kind == .defaultDeny || meaning.clause.kind == .auditDeny
      }
    }
    event.interface = Reconciler.interfaceName(device).flatMap {
      reconciler.tables.node.endpoints[$0] != nil ? $0 : nil
    }
    event.length = length
    guard let source, let destination else { return event }
    let hasPorts = L4Protocol(rawValue: proto) != nil
    event.source = reconciler.side(
      source, hasPorts ? sourcePort : nil, isOrigin: reconciler.tables.node.ownAddresses.contains(source))
    event.destination = reconciler.side(destination, hasPorts ? destinationPort : nil, isOrigin: false)
    if let ends = translated {
      event.translated = [(ends.source, ends.sourcePort), (ends.destination, ends.destinationPort)].map {
        reconciler.side($0, hasPorts ? $1 : nil, isOrigin: false)
      }
    }
    event.proto = proto
    event.flags = proto == L4Protocol.tcp.rawValue ? TCPFlags(rawValue: tcpFlags) : nil
    event.icmpType = proto == 1 || proto == 58 ? icmpType : nil
    return event
  }
}
