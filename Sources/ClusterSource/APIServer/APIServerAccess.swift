import Foundation
import KubernetesObjects

/// Where API servers are, what they are trusted by, and who we are to them.
public struct APIServerAccess: Sendable, Equatable {
  /// Bytes of certificates and keys (PEM). Files are read again: whoever rotates them writes them anew.
  public enum Material: Sendable, Equatable {
    case file(String)
    case bytes([UInt8])
  }

  public enum Trust: Sendable, Equatable {
    /// The system's authorities.
    case system
    case authorities(Material)
    /// Anyone: `insecure-skip-tls-verify`.
    case anyone
  }

  public enum Token: Sendable, Equatable {
    case text(String)
    /// Read again: a service account's is replaced every hour.
    case file(String)
    case plugin(CredentialPlugin)
  }

  /// The same cluster at several addresses: one after the other is tried. Never empty.
  public var servers: [APIServerURL]
  public var trust = Trust.system
  /// The name that the certificate has to be for; nil: the one in the address.
  public var serverName: String?
  public var certificate: Material?
  /// The certificate's private key; where there is one, the other is there too.
  public var key: Material?
  public var token: Token?
  /// HTTP or HTTPS; nil: none.
  public var proxy: APIServerURL?

  public init(servers: [APIServerURL]) { self.servers = servers }
}

/// `https://10.0.0.1:6443/path`.
public struct APIServerURL: Sendable, Hashable, CustomStringConvertible {
  public let isSecure: Bool
  /// A name or an address, of IPv6 without brackets.
  public let host: String
  public let port: Int
  /// "" or `/path`, without a slash at its end.
  public let path: String

  /// nil for anything but http and https, and for an address with a user, a query or a fragment.
  public init?(_ text: some StringProtocol) {
    guard let parts = URLComponents(string: String(text)), let scheme = parts.scheme?.lowercased(),
      ["http", "https"].contains(scheme), let host = parts.host, !host.isEmpty,
      parts.user == nil, parts.password == nil, parts.query == nil, parts.fragment == nil
    else { return nil }
    isSecure = scheme == "https"
    self.host = host.hasPrefix("[") && host.hasSuffix("]") ? String(host.dropFirst().dropLast()) : host
    port = parts.port ?? (isSecure ? 443 : 80)
    guard (1...65535).contains(port) else { return nil }
    path = String(parts.path.reversed().drop { $0 == "/" }.reversed())
  }

  public var description: String {
    "\(isSecure ? "https" : "http")://\(host.contains(":") ? "[\(host)]" : host):\(port)\(path)"
  }
}

extension APIServerAccess {
  public static let serviceAccountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"

  /// As the kubelet tells every container: two variables and a folder. nil outside of a cluster.
  public static func inCluster(
    environment: [String: String], folder: String = serviceAccountFolder
  ) -> APIServerAccess? {
    guard let host = environment["KUBERNETES_SERVICE_HOST"], let port = environment["KUBERNETES_SERVICE_PORT"],
      let server = APIServerURL("https://\(host.contains(":") ? "[\(host)]" : host):\(port)"),
      access("\(folder)/token", R_OK) == 0
    else { return nil }
    var access = APIServerAccess(servers: [server])
    access.trust = .authorities(.file("\(folder)/ca.crt"))
    access.token = .file("\(folder)/token")
    return access
  }
}
