import LocalAPI
import NetworkTypes

/// Where the addresses of an attachment come from.
enum AddressPlan {
  /// Our own store: one address of each pool, among them those that are asked for; routes besides the default ones.
  case own(pools: [AddressPool], requested: [IPAddress], routes: [CIDR])
  case plugin(IPAMPlugin)

  init(_ config: Config, _ runtime: RuntimeConfig) throws(CNIError) {
    let fields = ConfigFields(config.json)
    let ipam = ConfigFields(try fields.object("ipam") ?? JSONObject(), prefix: "ipam.")
    if let type = config.ipamPlugin {
      self = .plugin(try IPAMPlugin(type, config))
      return
    }
    let pools = try Self.pools(config, runtime: runtime, ipam: ipam)
    var requested = try runtime.addresses()
    if requested.isEmpty, let cni = try fields.object("args")?["cni"]?.objectValue {
      requested = try RuntimeConfig(cni, prefix: "args.cni.").addresses()
    }
    for address in requested where !pools.contains(where: { $0.contains(address) }) {
      throw CNIError(.addressUnavailable, "requested address \(address) is in none of the network's ranges")
    }
    self = .own(pools: pools, requested: requested, routes: try Self.routes(ipam, pools))
  }

  /// `[{"dst", "gw"}]`, as host-local has it.
  private static func routes(_ ipam: ConfigFields, _ pools: [AddressPool]) throws(CNIError) -> [CIDR] {
    var routes: [CIDR] = []
    for (index, route) in (try ipam.array("routes") ?? []).enumerated() {
      let field = "ipam.routes[\(index)].dst"
      guard let destination = route["dst"]?.stringValue.flatMap({ CIDR($0) }) else {
        throw .config(field, "'\(route["dst"]?.stringValue ?? "")' is no CIDR")
      }
      guard pools.contains(where: { $0.family == destination.family }) else {
        throw .config(field, "\(destination): the network has no range of this family")
      }
      // Those there are anyway.
      if destination.prefixLength > 0 { routes.append(destination) }
    }
    return routes
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
