import CLinux
import Glibc
import NetworkTypes

extension RouteSocket {
  /// The routes of one table, or of all; both families or one. Cached copies (`RTM_F_CLONED`) are left out.
  public func routes(table: UInt32? = nil, family: IPFamily? = nil) throws(NetlinkError) -> [Route] {
    var routes: [Route] = []
    for family in family.map({ [$0] }) ?? IPFamily.allCases {
      var header = rtmsg()
      header.rtm_family = family.linuxFamily
      var message = NetlinkMessageBuilder(type: RTM_GETROUTE)
      message.append(header)
      if let table { message.attribute(RTA_TABLE.rawValue, number: table) }
      do throws(NetlinkError) {
        routes += try list(message, answers: RTM_NEWROUTE, "list routes", Route.init(message:))
      } catch {
        // A table nobody has used yet does not exist.
        guard error.errno == ENOENT, table != nil else { throw error }
      }
    }
    // Kernels before 5.0 know no filter.
    return routes.filter { table == nil || $0.table == table }
  }

  /// Adds a route; EEXIST where there is one to the same destination with the same priority.
  public func addRoute(_ route: Route) throws(NetlinkError) {
    try change(Self.message(for: route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL), "add route", route.description)
  }

  /// Adds a route or puts it in the place of one to the same destination.
  public func replaceRoute(_ route: Route) throws(NetlinkError) {
    try change(Self.message(for: route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE), "replace route", route.description)
  }

  /// Succeeds also when there is no such route.
  public func deleteRoute(_ route: Route) throws(NetlinkError) {
    try tolerating(ESRCH, ENODEV) { () throws(NetlinkError) in
      try change(Self.message(for: route, RTM_DELROUTE, 0), "delete route", route.description)
    }
  }

  static func message(for route: Route, _ type: Int, _ flags: CInt) -> NetlinkMessageBuilder {
    var header = rtmsg()
    header.rtm_family = route.destination.family.linuxFamily
    header.rtm_dst_len = UInt8(clamping: route.destination.prefixLength)
    header.rtm_table = route.table < 256 ? UInt8(route.table) : UInt8(RT_TABLE_UNSPEC.rawValue)
    header.rtm_protocol = route.routeProtocol
    header.rtm_scope = route.scope
    header.rtm_type = route.type
    if route.isOnLink { header.rtm_flags |= UInt32(RTNH_F_ONLINK) }
    var message = NetlinkMessageBuilder(type: type, flags: flags)
    message.append(header)
    if route.destination.prefixLength > 0 {
      message.attribute(RTA_DST.rawValue, address: route.destination.address)
    }
    if let gateway = route.gateway {
      if gateway.family == route.destination.family {
        message.attribute(RTA_GATEWAY.rawValue, address: gateway)
      } else {
        // struct rtvia: the family as 16 bits, then the address.
        message.attribute(RTA_VIA.rawValue, [gateway.family.linuxFamily, 0] + gateway.bytes)
      }
    }
    if let index = route.interfaceIndex { message.attribute(RTA_OIF.rawValue, number: UInt32(clamping: index)) }
    if let source = route.preferredSource { message.attribute(RTA_PREFSRC.rawValue, address: source) }
    if let priority = route.priority { message.attribute(RTA_PRIORITY.rawValue, number: priority) }
    if route.table >= 256 { message.attribute(RTA_TABLE.rawValue, number: route.table) }
    if route.mtu != nil || route.segmentSize != nil {
      message.nest(RTA_METRICS.rawValue) {
        if let mtu = route.mtu { $0.attribute(RTAX_MTU, number: UInt32(clamping: mtu)) }
        if let size = route.segmentSize { $0.attribute(RTAX_ADVMSS, number: UInt32(clamping: size)) }
      }
    }
    return message
  }

  /// The policy rules of both families.
  public func rules() throws(NetlinkError) -> [RoutingRule] {
    var rules: [RoutingRule] = []
    for family in IPFamily.allCases {
      var header = fib_rule_hdr()
      header.family = family.linuxFamily
      var message = NetlinkMessageBuilder(type: RTM_GETRULE)
      message.append(header)
      rules += try list(message, answers: RTM_NEWRULE, "list rules", RoutingRule.init(message:))
    }
    return rules
  }
}

extension Route {
  /// nil for cached copies and what has no form here.
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    let header = try message.fixed(rtmsg.self)
    let attributes = try message.attributes(after: rtmsg.self)
    guard header.rtm_flags & UInt32(RTM_F_CLONED) == 0, let family = IPFamily(linuxFamily: header.rtm_family) else {
      return nil
    }
    let address = attributes.last(RTA_DST.rawValue).map { IPAddress(bytes: $0.content) } ?? .unspecified(family)
    guard let address, let destination = CIDR(address, prefixLength: Int(header.rtm_dst_len)) else { return nil }
    let via = attributes.last(RTA_VIA.rawValue).flatMap { IPAddress(bytes: $0.content.dropFirst(2)) }
    self.init(
      destination: destination,
      gateway: attributes.last(RTA_GATEWAY.rawValue).flatMap { IPAddress(bytes: $0.content) } ?? via,
      interfaceIndex: try attributes.number(RTA_OIF.rawValue, as: UInt32.self).map { Int($0) },
      preferredSource: attributes.last(RTA_PREFSRC.rawValue).flatMap { IPAddress(bytes: $0.content) },
      table: try attributes.number(RTA_TABLE.rawValue, as: UInt32.self) ?? UInt32(header.rtm_table),
      scope: header.rtm_scope, routeProtocol: header.rtm_protocol,
      isOnLink: header.rtm_flags & UInt32(RTNH_F_ONLINK) != 0,
      mtu: try attributes.nested(RTA_METRICS.rawValue)?.number(RTAX_MTU, as: UInt32.self).map { Int($0) },
      type: header.rtm_type, priority: try attributes.number(RTA_PRIORITY.rawValue, as: UInt32.self))
    segmentSize = try attributes.nested(RTA_METRICS.rawValue)?.number(RTAX_ADVMSS, as: UInt32.self).map { Int($0) }
  }
}

extension RoutingRule {
  init?(message: NetlinkMessage) throws(MalformedNetlink) {
    let header = try message.fixed(fib_rule_hdr.self)
    let attributes = try message.attributes(after: fib_rule_hdr.self)
    guard let family = IPFamily(linuxFamily: header.family) else { return nil }
    func prefix(_ type: Int, _ length: UInt8) -> CIDR? {
      attributes.last(type).flatMap { IPAddress(bytes: $0.content) }.flatMap { CIDR($0, prefixLength: Int(length)) }
    }
    self.family = family
    priority = try attributes.number(FRA_PRIORITY, as: UInt32.self) ?? 0
    table = try attributes.number(FRA_TABLE, as: UInt32.self) ?? UInt32(header.table)
    source = prefix(FRA_SRC, header.src_len)
    destination = prefix(FRA_DST, header.dst_len)
    mark = try attributes.number(FRA_FWMARK, as: UInt32.self)
    markMask = try attributes.number(FRA_FWMASK, as: UInt32.self)
    action = header.action
    inputInterface = attributes.string(FRA_IIFNAME)
  }
}
