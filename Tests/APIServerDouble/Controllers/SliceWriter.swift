import LocalAPI
import NetworkTypes

/// The EndpointSlices of Services that select pods, by
/// https://kubernetes.io/docs/concepts/services-networking/endpoint-slices.
struct SliceWriter {
  private static let manager = "endpointslice-controller.k8s.io"
  private static let size = 100

  let store: ObjectStore

  func reconcile() {
    let pods = store.objects(.pod).sorted { $0.key < $1.key }.map { PodObject($0.value) }
    var wanted: [ObjectStore.Name: JSONValue] = [:]
    for (name, service) in store.objects(.service) {
      let selector = PodObject.strings(service["spec"]?["selector"])
      guard !selector.isEmpty else { continue }
      let selected = pods.filter { pod in
        pod.namespace == name.namespace && selector.allSatisfy { pod.labels[$0.key] == $0.value }
      }
      for slice in slices(of: service, name, selected) {
        wanted[.init(name.namespace, slice["metadata"]?["name"]?.stringValue ?? "")] = slice
      }
    }
    for (name, slice) in store.objects(.endpointSlice)
    where slice["metadata"]?["labels"]?["endpointslice.kubernetes.io/managed-by"]?.stringValue == Self.manager {
      if wanted[name] == nil { _ = try? store.end(.endpointSlice, name) }
    }
    let held = store.objects(.endpointSlice)
    for (name, slice) in wanted {
      let isSame = ["endpoints", "ports", "addressType"].allSatisfy { held[name]?[$0] == slice[$0] }
      if !isSame { store.change(slice, .endpointSlice) }
    }
  }

  private func slices(of service: JSONValue, _ name: ObjectStore.Name, _ pods: [PodObject]) -> [JSONValue] {
    (service["spec"]?["ipFamilies"]?.arrayValue ?? []).flatMap { family -> [JSONValue] in
      let type = family.stringValue ?? ""
      // Pods whose named ports have other numbers are in another slice.
      var groups: [(ports: [JSONValue], endpoints: [JSONValue])] = []
      for pod in pods {
        guard let address = pod.addresses.first(where: { IPAddress($0).map { "\($0.family)" } == type }) else {
          continue
        }
        let ports = (service["spec"]?["ports"]?.arrayValue ?? []).compactMap { Self.resolve($0, pod) }
        let place = groups.firstIndex { $0.ports == ports && $0.endpoints.count < Self.size }
        if place == nil { groups.append((ports, [])) }
        groups[place ?? groups.count - 1].endpoints.append(Self.endpoint(pod, address))
      }
      if groups.isEmpty { groups = [([], [])] }
      return groups.enumerated().map { index, group in
        slice(of: service, name, type, index, .array(group.ports), .array(group.endpoints))
      }
    }
  }

  private func slice(
    of service: JSONValue, _ name: ObjectStore.Name, _ type: String, _ index: Int, _ ports: JSONValue,
    _ endpoints: JSONValue
  ) -> JSONValue {
    var labels: JSONObject = [
      "kubernetes.io/service-name": .string(name.name), "endpointslice.kubernetes.io/managed-by": .string(Self.manager),
    ]
    if service["spec"]?["clusterIP"]?.stringValue == "None" { labels["service.kubernetes.io/headless"] = "" }
    return [
      "metadata": [
        "name": .string("\(name.name)-\(type.lowercased())-\(index)"), "namespace": .string(name.namespace),
        "labels": .object(labels), "ownerReferences": ObjectStore.owner(service, .service),
        "annotations": ["endpoints.kubernetes.io/last-change-trigger-time": .string(ObjectStore.now())],
      ], "addressType": .string(type), "ports": ports, "endpoints": endpoints,
    ]
  }

  /// nil: the pod has no port of that name.
  private static func resolve(_ port: JSONValue, _ pod: PodObject) -> JSONValue? {
    let transport = port["protocol"]?.stringValue ?? "TCP"
    var number = port["targetPort"]?.intValue ?? port["port"]?.intValue
    if let name = port["targetPort"]?.stringValue {
      number = pod.ports.first { $0.name == name && $0.transport == transport }.map { Int64($0.number) }
    }
    return number.map { ["name": port["name"] ?? "", "protocol": .string(transport), "port": .int($0)] }
  }

  private static func endpoint(_ pod: PodObject, _ address: String) -> JSONValue {
    [
      "addresses": [.string(address)],
      "conditions": [
        "ready": .bool(pod.isReady && !pod.isTerminating), "serving": .bool(pod.isReady),
        "terminating": .bool(pod.isTerminating),
      ], "nodeName": .string(pod.node ?? ""),
      "targetRef": [
        "kind": "Pod", "namespace": .string(pod.namespace), "name": .string(pod.name), "uid": .string(pod.uid),
      ],
    ]
  }
}
