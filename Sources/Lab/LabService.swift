import NetworkTypes
import Yams

/// A Service as the slice controller needs it: whom it selects, and on which ports.
struct LabService: Sendable, Hashable {
  enum TargetPort: Sendable, Hashable {
    case number(Port)
    /// Resolved per pod: one name can be different numbers on different pods.
    case name(String)
  }

  struct ServicePort: Sendable, Hashable {
    var name: String
    var `protocol`: L4Protocol
    var target: TargetPort
  }

  var name: PodName
  var selector: [String: String]
  var families: [IPFamily]
  var ports: [ServicePort]
  var isHeadless: Bool
  var publishesNotReady: Bool

  func selects(_ pod: LabPod) -> Bool {
    pod.name.namespace == name.namespace && !selector.isEmpty
      && selector.allSatisfy { pod.spec.labels[$0.key] == $0.value }
  }

  /// The Services with a selector among a file's documents; other kinds are not the slice controller's business.
  static func read(yaml: String, file: String) throws(LabError) -> [LabService] {
    var documents: [Node] = []
    do {
      var sequence = try Yams.compose_all(yaml: yaml)
      while let document = sequence.next() { documents.append(document) }
      if let error = sequence.error { throw error }
    } catch {
      throw .manifest(file: file, reason: "\(error)")
    }
    var services: [LabService] = []
    for document in documents {
      let items = document["kind"]?.string == "List" ? document["items"]?.array() ?? [] : [document]
      for item in items where item["kind"]?.string == "Service" {
        if let service = try parse(item, file: file) { services.append(service) }
      }
    }
    return services
  }

  private static func parse(_ node: Node, file: String) throws(LabError) -> LabService? {
    guard let name = node["metadata"]?["name"]?.string else {
      throw .manifest(file: file, reason: "a Service without metadata.name")
    }
    let namespace = node["metadata"]?["namespace"]?.string ?? "default"
    guard let spec = node["spec"], let selector = spec["selector"]?.mapping else { return nil }
    let clusterIPs = spec["clusterIPs"]?.array().compactMap(\.string) ?? spec["clusterIP"]?.string.map { [$0] } ?? []
    var families = spec["ipFamilies"]?.array().compactMap { $0.string == "IPv6" ? IPFamily.v6 : .v4 } ?? []
    if families.isEmpty { families = clusterIPs.compactMap { IPAddress($0)?.family } }
    var ports: [ServicePort] = []
    for port in spec["ports"]?.array() ?? [] {
      guard let number = port["port"]?.int else {
        throw .manifest(file: file, reason: "Service \(namespace)/\(name): spec.ports[].port is missing")
      }
      let target = port["targetPort"]?.scalar?.string ?? "\(number)"
      ports.append(
        ServicePort(
          name: port["name"]?.string ?? "",
          protocol: L4Protocol(kubernetesName: port["protocol"]?.string ?? "TCP") ?? .tcp,
          target: Int(target).flatMap { Port($0) }.map { .number($0) } ?? .name(target)))
    }
    return LabService(
      name: PodName(namespace, name),
      selector: selector.reduce(into: [:]) { labels, pair in
        if let key = pair.key.string { labels[key] = pair.value.scalar?.string ?? "" }
      },
      families: families.isEmpty ? [.v4] : families, ports: ports, isHeadless: clusterIPs.first == "None",
      publishesNotReady: spec["publishNotReadyAddresses"]?.bool ?? false)
  }
}
