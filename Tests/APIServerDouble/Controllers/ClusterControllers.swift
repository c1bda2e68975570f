import ClusterSource
import LocalAPI

/// What a cluster's controllers and its scheduler do, as far as it takes to make `kubectl scale` mean something: each turn looks
/// at everything there is, and changes what is not as it should be.
package struct ClusterControllers {
  let store: ObjectStore
  private var seen = -1

  package init(_ store: ObjectStore) { self.store = store }

  /// Costs nothing where nothing has changed.
  package mutating func turn() {
    let version = store.version
    guard version != seen else { return }
    seen = version
    collectGarbage()
    for deployment in store.objects(.deployment).values { DeploymentController(store: store).reconcile(deployment) }
    schedule()
    SliceWriter(store: store).reconcile()
  }

  /// What has no owner any more, or no namespace.
  private func collectGarbage() {
    // Before owners and namespaces, which are there before what is theirs.
    let all = ServedKind.all.filter(\.isNamespaced).map { ($0, store.objects($0)) }
    let namespaces = Set(store.objects(.namespace).keys.map(\.name))
    let owners = Set(
      ServedKind.all.flatMap { store.objects($0).values }.compactMap { $0["metadata"]?["uid"]?.stringValue })
    for (kind, objects) in all {
      for (name, object) in objects {
        let references = object["metadata"]?["ownerReferences"]?.arrayValue ?? []
        let isOrphan =
          !references.isEmpty && !references.contains { owners.contains($0["uid"]?.stringValue ?? "") }
        if isOrphan || !namespaces.contains(name.namespace) { _ = try? store.end(kind, name) }
      }
    }
  }

  /// To the node that has the fewest.
  private func schedule() {
    var load = Dictionary(store.objects(.node).keys.map { ($0.name, 0) }) { $1 }
    let pods = store.objects(.pod).sorted { $0.key < $1.key }.map { PodObject($0.value) }
    for pod in pods where !pod.isTerminating { pod.node.map { load[$0, default: 0] += 1 } }
    for pod in pods where pod.node == nil {
      guard let node = load.min(by: { ($0.value, $0.key) < ($1.value, $1.key) })?.key else { return }
      load[node, default: 0] += 1
      store.change(pod.json.with("spec", "nodeName", value: .string(node)), .pod)
    }
  }
}

extension ObjectStore {
  /// What every cluster has.
  package func addDefaultNamespace() {
    _ = try? put(
      [
        "metadata": ["name": "default", "labels": ["kubernetes.io/metadata.name": "default"]],
        "status": ["phase": "Active"],
      ], .namespace)
  }

  /// By a controller: whoever was quicker is right, and looked at in the next turn.
  func change(_ object: JSONValue, _ kind: ServedKind) { _ = try? put(object, kind, isWhole: true) }

  /// Asked to end, where it is a pod that runs; else it is gone.
  ///
  /// - Returns: the object as it was left.
  @discardableResult
  func end(_ kind: ServedKind, _ name: Name) throws(Refusal) -> JSONValue {
    while true {
      guard let object = objects(kind)[name] else { throw .notFound("\(kind.resource) \"\(name.name)\"") }
      guard kind == .pod, PodObject(object).node != nil else {
        try delete(kind, name)
        return object
      }
      if PodObject(object).isTerminating { return object }
      do throws(Refusal) {
        return try put(
          object.with("metadata", "deletionTimestamp", value: .string(Self.now()))
            .with("metadata", "deletionGracePeriodSeconds", value: 30), kind)
      } catch {
        // Its status was written meanwhile.
        guard error.code == 409 else { throw error }
      }
    }
  }

  /// The reference that has an object go with its owner.
  static func owner(_ object: JSONValue, _ kind: ServedKind) -> JSONValue {
    [
      [
        "apiVersion": .string(kind.apiVersion), "kind": .string(kind.kind), "name": object["metadata"]?["name"] ?? "",
        "uid": object["metadata"]?["uid"] ?? "", "controller": true,
      ]
    ]
  }
}
