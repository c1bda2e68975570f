import Foundation
import LocalAPI

/// Something about a node that its operators should hear of.
public struct NodeEvent: Sendable, Equatable {
  /// One word in CamelCase, for programs.
  public var reason: String
  /// For people.
  public var message: String
  public var isWarning: Bool
  public var time: Date

  public init(_ reason: String, _ message: String, isWarning: Bool = false, time: Date = Date()) {
    (self.reason, self.message, self.isWarning, self.time) = (reason, message, isWarning, time)
  }
}

/// What a server will say again of the same Event.
public struct EventRefused: Error, CustomStringConvertible {
  public let description: String
}

/// Writes Events on a Node: `kubectl describe node` and `kubectl get events` show them.
/// https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
public struct NodeEventWriter: Sendable {
  /// What a server takes.
  static let longestMessage = 1024
  /// Seconds in which the same is said once.
  static let period = 600.0

  private let access: APIServerAccess
  private let node: String
  private let component: String

  public init(_ access: APIServerAccess, node: String, component: String) {
    (self.access, self.node, self.component) = (access, node, component)
  }

  /// Creates an Event, unless there is one that says the same in the same ten minutes: an agent that is started again and
  /// again must not flood anybody. By a connection of its own: they are rare.
  ///
  /// - Throws: ``EventRefused`` where a server refuses it for good, else what keeps all servers from taking it now.
  public func write(_ event: NodeEvent) async throws {
    let client = APIServerClient(access, limits: .init(connect: .seconds(1), silence: .seconds(5)))
    var left = access.servers.count
    while true {
      left -= 1
      do {
        // Of what belongs to no namespace, Events are in this one.
        return try await client.create(object(event), at: "/api/v1/namespaces/default/events")
      } catch let status as APIStatus where status.code < 500 {
        if status.code == 409 { return }
        if [400, 403, 404, 422].contains(status.code) { throw EventRefused(description: "\(status)") }
        throw status
      } catch {
        // The client has turned to the next server.
        guard left > 0, !(error is CancellationError) else { throw error }
      }
    }
  }

  func object(_ event: NodeEvent) -> JSONValue {
    let period = Int(event.time.timeIntervalSince1970 / Self.period)
    let name = "\(node).\(StableHash.hex128("\(period) \(component) \(event.reason) \(event.message)").prefix(16))"
    let time = JSONValue.string(event.time.formatted(.iso8601))
    var message = event.message
    if message.utf8.count > Self.longestMessage {
      message = String(decoding: message.utf8.prefix(Self.longestMessage - 8), as: UTF8.self) + "..."
    }
    return [
      "kind": "Event", "apiVersion": "v1", "metadata": ["name": .string(name), "namespace": "default"],
      // kubectl looks for a Node's by its name in the place of the uid, as kubelet writes them.
      "involvedObject": ["kind": "Node", "name": .string(node), "uid": .string(node)],
      "reason": .string(event.reason), "message": .string(message), "type": event.isWarning ? "Warning" : "Normal",
      "source": ["component": .string(component), "host": .string(node)], "firstTimestamp": time,
      "lastTimestamp": time, "count": 1, "reportingComponent": .string(component), "reportingInstance": .string(node),
    ]
  }
}
