import KubernetesObjects

/// A kind of object that the double serves.
package struct ServedKind: Hashable, Sendable {
  package var group: String
  package var version: String
  package var kind: String
  package var plural: String
  package var isNamespaced: Bool
  var shortNames: [String]
  /// Whether `/scale` can be asked for.
  var isScalable: Bool

  package var apiVersion: String { group.isEmpty ? version : "\(group)/\(version)" }

  /// Beneath which its objects are: `/api/v1`, `/apis/discovery.k8s.io/v1`.
  package var root: String { group.isEmpty ? "/api/\(version)" : "/apis/\(group)/\(version)" }

  init(
    _ group: String, _ kind: String, _ plural: String, isNamespaced: Bool = true, shortNames: [String] = [],
    isScalable: Bool = false
  ) {
    (self.group, version, self.kind, self.plural, self.isNamespaced) = (group, "v1", kind, plural, isNamespaced)
    (self.shortNames, self.isScalable) = (shortNames, isScalable)
  }

  package static let namespace = ServedKind("", "Namespace", "namespaces", isNamespaced: false, shortNames: ["ns"])
  package static let node = ServedKind("", "Node", "nodes", isNamespaced: false, shortNames: ["no"])
  package static let pod = ServedKind("", "Pod", "pods", shortNames: ["po"])
  package static let service = ServedKind("", "Service", "services", shortNames: ["svc"])
  package static let event = ServedKind("", "Event", "events", shortNames: ["ev"])
  package static let deployment = ServedKind(
    "apps", "Deployment", "deployments", shortNames: ["deploy"], isScalable: true)
  package static let endpointSlice = ServedKind("discovery.k8s.io", "EndpointSlice", "endpointslices")
  package static let networkPolicy = ServedKind(
    "networking.k8s.io", "NetworkPolicy", "networkpolicies", shortNames: ["netpol"])
  package static let serviceCIDR = ServedKind("networking.k8s.io", "ServiceCIDR", "servicecidrs", isNamespaced: false)

  package static let all = [
    namespace, node, pod, service, event, deployment, endpointSlice, networkPolicy, serviceCIDR,
  ]

  /// nil: no protobuf is spoken of it.
  var decodedKind: ObjectKind? { ObjectKind(rawValue: kind) }

  /// As messages name it: `deployments.apps`.
  var resource: String { group.isEmpty ? plural : "\(plural).\(group)" }
}
