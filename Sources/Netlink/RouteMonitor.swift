import CLinux
import NetworkTypes

/// A change of the kernel's tables as it was announced.
public enum RouteEvent: Sendable, Hashable {
  /// Added or changed.
  case linkAdded(Link)
  case linkRemoved(Link)
  case addressAdded(AssignedAddress)
  case addressRemoved(AssignedAddress)
  case routeAdded(Route)
  case routeRemoved(Route)
  /// Announcements were lost: read everything again.
  case overrun
}

/// Announcements of links, addresses and routes, both families, of one network namespace.
public final class RouteMonitor: Sendable {
  public enum Subject: Sendable, CaseIterable {
    case links, addresses, routes
  }

  private let socket: NetlinkSocket

  /// Changes from here on are seen: subscribe first, then list.
  public init(_ subjects: [Subject] = Subject.allCases, in namespace: NetworkNamespace? = nil) throws(SystemError) {
    let groups = subjects.flatMap { subject -> [UInt32] in
      switch subject {
      case .links: [RTNLGRP_LINK.rawValue]
      case .addresses: [RTNLGRP_IPV4_IFADDR.rawValue, RTNLGRP_IPV6_IFADDR.rawValue]
      case .routes: [RTNLGRP_IPV4_ROUTE.rawValue, RTNLGRP_IPV6_ROUTE.rawValue]
      }
    }
    socket = try NetlinkSocket(protocol: NETLINK_ROUTE, groups: groups, in: namespace)
  }

  /// For event loops: readable when `next` has something to say.
  public var descriptorNumber: CInt { socket.descriptorNumber }

  /// Waits at most `timeoutMilliseconds` (negative: no limit); empty when nothing came.
  public func next(timeoutMilliseconds: Int = -1) throws(NetlinkError) -> [RouteEvent] {
    switch try socket.receiveEvents(timeoutMilliseconds: timeoutMilliseconds) {
    case .overrun: return [.overrun]
    case .messages(let messages):
      do throws(MalformedNetlink) {
        var events: [RouteEvent] = []
        for message in messages {
          if let event = try Self.event(message) { events.append(event) }
        }
        return events
      } catch {
        throw .malformed(operation: "receive announcements", error)
      }
    }
  }

  static func event(_ message: NetlinkMessage) throws(MalformedNetlink) -> RouteEvent? {
    switch Int(message.type) {
    case RTM_NEWLINK, RTM_DELLINK:
      // Bridges announce their ports under AF_BRIDGE too, with a delete that is not the link's.
      guard try message.fixed(ifinfomsg.self).ifi_family == 0 else { return nil }
      let link = try Link(message: message)
      return Int(message.type) == RTM_NEWLINK ? .linkAdded(link) : .linkRemoved(link)
    case RTM_NEWADDR: return try AssignedAddress(message: message).map { .addressAdded($0) }
    case RTM_DELADDR: return try AssignedAddress(message: message).map { .addressRemoved($0) }
    case RTM_NEWROUTE: return try Route(message: message).map { .routeAdded($0) }
    case RTM_DELROUTE: return try Route(message: message).map { .routeRemoved($0) }
    default: return nil
    }
  }
}
