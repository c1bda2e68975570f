import ClusterSource
import KubernetesObjects
import NetworkTypes

@testable import PolicyWorlds

/// One named state of the cluster whose truth table is checked.
struct PolicyMatrixCase {
  var name: String
  var policies: [NetworkPolicy] = []
  /// Manifests that stand for a policy as they are, where that is the point of the case.
  var texts: [ObjectKey: String] = [:]
  /// What is different from the scene's objects besides the policies.
  var change: (inout PolicyWorld) -> Void = { _ in }

  struct NotDecoded: Error, CustomStringConvertible { let description: String }

  init(_ name: String, _ policies: [NetworkPolicy] = [], change: @escaping (inout PolicyWorld) -> Void = { _ in }) {
    self.name = name
    self.policies = policies
    self.change = change
  }

  /// - Parameter specs: `namespace/name` and the `spec` of each policy, in flow style. Written to the manifests as it
  ///   stands here.
  init(_ name: String, yaml specs: [(String, String)], change: @escaping (inout PolicyWorld) -> Void = { _ in }) throws
  {
    self.init(name, change: change)
    for (key, spec) in specs {
      let (policy, text) = try Self.decode(key, spec)
      policies.append(policy)
      texts[policy.key] = text
    }
  }

  /// A policy from its `spec`, with the defaults of the API.
  static func policy(_ key: String, _ spec: String, audit: Bool = false) throws -> NetworkPolicy {
    var policy = try decode(key, spec).policy
    policy.mode = audit ? .audit : .enforce
    return policy
  }

  private static func decode(_ key: String, _ spec: String) throws -> (policy: NetworkPolicy, text: String) {
    let parts = key.split(separator: "/").map(String.init)
    guard parts.count == 2 else { throw NotDecoded(description: key) }
    let text = """
      ---
      apiVersion: networking.k8s.io/v1
      kind: NetworkPolicy
      metadata: {name: "\(parts[1])", namespace: "\(parts[0])"}
      spec: \(spec)

      """
    let decoded = decodeObject(try parseYAMLDocument(Array(text.dropFirst(4).utf8)), file: key)
    guard case .object(.networkPolicy(let policy), let problems, _) = decoded, problems.isEmpty else {
      throw NotDecoded(description: "\(decoded)\n\(text)")
    }
    return (policy, text)
  }
}

extension PolicyWorld {
  mutating func change(pod name: String, _ body: (inout Pod) -> Void) {
    for index in pods.indices where pods[index].key.description == name { body(&pods[index]) }
  }

  mutating func change(namespace name: String, _ body: (inout Namespace) -> Void) {
    for index in namespaces.indices where namespaces[index].name == name { body(&namespaces[index]) }
  }
}
