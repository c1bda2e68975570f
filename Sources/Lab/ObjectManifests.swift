// The objects that kubelet and the controllers would have written to the API server, as values.
import Glibc
import LocalAPI
import NetworkTypes

enum ObjectManifests {
  static func node(_ spec: LabNodeSpec, addresses: [IPAddress], podCIDRs: [CIDR]) -> JSONValue {
    var labels = spec.labels
    labels["kubernetes.io/hostname"] = spec.name
    labels["topology.kubernetes.io/zone"] = spec.zone
    let internalAddresses: [JSONValue] = addresses.map {
      ["type": "InternalIP", "address": .string($0.description)]
    }
    return [
      "apiVersion": "v1", "kind": "Node",
      "metadata": ["name": .string(spec.name), "labels": strings(labels)],
      "spec": [
        "podCIDR": .string(podCIDRs.first?.description ?? ""),
        "podCIDRs": .array(podCIDRs.map { .string($0.description) }),
      ],
      "status": ["addresses": .array(internalAddresses + [["type": "Hostname", "address": .string(spec.name)]])],
    ]
  }

  static func namespace(_ name: String, labels: [String: String] = [:]) -> JSONValue {
    var labels = labels
    labels["kubernetes.io/metadata.name"] = name
    return [
      "apiVersion": "v1", "kind": "Namespace", "metadata": ["name": .string(name), "labels": strings(labels)],
    ]
  }

  static func pod(_ pod: LabPod) -> JSONValue {
    var metadata: JSONObject = [
      "name": .string(pod.name.name), "namespace": .string(pod.name.namespace), "uid": .string(pod.uid),
      "labels": strings(pod.spec.labels),
    ]
    if pod.isTerminating { metadata["deletionTimestamp"] = .string(timestamp()) }
    let ports: [JSONValue] = pod.spec.ports.map { port in
      var object: JSONObject = [
        "name": .string(port.name), "protocol": .string(port.protocol.kubernetesName),
        "containerPort": .int(Int64(port.port.number)),
      ]
      object["hostPort"] = port.hostPort.map { .int(Int64($0.port.number)) }
      object["hostIP"] = port.hostPort?.address.map { .string($0.description) }
      return .object(object)
    }
    var status: JSONObject = ["phase": pod.addresses.isEmpty ? "Pending" : "Running"]
    if let first = pod.addresses.first {
      status["podIP"] = .string(first.description)
      status["podIPs"] = .array(pod.addresses.map { ["ip": .string($0.description)] })
    }
    status["conditions"] = .array([["type": "Ready", "status": pod.isReady ? "True" : "False"]])
    return [
      "apiVersion": "v1", "kind": "Pod", "metadata": .object(metadata),
      "spec": [
        "nodeName": .string(pod.node), "containers": .array([["name": "main", "ports": .array(ports)]]),
      ],
      "status": .object(status),
    ]
  }

  static func strings(_ values: [String: String]) -> JSONValue {
    .object(JSONObject(values.sorted { $0.key < $1.key }.map { ($0, .string($1)) }))
  }

  /// Now, as the API writes it with microseconds: `2025-01-31T12:00:00.000001Z`.
  static func timestamp() -> String {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    var fields = tm()
    gmtime_r(&now.tv_sec, &fields)
    func digits(_ number: Int, _ width: Int) -> String {
      let text = String(number)
      return String(repeating: "0", count: max(0, width - text.count)) + text
    }
    let date = [(Int(fields.tm_year) + 1900, 4), (Int(fields.tm_mon) + 1, 2), (Int(fields.tm_mday), 2)]
    let time = [(Int(fields.tm_hour), 2), (Int(fields.tm_min), 2), (Int(fields.tm_sec), 2)]
    return date.map(digits).joined(separator: "-") + "T" + time.map(digits).joined(separator: ":") + "."
      + digits(now.tv_nsec / 1000, 6) + "Z"
  }
}
