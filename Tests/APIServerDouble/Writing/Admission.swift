import Foundation
import LocalAPI

/// What an API server does to an object before it is stored: checks it, and adds what its writer may leave out.
struct Admission {
  let store: ObjectStore

  func create(_ object: JSONValue, _ asked: APIRequest) throws(Refusal) -> JSONValue {
    let kind = asked.kind
    var new = try named(object, asked)
    if let prefix = new["metadata"]?["generateName"]?.stringValue, new["metadata"]?["name"] == nil {
      new = new.with("metadata", "name", value: .string(prefix + Self.randomSuffix()))
    }
    let name = new["metadata"]?["name"]?.stringValue ?? ""
    try checkName(name, kind)
    guard new["metadata"]?["resourceVersion"]?.stringValue ?? "" == "" else {
      throw .badRequest("resourceVersion should not be set on objects to be created")
    }
    if let namespace = asked.namespace, store.objects(.namespace)[.init("", namespace)] == nil {
      throw .notFound("namespaces \"\(namespace)\"")
    }
    guard store.objects(kind)[.init(asked.namespace ?? "", name)] == nil else {
      throw Refusal(409, "AlreadyExists", "\(kind.resource) \"\(name)\" already exists")
    }
    if kind == .deployment { new = new.with("metadata", "generation", value: 1) }
    return try completed(new, kind, old: nil)
  }

  func replace(_ object: JSONValue, _ old: JSONValue, _ asked: APIRequest) throws(Refusal) -> JSONValue {
    let new = try named(object, asked)
    guard new["metadata"]?["name"]?.stringValue == asked.name else {
      throw .badRequest("the name of the object does not match the name on the URL (\(asked.name ?? ""))")
    }
    if let uid = new["metadata"]?["uid"], uid != old["metadata"]?["uid"] {
      throw Refusal(
        409, "Conflict",
        "Operation cannot be fulfilled on \(asked.kind.resource) \"\(asked.name ?? "")\": Precondition failed: UID in "
          + "precondition: \(uid.stringValue ?? ""), UID in object meta: \(old["metadata"]?["uid"]?.stringValue ?? "")")
    }
    return try completed(try kept(new, old, asked.kind), asked.kind, old: old)
  }

  /// What no client changes this way stays as it was; what must not be changed is refused.
  private func kept(_ object: JSONValue, _ old: JSONValue, _ kind: ServedKind) throws(Refusal) -> JSONValue {
    var new = object
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
      new = new.with("metadata", key, value: old["metadata"]?[key])
    }
    guard [.pod, .deployment, .service, .namespace, .node].contains(kind) else { return new }
    new = new.with("status", value: old["status"])
    let name = new["metadata"]?["name"]?.stringValue ?? ""
    if kind == .pod, Self.withoutImages(new["spec"])?.inOrder != Self.withoutImages(old["spec"])?.inOrder {
      throw .invalid(
        "Pod \"\(name)\"", "spec",
        "Forbidden: pod updates may not change fields other than `spec.containers[*].image`")
    }
    guard kind == .deployment, new["spec"]?.inOrder != old["spec"]?.inOrder else { return new }
    guard new["spec"]?["selector"]?.inOrder == old["spec"]?["selector"]?.inOrder else {
      throw .invalid("Deployment \"\(name)\"", "spec.selector", "Invalid value: field is immutable")
    }
    return new.with("metadata", "generation", value: .int((old["metadata"]?["generation"]?.intValue ?? 1) + 1))
  }

  private static func withoutImages(_ spec: JSONValue?) -> JSONValue? {
    guard let containers = spec?["containers"]?.arrayValue else { return spec }
    return spec?.with("containers", value: .array(containers.map { $0.with("image", value: nil) }))
  }

  /// Of the kind and in the namespace that the request is about.
  private func named(_ object: JSONValue, _ asked: APIRequest) throws(Refusal) -> JSONValue {
    let kind = asked.kind
    guard object["kind"]?.stringValue ?? kind.kind == kind.kind,
      object["apiVersion"]?.stringValue ?? kind.apiVersion == kind.apiVersion
    else {
      throw .badRequest(
        "\(object["kind"]?.stringValue ?? "") in version \"\(object["apiVersion"]?.stringValue ?? "")\" cannot be handled as a "
          + kind.kind)
    }
    guard kind.isNamespaced else { return object }
    guard object["metadata"]?["namespace"]?.stringValue ?? asked.namespace == asked.namespace else {
      throw .badRequest("the namespace of the provided object does not match the namespace sent on the request")
    }
    return object.with("metadata", "namespace", value: asked.namespace.map { .string($0) })
  }

  private func checkName(_ name: String, _ kind: ServedKind) throws(Refusal) {
    let isGood =
      !name.isEmpty && name.utf8.count <= 253
      && name.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { label in
        !label.isEmpty && label.first != "-" && label.last != "-"
          && label.utf8.allSatisfy { (0x61...0x7a).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2d }
      }
    guard isGood else {
      throw .invalid(
        "\(kind.kind) \"\(name)\"", "metadata.name",
        "Invalid value: \"\(name)\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
          + "'.', and must start and end with an alphanumeric character")
    }
  }

  static func randomSuffix() -> String {
    String((0..<5).compactMap { _ in "bcdfghjklmnpqrstvwxz2456789".randomElement() })
  }

  // MARK: Kinds

  private func completed(_ object: JSONValue, _ kind: ServedKind, old: JSONValue?) throws(Refusal) -> JSONValue {
    switch kind {
    case .namespace:
      let name = object["metadata"]?["name"] ?? ""
      return object.with("metadata", "labels", "kubernetes.io/metadata.name", value: name)
        .with("status", "phase", value: "Active")
    case .pod: return object["status"]?["phase"] == nil ? object.with("status", "phase", value: "Pending") : object
    case .service: return try ServiceAdmission(store: store, old: old).completed(object)
    case .networkPolicy: return policy(object)
    case .deployment: return try deployment(object)
    case .event: return try event(object)
    default: return object
    }
  }

  private func policy(_ object: JSONValue) -> JSONValue {
    guard object["spec"]?["policyTypes"]?.arrayValue?.isEmpty ?? true else { return object }
    let types: [JSONValue] = object["spec"]?["egress"] == nil ? ["Ingress"] : ["Ingress", "Egress"]
    return object.with("spec", "policyTypes", value: .array(types))
  }

  /// Who an Event is about is in its namespace; of what is in none, it is in "default".
  private func event(_ object: JSONValue) throws(Refusal) -> JSONValue {
    let about = object["involvedObject"]?["namespace"]?.stringValue ?? ""
    guard (about.isEmpty ? "default" : about) == object["metadata"]?["namespace"]?.stringValue else {
      throw .invalid(
        "Event \"\(object["metadata"]?["name"]?.stringValue ?? "")\"", "involvedObject.namespace",
        "Invalid value: \"\(about)\": does not match event.namespace")
    }
    return object
  }

  private func deployment(_ object: JSONValue) throws(Refusal) -> JSONValue {
    let title = "Deployment \"\(object["metadata"]?["name"]?.stringValue ?? "")\""
    let selector = PodObject.strings(object["spec"]?["selector"]?["matchLabels"])
    guard !selector.isEmpty else { throw .invalid(title, "spec.selector", "Required value") }
    let labels = PodObject.strings(object["spec"]?["template"]?["metadata"]?["labels"])
    guard selector.allSatisfy({ labels[$0.key] == $0.value }) else {
      throw .invalid(
        title, "spec.template.metadata.labels", "Invalid value: `selector` does not match template `labels`")
    }
    if let asked = object["spec"]?["replicas"], !asked.isNull, asked.intValue == nil {
      throw .badRequest(
        "Deployment in version \"v1\" cannot be handled as a Deployment: spec.replicas: \(asked) is no number")
    }
    let replicas = object["spec"]?["replicas"]?.intValue ?? 1
    guard replicas >= 0 else {
      throw .invalid(title, "spec.replicas", "Invalid value: \(replicas): must be greater than or equal to 0")
    }
    return object.with("spec", "replicas", value: .int(replicas))
  }
}
