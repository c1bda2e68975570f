import Glibc
import LocalAPI
import Netlink
import NetworkTypes

/// Ports of the node that lead to a pod, where no agent serves them: chains of the pod's own in the tables `sluice-cni`, as other
/// plugins have them. What the node's own processes send to 127.0.0.1 is not led there: that would need `route_localnet`.
struct HostPorts {
  private let device: String

  init(of device: String) { self.device = device }

  /// Where flows are translated, and what of a flow is seen there first.
  private enum Place: String, CaseIterable {
    case input = "in"
    case output = "out"
    case back = "back"

    /// Before an agent's tables, which would take a NodePort's number for their own.
    var hook: FilterHook {
      switch self {
      case .input: FilterHook(.nat, number: FilterHook.preRouting, priority: -101)
      case .output: FilterHook(.nat, number: FilterHook.localOutput, priority: -101)
      case .back: FilterHook(.nat, number: FilterHook.postRouting, priority: 99)
      }
    }
  }

  private func chain(_ place: Place) -> String { "\(device)-\(place.rawValue)" }

  func open(_ mappings: [PortMapping], to addresses: [IPAddress]) throws {
    guard !mappings.isEmpty else { return }
    let filter = try FilterSocket()
    for address in addresses {
      let table = Masquerade.table(address.family)
      let mine = mappings.filter { $0.hostIP == nil || $0.hostIP?.family == address.family }
      guard !mine.isEmpty else { continue }
      for place in Place.allCases {
        try filter.replaceChain(
          chain(place), in: table, hook: place.hook, rules: mine.map { Self.rule(place, $0, to: address) })
      }
    }
    try forgetFlows(to: mappings)
  }

  private static func rule(_ place: Place, _ mapping: PortMapping, to address: IPAddress) -> [FilterExpression] {
    let isV4 = address.family == .v4
    let (source, destination): (UInt32, UInt32) = isV4 ? (12, 16) : (8, 24)
    func port(_ port: Port) -> FilterExpression {
      .payload(
        .transport, offset: 2, .equal, [UInt8(port.number >> 8), UInt8(truncatingIfNeeded: port.number)])
    }
    let transport = FilterExpression.transport(mapping.proto.rawValue)
    if case .back = place {
      // A pod's connection to itself by its own port comes back with its own address otherwise.
      return [
        .payload(.network, offset: source, .equal, address.bytes),
        .payload(.network, offset: destination, .equal, address.bytes), transport, port(mapping.containerPort),
        .counter,
        .masquerade,
      ]
    }
    var rule: [FilterExpression] = [.toThisMachine, transport, port(mapping.hostPort)]
    if let hostIP = mapping.hostIP, hostIP != .unspecified(hostIP.family) {
      rule.append(.payload(.network, offset: destination, .equal, hostIP.bytes))
    }
    if case .output = place {
      let loopback: [UInt8] = isV4 ? [127] : IPAddress(v6High: 0, low: 1)?.bytes ?? []
      rule.append(.payload(.network, offset: destination, .unequal, loopback))
    }
    return rule + [.counter, .destination(address, port: mapping.containerPort.number)]
  }

  /// Datagrams that came before went nowhere, or elsewhere, and what is tracked of them would lead the next ones there too.
  private func forgetFlows(to mappings: [PortMapping]) throws {
    let ports = Set(mappings.filter { $0.proto == .udp }.map(\.hostPort.number))
    guard !ports.isEmpty else { return }
    let conntrack = try ConntrackSocket()
    for entry in try conntrack.entries()
    where entry.original.protocolNumber == L4Protocol.udp.rawValue && ports.contains(entry.original.destinationPort) {
      _ = try conntrack.delete(entry)
    }
  }

  /// Those that have some.
  static func devices() throws -> Set<String> {
    let filter = try FilterSocket()
    let names = try IPFamily.allCases.flatMap { try filter.chains(in: Masquerade.table($0)) }
    let suffixes = Place.allCases.map { "-" + $0.rawValue }
    return Set(
      names.compactMap { name in suffixes.first(where: name.hasSuffix).map { String(name.dropLast($0.utf8.count)) } })
  }

  /// Succeeds also where there are none.
  func close(addresses: [IPAddress], _ removal: inout LinkRemoval) throws {
    guard let filter = try FilterSocket.whereThereIs() else { return }
    removal.hold(filter)
    var isChanged = false
    for family in IPFamily.allCases {
      let table = Masquerade.table(family)
      let present = Set(try filter.chains(in: table))
      for name in Place.allCases.map(chain) where present.contains(name) {
        try filter.removeChain(name, in: table)
        isChanged = true
      }
    }
    guard isChanged else { return }
    // What still comes must not follow the old flow to an address that the next pod may have.
    let conntrack = try ConntrackSocket()
    removal.hold(conntrack)
    for entry in try conntrack.entries()
    where entry.original.protocolNumber == L4Protocol.udp.rawValue && addresses.contains(entry.reply.source)
      && entry.original.destination != entry.reply.source
    {
      _ = try conntrack.delete(entry)
    }
  }
}
