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
    let reader = LogReader(reconciler: reconciler, ring: reconciler.events, logger: logger)
    // A thread of its own: waiting for the kernel must not hold one of the pool's.
    let thread = Thread { reader.run() }
    thread.name = "policy-log"
    thread.start()
    try? await gracefulShutdown()
    reader.stop()
    reconciler.events.close()
  }
}

/// The thread's work.
private final class LogReader: Sendable {
  private let reconciler: Reconciler
  private let ring: EventRing
  private let logger: Logger
  private let stopped = DispatchSemaphore(value: 0)

  init(reconciler: Reconciler, ring: EventRing, logger: Logger) {
    (self.reconciler, self.ring, self.logger) = (reconciler, ring, logger)
  }

  func stop() { stopped.signal() }

  func run() {
    var warned = ""
    while true {
      do {
        let socket = try PacketLogSocket(group: NFTablesEngine.logGroup)
        if !warned.isEmpty { logger.info("dropped packets are followed again") }
        warned = ""
        inform { await $0.setFollowsLog(true) }
        guard try follow(socket) else { return }
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
  private func follow(_ socket: PacketLogSocket) throws -> Bool {
    var lost: UInt64 = 0
    var untold: UInt64 = 0
    var budget = Budget(perSecond: FollowPolicyLog.eventsPerSecond)
    while wait(.zero) {
      let events = try socket.next(timeoutMilliseconds: 500)
      let allowed = budget.take(events.messages.count)
      untold += events.lost - lost + UInt64(events.messages.count - allowed)
      lost = events.lost
      // In a flood nothing is told until the next second: one event then says how much was lost.
      if allowed > 0 || events.messages.isEmpty {
        ring.noteLost(untold, at: .now)
        untold = 0
      }
      if allowed > 0 { inform { [messages = Array(events.messages.prefix(allowed))] in await $0.note(messages) } }
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
  private static let start = ContinuousClock.now
}

extension Reconciler {
  func setFollowsLog(_ follows: Bool) { followsLog = follows }

  /// Takes packets that rules have logged: by now the names are what they are.
  func note(_ messages: [PacketLogMessage]) { events.append(messages.map(event)) }

  private func event(_ message: PacketLogMessage) -> PolicyEvent {
    var event = PolicyEvent(time: message.timestamp ?? .now, kind: .drop)
    event.revision = revision
    event.reason = message.prefix
    if let direction = NFTablesEngine.policyDirection(ofLogPrefix: message.prefix) {
      event.direction = direction
      // An audit's is what the policy would have done it for.
      event.reason = DropReason.policyDenied.rawValue
      event.kind = message.mark & ClauseLabel.passes == 0 ? .drop : .audit
      if let meaning = clauses.meaning(of: message.mark) {
        event.policies = meaning.attribution.policies(of: meaning.clause)
        event.isDefaultDeny = meaning.clause.kind == .defaultDeny || meaning.clause.kind == .auditDeny
      }
    }
    let interfaces = [message.inputInterface, message.outputInterface].compactMap { $0.flatMap(Self.interfaceName) }
    event.interface = interfaces.first { tables.node.endpoints[$0] != nil }
    guard let headers = PacketHeaders(message.payload) else { return event }
    event.source = side(headers.source, headers.sourcePort, isOrigin: message.inputInterface == nil)
    event.destination = side(headers.destination, headers.destinationPort, isOrigin: false)
    event.proto = headers.protocolNumber
    event.flags = headers.tcpFlags
    event.icmpType = headers.icmpType
    event.length = headers.totalLength
    return event
  }

  private func side(_ address: IPAddress, _ port: UInt16?, isOrigin: Bool) -> PolicyEvent.Side {
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

  private static func interfaceName(_ index: UInt32) -> String? {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(IF_NAMESIZE)) { buffer in
      guard let start = buffer.baseAddress, let name = if_indextoname(index, start) else { return nil }
      return String(cString: name)
    }
  }
}
