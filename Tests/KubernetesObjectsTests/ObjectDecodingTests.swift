import KubernetesObjects
import NetworkTypes
import Testing

@Suite("Decoding what all objects have") struct ObjectDecodingTests {
  @Test("only the one version of each kind is read; other groups are other kinds")
  func versions() throws {
    #expect(
      try problem(Manifests.slice.with(["apiVersion": "discovery.k8s.io/v1beta1"]))
        == "EndpointSlice shop/api-1: apiVersion: must be discovery.k8s.io/v1, is \"discovery.k8s.io/v1beta1\"")
    #expect(
      try problem(Manifests.service.with(["apiVersion": "v2"]))
        == "Service shop/api: apiVersion: must be v1, is \"v2\"")
    #expect(
      try problem(Manifests.serviceCIDR.with(["apiVersion": "networking.k8s.io/v1beta1"]))
        == "ServiceCIDR kubernetes: apiVersion: must be networking.k8s.io/v1, is \"networking.k8s.io/v1beta1\"")
    for (version, kind) in [("serving.knative.dev/v1", "Service"), ("v1", "ConfigMap"), ("v1", "NetworkPolicy")] {
      let node = Manifests.service.with([
        "apiVersion": .plain(version), "kind": .plain(kind), "spec": "anything",
      ])
      guard case .ignoredKind(version, kind) = decodeObject(node, file: "") else {
        Issue.record("\(version) \(kind) is not ignored")
        continue
      }
    }
  }

  static let wrong: [(ManifestNode, String)] = [
    (["kind": "Service"], "apiVersion: is missing"),
    (["apiVersion": "v1"], "kind: is missing"),
    (["apiVersion": "v1", "kind": ["a"]], "kind: must be text, is a list"),
    ("text", "an object must be a mapping, is \"text\""),
    ([1, 2], "an object must be a mapping, is a list"),
    (["apiVersion": "v1", "kind": "Service"], "Service: metadata.name: is missing"),
    (["apiVersion": "v1", "kind": "Service", "metadata": 5], "Service: metadata: must be a mapping, is 5"),
    (
      Manifests.service.with(["metadata": ["name": "Api"]]),
      "Service shop/Api: metadata.name: must be lower-case letters, digits and '-', at most 63, beginning and ending "
        + "with no '-', is \"Api\""
    ),
    (
      Manifests.slice.with(["metadata": ["name": "a..b"]]),
      "EndpointSlice shop/a..b: metadata.name: must be lower-case letters, digits, '-' and '.', at most 253, each part "
        + "beginning and ending with no '-', is \"a..b\""
    ),
    (
      Manifests.pod.with(["metadata": ["namespace": "a.b"]]),
      "Pod a.b/api-0: metadata.namespace: must be lower-case letters, digits and '-', at most 63, beginning and ending "
        + "with no '-', is \"a.b\""
    ),
    (
      Manifests.service.with(["metadata": ["creationTimestamp": "yesterday"]]),
      "Service shop/api: metadata.creationTimestamp: must be a time such as 2026-01-31T12:00:00Z, is \"yesterday\""
    ),
    (
      Manifests.service.with(["metadata": ["labels": ["version": .plain("1.10")]]]),
      "Service shop/api: metadata.labels[version]: must be text, is the number 1.10 (write it in quotes: \"1.10\")"
    ),
    (
      Manifests.service.with(["metadata": ["labels": ["canary": true]]]),
      "Service shop/api: metadata.labels[canary]: must be text, is the boolean true (write it in quotes: \"true\")"
    ),
    (
      Manifests.service.with(["metadata": ["annotations": ["a": .plain("0x10")]]]),
      "Service shop/api: metadata.annotations[a]: must be text, is the number 0x10 (write it in quotes: \"0x10\")"
    ),
    (
      Manifests.service.with(["metadata": ["labels": ["a b": "c"]]]),
      "Service shop/api: metadata.labels[a b]: the key must be letters, digits, '-', '_' and '.', at most 63, perhaps "
        + "after a domain and '/'"
    ),
    (
      Manifests.service.with(["metadata": ["labels": ["a": "b/c"]]]),
      "Service shop/api: metadata.labels[a]: must be letters, digits, '-', '_' and '.', at most 63, beginning and "
        + "ending with a letter or digit, is \"b/c\""
    ),
  ]

  @Test("a wrong field is named, with what would be right", arguments: wrong.indices)
  func wrongFields(index: Int) throws {
    #expect(try problem(Self.wrong[index].0) == Self.wrong[index].1)
  }

  @Test("text stays as written where text is meant: y, n, 1e3 and null are words")
  func words() throws {
    for text in ["y", "n", "yes", "off", "null-ish", "1e3x", "v1"] {
      guard
        case .namespace(let namespace) = try decoded(
          Manifests.namespace.with(["metadata": ["labels": .mapping([.init(text, .plain(text))], line: 1)]])
        ).object
      else { throw Unexpected(description: "kind") }
      #expect(namespace.labels[text] == text)
    }
    guard case .namespace(let namespace) = try decoded(Manifests.namespace.with(["metadata": ["name": 123]])).object
    else { throw Unexpected(description: "kind") }
    #expect(namespace.name == "123" && namespace.labels["kubernetes.io/metadata.name"] == "123")
  }

  @Test("a missing namespace is \"default\", and a namespace of a cluster-scoped object means nothing")
  func namespaces() throws {
    let service = Manifests.service.with(["metadata": ["namespace": nil]])
    #expect(try decoded(service).object.key == ObjectKey(namespace: "default", name: "api"))
    #expect(try decoded(Manifests.node.with(["metadata": ["namespace": "x"]])).object.id.description == "Node node-1")
  }

  @Test("lists hand their type on to items that have none, and a bad item costs no other")
  func lists() throws {
    let item = ["metadata": ["name": "a"], "spec": ["ports": [["port": 1]]]] as ManifestNode
    let list: ManifestNode = ["apiVersion": "v1", "kind": "ServiceList", "items": [item, 5, item]]
    guard case .list(let results) = decodeObject(list, file: "f"), results.count == 3,
      case .object(let first, _, _) = results[0], case .bad(let problem, nil) = results[1], case .object = results[2]
    else { throw Unexpected(description: "\(decodeObject(list, file: "f"))") }
    #expect(first.id.description == "Service default/a")
    #expect(problem.description == "f:1: an object must be a mapping, is 5")
    let nested: ManifestNode = ["apiVersion": "v1", "kind": "List", "items": [list, Manifests.node]]
    guard case .list(let outer) = decodeObject(nested, file: "f"), outer.count == 2, case .list = outer[0] else {
      throw Unexpected(description: "nested")
    }
    guard case .list(let none) = decodeObject(["apiVersion": "v1", "kind": "List", "items": []], file: "f"),
      none.isEmpty, case .list(let empty) = decodeObject(nil, file: "f"), empty.isEmpty
    else { throw Unexpected(description: "empty") }
  }

  @Test("a bad object is known by its kind and name where those can be read")
  func identityOfBadObjects() throws {
    guard case .bad(_, let id) = decodeObject(Manifests.service.with(["spec": 1]), file: "") else {
      throw Unexpected(description: "good")
    }
    #expect(id == ObjectID(.service, ObjectKey(namespace: "shop", name: "api")))
  }

  @Test("a message never carries control characters or long text from the input")
  func hostileText() throws {
    let text = "a\u{1b}[31m\n\u{202e}" + String(repeating: "x", count: 500)
    let message = try problem(Manifests.service.with(["spec": ["type": .plain(text)]]))
    #expect(message.hasSuffix("is \"a\\u{1B}[31m\\n\\u{202E}" + String(repeating: "x", count: 52) + "...\""))
  }

  @Test("unknown fields mean nothing")
  func unknownFields() throws {
    #expect(
      try decoded(Manifests.service.with(["spec": ["color": ["red"]]])).object == decoded(Manifests.service).object)
  }
}
