/// Why a packet was dropped. The one list behind metrics, `dpctl` and the docs.
public enum DropReason: String, Sendable, Hashable, CaseIterable {
  case sourceRange = "source-range"
  case noLocalEndpoint = "no-local-endpoint"
  case unallocatedServiceAddress = "unallocated-service-address"
  case forgedSource = "forged-source"

  public var explanation: String {
    switch self {
    case .sourceRange: "the client is outside the Service's loadBalancerSourceRanges"
    case .noLocalEndpoint: "the traffic policy is Local and this node has no usable endpoint"
    case .unallocatedServiceAddress: "the address lies in a ServiceCIDR, but no Service has it"
    case .forgedSource: "the pod sent with a hardware or IP address that is not its own"
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
