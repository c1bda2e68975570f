import BPFPrograms
import CLinux
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

/// Services and policy at each pod's device and at the node's own: the programs of bpf/endpoint.c and bpf/uplink.c, and
/// the tables in their maps. Sockets are `SocketBalancer`'s; both share what Services are.
///
/// Maps and links are pinned: they serve on while no agent runs, and the next one takes them over.
public struct PacketEngine: NodeEngine {
  let endpoint: BPFObject
  let uplink: BPFObject
  let maps: PacketMaps
  private let links: DeviceLinks
  private let mapPins: MapPins
  private var sockets: SocketBalancer
  private var devices = DeviceDirectory()
  private var uplinks: [String: Uplink] = [:]
  private let findsUplinks: Bool
  private let routes: RouteSocket
  /// What no packet that comes can want any more, but one that is under way might.
  private var deferred = PacketTable()
  private var looks = 0
  /// What clauses counted that are gone.
  var ended: [ClauseKey: TrafficCount] = [:]

  /// Loads programs; nothing is attached before the first `resync`.
  ///
  /// - Parameters:
  ///   - sockets: services at the socket; its maps are shared.
  ///   - uplinks: the node's devices to the outside, by name; nil: all that have an address.
  ///   - keepsEstablished: flows that were allowed once are never judged again.
  ///   - anotherServes: another engine has the packet path: programs let everything pass to it, until `flows` says
  ///     otherwise. Not those that serve already.
  ///   - bounds: the same as the sockets'.
  public init(
    pins: PinFolder, sockets: SocketBalancer, uplinks: [String: Uplink]? = nil, keepsEstablished: Bool = false,
    anotherServes: Bool = false, bounds: MapBounds = MapBounds()
  ) throws(SystemError) {
    let standsAside = anotherServes ? try PacketFlows(pins)?.standsAside ?? true : false
    (self.sockets, self.uplinks, findsUplinks) = (sockets, uplinks ?? [:], uplinks == nil)
    mapPins = MapPins(pins: pins)
    links = DeviceLinks(pins: pins)
    endpoint = try Self.load(.endpoint, mapPins, sockets.features, keepsEstablished, bounds)
    uplink = try Self.load(.uplink, mapPins, sockets.features, keepsEstablished, bounds)
    maps = try PacketMaps(endpoint)
    try PacketFlows(maps: maps.tracking).setMode(aside: standsAside)
    routes = try RouteSocket()
  }

  private static func load(
    _ program: BPFProgram, _ pins: MapPins, _ features: KernelFeatures, _ keepsEstablished: Bool, _ bounds: MapBounds
  ) throws(SystemError) -> BPFObject {
    let object = try BPFObject(program)
    try object.setConstant("has_coarse_clock", features.coarseClock)
    try object.setConstant("keeps_established", keepsEstablished)
    try pins.setBounds(bounds, of: object)
    let known = try pins.adopt(into: object)
    try object.load()
    try pins.pin(object)
    try pins.carryOver(into: object, skipping: known)
    return object
  }

  // MARK: DataplaneEngine

  public mutating func apply(_ delta: TableDelta, tables: Tables) throws(SystemError) -> ApplyReport {
    // A subject that comes back must not find pairs of its past.
    if deferred.hasNamed, delta.pairs.contains(where: { $0.key.identity == .any && $0.value.old == nil }) {
      _ = try finishRemovals()
    }
    let old = devices
    for (name, change) in delta.endpoints {
      if change.new == nil { devices.forget(name) } else { _ = try devices.find(name, routes) }
    }
    var change = PacketChange(delta, after: tables, from: old, to: devices)
    if findsUplinks, !delta.ownAddresses.isEmpty || !delta.internalAddresses.isEmpty {
      change.before.uplinks = try maps.uplinks.elements()
      try findUplinks(tables)
      change.after.uplinks = uplinkElements
    }
    var report = try add(change.before, change.after)
    if delta.rejudgesFlows { try judgeAnew() }
    // A pod whose policies alone have changed has its programs.
    for (name, change) in delta.endpoints where change.new != nil && (change.old == nil || old[name] != devices[name]) {
      if let device = devices[name] { try attach(to: device.index) }
    }
    for device in change.after.uplinks.keys { try attachUplink(device) }
    report += try sockets.apply(delta, tables: tables)
    report += try remove(change.before, change.after)
    for (name, change) in delta.endpoints where change.new == nil {
      if let device = old[name], devices.names(of: device.index).isEmpty { try detach(from: device.index) }
    }
    if report.messages > 0 { report.batches = 1 }
    return report
  }

  public mutating func resync(_ tables: Tables) throws(SystemError) -> (report: ApplyReport, drift: [Drift]) {
    if findsUplinks { try findUplinks(tables) }
    for name in Set(tables.node.endpoints.keys).union(uplinks.keys) { _ = try devices.find(name, routes) }
    let wanted = wantedTable(tables)
    _ = try finishRemovals()
    let found = try read()
    var drift = Self.drift(found, wanted)
    try removeReusedPairs(found, wanted)
    var report = try add(found, wanted)
    let hooks = try missingHooks(wanted)
    drift += hooks
    // Services first: maps that programs of another generation meet for the first time have to be full.
    let other = try sockets.resync(tables)
    report += other.report
    drift += other.drift
    for device in wanted.endpoints.keys { try attach(to: device) }
    for device in wanted.uplinks.keys { try attachUplink(device) }
    // What the programs before these have written meanwhile.
    for object in [endpoint, sockets.object] { try mapPins.carryOver(into: object, skipping: ["state"]) }
    // Whatever flows were judged by: who wrote what is here may have ended before it had them judged again.
    try judgeAnew()
    report += try remove(found, wanted)
    report += try finishRemovals()
    // Once more: until now a flow may have met what was still to be removed.
    if !drift.isEmpty { try judgeAnew() }
    try links.removeOthers(
      than: Set(wanted.endpoints.keys).union(wanted.uplinks.keys),
      of: Set(try Uplink.allLinks(routes).map { UInt32($0.index) }))
    report.dumps += 12
    try mapPins.removeOthers(than: [endpoint, uplink, sockets.object])
    return (report, drift)
  }

  public mutating func verify(_ tables: Tables) throws(SystemError) -> [Drift] {
    _ = try finishRemovals()
    if findsUplinks { try findUplinks(tables) }
    let wanted = wantedTable(tables)
    return Self.drift(try read(), wanted) + (try missingHooks(wanted)) + (try sockets.verify(tables))
  }

  public mutating func cleanUp() throws(SystemError) {
    for device in try maps.endpoints.elements().keys { try detach(from: device) }
    for device in try maps.uplinks.elements().keys { try detachUplink(device) }
    try sockets.cleanUp()
  }

  /// Detaches and removes what any build of ours has pinned there and attached to this node's devices.
  public static func cleanUp(_ pins: PinFolder) throws(SystemError) {
    let links = DeviceLinks(pins: pins)
    try detachAll(links)
    try SocketBalancer.cleanUp(pins)
  }

  /// Takes packet programs off every device, because another engine serves; sockets stay.
  public static func detachAll(_ pins: PinFolder) throws(SystemError) {
    let links = DeviceLinks(pins: pins)
    guard
      pins.names.contains(where: { $0.hasPrefix(DeviceLinks.prefix) || $0.hasPrefix("\(MapPins.prefix)endpoints-") })
    else { return }
    try detachAll(links)
    try links.removeOthers(than: [], of: [])
    try MapPins(pins: pins).removeOthers(than: [try BPFObject(.sock)])
  }

  /// Those that the devices themselves keep: before tcx.
  private static func detachAll(_ links: DeviceLinks) throws(SystemError) {
    for device in try Uplink.allLinks(RouteSocket()) {
      for hook in DeviceHook.allCases { links.detachClassifier(from: UInt32(device.index), hook) }
    }
  }

  /// The flows that programs track; may be used from anywhere.
  public var flows: PacketFlows { PacketFlows(maps: maps.tracking) }

  // MARK: Sockets

  /// What a connected datagram socket asked for; nil where it was not translated.
  public func requestedPeer(cookie: UInt64) throws(SystemError) -> SocketAddress? {
    try sockets.requestedPeer(cookie: cookie)
  }

  // MARK: Revisions

  /// Every flow's next packet is judged by the tables as they are now.
  func judgeAnew() throws(SystemError) {
    let revision = try maps.tracking.state[PacketTable.State.revision] ?? 0
    // 0 is that of flows that nobody has judged.
    try maps.tracking.state.set(PacketTable.State.revision, revision == .max ? 1 : revision + 1)
  }

  /// What programs tell beside drops and audits, which they always do.
  public func listen(to kinds: Set<PacketEvent.Kind>) throws(SystemError) {
    try maps.tracking.state.set(PacketTable.State.events, kinds.reduce(0) { $0 | 1 << UInt32($1.rawValue) })
  }

  // MARK: Programs

  private func attach(to device: UInt32) throws(SystemError) {
    try links.attach("from_pod", of: endpoint, to: device, .ingress)
    try links.attach("to_pod", of: endpoint, to: device, .egress)
  }

  private func attachUplink(_ device: UInt32) throws(SystemError) {
    try links.attach("from_wire", of: uplink, to: device, .ingress)
    try links.attach("to_wire", of: uplink, to: device, .egress)
  }

  private func detach(from device: UInt32) throws(SystemError) {
    try links.detach("from_pod", from: device, .ingress)
    try links.detach("to_pod", from: device, .egress)
  }

  private func detachUplink(_ device: UInt32) throws(SystemError) {
    try links.detach("from_wire", from: device, .ingress)
    try links.detach("to_wire", from: device, .egress)
  }

  /// Whether a device of a pod has lost a program: its packets pass by all policies. Looks each twentieth time only.
  public mutating func hasLostStructure(_ tables: Tables) throws(SystemError) -> Bool {
    looks += 1
    guard looks % 20 == 0 else { return false }
    for name in tables.node.endpoints.keys {
      guard let device = devices[name] else { continue }
      for (program, hook) in [("from_pod", DeviceHook.ingress), ("to_pod", .egress)]
      where try !links.isAttached(program, to: device.index, hook) {
        // Not where the device itself has gone.
        if try devices.find(name, routes) != nil { return true }
      }
    }
    return false
  }

  private func missingHooks(_ wanted: PacketTable) throws(SystemError) -> [Drift] {
    var drift: [Drift] = []
    func expect(_ program: String, _ device: UInt32, _ hook: DeviceHook) throws(SystemError) {
      if try !links.isAttached(program, to: device, hook) {
        drift.append(Drift(.missing, "program \(program) at device \(device)"))
      }
    }
    for device in wanted.endpoints.keys {
      try expect("from_pod", device, .ingress)
      try expect("to_pod", device, .egress)
    }
    for device in wanted.uplinks.keys {
      try expect("from_wire", device, .ingress)
      try expect("to_wire", device, .egress)
    }
    return drift
  }

  // MARK: Maps

  private func wantedTable(_ tables: Tables) -> PacketTable {
    var table = PacketTable(tables, devices: devices)
    table.uplinks = uplinkElements
    return table
  }

  private var uplinkElements: [UInt32: UplinkLayout] {
    var elements: [UInt32: UplinkLayout] = [:]
    for (name, uplink) in uplinks {
      if let device = devices[name] { elements[device.index] = UplinkLayout(uplink) }
    }
    return elements
  }

  private mutating func findUplinks(_ tables: Tables) throws(SystemError) {
    uplinks = try Uplink.all(routes, preferring: Set(tables.node.internalAddresses.values))
    for name in uplinks.keys { _ = try devices.find(name, routes) }
  }

  /// What is named comes before what names it: clauses, port sets, pairs; then who has which identity, then whose policies
  /// a pod's are. A packet meets the old tables or the new at each of these steps.
  private mutating func add(_ old: PacketTable, _ new: PacketTable) throws(SystemError) -> ApplyReport {
    deferred.reclaim(new)
    var report = ApplyReport()
    for clause in new.clauses.keys where old.clauses[clause] == nil {
      try maps.clauses.add(clause)
      report.messages += 1
    }
    try maps.ports.add(old.ports, new.ports, &report)
    try maps.portRanges.add(old.portRanges, new.portRanges, &report)
    try maps.pairs.add(old.pairs, new.pairs, &report)
    try maps.blocks.add(old.blocks, new.blocks, &report)
    try maps.ranges.add(old.ranges, new.ranges, &report)
    try maps.addresses.add(old.addresses, new.addresses, &report)
    try maps.internalAddresses.add(old.internalAddresses, new.internalAddresses, &report)
    try maps.uplinks.add(old.uplinks, new.uplinks, &report)
    try maps.identities.add(old.identities, new.identities, &report)
    try maps.tracking.state.add(old.state, new.state, &report)
    try maps.endpoints.add(old.endpoints, new.endpoints, &report)
    try maps.podDevices.add(old.podDevices, new.podDevices, &report)
    return report
  }

  private mutating func remove(_ old: PacketTable, _ new: PacketTable) throws(SystemError) -> ApplyReport {
    var report = ApplyReport()
    try maps.podDevices.remove(old.podDevices, new.podDevices, &report)
    try maps.endpoints.remove(old.endpoints, new.endpoints, &report)
    try maps.identities.remove(old.identities, new.identities, &report)
    try maps.addresses.remove(old.addresses, new.addresses, &report)
    try maps.ranges.remove(old.ranges, new.ranges, &report)
    try maps.uplinks.remove(old.uplinks, new.uplinks, &report)
    deferred.take(goneFrom: old, to: new)
    return report
  }

  /// Pairs of another time under a number that new addresses get: no packet may meet both.
  private func removeReusedPairs(_ found: PacketTable, _ wanted: PacketTable) throws(SystemError) {
    for key in PacketTable.reusedPairs(found, wanted) { try maps.pairs.remove(key) }
  }

  public var hasDeferredRemovals: Bool { deferred.hasNamed }

  public mutating func finishRemovals() throws(SystemError) -> ApplyReport {
    var report = ApplyReport()
    guard deferred.hasNamed else { return report }
    // Until no program runs that found what names them: programs run inside RCU read sections.
    _ = clinux_membarrier_global()
    let (old, new) = (deferred, PacketTable())
    try maps.pairs.remove(old.pairs, new.pairs, &report)
    try maps.blocks.remove(old.blocks, new.blocks, &report)
    try maps.ports.remove(old.ports, new.ports, &report)
    try maps.portRanges.remove(old.portRanges, new.portRanges, &report)
    for clause in old.clauses.keys {
      try endClause(clause)
      report.messages += 1
    }
    deferred = PacketTable()
    return report
  }

  private func read() throws(SystemError) -> PacketTable {
    var table = PacketTable()
    table.endpoints = try maps.endpoints.elements()
    table.podDevices = try maps.podDevices.elements()
    table.addresses = try maps.addresses.elements()
    table.ranges = try maps.ranges.elements()
    table.uplinks = try maps.uplinks.elements()
    table.internalAddresses = try maps.internalAddresses.elements()
    table.state = try maps.tracking.state.elements()
    // Not what follows from tables.
    table.state[PacketTable.State.revision] = nil
    table.state[PacketTable.State.events] = nil
    table.state[PacketTable.State.mode] = nil
    table.identities = try maps.identities.elements()
    table.blocks = try maps.blocks.elements()
    table.pairs = try maps.pairs.elements()
    table.ports = try maps.ports.elements()
    table.portRanges = try maps.portRanges.elements()
    for key in try maps.clauses.keys() { table.clauses[key] = 0 }
    return table
  }

  private static func drift(_ found: PacketTable, _ wanted: PacketTable) -> [Drift] {
    var drift: [Drift] = []
    drift.compare("endpoints", found.endpoints, wanted.endpoints)
    drift.compare("pod_devices", found.podDevices, wanted.podDevices)
    drift.compare("addresses", found.addresses, wanted.addresses)
    drift.compare("ranges", found.ranges, wanted.ranges)
    drift.compare("uplinks", found.uplinks, wanted.uplinks)
    drift.compare("internal_addresses", found.internalAddresses, wanted.internalAddresses)
    drift.compare("state", found.state, wanted.state)
    drift.compare("identities", found.identities, wanted.identities)
    drift.compare("blocks", found.blocks, wanted.blocks)
    drift.compare("pairs", found.pairs, wanted.pairs)
    drift.compare("ports", found.ports, wanted.ports)
    drift.compare("port_ranges", found.portRanges, wanted.portRanges)
    // A counter has no value that tables give it.
    drift.compare("clauses", found.clauses.mapValues { _ in UInt32(0) }, wanted.clauses.mapValues { _ in UInt32(0) })
    return drift
  }
}
