import KubernetesObjects

/// Manifest trees as Swift literals: quoted text, numbers, booleans and `nil`, all in line 1. `.plain("0x50")` is
/// unquoted text.
extension ManifestNode: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByBooleanLiteral, ExpressibleByArrayLiteral,
  ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral,
  ExpressibleByUnicodeScalarLiteral, ExpressibleByExtendedGraphemeClusterLiteral
{
  public init(stringLiteral text: String) { self = .scalar(text, isQuoted: true, line: 1) }
  public init(integerLiteral number: Int) { self = .plain("\(number)") }
  public init(booleanLiteral flag: Bool) { self = .plain("\(flag)") }
  public init(arrayLiteral elements: ManifestNode...) { self = .sequence(elements, line: 1) }
  public init(dictionaryLiteral elements: (String, ManifestNode)...) {
    self = .mapping(elements.map { Entry($0, $1) }, line: 1)
  }
  public init(nilLiteral: ()) { self = .null(line: 1) }

  static func plain(_ text: String) -> ManifestNode { .scalar(text, isQuoted: false, line: 1) }

  /// With the entries of another mapping put in or in their place, sections merged.
  func with(_ changes: ManifestNode) -> ManifestNode {
    guard case .mapping(var entries, let line) = self, case .mapping(let others, _) = changes else { return changes }
    for other in others {
      if let index = entries.firstIndex(where: { $0.key == other.key }) {
        entries[index].value = entries[index].value.with(other.value)
      } else {
        entries.append(other)
      }
    }
    return .mapping(entries, line: line)
  }
}

enum Manifests {
  static let service: ManifestNode = [
    "apiVersion": "v1", "kind": "Service", "metadata": ["name": "api", "namespace": "shop"],
    "spec": ["clusterIP": "10.96.0.1", "ports": [["port": 80]]],
  ]
  static let slice: ManifestNode = [
    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
    "metadata": ["name": "api-1", "namespace": "shop", "labels": ["kubernetes.io/service-name": "api"]],
    "addressType": "IPv4", "ports": [["port": 8080]], "endpoints": [["addresses": ["10.0.0.1"]]],
  ]
  static let node: ManifestNode = ["apiVersion": "v1", "kind": "Node", "metadata": ["name": "node-1"]]
  static let pod: ManifestNode = [
    "apiVersion": "v1", "kind": "Pod", "metadata": ["name": "api-0", "namespace": "shop", "uid": "u-1"],
  ]
  static let namespace: ManifestNode = ["apiVersion": "v1", "kind": "Namespace", "metadata": ["name": "shop"]]
  static let policy: ManifestNode = [
    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": ["name": "np", "namespace": "shop"],
  ]
  static let serviceCIDR: ManifestNode = [
    "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": ["name": "kubernetes"],
    "spec": ["cidrs": ["10.96.0.0/16", "fd00:96::/112"]],
  ]
}

struct Unexpected: Error, CustomStringConvertible { let description: String }

/// The one object of a manifest that must be good, and the problems of its parts.
func decoded(_ node: ManifestNode) throws -> (object: ClusterObject, problems: [String]) {
  guard case .object(let object, let problems, _) = decodeObject(node, file: "f.yaml") else {
    throw Unexpected(description: "\(decodeObject(node, file: "f.yaml"))")
  }
  return (object, problems.map(\.description))
}

/// The problem of a manifest that must be bad, without `f.yaml:1: `.
func problem(_ node: ManifestNode) throws -> String {
  guard case .bad(let problem, _) = decodeObject(node, file: "f.yaml") else {
    throw Unexpected(description: "\(decodeObject(node, file: "f.yaml"))")
  }
  let prefix = "f.yaml:1: "
  return problem.description.hasPrefix(prefix) ? String(problem.description.dropFirst(prefix.count)) : "\(problem)"
}

func decodedService(_ spec: ManifestNode) throws -> Service {
  guard case .service(let service) = try decoded(Manifests.service.with(["spec": spec])).object else {
    throw Unexpected(description: "no Service")
  }
  return service
}

func decodedSlice(_ changes: ManifestNode) throws -> (slice: EndpointSlice, problems: [String]) {
  let (object, problems) = try decoded(Manifests.slice.with(changes))
  guard case .endpointSlice(let slice) = object else { throw Unexpected(description: "no EndpointSlice") }
  return (slice, problems)
}

func decodedPolicy(_ spec: ManifestNode) throws -> NetworkPolicy {
  guard case .networkPolicy(let policy) = try decoded(Manifests.policy.with(["spec": spec])).object else {
    throw Unexpected(description: "no NetworkPolicy")
  }
  return policy
}
