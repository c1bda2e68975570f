import Foundation
import KubernetesObjects

/// A kubeconfig file, as kubectl reads one.
public struct Kubeconfig {
  private let file: String
  private let root: ManifestNode

  /// - Parameter path: what stands in it as a path is relative to its folder.
  public init(path: String, bytes: [UInt8]) throws(ObjectProblem) {
    file = path
    do {
      root = try parseYAMLDocument(bytes)
    } catch let problem as ObjectProblem {
      throw problem
    } catch {
      throw ObjectProblem(file: path, line: 0, object: "", field: "", message: "\(error)")
    }
  }

  /// What a context says: a cluster and a user.
  ///
  /// - Parameter context: its name; nil: `current-context`.
  public func access(context: String? = nil) throws(ObjectProblem) -> APIServerAccess {
    do throws(FieldError) {
      var name = context
      if name == nil { name = try root.required("current-context", Read.text) }
      let chosen = try named(name ?? "", in: "contexts", "context") { (entry) throws(FieldError) in
        Context(cluster: try entry.required("cluster", Read.text), user: try entry.nonEmpty("user", Read.text))
      }
      var access = try named(chosen.cluster, in: "clusters", "cluster", self.cluster)
      guard let user = chosen.user else { return access }
      try named(user, in: "users", "user") { (entry) throws(FieldError) in try credentials(entry, &access) }
      return access
    } catch { throw ObjectProblem(file: file, line: error.line, object: "", field: error.path, message: error.message) }
  }

  private struct Context {
    var cluster: String
    var user: String?
  }

  /// One of a list of `{name: ..., KIND: {...}}`.
  private func named<Value>(
    _ name: String, in list: String, _ kind: String, _ read: FieldReader<Value>
  ) throws(FieldError) -> Value {
    var found: Value?
    _ = try root.list(list) { (entry) throws(FieldError) in
      guard found == nil, try entry.required("name", Read.text) == name else { return }
      found = try entry.required(kind, read)
    }
    guard let found else { throw root.wrong(list, "has no '\(name)'") }
    return found
  }

  // MARK: Cluster

  private func cluster(_ entry: ManifestNode) throws(FieldError) -> APIServerAccess {
    var access = APIServerAccess(servers: [try entry.required("server", url)])
    let authorities = try material("certificate-authority", of: entry)
    let isInsecure = try entry.optional("insecure-skip-tls-verify", Read.flag) ?? false
    switch (authorities, isInsecure) {
    case (_?, true): throw entry.wrong("insecure-skip-tls-verify", "must not stand beside certificate-authority")
    case (let authorities?, false): access.trust = .authorities(authorities)
    case (nil, true): access.trust = .anyone
    case (nil, false): access.trust = .system
    }
    access.serverName = try entry.nonEmpty("tls-server-name", Read.text)
    access.proxy = try entry.nonEmpty("proxy-url", url)
    guard access.proxy?.isSecure != true else {
      throw entry.wrong("proxy-url", "must be http: proxies that are spoken to by TLS are not supported")
    }
    return access
  }

  private func url(_ field: ManifestNode) throws(FieldError) -> APIServerURL {
    let text = try Read.text(field)
    guard let url = APIServerURL(text) else {
      // What it is may have a password in it.
      throw FieldError(field, "must be an address such as https://10.0.0.1:6443, without user, query and fragment")
    }
    return url
  }

  /// `KEY-data` has the bytes themselves, and wins over `KEY`, a path.
  private func material(_ key: String, of entry: ManifestNode) throws(FieldError) -> APIServerAccess.Material? {
    if let bytes: [UInt8] = try entry.nonEmpty("\(key)-data", Self.base64) { return .bytes(bytes) }
    return try entry.nonEmpty(key, path).map { .file($0) }
  }

  private static func base64(_ field: ManifestNode) throws(FieldError) -> [UInt8] {
    guard let data = Data(base64Encoded: try Read.text(field)), !data.isEmpty else {
      throw FieldError(field, "must be base64")
    }
    return Array(data)
  }

  private func path(_ field: ManifestNode) throws(FieldError) -> String {
    let text = try Read.text(field)
    guard !text.hasPrefix("/"), let slash = file.lastIndex(of: "/") else { return text }
    return file[...slash] + text
  }

  // MARK: User

  private func credentials(_ entry: ManifestNode, _ access: inout APIServerAccess) throws(FieldError) {
    access.certificate = try material("client-certificate", of: entry)
    access.key = try material("client-key", of: entry)
    guard (access.certificate == nil) == (access.key == nil) else {
      let lacking = access.key == nil ? "client-key" : "client-certificate"
      throw entry.wrong(lacking, "is missing: a certificate and its key belong together")
    }
    for key in ["auth-provider", "username"] where entry[key] != nil {
      throw entry.wrong(key, "is not supported: Kubernetes no longer has it")
    }
    // As kubectl: what a file says wins over what the kubeconfig says, and either over a plugin.
    if let file: String = try entry.nonEmpty("tokenFile", path) {
      access.token = .file(file)
    } else if let text: String = try entry.nonEmpty("token", Read.text) {
      access.token = .text(text)
    } else {
      access.token = try entry.optional("exec", plugin).map { .plugin($0) }
    }
  }

  private func plugin(_ entry: ManifestNode) throws(FieldError) -> CredentialPlugin {
    let version: PluginVersion = try entry.required("apiVersion", Read.choice)
    let command = try entry.required("command", Read.text)
    // A bare name is looked for in PATH, as a shell would.
    var plugin = CredentialPlugin(
      apiVersion: version.rawValue, command: command.contains("/") ? try entry.required("command", path) : command)
    plugin.arguments = try entry.list("args", Read.text)
    _ = try entry.list("env") { (pair) throws(FieldError) in
      plugin.environment[try pair.required("name", Read.text)] = try pair.required("value", Read.text)
    }
    plugin.installHint = try entry.optional("installHint", Read.text) ?? ""
    plugin.wantsClusterInfo = try entry.optional("provideClusterInfo", Read.flag) ?? false
    let mode: InteractiveMode? = try entry.nonEmpty("interactiveMode", Read.choice)
    if mode == .always { throw entry.wrong("interactiveMode", "must not be Always: there is nobody to ask") }
    return plugin
  }

  private enum PluginVersion: String, CaseIterable {
    case v1 = "client.authentication.k8s.io/v1"
    case v1beta1 = "client.authentication.k8s.io/v1beta1"
  }

  private enum InteractiveMode: String, CaseIterable {
    case never = "Never"
    case ifAvailable = "IfAvailable"
    case always = "Always"
  }
}
