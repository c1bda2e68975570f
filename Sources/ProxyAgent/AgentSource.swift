import ArgumentParser
import ClusterSource
import Foundation

/// Addresses of API servers, comma-separated.
struct ServerList: Sendable, Equatable, ExpressibleByArgument {
  var servers: [APIServerURL]
  init?(argument: String) {
    let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
    servers = parts.compactMap { APIServerURL($0) }
    guard servers.count == parts.count else { return nil }
  }
}

/// Where the cluster's objects come from.
enum AgentSource: Sendable, Equatable, CustomStringConvertible {
  case manifests(String)
  /// `isBehindService`: the address is the one that a cluster gives its pods.
  case apiServer(APIServerAccess, isBehindService: Bool)

  /// - Parameter environment: tells whether this is a pod of a cluster.
  init(
    _ flags: AgentOptions, _ file: ConfigFile, environment: [String: String] = ProcessInfo.processInfo.environment,
    _ readFile: AgentConfiguration.FileReader
  ) throws {
    let manifests = try flags.manifests ?? file.string("manifests")
    let kubeconfig = try flags.kubeconfig ?? file.string("kubeconfig")
    let context = try flags.context ?? file.string("context")
    let servers = try flags.apiServer ?? file.value("apiServer")
    if context != nil, kubeconfig == nil { throw ValidationError("--context: needs --kubeconfig") }
    if let manifests {
      guard kubeconfig == nil, servers == nil else {
        throw ValidationError("--manifests: does not go with --kubeconfig and --api-server")
      }
      self = .manifests(manifests)
      return
    }
    var access: APIServerAccess
    if let kubeconfig {
      access = try Kubeconfig(path: kubeconfig, bytes: try readFile("--kubeconfig", kubeconfig)).access(
        context: context)
    } else if let own = APIServerAccess.inCluster(environment: environment) {
      access = own
    } else {
      throw ValidationError(
        "no source of objects: give --kubeconfig or --manifests, or run as a pod with a service account")
    }
    if let servers { access.servers = servers.servers }
    self = .apiServer(access, isBehindService: kubeconfig == nil && servers == nil)
  }

  var kind: String {
    switch self {
    case .manifests: "manifests"
    case .apiServer: "apiserver"
    }
  }

  var isBehindService: Bool {
    if case .apiServer(_, true) = self { true } else { false }
  }

  var description: String {
    switch self {
    case .manifests(let folder): folder
    case .apiServer(let access, _): access.servers.map(\.description).joined(separator: ",")
    }
  }
}
