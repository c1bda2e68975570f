import LocalAPI

/// What there is to ask for, by https://kubernetes.io/docs/concepts/overview/kubernetes-api: how kubectl learns which kinds
/// there are, and what they are called.
enum Discovery {
  static let release = "v1.34.0"

  /// - Returns: nil where the path asks for something else.
  static func answer(_ path: String, _ kinds: [ServedKind]) -> JSONValue? {
    switch path {
    case "/version":
      return ["major": "1", "minor": "34", "gitVersion": .string(release), "platform": "linux/amd64"]
    case "/api": return ["kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []]
    case "/apis":
      let groups = Set(kinds.map(\.group)).subtracting([""]).sorted()
      return ["kind": "APIGroupList", "apiVersion": "v1", "groups": .array(groups.map(group))]
    default:
      let served = kinds.filter { $0.root == path }
      guard let first = served.first else { return nil }
      return [
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": .string(first.apiVersion),
        "resources": .array(served.flatMap(resources)),
      ]
    }
  }

  private static func group(_ name: String) -> JSONValue {
    let version: JSONValue = ["groupVersion": .string("\(name)/v1"), "version": "v1"]
    return ["name": .string(name), "versions": [version], "preferredVersion": version]
  }

  private static func resources(_ kind: ServedKind) -> [JSONValue] {
    let verbs: JSONValue = ["create", "delete", "get", "list", "patch", "update", "watch"]
    let whole: JSONValue = [
      "name": .string(kind.plural), "singularName": .string(kind.kind.lowercased()),
      "namespaced": .bool(kind.isNamespaced), "kind": .string(kind.kind), "verbs": verbs,
      "shortNames": .array(kind.shortNames.map { .string($0) }),
      // What `kubectl get all` means.
      "categories": [.pod, .service, .deployment].contains(kind) ? ["all"] : [],
    ]
    guard kind.isScalable else { return [whole] }
    return [
      whole,
      [
        "name": .string("\(kind.plural)/scale"), "singularName": "", "namespaced": .bool(kind.isNamespaced),
        "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"],
      ],
    ]
  }

  /// An OpenAPI document (version 2, as protobuf) that describes nothing: kubectl checks only what it finds described, and
  /// knows by itself how to patch the kinds that are built in.
  static let openAPI = ProtobufWriter.write { document in
    document.bytes(1, Array("2.0".utf8))
    document.bytes(
      2,
      ProtobufWriter.write { info in
        info.bytes(1, Array("Kubernetes".utf8))
        info.bytes(2, Array(release.utf8))
      })
    document.bytes(8, [UInt8]())
  }

  static let openAPIType = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
}
