import Lab
import Netlink
import NetworkTypes
import Testing

/// Lets the client outside the cluster reach pods by way of a node, as a router of the site would.
struct RouteSocketToPods {
  private let lab: Lab
  private let route: RouteSocket
  private let index: Int

  init(_ lab: Lab) throws {
    self.lab = lab
    route = try RouteSocket(in: try lab.network(of: .client))
    index = try #require(try route.link(named: "eth0")).index
  }

  func add(_ range: CIDR, via node: String) throws {
    try route.replaceRoute(
      Route(destination: range, gateway: try lab.nodeAddress(node, range.family), interfaceIndex: index))
  }
}
