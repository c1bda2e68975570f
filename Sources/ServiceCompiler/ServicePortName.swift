import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// What has a number of its own: one port of one Service.
public struct ServicePortName: Hashable, Sendable, Comparable, CustomStringConvertible {
  public var service: ObjectKey
  /// The port's name; empty where it has none.
  public var port: String
  public var proto: L4Protocol

  public init(service: ObjectKey, port: String, proto: L4Protocol) {
    self.service = service
    self.port = port
    self.proto = proto
  }

  public static func < (left: Self, right: Self) -> Bool {
    (left.service, left.port, left.proto) < (right.service, right.port, right.proto)
  }

  /// `shop/api:http/tcp`; unambiguous, and what the number journal stores.
  public var description: String { "\(service):\(port)/\(proto)" }
}

/// Gives service ports their numbers. A name keeps its number for life, also across restarts of the agent.
public protocol ServiceNumbering {
  /// nil when all numbers are taken, or the assignment could not be recorded.
  mutating func number(of name: ServicePortName) -> ServicePortID?
}

/// Numbers for tests and one-shot tools: first come, first numbered, nothing recorded.
public struct VolatileNumbering: ServiceNumbering {
  private var numbers: [ServicePortName: ServicePortID] = [:]
  public init() {}

  public mutating func number(of name: ServicePortName) -> ServicePortID? {
    if let known = numbers[name] { return known }
    let fresh = ServicePortID(numbers.count + 1)
    numbers[name] = fresh
    return fresh
  }
}
