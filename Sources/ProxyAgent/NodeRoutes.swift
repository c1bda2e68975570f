import KubernetesObjects
import Netlink
import NetworkTypes

/// Routes to the other nodes' pod ranges, by their InternalIPs: nodes share a link ("host gateway").
///
/// Ours are marked with our routing protocol number; nobody else's are touched.
struct NodeRoutes {
  struct Wanted: Hashable {
    var destination: CIDR
    var gateway: IPAddress
  }

  private let socket: RouteSocket
  private var installed: Set<Wanted> = []

  /// Adopts what an earlier agent installed.
  init() throws {
    socket = try RouteSocket()
    for route in try socket.routes(table: Route.mainTable)
    where route.routeProtocol == Route.sluiceProtocol {
      if let gateway = route.gateway { installed.insert(Wanted(destination: route.destination, gateway: gateway)) }
    }
  }

  static func wanted(_ state: ClusterState) -> Set<Wanted> {
    var wanted: Set<Wanted> = []
    for node in state.nodes.values where node.name != state.ownNodeName {
      for range in node.podCIDRs {
        guard let gateway = node.internalIPs.first(where: { $0.family == range.family }) else { continue }
        wanted.insert(Wanted(destination: range, gateway: gateway))
      }
    }
    return wanted
  }

  /// Adds what is missing before it removes what is left over; returns what failed, by destination.
  mutating func apply(_ wanted: Set<Wanted>) -> [String] {
    var failures: [String] = []
    for route in wanted.subtracting(installed) {
      do {
        try socket.replaceRoute(Route(destination: route.destination, gateway: route.gateway))
        // Replacing takes the old gateway's place.
        installed = installed.filter { $0.destination != route.destination }
        installed.insert(route)
      } catch {
        failures.append("route to \(route.destination): \(error)")
      }
    }
    for route in installed.subtracting(wanted) {
      do {
        try socket.deleteRoute(Route(destination: route.destination, gateway: route.gateway))
        installed.remove(route)
      } catch {
        failures.append("stale route to \(route.destination): \(error)")
      }
    }
    return failures
  }

  /// Reads the routes back; true where some of ours were missing.
  mutating func reread() throws -> Bool {
    let fresh = try NodeRoutes()
    defer { installed = fresh.installed }
    return fresh.installed != installed
  }

  mutating func removeAll() -> [String] { apply([]) }
}
