import LocalAPI
import NetworkTypes

/// What the configuration says about a new attachment, checked whole before anything is touched.
struct AttachmentConfig {
  /// Bytes; nil: derive.
  let mtu: Int?
  let mac: MACAddress?
  /// One address of each.
  let pools: [AddressPool]
  let requestedAddresses: [IPAddress]
  let dns: JSONObject?

  init(_ config: Config) throws(CNIError) {
    let fields = ConfigFields(config.json)
    let mode = try fields.string("mode") ?? "routed"
    guard mode == "routed" else { throw .unsupported("mode", "'\(mode)'", "use 'routed'") }
    let mtu = try fields.integer("mtu", in: 0...65_535) ?? 0
    guard mtu == 0 || mtu >= 576 else { throw .config("mtu", "\(mtu) is below 576") }
    self.mtu = mtu == 0 ? nil : mtu

    let runtime = RuntimeConfig(try fields.object("runtimeConfig") ?? JSONObject())
    try runtime.refuseUnsupported()
    mac = try runtime.mac()
    let ownDNS = try fields.object("dns")
    dns = try runtime.object("dns") ?? ownDNS

    let ipam = ConfigFields(try fields.object("ipam") ?? JSONObject(), prefix: "ipam.")
    let type = try ipam.string("type") ?? "sluice"
    guard type == "sluice" else { throw .config("ipam.type", "'\(type)' is not supported, use 'sluice'") }
    pools = try Self.pools(config, runtime: runtime, ipam: ipam)
    if let v6 = pools.first(where: { $0.family == .v6 }), mtu != 0, mtu < 1280 {
      throw .config("mtu", "\(mtu) is below 1280, which IPv6 (\(v6)) needs")
    }

    var requested = try runtime.addresses()
    if requested.isEmpty, let cni = try fields.object("args")?["cni"]?.objectValue {
      requested = try RuntimeConfig(cni, prefix: "args.cni.").addresses()
    }
    requestedAddresses = requested
    for address in requested where !pools.contains(where: { $0.contains(address) }) {
      throw CNIError(.addressUnavailable, "requested address \(address) is in none of the network's ranges")
    }
  }

  /// The pools of a STATUS or ADD: from the runtime, the configuration or the node's pod ranges, in this order.
  private static func pools(
    _ config: Config, runtime: RuntimeConfig, ipam: ConfigFields
  ) throws(CNIError) -> [AddressPool] {
    var pools: [AddressPool] = []
    if let sets = try runtime.array("ipRanges"), !sets.isEmpty {
      pools = try parse(sets, "runtimeConfig.ipRanges")
    } else if let sets = try ipam.array("ranges"), !sets.isEmpty {
      pools = try parse(sets, "ipam.ranges")
    } else if let facts = try config.nodeFacts() {
      pools = facts.podCIDRs.compactMap { AddressPool.usableRange(of: $0) }.compactMap { AddressPool([$0]) }
    }
    guard !pools.isEmpty else {
      throw CNIError(
        .tryAgainLater,
        "no address ranges: the configuration has no ipam.ranges, and the agent has not yet written"
          + " this node's pod ranges to \(config.runDirectory)/node.json")
    }
    let ranges = pools.flatMap(\.ranges).sorted()
    for (left, right) in zip(ranges, ranges.dropFirst()) where left.last.family == right.first.family {
      if right.first <= left.last { throw .config("ipam.ranges", "\(left) and \(right) overlap") }
    }
    return pools
  }

  /// `[[{"subnet", "rangeStart", "rangeEnd", "gateway"}]]`, as host-local has it.
  private static func parse(_ sets: [JSONValue], _ field: String) throws(CNIError) -> [AddressPool] {
    var pools: [AddressPool] = []
    for (index, set) in sets.enumerated() {
      let name = "\(field)[\(index)]"
      guard let members = set.arrayValue, !members.isEmpty else { throw .config(name, "is no array of ranges") }
      var ranges: [AddressRange] = []
      var gateways: Set<IPAddress> = []
      for (index, member) in members.enumerated() {
        guard let object = member.objectValue else { throw .config("\(name)[\(index)]", "is no object") }
        let fields = ConfigFields(object, prefix: "\(name)[\(index)].")
        ranges.append(try range(fields))
        if let gateway = try address("gateway", fields) { gateways.insert(gateway) }
      }
      guard let pool = AddressPool(ranges, excluding: gateways) else {
        throw .config(name, "mixes IPv4 and IPv6")
      }
      pools.append(pool)
    }
    return pools
  }

  private static func range(_ fields: ConfigFields) throws(CNIError) -> AddressRange {
    let text = try fields.string("subnet") ?? ""
    guard let subnet = CIDR(text) else { throw .config("\(fields.prefix)subnet", "'\(text)' is no CIDR") }
    guard let usable = AddressPool.usableRange(of: subnet) else {
      throw .config("\(fields.prefix)subnet", "\(subnet) has no usable address")
    }
    let first = try address("rangeStart", fields) ?? usable.first
    let last = try address("rangeEnd", fields) ?? usable.last
    for (name, address) in [("rangeStart", first), ("rangeEnd", last)] where !subnet.contains(address) {
      throw .config(fields.prefix + name, "\(address) is outside \(subnet)")
    }
    guard let range = AddressRange(first: first, last: last) else {
      throw .config("\(fields.prefix)rangeStart", "\(first) lies behind rangeEnd \(last)")
    }
    return range
  }

  private static func address(_ key: String, _ fields: ConfigFields) throws(CNIError) -> IPAddress? {
    guard let text = try fields.string(key), !text.isEmpty else { return nil }
    guard let address = IPAddress(text) else { throw .config(fields.prefix + key, "'\(text)' is no IP address") }
    return address
  }
}

/// What the runtime adds to the configuration for one attachment. Keys are matched without regard to case: containerd
/// sends the names of Go fields.
struct RuntimeConfig {
  private let json: JSONObject
  private let prefix: String

  init(_ json: JSONObject, prefix: String = "runtimeConfig.") {
    self.json = json
    self.prefix = prefix
  }

  private func value<Value>(
    _ key: String, _ kind: String, _ convert: (JSONValue) -> Value?
  ) throws(CNIError) -> Value? {
    guard let json = json.valueIgnoringCase(key), !json.isNull else { return nil }
    guard let value = convert(json) else { throw .config(prefix + key, "is no \(kind)") }
    return value
  }

  func array(_ key: String) throws(CNIError) -> [JSONValue]? { try value(key, "array") { $0.arrayValue } }
  func object(_ key: String) throws(CNIError) -> JSONObject? { try value(key, "object") { $0.objectValue } }

  /// Asking for something that would silently not happen is an error.
  func refuseUnsupported() throws(CNIError) {
    if let mappings = try array("portMappings"), !mappings.isEmpty {
      throw .unsupported("\(prefix)portMappings", JSONValue.array(mappings).serialized(), "no host ports yet")
    }
    if let bandwidth = try object("bandwidth"), bandwidth.contains(where: { $0.value != 0 && !$0.value.isNull }) {
      throw .unsupported("\(prefix)bandwidth", JSONValue.object(bandwidth).serialized(), "no bandwidth limits yet")
    }
  }

  func mac() throws(CNIError) -> MACAddress? {
    guard let text = try value("mac", "string", { $0.stringValue }), !text.isEmpty else { return nil }
    // The lowest bit of the first byte marks groups: no interface can have such an address.
    guard let mac = MACAddress(text), mac.bytes[0] & 1 == 0, mac.number != 0 else {
      throw .config("\(prefix)mac", "'\(text)' is no MAC address of an interface")
    }
    return mac
  }

  /// Static addresses, with or without prefix length.
  func addresses() throws(CNIError) -> [IPAddress] {
    var addresses: [IPAddress] = []
    for element in try array("ips") ?? [] {
      let text = element.stringValue ?? ""
      let host = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)[0]
      guard let address = IPAddress(host), host.utf8.count == text.utf8.count || CIDR(text) != nil else {
        throw .config("\(prefix)ips", "'\(element)' is no IP address")
      }
      addresses.append(address)
    }
    return addresses
  }
}
