import LocalAPI
import Netlink
import NetworkTypes

/// What an ADD made, to be told in any version of the specification.
struct AttachmentResult {
  let shape: any Shape
  /// Of the node, besides the pod's pair: to be named before it, and behind.
  let sharedDevices: (first: [Link], last: [Link])
  /// CNI_NETNS, verbatim.
  let sandbox: String
  /// Bytes.
  let mtu: Int
  let network: PodNetwork
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
      guard let address = network.addresses.first(where: { $0.family == family }) else { continue }
      var ip: JSONObject = ["ip": .string(text(of: address))]
      ip["gateway"] = shape.gateway(of: address).map { .string($0.description) }
      ip["routes"] = .array(routes(version: .v0_2_0, family))
      result[key] = .object(ip)
    }
  }

  private func addInterfaces(to result: inout JSONObject, version: SpecVersion) {
    var interfaces = result["interfaces"]?.arrayValue ?? []
    var ips = result["ips"]?.arrayValue ?? []
    func device(_ name: String, _ mac: MACAddress?, _ mtu: Int, sandbox: String? = nil) -> JSONValue {
      var object: JSONObject = ["name": .string(name)]
      object["mac"] = mac.map { .string($0.description) }
      object["sandbox"] = sandbox.map(JSONValue.string)
      if version >= .v1_1_0 { object["mtu"] = .int(Int64(mtu)) }
      return .object(object)
    }
    let pair = shape.devices
    interfaces += sharedDevices.first.map { device($0.name, $0.mac, $0.mtu) }
    interfaces.append(device(pair.hostInterface, pair.hostMAC, mtu))
    interfaces.append(device(pair.podInterface, pair.podMAC, mtu, sandbox: sandbox))
    let podIndex = Int64(interfaces.count - 1)
    interfaces += sharedDevices.last.map { device($0.name, $0.mac, $0.mtu) }
    for address in network.addresses {
      var ip: JSONObject = ["address": .string(text(of: address)), "interface": .int(podIndex)]
      ip["gateway"] = shape.gateway(of: address).map { .string($0.description) }
      if version < .v1_0_0 { ip["version"] = address.family == .v4 ? "4" : "6" }
      ips.append(.object(ip))
    }
    result["interfaces"] = .array(interfaces)
    result["ips"] = .array(ips)
    result["routes"] = .array((result["routes"]?.arrayValue ?? []) + routes(version: version))
  }

  private func text(of address: PodAddress) -> String { "\(address.address)/\(shape.prefixLength(of: address))" }

  private func routes(version: SpecVersion, _ family: IPFamily? = nil) -> [JSONValue] {
    shape.routes(network).filter { family == nil || $0.route.destination.family == family }
      .map { $0.route.json(via: $0.gateway, version: version) }
  }
}

/// `10.0.1.5/32`: an address as the prefix of one.
enum InterfaceText {
  static func host(_ address: IPAddress) -> String { "\(address)/\(address.family.addressBits)" }
}
