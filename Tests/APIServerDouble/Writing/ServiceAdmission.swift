import LocalAPI
import NetworkTypes

/// Gives a Service its addresses and node ports, and what else https://kubernetes.io/docs/concepts/services-networking/service
/// says of one that leaves it out.
struct ServiceAdmission {
  let store: ObjectStore
  let old: JSONValue?

  private static let ranges = [IPFamily.v4: "10.96.", .v6: "fd00:10:96::"]

  func completed(_ object: JSONValue) throws(Refusal) -> JSONValue {
    var service = object
    let title = "Service \"\(object["metadata"]?["name"]?.stringValue ?? "")\""
    let type = object["spec"]?["type"]?.stringValue ?? "ClusterIP"
    guard ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(type) else {
      throw .invalid(title, "spec.type", "Unsupported value: \"\(type)\"")
    }
    for (key, value) in [
      ("type", JSONValue.string(type)), ("sessionAffinity", "None"), ("internalTrafficPolicy", "Cluster"),
    ] where service["spec"]?[key] == nil { service = service.with("spec", key, value: value) }
    guard type != "ExternalName" else { return withoutAddresses(service) }
    service = try addresses(service, title)
    return try ports(service, title, needsNodePorts: type != "ClusterIP")
  }

  /// What another type had does not stay with one that has no use for it, unless it was asked for anew.
  private func withoutAddresses(_ service: JSONValue) -> JSONValue {
    var service = service
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]
    where service["spec"]?[key] == old?["spec"]?[key] { service = service.with("spec", key, value: nil) }
    return service
  }

  private func addresses(_ service: JSONValue, _ title: String) throws(Refusal) -> JSONValue {
    let asked = Self.addresses(of: service)
    let held = old.map(Self.addresses) ?? []
    if !held.isEmpty, !asked.isEmpty, asked.first != held.first {
      throw .invalid(title, "spec.clusterIPs[0]", "Invalid value: [\"\(asked[0])\"]: may not change once set")
    }
    var addresses = asked.isEmpty ? held : asked
    let others = Set(store.objects(.service).values.filter { !isSame($0, service) }.flatMap(Self.addresses))
    for (index, address) in addresses.enumerated() where address != "None" {
      guard IPAddress(address) != nil else {
        throw .invalid(
          title, "spec.clusterIPs[\(index)]",
          "Invalid value: \"\(address)\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
      }
      guard !others.contains(address) else {
        throw .invalid(
          title, "spec.clusterIPs[\(index)]",
          "Invalid value: \"\(address)\": failed to allocate IP \(address): provided IP is already allocated")
      }
    }
    let families = try families(of: service, title, addresses)
    if addresses.first != "None" {
      for family in families.dropFirst(addresses.count) { addresses.append(try allocate(family, title)) }
    }
    let policy = families.count == 2 ? "RequireDualStack" : "SingleStack"
    return service.with("spec", "clusterIP", value: addresses.first.map { .string($0) })
      .with("spec", "clusterIPs", value: .array(addresses.map { .string($0) }))
      .with("spec", "ipFamilies", value: .array(families.map { .string("\($0)") }))
      .with("spec", "ipFamilyPolicy", value: service["spec"]?["ipFamilyPolicy"] ?? .string(policy))
  }

  private func families(of service: JSONValue, _ title: String, _ addresses: [String]) throws(Refusal) -> [IPFamily] {
    var families: [IPFamily] = []
    for text in service["spec"]?["ipFamilies"]?.arrayValue ?? [] {
      guard let family = IPFamily.allCases.first(where: { "\($0)" == text.stringValue }) else {
        throw .invalid(title, "spec.ipFamilies", "Unsupported value: \(text)")
      }
      families.append(family)
    }
    if families.isEmpty { families = addresses.compactMap { IPAddress($0)?.family } }
    if families.isEmpty { families = [.v4] }
    let policy = service["spec"]?["ipFamilyPolicy"]?.stringValue ?? "SingleStack"
    if policy != "SingleStack", families.count == 1 { families.append(families[0] == .v4 ? .v6 : .v4) }
    return families
  }

  private func allocate(_ family: IPFamily, _ title: String) throws(Refusal) -> String {
    let taken = Set(store.objects(.service).values.flatMap(Self.addresses))
    // The first ones are left to those who ask for a certain one.
    for number in 1000..<60_000 {
      let text =
        family == .v4
        ? "\(Self.ranges[.v4] ?? "")\(number >> 8).\(number & 255)"
        : (Self.ranges[.v6] ?? "") + String(number, radix: 16)
      if !taken.contains(text) { return text }
    }
    throw .invalid(title, "spec.clusterIPs", "Internal error: failed to allocate IP addresses")
  }

  private func ports(_ service: JSONValue, _ title: String, needsNodePorts: Bool) throws(Refusal) -> JSONValue {
    var ports: [JSONValue] = []
    let before = old?["spec"]?["ports"]?.arrayValue ?? []
    let all = service["spec"]?["ports"]?.arrayValue ?? []
    let others = Set(store.objects(.service).values.filter { !isSame($0, service) }.flatMap(Self.nodePorts))
    // Those that are asked for by their numbers first.
    var taken = others.union(Self.nodePorts(of: service))
    for (index, asked) in all.enumerated() {
      let field = "spec.ports[\(index)]"
      guard let number = asked["port"]?.intValue, (1...65_535).contains(number) else {
        throw .invalid(
          title, "\(field).port", "Invalid value: \(asked["port"] ?? 0): must be between 1 and 65535, inclusive")
      }
      let name = asked["name"]?.stringValue ?? ""
      if all.count > 1, name.isEmpty { throw .invalid(title, "\(field).name", "Required value") }
      guard !all[..<index].contains(where: { ($0["name"]?.stringValue ?? "") == name }) else {
        throw .invalid(title, "\(field).name", "Duplicate value: \"\(name)\"")
      }
      var port = asked
      if let nodePort = port["nodePort"]?.intValue, nodePort != 0 {
        // What a type had that is given up goes with it.
        if !needsNodePorts, before.contains(where: { $0["nodePort"] == port["nodePort"] }) {
          port = port.with("nodePort", value: nil)
        } else if !needsNodePorts {
          throw .invalid(title, "\(field).nodePort", "Forbidden: may not be used when `type` is 'ClusterIP'")
        } else if others.contains(nodePort) {
          throw .invalid(
            title, "\(field).nodePort", "Invalid value: \(nodePort): provided port is already allocated")
        } else if !(30_000...32_767).contains(nodePort) {
          throw .invalid(
            title, "\(field).nodePort",
            "Invalid value: \(nodePort): provided port is not in the valid range. The range of valid ports is 30000-32767"
          )
        }
      }
      if port["protocol"] == nil { port = port.with("protocol", value: "TCP") }
      if port["targetPort"] == nil { port = port.with("targetPort", value: .int(number)) }
      if needsNodePorts, port["nodePort"]?.intValue ?? 0 == 0 {
        let same = before.first { $0["port"] == port["port"] && $0["protocol"] == port["protocol"] }
        guard let free = same?["nodePort"]?.intValue ?? (30_000...32_767).first(where: { !taken.contains($0) }) else {
          throw .invalid(title, "\(field).nodePort", "Internal error: no free port")
        }
        taken.insert(free)
        port = port.with("nodePort", value: .int(free))
      }
      ports.append(port)
    }
    guard !ports.isEmpty || Self.addresses(of: service).first == "None" else {
      throw .invalid(title, "spec.ports", "Required value")
    }
    return service.with("spec", "ports", value: .array(ports))
  }

  private func isSame(_ other: JSONValue, _ service: JSONValue) -> Bool {
    ["namespace", "name"].allSatisfy { other["metadata"]?[$0] == service["metadata"]?[$0] }
  }

  private static func addresses(of service: JSONValue) -> [String] {
    let all = (service["spec"]?["clusterIPs"]?.arrayValue ?? []).compactMap(\.stringValue)
    guard all.isEmpty else { return all }
    return [service["spec"]?["clusterIP"]?.stringValue].compactMap { $0 }.filter { !$0.isEmpty }
  }

  private static func nodePorts(of service: JSONValue) -> [Int64] {
    (service["spec"]?["ports"]?.arrayValue ?? []).compactMap { $0["nodePort"]?.intValue }
  }
}
