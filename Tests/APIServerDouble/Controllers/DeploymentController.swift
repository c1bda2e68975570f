import LocalAPI

/// As many pods as a Deployment asks for, of its template as it is now; those of another template end once these serve.
struct DeploymentController {
  private static let hashLabel = "pod-template-hash"

  let store: ObjectStore

  func reconcile(_ deployment: JSONValue) {
    guard let uid = deployment["metadata"]?["uid"]?.stringValue, let template = deployment["spec"]?["template"] else {
      return
    }
    let wanted = Int(deployment["spec"]?["replicas"]?.intValue ?? 1)
    let hash = Self.hash(template)
    let own = store.objects(.pod).values.map { PodObject($0) }.filter { $0.isOwned(by: uid) && !$0.isTerminating }
    let others = own.filter { $0.labels[Self.hashLabel] != hash }
    let current = own.filter { $0.labels[Self.hashLabel] == hash }
      // Those that do not serve go first.
      .sorted { ($0.isReady ? 0 : 1, $0.name) < ($1.isReady ? 0 : 1, $1.name) }
    for _ in current.count..<max(wanted, current.count) { create(deployment, template, hash) }
    for pod in current.dropFirst(wanted) { end(pod) }
    let ready = current.prefix(wanted).count(where: \.isReady)
    if ready == wanted { for pod in others { end(pod) } }
    tell(deployment, all: own.count, updated: min(current.count, wanted), ready: own.count(where: \.isReady))
  }

  /// Whoever was quicker did the same.
  private func end(_ pod: PodObject) { _ = try? store.end(.pod, .init(pod.namespace, pod.name)) }

  private func create(_ deployment: JSONValue, _ template: JSONValue, _ hash: String) {
    guard let name = deployment["metadata"]?["name"]?.stringValue else { return }
    let pod: JSONValue = [
      "metadata": .object(template["metadata"]?.objectValue ?? [:]), "spec": template["spec"] ?? [:],
      "status": ["phase": "Pending"],
    ]
    store.change(
      pod.with("metadata", "name", value: .string("\(name)-\(hash)-\(Admission.randomSuffix())"))
        .with("metadata", "namespace", value: deployment["metadata"]?["namespace"])
        .with("metadata", "creationTimestamp", value: nil)
        .with("metadata", "labels", Self.hashLabel, value: .string(hash))
        .with("metadata", "ownerReferences", value: ObjectStore.owner(deployment, .deployment)), .pod)
  }

  private func tell(_ deployment: JSONValue, all: Int, updated: Int, ready: Int) {
    let status: JSONValue = [
      "observedGeneration": deployment["metadata"]?["generation"] ?? 1,
      "replicas": .int(Int64(all)), "updatedReplicas": .int(Int64(updated)), "readyReplicas": .int(Int64(ready)),
      "availableReplicas": .int(Int64(ready)),
    ]
    if deployment["status"] != status { store.change(deployment.with("status", value: status), .deployment) }
  }

  /// FNV-1a: the same template has the same, in every run.
  private static func hash(_ template: JSONValue) -> String {
    let hash = template.serialized().utf8.reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
    return String(hash, radix: 16)
  }
}
