import Foundation
import LocalAPI

/// Objects as rows of a table, as `kubectl get` shows them:
/// https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables.
enum TableForm {
  private struct Column {
    var name: String
    /// 1: shown by `-o wide` only.
    var priority = 0
    var cell: (JSONValue) -> JSONValue
  }

  static func table(_ objects: [JSONValue], _ kind: ServedKind, metadata: JSONValue) -> JSONValue {
    let columns = columns(of: kind)
    return [
      "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
      "columnDefinitions": .array(
        columns.map {
          [
            "name": .string($0.name), "type": "string", "format": $0.name == "Name" ? "name" : "", "description": "",
            "priority": .int(Int64($0.priority)),
          ]
        }),
      "rows": .array(
        objects.map { object in
          [
            "cells": .array(columns.map { $0.cell(object) }),
            "object": [
              "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] ?? [:],
            ],
          ]
        }),
    ]
  }

  private static func columns(of kind: ServedKind) -> [Column] {
    let name = Column(name: "Name") { $0["metadata"]?["name"] ?? "" }
    let age = Column(name: "Age") { .string(Self.age(since: $0["metadata"]?["creationTimestamp"])) }
    switch kind {
    case .pod:
      return [
        name, Column(name: "Ready") { isReady($0) ? "1/1" : "0/1" }, Column(name: "Status") { .string(phase(of: $0)) },
        Column(name: "Restarts") { _ in 0 }, age,
        Column(name: "IP", priority: 1) { $0["status"]?["podIP"] ?? "<none>" },
        Column(name: "Node", priority: 1) { $0["spec"]?["nodeName"] ?? "<none>" },
      ]
    case .service:
      return [
        name, Column(name: "Type") { $0["spec"]?["type"] ?? "" },
        Column(name: "Cluster-IP") { $0["spec"]?["clusterIP"] ?? "<none>" },
        Column(name: "External-IP") { _ in "<none>" }, Column(name: "Port(s)") { .string(ports(of: $0)) }, age,
        Column(name: "Selector", priority: 1) { .string(pairs($0["spec"]?["selector"])) },
      ]
    case .deployment:
      return [
        name,
        Column(name: "Ready") {
          .string("\($0["status"]?["readyReplicas"]?.intValue ?? 0)/\($0["spec"]?["replicas"]?.intValue ?? 1)")
        }, Column(name: "Up-to-date") { $0["status"]?["updatedReplicas"] ?? 0 },
        Column(name: "Available") { $0["status"]?["availableReplicas"] ?? 0 }, age,
      ]
    case .networkPolicy:
      return [name, Column(name: "Pod-Selector") { .string(pairs($0["spec"]?["podSelector"]?["matchLabels"])) }, age]
    case .endpointSlice:
      return [
        name, Column(name: "AddressType") { $0["addressType"] ?? "" },
        Column(name: "Ports") { .string(list($0["ports"]) { $0["port"]?.intValue.map { "\($0)" } }) },
        Column(name: "Endpoints") {
          .string(list($0["endpoints"]) { $0["addresses"]?.arrayValue?.first?.stringValue })
        },
        age,
      ]
    case .event:
      return [
        Column(name: "Last Seen") { .string(Self.age(since: $0["lastTimestamp"])) },
        Column(name: "Type") { $0["type"] ?? "" }, Column(name: "Reason") { $0["reason"] ?? "" },
        Column(name: "Object") {
          let about = $0["involvedObject"]
          return .string("\(about?["kind"]?.stringValue?.lowercased() ?? "")/\(about?["name"]?.stringValue ?? "")")
        }, Column(name: "Message") { $0["message"] ?? "" },
      ]
    case .namespace, .node: return [name, Column(name: "Status") { .string(phase(of: $0)) }, age]
    default: return [name, age]
    }
  }

  private static func isReady(_ pod: JSONValue) -> Bool { PodObject(pod).isReady }

  private static func phase(of object: JSONValue) -> String {
    if object["metadata"]?["deletionTimestamp"] != nil { return "Terminating" }
    return object["status"]?["phase"]?.stringValue ?? (object["kind"]?.stringValue == "Node" ? "Ready" : "Active")
  }

  private static func ports(of service: JSONValue) -> String {
    list(service["spec"]?["ports"]) { port in
      let node = port["nodePort"]?.intValue.map { ":\($0)" } ?? ""
      return port["port"]?.intValue.map { "\($0)\(node)/\(port["protocol"]?.stringValue ?? "TCP")" }
    }
  }

  private static func list(_ values: JSONValue?, _ text: (JSONValue) -> String?) -> String {
    let all = (values?.arrayValue ?? []).compactMap(text)
    guard !all.isEmpty else { return "<none>" }
    return all.prefix(3).joined(separator: ",") + (all.count > 3 ? " + \(all.count - 3) more..." : "")
  }

  private static func pairs(_ labels: JSONValue?) -> String {
    let all = (labels?.objectValue ?? [:]).map { "\($0.key)=\($0.value.stringValue ?? "")" }
    return all.isEmpty ? "<none>" : all.joined(separator: ",")
  }

  private static func age(since time: JSONValue?) -> String {
    guard let text = time?.stringValue,
      let date = try? Date(text, strategy: .iso8601)
    else { return "<unknown>" }
    let seconds = max(0, Int(Date().timeIntervalSince(date)))
    return seconds < 120 ? "\(seconds)s" : seconds < 7200 ? "\(seconds / 60)m" : "\(seconds / 3600)h"
  }
}
