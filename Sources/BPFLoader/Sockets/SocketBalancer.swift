import BPFPrograms
import CLibBPF
import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

/// Services at the socket: the programs of bpf/sock.c on a cgroup, and the tables in their maps. What they leave alone,
/// packets meet in another engine.
///
/// Maps and links are pinned: they serve on while no agent runs, and the next one takes them over.
public struct SocketBalancer: DataplaneEngine {
  let object: BPFObject
  private let maps: SocketMaps
  private let links: CgroupLinks
  private let pins: PinFolder
  private let owners: SocketOwners
  private let isAlone: Bool
  private let attaches: Bool
  private var lists = RangeLists()
  public let features: KernelFeatures

  /// Loads programs; nothing is attached before the first `resync`.
  ///
  /// - Parameters:
  ///   - pins: where maps and links are pinned.
  ///   - cgroup: processes in it and below are served.
  ///   - hostCookie: of the network namespace whose processes are the node's own.
  ///   - servesPods: whether pods' sockets are translated too.
  ///   - isAlone: whether there are no packet programs that share the maps.
  ///   - attaches: whether sockets are served at all; else only the maps are kept.
  ///   - bounds: of maps that should have others than the programs' files say.
  /// - Throws: also where there is no map of a name in `bounds`.
  public init(
    pins: PinFolder, cgroup: String, hostCookie: UInt64, servesPods: Bool = true, isAlone: Bool = true,
    attaches: Bool = true, bounds: MapBounds = MapBounds()
  )
    throws(SystemError)
  {
    (self.pins, self.isAlone, self.attaches) = (pins, isAlone, attaches)
    owners = SocketOwners(hostCookie: hostCookie, servesPods: servesPods)
    links = CgroupLinks(pins: pins, cgroup: cgroup)
    features = .probe()
    object = try BPFObject(.sock)
    try object.setConstant("can_set_error", features.socketErrors)
    let mapPins = MapPins(pins: pins)
    try MapBounds.check(bounds, against: [object, try BPFObject(.endpoint)])
    try mapPins.setBounds(bounds, of: object)
    let known = try mapPins.adopt(into: object)
    try object.load()
    try mapPins.pin(object)
    try mapPins.carryOver(into: object, skipping: known)
    maps = try SocketMaps(object)
  }

  // MARK: DataplaneEngine

  /// In an order in which a socket meets the old tables or the new: what is named comes before what names it, and goes
  /// after it. A set that grows has its slots before its count, one that shrinks its count before they go.
  public mutating func apply(_ delta: TableDelta, tables: Tables) throws(SystemError) -> ApplyReport {
    let change = SocketChange(delta, after: tables, lists: &lists, owners: owners)
    return try write(from: change.before, to: change.after)
  }

  public mutating func resync(_ tables: Tables) throws(SystemError) -> (report: ApplyReport, drift: [Drift]) {
    lists = RangeLists()
    for frontend in tables.services.frontends.values {
      if let ranges = frontend.sourceRanges { lists.retain(ranges) }
    }
    let wanted = SocketTable(tables, lists: lists, owners: owners)
    let found = try read()
    var drift = Self.drift(found, wanted)
    var report = try write(from: found, to: wanted)
    report.dumps += 7
    // Only now, so that the first connection that is asked about meets full tables.
    let attached = try links.attached(object.programNames)
    for program in object.programNames where attached.contains(program) != attaches {
      drift.append(Drift(attaches ? .missing : .extra, "link \(program)"))
    }
    if attaches { try links.attach(object) } else { try links.detach(object) }
    if isAlone {
      try MapPins(pins: pins).carryOver(into: object)
      try MapPins(pins: pins).removeOthers(than: [object])
    }
    return (report, drift)
  }

  public mutating func verify(_ tables: Tables) throws(SystemError) -> [Drift] {
    var drift = Self.drift(try read(), SocketTable(tables, lists: lists, owners: owners))
    let attached = try links.attached(object.programNames)
    for program in object.programNames where attached.contains(program) != attaches {
      drift.append(Drift(attaches ? .missing : .extra, "link \(program)"))
    }
    return drift
  }

  public mutating func cleanUp() throws(SystemError) { try Self.cleanUp(pins) }

  /// Detaches and removes what any build of ours has pinned there.
  public static func cleanUp(_ pins: PinFolder) throws(SystemError) {
    let names = pins.names
    for prefix in [DeviceLinks.prefix, CgroupLinks.prefix] {
      for name in names where name.hasPrefix(prefix) { try pins.removeLink(name) }
    }
    for name in names where name.hasPrefix(MapPins.prefix) { try pins.remove(name) }
    pins.removeFolder()
  }

  // MARK: Sockets

  /// What a connected datagram socket asked for; nil where it was not translated.
  public func requestedPeer(cookie: UInt64) throws(SystemError) -> SocketAddress? {
    try maps.connections[cookie]?.told.socketAddress
  }

  // MARK: Maps

  private func read() throws(SystemError) -> SocketTable {
    var table = SocketTable()
    table.frontends = try maps.frontends.elements()
    table.sets = try maps.sets.elements()
    table.slots = try maps.slots.elements()
    table.members = try maps.members.elements()
    table.sources = try maps.sources.elements()
    table.nodeAddresses = try maps.nodeAddresses.elements()
    table.clients = try maps.clients.elements()
    return table
  }

  private func write(from old: SocketTable, to new: SocketTable) throws(SystemError) -> ApplyReport {
    var report = ApplyReport()
    try maps.sources.add(old.sources, new.sources, &report)
    try maps.members.add(old.members, new.members, &report)
    try maps.slots.add(old.slots, new.slots, &report)
    try maps.sets.add(old.sets, new.sets, &report)
    try maps.frontends.add(old.frontends, new.frontends, &report)
    try maps.nodeAddresses.add(old.nodeAddresses, new.nodeAddresses, &report)
    try maps.clients.add(old.clients, new.clients, &report)
    try maps.clients.remove(old.clients, new.clients, &report)
    try maps.nodeAddresses.remove(old.nodeAddresses, new.nodeAddresses, &report)
    try maps.frontends.remove(old.frontends, new.frontends, &report)
    try maps.sets.remove(old.sets, new.sets, &report)
    try maps.slots.remove(old.slots, new.slots, &report)
    try maps.members.remove(old.members, new.members, &report)
    try maps.sources.remove(old.sources, new.sources, &report)
    return report
  }

  private static func drift(_ found: SocketTable, _ wanted: SocketTable) -> [Drift] {
    var drift: [Drift] = []
    drift.compare("frontends", found.frontends, wanted.frontends)
    drift.compare("sets", found.sets, wanted.sets)
    drift.compare("slots", found.slots, wanted.slots)
    drift.compare("members", found.members, wanted.members)
    drift.compare("sources", found.sources, wanted.sources)
    drift.compare("node_addresses", found.nodeAddresses, wanted.nodeAddresses)
    drift.compare("clients", found.clients, wanted.clients)
    return drift
  }
}

extension BackendLayout {
  var socketAddress: SocketAddress? {
    guard let address = address.address, let port = Port(UInt16(bigEndian: port)) else { return nil }
    return SocketAddress(address, port)
  }
}
