import NetworkTypes

/// A port of the node that leads to one of a pod: what a Pod object calls hostPort, and the runtime `portMappings`.
public struct PortMapping: Sendable, Hashable, CustomStringConvertible {
  public var proto: L4Protocol
  public var hostPort: Port
  public var containerPort: Port
  /// Where it listens. nil: at the node's addresses; unspecified: at those of its family.
  public var hostIP: IPAddress?

  public init(_ proto: L4Protocol, hostPort: Port, containerPort: Port, hostIP: IPAddress? = nil) {
    self.proto = proto
    self.hostPort = hostPort
    self.containerPort = containerPort
    self.hostIP = hostIP
  }

  /// Whether one packet can be meant for both.
  public func overlaps(_ other: PortMapping) -> Bool {
    guard proto == other.proto, hostPort == other.hostPort else { return false }
    guard let hostIP, let otherIP = other.hostIP else { return true }
    return hostIP.family == otherIP.family
      && (hostIP == otherIP || [hostIP, otherIP].contains(.unspecified(hostIP.family)))
  }

  /// `tcp/8080`, `192.0.2.1 tcp/8080`
  public var description: String { (hostIP.map { "\($0) " } ?? "") + "\(proto)/\(hostPort)" }

  public var json: JSONValue {
    var object: JSONObject = [
      "protocol": .string(proto.description), "hostPort": .int(Int64(hostPort.number)),
      "containerPort": .int(Int64(containerPort.number)),
    ]
    object["hostIP"] = hostIP.map { .string($0.description) }
    return .object(object)
  }

  public init(json: JSONValue) throws(FieldError) {
    let reader = try FieldReader(json, "port mapping")
    proto = try reader.value("protocol", "transport protocol") {
      $0.stringValue.flatMap { L4Protocol(kubernetesName: $0.uppercased()) }
    }
    hostPort = try reader.value("hostPort", "port") { $0.intValue.flatMap { Port($0) } }
    containerPort = try reader.value("containerPort", "port") { $0.intValue.flatMap { Port($0) } }
    hostIP = try reader.optional("hostIP") { name throws(FieldError) in
      try reader.value(name, "IP address") { $0.stringValue.flatMap { IPAddress($0) } }
    }
  }
}
