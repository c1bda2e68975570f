import KubernetesObjects
import NetworkTypes

/// The arguments of `/v1/explain`.
struct ExplainRequest: Sendable, Equatable {
  /// Who is at one end.
  enum Party: Sendable, Equatable {
    /// A pod, or, where a Service may be meant too and there is no such pod, a Service.
    case named(ObjectKey)
    case pod(ObjectKey)
    case service(ObjectKey)
    case address(IPAddress)
    /// This node's own processes.
    case host
    /// Any address that no policy speaks of.
    case world
  }
  enum Transport: Sendable, Equatable {
    case ports(L4Protocol, Port)
    case icmp

    /// IANA number.
    func number(_ family: IPFamily) -> UInt8 {
      switch self {
      case .ports(let proto, _): proto.rawValue
      case .icmp: family == .v4 ? 1 : 58
      }
    }
    var port: UInt16 {
      switch self {
      case .ports(_, let port): port.number
      case .icmp: 0
      }
    }
  }

  var sourceText: String
  var source: Party
  var destinationText: String
  var destination: Party
  var transport: Transport
  /// nil: whichever both ends have, IPv4 first.
  var family: IPFamily?

  static let arguments: Set<String> = ["source", "destination", "protocol", "port", "family"]

  /// Throws `RequestProblem`, which names the argument.
  init(_ arguments: [String: String]) throws {
    func text(_ name: String) throws -> String {
      guard let text = arguments[name], !text.isEmpty else { throw RequestProblem(name, "missing") }
      return text
    }
    sourceText = try text("source")
    destinationText = try text("destination")
    guard let source = Party(sourceText) else {
      throw RequestProblem("source", "'\(sourceText)' is no namespace/pod, no IP address, 'host' or 'world'")
    }
    if case .service = source { throw RequestProblem("source", "'\(sourceText)': a Service sends nothing") }
    guard let destination = Party(destinationText), destination != .host else {
      throw RequestProblem(
        "destination",
        "'\(destinationText)' is no namespace/pod, namespace/service, svc/namespace/service, IP address or 'world'")
    }
    (self.source, self.destination) = (source, destination)
    let proto = arguments["protocol"] ?? "tcp"
    if proto == "icmp" || proto == "icmpv6" {
      guard arguments["port"] == nil else { throw RequestProblem("port", "\(proto) has none") }
      transport = .icmp
    } else {
      guard let known = L4Protocol(kubernetesName: proto.uppercased()) else {
        throw RequestProblem("protocol", "'\(proto)' is none of tcp, udp, sctp, icmp")
      }
      let number = try text("port")
      guard let port = UInt16(number).flatMap({ Port($0) }) else {
        throw RequestProblem("port", "'\(number)' is not 1 to 65535")
      }
      transport = .ports(known, port)
    }
    if let text = arguments["family"] {
      guard let family = IPFamily.allCases.first(where: { $0.description.lowercased() == text.lowercased() }) else {
        throw RequestProblem("family", "'\(text)' is neither IPv4 nor IPv6")
      }
      self.family = family
    }
  }
}

extension ExplainRequest.Party {
  /// `shop/api-1`, `pod/shop/api-1`, `svc/shop/api`, `10.0.0.1`, `fd00::1`, `host`, `world`.
  init?(_ text: String) {
    if text == "host" {
      self = .host
    } else if text == "world" {
      self = .world
    } else if let address = IPAddress(text) {
      self = .address(address)
    } else {
      let parts = text.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
      guard parts.allSatisfy({ !$0.isEmpty }) else { return nil }
      switch (parts.count, parts[0]) {
      case (2, _): self = .named(ObjectKey(namespace: parts[0], name: parts[1]))
      case (3, "pod"): self = .pod(ObjectKey(namespace: parts[1], name: parts[2]))
      case (3, "svc"), (3, "service"): self = .service(ObjectKey(namespace: parts[1], name: parts[2]))
      default: return nil
      }
    }
  }
}
