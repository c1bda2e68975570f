import LocalAPI
import NetworkTypes

/// What an ADD made, to be told in any version of the specification.
struct AttachmentResult {
  let hostInterface: String
  let hostMAC: MACAddress
  let podInterface: String
  let podMAC: MACAddress
  /// CNI_NETNS, verbatim.
  let sandbox: String
  /// Bytes.
  let mtu: Int
  let addresses: [IPAddress]
  /// Besides the default ones.
  let routes: [CIDR]
  let dns: JSONObject?

  /// The result in the form of `version`; what earlier plugins of the chain made stays as it is, ours is added.
  func json(version: SpecVersion, previous: JSONObject?) -> JSONValue {
    var result = previous ?? JSONObject()
    result["cniVersion"] = .string(version.rawValue)
    if version < .v0_3_0 {
      addOldAddresses(to: &result)
    } else {
      addInterfaces(to: &result, version: version)
    }
    if let dns { result["dns"] = .object(dns) }
    if result["dns"] == nil { result["dns"] = .object(JSONObject()) }
    return .object(result)
  }

  /// 0.1 and 0.2 know one address of each family and no interfaces.
  private func addOldAddresses(to result: inout JSONObject) {
    for (key, family) in [("ip4", IPFamily.v4), ("ip6", .v6)] {
      guard let address = addresses.first(where: { $0.family == family }) else { continue }
      result[key] = [
        "ip": .string("\(InterfaceText.host(address))"), "gateway": .string("\(RoutedShape.gateway(family))"),
        "routes": .array(routes(family)),
      ]
    }
  }

  private func addInterfaces(to result: inout JSONObject, version: SpecVersion) {
    var interfaces = result["interfaces"]?.arrayValue ?? []
    var ips = result["ips"]?.arrayValue ?? []
    var routes = result["routes"]?.arrayValue ?? []

    var host: JSONObject = ["name": .string(hostInterface), "mac": .string("\(hostMAC)")]
    var pod: JSONObject = [
      "name": .string(podInterface), "mac": .string("\(podMAC)"), "sandbox": .string(sandbox),
    ]
    if version >= .v1_1_0 {
      host["mtu"] = .int(Int64(mtu))
      pod["mtu"] = .int(Int64(mtu))
    }
    interfaces += [.object(host), .object(pod)]
    let podIndex = Int64(interfaces.count - 1)
    for address in addresses {
      var ip: JSONObject = [
        "address": .string(InterfaceText.host(address)), "gateway": .string("\(RoutedShape.gateway(address.family))"),
        "interface": .int(podIndex),
      ]
      if version < .v1_0_0 { ip["version"] = address.family == .v4 ? "4" : "6" }
      ips.append(.object(ip))
    }
    for family in IPFamily.allCases where addresses.contains(where: { $0.family == family }) {
      routes += self.routes(family)
    }
    result["interfaces"] = .array(interfaces)
    result["ips"] = .array(ips)
    result["routes"] = .array(routes)
  }

  private func routes(_ family: IPFamily) -> [JSONValue] {
    let others = routes.filter { $0.family == family }.map(\.description)
    return ([family == .v4 ? "0.0.0.0/0" : "::/0"] + others).map { destination in
      ["dst": .string(destination), "gw": .string("\(RoutedShape.gateway(family))")]
    }
  }
}

/// `10.0.1.5/32`: an address as the prefix of one.
enum InterfaceText {
  static func host(_ address: IPAddress) -> String { "\(address)/\(address.family.addressBits)" }
}
