import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

/// What pinned maps say of Services, compared with itself: without an agent nobody knows what was asked for, but most
/// elements are named by another one.
///
/// Not found: a lost address of a load balancer or an external one, a NodePort of a Service of one family, one of several
/// source ranges, a backend that only drains, and a Service that is missing as a whole.
public struct PinnedServices {
  private let maps: [String: PinnedMap]
  private let pins: PinFolder
  private let nameOf: (UInt32) -> String?

  /// - Parameter nameOf: a service port's name by its number, where somebody knows it.
  public init(pins: PinFolder, nameOf: @escaping (UInt32) -> String?) throws(SystemError) {
    var maps: [String: PinnedMap] = [:]
    for map in try PinnedMap.all(in: pins) where maps[map.name] == nil || MapWords.of(map) != nil {
      maps[map.name] = map
    }
    (self.maps, self.pins, self.nameOf) = (maps, pins, nameOf)
  }

  /// Empty where the maps agree with each other, and programs are attached to every device that they name.
  public func differences() throws(SystemError) -> [Drift] {
    let frontends: [FrontendKeyLayout: FrontendLayout] = try elements("frontends")
    let sets: [SetKeyLayout: BackendSetLayout] = try elements("sets")
    let slots: [SlotKeyLayout: BackendLayout] = try elements("slots")
    let members: [MemberKeyLayout: UInt32] = try elements("members")
    var drift: [Drift] = []
    Self.compare(frontends, with: sets, &drift, say)
    Self.compare(sets, with: slots, members, &drift, say)
    let lists: [SourceKeyLayout: UInt32] = try elements("sources")
    let known = Set(lists.keys.map(\.list))
    for (key, frontend) in frontends where frontend.sourceList != 0 && !known.contains(frontend.sourceList) {
      drift.append(Drift(.missing, "map sources: source-list=\(frontend.sourceList), of frontend \(key)"))
    }
    if pins.hasPacketMaps {
      let addresses: [AddressLayout: UInt32] = try elements("addresses")
      Self.compare(frontends, with: addresses, &drift, say)
      drift += try missingPrograms()
    }
    return drift.sorted { ($0.object, $0.kind.rawValue) < ($1.object, $1.kind.rawValue) }
  }

  /// A frontend leads to sets of its family. A service port has a cluster address in each family that it has sets of, and
  /// a NodePort in all of them or in none. A host port has neither.
  private static func compare(
    _ frontends: [FrontendKeyLayout: FrontendLayout], with sets: [SetKeyLayout: BackendSetLayout],
    _ drift: inout [Drift], _ say: (UInt32) -> String
  ) {
    var (clustered, exposed, hosted): (Set<SetKeyLayout>, Set<SetKeyLayout>, Set<SetKeyLayout>) = ([], [], [])
    for (key, frontend) in frontends {
      var set = SetKeyLayout()
      (set.service, set.family) = (frontend.service, key.address.address?.family == .v4 ? 4 : 6)
      if frontend.kind == FrontendKind.clusterIP.rawValue { clustered.insert(set) }
      if frontend.kind == FrontendKind.nodePort.rawValue { exposed.insert(set) }
      if frontend.kind == FrontendKind.hostPort.rawValue { hosted.insert(set) }
      for scope in Set([frontend.nodeScope, frontend.outsideScope]) {
        set.scope = scope
        if sets[set] == nil { drift.append(Drift(.missing, "map sets: \(set)\(say(set.service)), of frontend \(key)")) }
      }
    }
    let ports = Set(exposed.map(\.service))
    let hostPorts = Set(hosted.map(\.service))
    for service in Set(sets.keys.map(\.withoutScope)) {
      func miss(_ kind: FrontendKind) {
        let family = IPFamily(rawValue: service.family)?.description ?? "\(service.family)"
        drift.append(
          Drift(
            .missing, "map frontends: kind=\(kind) service=\(service.service) family=\(family)\(say(service.service))"))
      }
      if hostPorts.contains(service.service) {
        if !hosted.contains(service) { miss(.hostPort) }
        continue
      }
      if !clustered.contains(service) { miss(.clusterIP) }
      if ports.contains(service.service), !exposed.contains(service) { miss(.nodePort) }
    }
  }

  /// A set has as many slots as it says, and each backend is a member that takes flows.
  private static func compare(
    _ sets: [SetKeyLayout: BackendSetLayout], with slots: [SlotKeyLayout: BackendLayout],
    _ members: [MemberKeyLayout: UInt32], _ drift: inout [Drift], _ say: (UInt32) -> String
  ) {
    var inSlots: Set<MemberKeyLayout> = []
    for (key, set) in sets {
      for number in 0..<min(set.count, 1 << 19) {
        var slot = SlotKeyLayout()
        (slot.set, slot.slot) = (key, number)
        guard let backend = slots[slot] else {
          drift.append(Drift(.missing, "map slots: \(slot)\(say(key.service))"))
          continue
        }
        var member = MemberKeyLayout()
        (member.set, member.backend) = (key, backend)
        inSlots.insert(member)
        if members[member] != 1 {
          drift.append(
            Drift(members[member] == nil ? .missing : .different, "map members: \(member)\(say(key.service))"))
        }
      }
    }
    for (key, backend) in slots where sets[key.set].map({ key.slot >= $0.count }) ?? true {
      drift.append(Drift(.extra, "map slots: \(key) -> \(backend)\(say(key.set.service))"))
    }
    for (member, takesFlows) in members where takesFlows == 1 && !inSlots.contains(member) {
      drift.append(Drift(.extra, "map members: \(member)\(say(member.set.service))"))
    }
  }

  /// A cluster address that has a frontend is known as a Service's, and one that is known as that has a frontend.
  private static func compare(
    _ frontends: [FrontendKeyLayout: FrontendLayout], with addresses: [AddressLayout: UInt32], _ drift: inout [Drift],
    _ say: (UInt32) -> String
  ) {
    let isService = AddressFlags.service.rawValue
    var named: Set<AddressLayout> = []
    for (key, frontend) in frontends where frontend.kind == FrontendKind.clusterIP.rawValue {
      guard named.insert(key.address).inserted, (addresses[key.address] ?? 0) & isService == 0 else { continue }
      drift.append(Drift(.missing, "map addresses: \(key.address)\(say(frontend.service))"))
    }
    for (address, flags) in addresses where flags & isService != 0 && !named.contains(address) {
      drift.append(Drift(.missing, "map frontends: any of address \(address)"))
    }
  }

  /// Devices that pods or the outside are behind, and which no program sees.
  private func missingPrograms() throws(SystemError) -> [Drift] {
    let endpoints: [UInt32: EndpointLayout] = try elements("endpoints")
    let uplinks: [UInt32: UplinkLayout] = try elements("uplinks")
    let links = DeviceLinks(pins: pins)
    var drift: [Drift] = []
    let wanted: [(UInt32, String, DeviceHook)] =
      endpoints.keys.flatMap { [($0, "from_pod", .ingress), ($0, "to_pod", .egress)] }
      + uplinks.keys.flatMap { [($0, "from_wire", .ingress), ($0, "to_wire", .egress)] }
    for (device, program, hook) in wanted where try !links.isAttached(program, to: device, hook) {
      drift.append(Drift(.missing, "program \(program) at device \(device)"))
    }
    return drift
  }

  private func elements<Key: MapLayout, Value: MapLayout>(_ name: String) throws(SystemError) -> [Key: Value] {
    guard let map = maps[name] else {
      throw SystemError(operation: "find map", object: "\(pins.path): \(name)", errno: ENOENT)
    }
    var found: [Key: Value] = [:]
    try map.forEach(Key.self, Value.self) { found[$0] = $1 }
    return found
  }

  private func say(_ service: UInt32) -> String { nameOf(service).map { " (\($0))" } ?? "" }
}

extension SetKeyLayout {
  fileprivate var withoutScope: SetKeyLayout {
    var key = self
    key.scope = 0
    return key
  }
}
