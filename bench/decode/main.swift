// How fast lists of an API server are decoded, as bytes come: from protobuf and from JSON, to the objects that are kept.
// The baseline is Foundation's JSONSerialization over the same list, which keeps the whole body and knows no object.
import APIServerDouble
import ClusterSource
import Foundation
import KubernetesObjects
import LocalAPI

private let rounds = 9
private let count = 10_000
/// What a read of a connection brings at most.
private let pieceSize = 64 << 10

private func service(_ number: Int) -> JSONValue {
  [
    "metadata": metadata("svc-\(number)", labels: ["app": .string("app-\(number % 500)")]),
    "spec": [
      "type": "ClusterIP", "clusterIP": .string(address(10, number)), "clusterIPs": [.string(address(10, number))],
      "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
      "internalTrafficPolicy": "Cluster", "selector": ["app": .string("app-\(number % 500)")],
      "ports": [["name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080]],
    ], "status": ["loadBalancer": [:]],
  ]
}

private func slice(_ number: Int) -> JSONValue {
  [
    "metadata": metadata("svc-\(number)-x7k2p", labels: ["kubernetes.io/service-name": .string("svc-\(number)")]),
    "addressType": "IPv4", "ports": [["name": "http", "protocol": "TCP", "port": 8080]],
    "endpoints": .array(
      (0..<10).map { index in
        [
          "addresses": [.string(address(11, number * 10 + index))], "nodeName": .string("node-\(index)"),
          "conditions": ["ready": true, "serving": true, "terminating": false], "zone": "zone-a",
          "targetRef": ["kind": "Pod", "name": .string("pod-\(number)-\(index)"), "namespace": "shop"],
        ]
      }),
  ]
}

private func pod(_ number: Int) -> JSONValue {
  [
    "metadata": metadata(
      "pod-\(number)", labels: ["app": .string("app-\(number % 500)"), "pod-template-hash": "5d8f"]),
    "spec": [
      "nodeName": .string("node-\(number % 100)"),
      "containers": [["name": "main", "ports": [["name": "http", "containerPort": 8080, "protocol": "TCP"]]]],
    ],
    "status": [
      "phase": "Running", "podIP": .string(address(12, number)), "podIPs": [["ip": .string(address(12, number))]],
      "hostIP": "192.168.0.7",
    ],
  ]
}

private func metadata(_ name: String, labels: JSONObject) -> JSONValue {
  [
    "name": .string(name), "namespace": "shop", "uid": .string("6d1c0c9e-0000-4000-8000-\(name.utf8.count)"),
    "resourceVersion": "123456789", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": .object(labels),
  ]
}

private func address(_ net: Int, _ number: Int) -> String {
  "\(net).\(number >> 16 & 255).\(number >> 8 & 255).\(number & 255)"
}

private func decode(_ bytes: [UInt8], _ kind: ObjectKind, _ format: WireFormat) throws -> Int {
  var stream = ListStream(kind, format)
  let decoder = ObjectDecoder()
  var objects = 0
  for start in stride(from: 0, to: bytes.count, by: pieceSize) {
    for tree in try stream.append(bytes[start..<min(start + pieceSize, bytes.count)]) {
      if case .object = decoder.decode(tree, as: kind) { objects += 1 }
    }
  }
  _ = try stream.finish()
  return objects
}

/// The median of milliseconds.
private func median(_ times: [Double]) -> Double { times.sorted()[times.count / 2] }

private func milliseconds(_ body: () throws -> Void) rethrows -> Double {
  let start = ContinuousClock.now
  try body()
  return (ContinuousClock.now - start) / .milliseconds(1)
}

private let kinds: [(ServedKind, ObjectKind, (Int) -> JSONValue)] = [
  (.service, .service, service), (.endpointSlice, .endpointSlice, slice), (.pod, .pod, pod),
]
print("\(count) objects of each kind, medians of \(rounds) alternating rounds")
for (served, kind, make) in kinds {
  let objects = (0..<count).map(make)
  let metadata: JSONValue = ["resourceVersion": "123456789"]
  let forms: [(String, WireFormat, [UInt8])] = [
    ("protobuf", .protobuf, WireForm.protobuf.list(objects, served, metadata: metadata)),
    ("JSON", .json, WireForm.json.list(objects, served, metadata: metadata)),
  ]
  var times = [[Double]](repeating: [], count: forms.count)
  var baseline: [Double] = []
  for _ in 0..<rounds {
    for (index, (_, format, bytes)) in forms.enumerated() {
      times[index].append(
        try milliseconds {
          guard try decode(bytes, kind, format) == count else { fatalError("\(kind): not all objects were read") }
        })
    }
    baseline.append(try milliseconds { _ = try JSONSerialization.jsonObject(with: Data(forms[1].2)) })
  }
  let base = median(baseline)
  print("\(served.plural): JSONSerialization alone: \(Int(base)) ms")
  for (index, (name, _, bytes)) in forms.enumerated() {
    let time = median(times[index])
    let throughput = Double(bytes.count) / 1e6 / (time / 1000)
    print(
      "  from \(name), \(bytes.count / count) bytes each: \(Int(time)) ms, \(Int(throughput)) MB/s, "
        + "\(Int(Double(count) / time)) objects per ms, \(String(format: "%.2f", time / base))x of the baseline")
  }
}
