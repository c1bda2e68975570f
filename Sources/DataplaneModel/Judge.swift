import NetworkTypes

/// A flow's first packet as policy sees it: after destination NAT, before any masquerade.
public struct PolicyPacket: Sendable, Hashable, CustomStringConvertible {
  public var origin: Origin
  public var source: IPAddress
  public var destination: IPAddress
  /// IANA number.
  public var proto: UInt8
  /// 0 where the protocol has none.
  public var destinationPort: UInt16

  public init(origin: Origin, source: IPAddress, destination: IPAddress, proto: UInt8, destinationPort: UInt16) {
    self.origin = origin
    self.source = source
    self.destination = destination
    self.proto = proto
    self.destinationPort = destinationPort
  }

  public var description: String {
    "\(origin) \(source) -> \(destination):\(destinationPort)/\(L4Protocol(rawValue: proto)?.description ?? "\(proto)")"
  }
}

/// One direction's decision about one packet.
public enum PolicyDecision: Sendable, Hashable, CustomStringConvertible {
  /// No local pod on this side.
  case notLocal
  /// A pod to itself, or its own node to a pod.
  case exempt
  /// No policy selects the pod in this direction.
  case unrestricted
  case decided(ClauseKey, PairKey)
  case dropped(DropReason)

  public var isAllowed: Bool {
    switch self {
    case .notLocal, .exempt, .unrestricted: true
    case .decided(let key, _): key.clause.isAllowed
    case .dropped: false
    }
  }
  public var description: String {
    switch self {
    case .notLocal: "not a local pod"
    case .exempt: "exempt"
    case .unrestricted: "unrestricted"
    case .decided(let key, let pair): "\(key) (\(pair))"
    case .dropped(let reason): "dropped: \(reason.rawValue)"
    }
  }
}

public struct PolicyJudgement: Sendable, Hashable {
  public var egress: PolicyDecision
  public var ingress: PolicyDecision

  public init(egress: PolicyDecision, ingress: PolicyDecision) {
    self.egress = egress
    self.ingress = ingress
  }
  public var isAllowed: Bool { egress.isAllowed && ingress.isAllowed }
  public subscript(direction: PolicyDirection) -> PolicyDecision { direction == .ingress ? ingress : egress }
}

extension Tables {
  /// The meaning of the tables for policy. Every engine shows this and no other.
  public func judge(_ packet: PolicyPacket) -> PolicyJudgement {
    let isToItself = packet.source == packet.destination
    let sender = packet.origin == .pod ? node.endpoint(with: packet.source) : nil
    let receiver = node.endpoint(with: packet.destination)
    let egress: PolicyDecision =
      if packet.origin != .pod {
        .notLocal
      } else if isToItself {
        .exempt
      } else {
        decide(sender?.subjects?.egress, peer: packet.destination, packet)
      }
    let ingress: PolicyDecision =
      if receiver == nil {
        .notLocal
      } else if isToItself || packet.origin == .host {
        .exempt
      } else {
        decide(receiver?.subjects?.ingress, peer: packet.source, packet)
      }
    return PolicyJudgement(egress: egress, ingress: ingress)
  }

  private func decide(_ subject: SubjectID?, peer: IPAddress, _ packet: PolicyPacket) -> PolicyDecision {
    guard let subject else { return .dropped(.unknownEndpoint) }
    if subject == .unrestricted { return .unrestricted }
    guard let identity = identities.identity(of: peer) else { return .dropped(.noVerdict) }
    var pair = PairKey(subject, identity)
    if policies.pairs[pair] == nil { pair.identity = .any }
    let key = PortKey(proto: packet.proto, port: packet.destinationPort)
    guard let value = policies.pairs[pair], let clause = policies.portSets[value.portSet]?.clause(for: key),
      policies.clauses[ClauseKey(value.attribution, clause)] != nil
    else { return .dropped(.noVerdict) }
    return .decided(ClauseKey(value.attribution, clause), pair)
  }
}
