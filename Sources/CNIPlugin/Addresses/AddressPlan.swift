import LocalAPI
import NetworkTypes

/// Where the addresses of an attachment come from.
enum AddressPlan {
  /// Our own store: one address of each pool, among them those that are asked for; routes besides the default ones.
  case own(pools: [AddressPool], requested: [IPAddress], subnets: [Subnet], routes: [PodRoute])
  case plugin(IPAMPlugin)

  /// Where addresses are from.
  struct Subnet: Hashable {
    let cidr: CIDR
    let gateway: IPAddress?

    /// The first address, where none is named: host-local's choice.
    var gatewayOrFirst: IPAddress? { gateway ?? AddressPool.usableRange(of: cidr)?.first }
  }

  /// - Parameter reservesGateways: a gateway is a real host, also where none is named.
  init(_ config: Config, _ runtime: RuntimeConfig, reservesGateways: Bool) throws(CNIError) {
    let fields = ConfigFields(config.json)
    let ipam = ConfigFields(try fields.object("ipam") ?? JSONObject(), prefix: "ipam.")
    if let type = config.ipamPlugin {
      self = .plugin(try IPAMPlugin(type, config))
      return
    }
    let (pools, subnets) = try Self.pools(config, runtime: runtime, ipam: ipam, reservesGateways)
    var requested = try runtime.addresses()
    if requested.isEmpty, let cni = try fields.object("args")?["cni"]?.objectValue {
      requested = try RuntimeConfig(cni, prefix: "args.cni.").addresses()
    }
    for address in requested where !pools.contains(where: { $0.contains(address) }) {
      throw CNIError(.addressUnavailable, "requested address \(address) is in none of the network's ranges")
    }
    self = .own(pools: pools, requested: requested, subnets: subnets, routes: try Self.routes(ipam, pools))
  }

  /// With what is known of the subnets of addresses from our store.
  static func network(_ addresses: [IPAddress], _ subnets: [Subnet], _ routes: [PodRoute]) -> PodNetwork {
    PodNetwork(
      addresses: addresses.map { address in
        let subnet = subnets.first { $0.cidr.contains(address) }
        return PodAddress(
          address, prefixLength: subnet?.cidr.prefixLength ?? address.family.addressBits,
          gateway: subnet?.gatewayOrFirst)
      }, routes: routes)
  }

  /// `[{"dst", "gw"}]`, as host-local has it.
  private static func routes(_ ipam: ConfigFields, _ pools: [AddressPool]) throws(CNIError) -> [PodRoute] {
    var routes: [PodRoute] = []
    for (index, json) in (try ipam.array("routes") ?? []).enumerated() {
      let field = "ipam.routes[\(index)]"
      let route = try translating { () throws(PodRouteFault) in
        try PodRoute(json)
      } _: {
        .config("\(field).\($0.field)", "'\($0.value)' is no \($0.expected)")
      }
      guard pools.contains(where: { $0.family == route.destination.family }) else {
        throw .config("\(field).dst", "\(route.destination): the network has no range of this family")
      }
      routes.append(route)
    }
    return routes
  }

  /// The pools of a STATUS or ADD: from the runtime, the configuration or the node's pod ranges, in this order.
  private static func pools(
    _ config: Config, runtime: RuntimeConfig, ipam: ConfigFields, _ reservesGateways: Bool
  ) throws(CNIError) -> (pools: [AddressPool], subnets: [Subnet]) {
    var pools: [AddressPool] = []
    var subnets: [Subnet] = []
    if let sets = try runtime.array("ipRanges"), !sets.isEmpty {
      (pools, subnets) = try parse(sets, "runtimeConfig.ipRanges", reservesGateways)
    } else if let sets = try ipam.array("ranges"), !sets.isEmpty {
      (pools, subnets) = try parse(sets, "ipam.ranges", reservesGateways)
    } else if let facts = try config.nodeFacts() {
      subnets = facts.podCIDRs.map { Subnet(cidr: $0, gateway: nil) }
      pools = subnets.compactMap { subnet in
        let excluded = reservesGateways ? [subnet.gatewayOrFirst].compactMap(\.self) : []
        return AddressPool.usableRange(of: subnet.cidr).flatMap { AddressPool([$0], excluding: Set(excluded)) }
      }
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
    return (pools, subnets)
  }

  /// `[[{"subnet", "rangeStart", "rangeEnd", "gateway"}]]`, as host-local has it.
  private static func parse(
    _ sets: [JSONValue], _ field: String, _ reservesGateways: Bool
  ) throws(CNIError) -> (pools: [AddressPool], subnets: [Subnet]) {
    var pools: [AddressPool] = []
    var subnets: [Subnet] = []
    for (index, set) in sets.enumerated() {
      let name = "\(field)[\(index)]"
      guard let members = set.arrayValue, !members.isEmpty else { throw .config(name, "is no array of ranges") }
      var ranges: [AddressRange] = []
      var gateways: Set<IPAddress> = []
      for (index, member) in members.enumerated() {
        guard let object = member.objectValue else { throw .config("\(name)[\(index)]", "is no object") }
        let fields = ConfigFields(object, prefix: "\(name)[\(index)].")
        let (range, cidr) = try range(fields)
        ranges.append(range)
        let subnet = Subnet(cidr: cidr, gateway: try address("gateway", fields))
        if let gateway = reservesGateways ? subnet.gatewayOrFirst : subnet.gateway { gateways.insert(gateway) }
        subnets.append(subnet)
      }
      guard let pool = AddressPool(ranges, excluding: gateways) else {
        throw .config(name, "mixes IPv4 and IPv6")
      }
      pools.append(pool)
    }
    return (pools, subnets)
  }

  private static func range(_ fields: ConfigFields) throws(CNIError) -> (AddressRange, CIDR) {
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
    return (range, subnet)
  }

  private static func address(_ key: String, _ fields: ConfigFields) throws(CNIError) -> IPAddress? {
    guard let text = try fields.string(key), !text.isEmpty else { return nil }
    guard let address = IPAddress(text) else { throw .config(fields.prefix + key, "'\(text)' is no IP address") }
    return address
  }
}
