import ClusterSource
import Foundation
import Logging
import ServiceLifecycle

/// What about an agent its operators should hear of, as of one moment.
struct AgentCondition: Sendable, Equatable {
  var isSynced = false
  /// Why what is wanted is not in the kernel.
  var failure: String?
  /// How often the kernel did not have what had been programmed, since the start.
  var repairs = 0
}

/// Makes Events of what changes: each thing once, and nothing of what passes by itself.
struct ConditionEvents {
  /// What lasts shorter than that was a hiccup.
  static let patience = Duration.seconds(10)
  /// Of somebody who fights with the agent is told that often.
  static let betweenRepairs = Duration.seconds(600)

  private let engine: String
  private var hasStarted = false
  private var failingSince: ContinuousClock.Instant?
  private var isToldOfFailure = false
  private var toldRepairs = 0
  private var lastRepair: ContinuousClock.Instant?

  init(engine: String) { self.engine = engine }

  mutating func next(_ condition: AgentCondition, at now: ContinuousClock.Instant) -> [NodeEvent] {
    var events: [NodeEvent] = []
    if condition.isSynced, !hasStarted {
      hasStarted = true
      events.append(
        NodeEvent("SluiceStarted", "sluice-agent \(sluiceVersion) programs Services and policies by \(engine)."))
    }
    if let failure = condition.failure {
      let since = failingSince ?? now
      failingSince = since
      if !isToldOfFailure, now - since >= Self.patience {
        isToldOfFailure = true
        events.append(
          NodeEvent("SluiceNotProgrammed", "The kernel does not have what is wanted: \(failure)", isWarning: true))
      }
    } else {
      failingSince = nil
      if isToldOfFailure { events.append(NodeEvent("SluiceProgrammed", "The kernel has again what is wanted.")) }
      isToldOfFailure = false
    }
    if condition.repairs > toldRepairs, lastRepair.map({ now - $0 >= Self.betweenRepairs }) ?? true {
      let times = condition.repairs - toldRepairs
      (toldRepairs, lastRepair) = (condition.repairs, now)
      events.append(
        NodeEvent(
          "SluiceRepaired",
          "The kernel no longer had what sluice-agent had programmed; repaired\(times > 1 ? " \(times) times" : "")"
            + ". Its log names the objects.",
          isWarning: true))
    }
    return events
  }
}

/// Tells an API server what happens to this node's data plane. The log has all of it too: what no server takes within a
/// minute is let go.
struct TellNode: Service {
  let reconciler: Reconciler
  let configuration: AgentConfiguration
  let logger: Logger

  func run() async throws {
    guard let writer = Self.writer(configuration) else { return try await gracefulShutdown() }
    var events = ConditionEvents(engine: configuration.engine.rawValue)
    var waiting: [NodeEvent] = []
    var nextAttempt = ContinuousClock.now
    for await _ in AsyncTicks(every: .seconds(1)).cancelOnGracefulShutdown() {
      waiting += events.next(await reconciler.condition, at: .now)
      waiting.removeAll { Date().timeIntervalSince($0.time) > 60 }
      guard let event = waiting.first, ContinuousClock.now >= nextAttempt else { continue }
      do {
        try await cancelWhenGracefulShutdown { try await writer.write(event) }
        waiting.removeFirst()
      } catch is CancellationError {
        return
      } catch {
        logger.info("Event not written", metadata: ["event": "\(event.reason)", "reason": "\(error)"])
        if error is EventRefused { waiting.removeFirst() }
        nextAttempt = .now + .seconds(10)
      }
    }
  }

  /// The last that is heard of an agent: why it ends. Takes three seconds at most.
  static func tell(ofEnd error: any Error, _ configuration: AgentConfiguration) async {
    guard let writer = writer(configuration) else { return }
    // Not in a group: that would wait for a credential plugin, which cannot be cancelled.
    let (ends, end) = AsyncStream.makeStream(of: Void.self)
    Task {
      try? await writer.write(NodeEvent("SluiceStopped", "\(error)", isWarning: true))
      end.yield()
    }
    Task {
      try? await Task.sleep(for: .seconds(3))
      end.yield()
    }
    for await _ in ends { return }
  }

  /// nil: what stands in a folder has nobody to be told.
  private static func writer(_ configuration: AgentConfiguration) -> NodeEventWriter? {
    guard case .apiServer(let access, _) = configuration.source else { return nil }
    return NodeEventWriter(access, node: configuration.nodeName, component: "sluice-agent")
  }
}
