/// Why a packet was dropped. The one list behind metrics, `dpctl` and the docs.
public enum DropReason: String, Sendable, Hashable, CaseIterable {
  case sourceRange = "source-range"
  case noLocalEndpoint = "no-local-endpoint"
  case unallocatedServiceAddress = "unallocated-service-address"
  case forgedSource = "forged-source"
  case forgedAdvertisement = "forged-advertisement"
  case policyDenied = "policy-denied"
  case unknownEndpoint = "unknown-endpoint"
  case noVerdict = "no-verdict"
  case malformed
  case fragment
  case masqueradePorts = "masquerade-ports"
  case unsupported
  case noRoom = "no-room"
  case noConnection = "no-connection"
  case engineSwitch = "engine-switch"

  /// What `walk` can say; the others are policy's and the packet path's own.
  public static let ofServices: [DropReason] = [
    .sourceRange, .noLocalEndpoint, .unallocatedServiceAddress, .forgedSource,
  ]

  /// What only programs say that read packets themselves: netfilter has handled it before rules are asked.
  public static let ofPacketPrograms: [DropReason] = [
    .malformed, .fragment, .masqueradePorts, .unsupported, .noRoom, .noConnection, .engineSwitch,
  ]

  public var explanation: String {
    switch self {
    case .sourceRange: "the client is outside the Service's loadBalancerSourceRanges"
    case .noLocalEndpoint: "the traffic policy is Local and this node has no usable endpoint"
    case .unallocatedServiceAddress: "the address lies in a ServiceCIDR, but no Service has it"
    case .forgedSource: "sent with a hardware or IP address that is not the sender's own"
    case .forgedAdvertisement: "a pod sent a router advertisement or a redirect"
    case .policyDenied: "denied by policy"
    case .unknownEndpoint: "the pod is not known yet: its policies have not been compiled"
    case .noVerdict: "a look-up found nothing: the tables are damaged, or the packet has no transport header"
    case .malformed: "its headers cannot be read"
    case .fragment: "a fragment that came before the first one of its packet, or too long after it"
    case .masqueradePorts: "every port that a masqueraded flow could leave with is taken"
    case .noRoom: "connection tracking could not take the flow"
    case .noConnection: "a reset or an ICMP error to a Service, of a connection that is not known any more"
    case .engineSwitch: "held back while one engine took over from another"
    case .unsupported: "nothing that this engine handles: extension headers, an Ethernet type, SCTP to another port"
    }
  }
}

/// Why a packet was answered with an error.
public enum RejectReason: String, Sendable, Hashable, CaseIterable {
  case noEndpoint = "no-endpoint"
  case undefinedPort = "undefined-port"

  public var explanation: String {
    switch self {
    case .noEndpoint: "the Service has no endpoint anywhere"
    case .undefinedPort: "the Service address has no such port"
    }
  }
}
