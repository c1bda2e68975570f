import LocalAPI

/// The options of the bridge shape, named as the reference plugin names them, with its defaults.
struct BridgeSettings: Hashable {
  /// Of the device.
  let name: String
  /// It has the subnets' gateway addresses.
  let isGateway: Bool
  /// It is the pods' way to everywhere.
  let isDefaultGateway: Bool
  /// Another address of the bridge in the same subnet gives way.
  let forcesAddress: Bool
  /// What leaves the subnet gets the node's address.
  let masquerades: Bool
  let isHairpin: Bool
  let isPromiscuous: Bool
  /// Pods reach the node, not each other.
  let isIsolated: Bool
  let vlans: VLANSettings

  /// Of the node, with the gateway addresses: the bridge, or what leads into the pods' VLAN.
  var gatewayDevice: String { vlans.access.map { "\(name).\($0)" } ?? name }
  /// It is not the bridge.
  var hasGatewayDevice: Bool { isGateway && vlans.access != nil }

  init(_ fields: ConfigFields) throws(CNIError) {
    let name = try fields.string("bridge") ?? ""
    self.name = name.isEmpty ? "cni0" : name
    if let reason = Invocation.interfaceNameFault(self.name) { throw .config("bridge", "'\(name)' \(reason)") }
    isDefaultGateway = try fields.bool("isDefaultGateway") ?? false
    isGateway = try fields.bool("isGateway") ?? false || isDefaultGateway
    forcesAddress = try fields.bool("forceAddress") ?? false
    masquerades = try fields.bool("ipMasq") ?? false
    isHairpin = try fields.bool("hairpinMode") ?? false
    isPromiscuous = try fields.bool("promiscMode") ?? false
    let isolation = try fields.bool("isolation")
    isIsolated = try fields.bool("portIsolation") ?? isolation ?? false
    guard !(isHairpin && isPromiscuous) else { throw .config("promiscMode", "and hairpinMode exclude each other") }
    vlans = try VLANSettings(fields)
    // What we do not do is not passed over in silence.
    if try fields.bool("disableContainerInterface") == true {
      throw .unsupported("disableContainerInterface", "true", "the bridge shape does not have it")
    }
    if isGateway, let reason = Invocation.interfaceNameFault(gatewayDevice) {
      throw .config("bridge", "the gateway's device '\(gatewayDevice)' \(reason)")
    }
  }
}
