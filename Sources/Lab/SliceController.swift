import LocalAPI
import NetworkTypes

/// The EndpointSlices of a Service, as Kubernetes' endpoint slice controller would make them.
enum SliceController {
  static let maxEndpointsPerSlice = 100

  private struct SlicePort: Hashable {
    var name: String
    var `protocol`: L4Protocol
    var number: Port
  }

  /// One slice or more per family: pods whose named ports have different numbers are in different slices.
  static func slices(of service: LabService, pods: [LabPod], zones: [String: String]) -> [JSONValue] {
    let selected = pods.filter { service.selects($0) && !$0.isGone }.sorted { $0.name < $1.name }
    return service.families.flatMap { family in
      var groups: [(ports: [SlicePort], pods: [LabPod])] = []
      for pod in selected where pod.address(family) != nil {
        let ports = service.ports.compactMap { resolve($0, on: pod) }
        if let index = groups.firstIndex(where: { $0.ports == ports }) {
          groups[index].pods.append(pod)
        } else {
          groups.append((ports, [pod]))
        }
      }
      // Without endpoints there is still a slice, empty: that is how a Service says so.
      if groups.isEmpty { groups = [([], [])] }
      let chunks = groups.flatMap { group in
        stride(from: 0, to: max(1, group.pods.count), by: maxEndpointsPerSlice).map {
          (group.ports, group.pods[$0..<min($0 + maxEndpointsPerSlice, group.pods.count)])
        }
      }
      return chunks.enumerated().map { slice(of: service, family, $0, ports: $1.0, pods: $1.1, zones) }
    }
  }

  /// nil where the pod has no port of that name: the slice then does without it.
  private static func resolve(_ port: LabService.ServicePort, on pod: LabPod) -> SlicePort? {
    switch port.target {
    case .number(let number): SlicePort(name: port.name, protocol: port.protocol, number: number)
    case .name(let name):
      pod.spec.ports.first { $0.name == name && $0.protocol == port.protocol }.map {
        SlicePort(name: port.name, protocol: port.protocol, number: $0.port)
      }
    }
  }

  private static func slice(
    of service: LabService, _ family: IPFamily, _ index: Int, ports: [SlicePort], pods: ArraySlice<LabPod>,
    _ zones: [String: String]
  ) -> JSONValue {
    let suffix = "\(family)".lowercased() + "-\(index)"
    var labels = ["kubernetes.io/service-name": service.name.name]
    labels["endpointslice.kubernetes.io/managed-by"] = "sluice-lab"
    if service.isHeadless { labels["service.kubernetes.io/headless"] = "" }
    return [
      "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
      "metadata": [
        "name": .string("\(service.name.name)-\(suffix)"), "namespace": .string(service.name.namespace),
        "labels": ObjectManifests.strings(labels),
        "annotations": ["endpoints.kubernetes.io/last-change-trigger-time": .string(ObjectManifests.timestamp())],
      ],
      "addressType": .string("\(family)"),
      "ports": .array(
        ports.map {
          [
            "name": .string($0.name), "protocol": .string($0.protocol.kubernetesName),
            "port": .int(Int64($0.number.number)),
          ]
        }),
      "endpoints": .array(pods.map { endpoint($0, family, of: service, zones) }),
    ]
  }

  private static func endpoint(
    _ pod: LabPod, _ family: IPFamily, of service: LabService, _ zones: [String: String]
  ) -> JSONValue {
    let isReady = service.publishesNotReady || (pod.isReady && !pod.isTerminating)
    let isServing = service.publishesNotReady || (pod.isTerminating ? pod.isServing : pod.isReady)
    var endpoint: JSONObject = [
      "addresses": .array(pod.address(family).map { [.string($0.description)] } ?? []),
      "conditions": [
        "ready": .bool(isReady), "serving": .bool(isServing), "terminating": .bool(pod.isTerminating),
      ],
      "nodeName": .string(pod.node),
    ]
    if let zone = zones[pod.node] { endpoint["zone"] = .string(zone) }
    endpoint["targetRef"] = [
      "kind": "Pod", "namespace": .string(pod.name.namespace), "name": .string(pod.name.name), "uid": .string(pod.uid),
    ]
    return .object(endpoint)
  }
}
