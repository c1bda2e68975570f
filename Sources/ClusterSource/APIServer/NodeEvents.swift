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

/// Writes Events on a Node: `kubectl describe node` and `kubectl get events` show them.
/// https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
public struct NodeEventWriter: Sendable {
  /// What a server takes.
  static let longestMessage = 1024

  private let access: APIServerAccess
  private let node: String
  private let component: String

  public init(_ access: APIServerAccess, node: String, component: String) {
    (self.access, self.node, self.component) = (access, node, component)
  }

  /// Creates an Event. By a connection of its own: they are rare.
  ///
  /// - Throws: ``APIStatus`` where a server refuses it, else what keeps it from being reached.
  public func write(_ event: NodeEvent) async throws {
    // Of what belongs to no namespace, Events are in this one.
    try await APIServerClient(access).create(object(event), at: "/api/v1/namespaces/default/events")
  }

  func object(_ event: NodeEvent) -> JSONValue {
    // To the microsecond and a number at random: agents of many nodes write here.
    let number = UInt64(max(0, event.time.timeIntervalSince1970 * 1_000_000))
    let name = "\(node).\(String(number, radix: 16))\(String(UInt16.random(in: 0x1000...UInt16.max), radix: 16))"
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
