/// The transport protocols a Service or NetworkPolicy can name, with their IANA numbers.
public enum L4Protocol: UInt8, Sendable, Hashable, CaseIterable, Comparable, CustomStringConvertible {
  case tcp = 6
  case udp = 17
  case sctp = 132

  /// The Kubernetes API's spelling, upper case: `TCP`, `UDP`, `SCTP`.
  public init?(kubernetesName: some StringProtocol) {
    switch kubernetesName {
    case "TCP": self = .tcp
    case "UDP": self = .udp
    case "SCTP": self = .sctp
    default: return nil
    }
  }

  public var kubernetesName: String { description.uppercased() }

  public var description: String {
    switch self {
    case .tcp: "tcp"
    case .udp: "udp"
    case .sctp: "sctp"
    }
  }

  public static func < (left: L4Protocol, right: L4Protocol) -> Bool { left.rawValue < right.rawValue }
}

/// A transport port, 1...65535, host byte order.
public struct Port: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let number: UInt16

  public init?(_ number: some BinaryInteger) {
    guard let number = UInt16(exactly: number), number != 0 else { return nil }
    self.number = number
  }

  public static func < (left: Port, right: Port) -> Bool { left.number < right.number }
  public var description: String { "\(number)" }
}

/// An address with a port: where a backend listens.
public struct SocketAddress: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var address: IPAddress
  public var port: Port

  public init(_ address: IPAddress, _ port: Port) {
    self.address = address
    self.port = port
  }

  public static func < (left: SocketAddress, right: SocketAddress) -> Bool {
    left.address != right.address ? left.address < right.address : left.port < right.port
  }

  /// `10.0.0.1:80` or `[fd00::1]:80`.
  public var description: String { address.family == .v4 ? "\(address):\(port)" : "[\(address)]:\(port)" }
}
