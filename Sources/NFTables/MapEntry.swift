import DataplaneModel
import NetworkTypes

/// A port as the packet path knows it: of any protocol number.
struct TransportPort: Sendable, Hashable, CustomStringConvertible {
  var proto: UInt8
  var port: UInt16

  init(_ proto: L4Protocol, _ port: Port) { (self.proto, self.port) = (proto.rawValue, port.number) }
  init(proto: UInt8, port: UInt16) { (self.proto, self.port) = (proto, port) }
  var description: String { "\(L4Protocol(rawValue: proto)?.description ?? "\(proto)") . \(port)" }
}

/// One element of one set or map: the whole state of the packet path is made of these.
enum MapEntry: Sendable, Hashable {
  case frontend(MapName, IPAddress, TransportPort, value: UInt32)
  case set(IPFamily, key: UInt32, code: UInt32)
  case backend(slot: UInt32, set: UInt32, SocketAddress)
  case stickySlot(IPFamily, slot: UInt32, set: UInt32, backend: UInt32)
  case stickyBackend(backend: UInt32, set: UInt32, SocketAddress)
  /// In `serviceAddresses`.
  case address(MapName, IPAddress)
  /// In `serviceRanges` or `clusterRanges`.
  case range(MapName, AddressRange)
  case sourceRange(list: UInt32, AddressRange)
  case interface(IPFamily, String)
  /// In `egressSubjects` or `ingressSubjects`.
  case subject(IPFamily, MapName, String, UInt32)
  case identity(IPAddress, UInt32)
  case block(table: UInt32, AddressRange, UInt32)
  case blockTable(IPFamily, UInt32)
  case pair(IPFamily, PairKey, PairValue)
  case clauseLabel(IPFamily, attribution: UInt32, clause: UInt32, UInt32)
  case port(IPFamily, set: UInt32, PortKey, clause: UInt32)
  case portRange(IPFamily, set: UInt32, ClosedRange<PortKey>, clause: UInt32)
  case clause(IPFamily, attribution: UInt32, clause: UInt32, Verdict)
  case podSource(String, MACAddress, IPAddress)
  case revision(IPFamily, UInt32)
  case verdict(IPFamily, MapName, code: UInt32, Verdict)
  /// Something in one of our maps that we never put there.
  case foreign(IPFamily, MapName, key: [UInt8])

  var map: MapName {
    switch self {
    case .frontend(let map, _, _, _), .address(let map, _), .range(let map, _), .verdict(_, let map, _, _),
      .foreign(_, let map, _), .subject(_, let map, _, _):
      map
    case .identity: .identities
    case .block: .blocks
    case .blockTable: .blockTable
    case .port: .ports
    case .portRange: .portRanges
    case .clause: .verdicts
    case .clauseLabel: .clauseLabels
    case .pair: .pairs
    case .set: .sets
    case .backend: .backends
    case .stickySlot: .stickySlots
    case .stickyBackend: .stickyBackends
    case .sourceRange: .sourceRanges
    case .interface: .localInterfaces
    case .podSource: .podSources
    case .revision: .revision
    }
  }

  var family: IPFamily {
    switch self {
    case .frontend(_, let address, _, _), .address(_, let address), .podSource(_, _, let address),
      .identity(let address, _):
      address.family
    case .set(let family, _, _), .stickySlot(let family, _, _, _), .interface(let family, _),
      .verdict(let family, _, _, _), .foreign(let family, _, _), .subject(let family, _, _, _),
      .blockTable(let family, _), .pair(let family, _, _), .port(let family, _, _, _),
      .portRange(let family, _, _, _), .clause(let family, _, _, _), .clauseLabel(let family, _, _, _),
      .revision(let family, _):
      family
    case .backend(_, _, let backend), .stickyBackend(_, _, let backend): backend.address.family
    case .range(_, let range), .sourceRange(_, let range), .block(_, let range, _): range.first.family
    }
  }

  /// What a packet that finds the element does.
  var verdict: Verdict? {
    switch self {
    case .verdict(_, _, _, let verdict), .clause(_, _, _, let verdict): verdict
    default: nil
    }
  }

  /// The kernel counts the packets that find the element.
  var isCounted: Bool { if case .clause = self { true } else { false } }

  /// What names the element in its map: equal keys cannot stand beside one another.
  struct Key: Sendable, Hashable {
    let entry: MapEntry
  }

  var key: Key {
    switch self {
    case .frontend(let map, let address, let port, _): Key(entry: .frontend(map, address, port, value: 0))
    case .set(let family, let key, _): Key(entry: .set(family, key: key, code: 0))
    case .backend(let slot, let set, let backend):
      Key(entry: .stickySlot(backend.address.family, slot: slot, set: set, backend: 0))
    case .stickySlot(let family, let slot, let set, _): Key(entry: .set(family, key: slot, code: set))
    case .stickyBackend(let number, let set, let backend):
      Key(entry: .stickySlot(backend.address.family, slot: number, set: set, backend: 1))
    case .verdict(let family, let map, let code, _): Key(entry: .verdict(family, map, code: code, .accept))
    case .subject(let family, let map, let name, _): Key(entry: .subject(family, map, name, 0))
    case .identity(let address, _): Key(entry: .identity(address, 0))
    // An interval's end is no part of its key: two cannot begin together.
    case .block(let table, let range, _): Key(entry: .block(table: table, AddressRange(CIDR(host: range.first)), 0))
    case .blockTable(let family, _): Key(entry: .blockTable(family, 0))
    case .pair(let family, let key, _):
      Key(
        entry: .pair(
          family, key, PairValue(portSet: PortSetID(rawValue: 0), attribution: AttributionID(rawValue: 0))))
    case .clauseLabel(let family, let attribution, let clause, _):
      Key(entry: .clauseLabel(family, attribution: attribution, clause: clause, 0))
    case .port(let family, let set, let port, _): Key(entry: .port(family, set: set, port, clause: 0))
    case .portRange(let family, let set, let range, _):
      Key(entry: .portRange(family, set: set, range.lowerBound...range.lowerBound, clause: 0))
    case .clause(let family, let attribution, let clause, _):
      Key(entry: .clause(family, attribution: attribution, clause: clause, .accept))
    default: Key(entry: self)
    }
  }
}

extension MapEntry: CustomStringConvertible {
  var description: String {
    let element: String =
      switch self {
      case .frontend(_, let address, let port, let value): "\(address) . \(port) : \(hex(value))"
      case .set(_, let key, let code): "\(hex(key)) : \(hex(code))"
      case .backend(let slot, let set, let backend): "\(slot) . \(hex(set)) : \(backend)"
      case .stickySlot(_, let slot, let set, let backend): "\(slot) . \(hex(set)) : \(hex(backend))"
      case .stickyBackend(let number, let set, let backend): "\(hex(number)) . \(hex(set)) : \(backend)"
      case .address(_, let address): "\(address)"
      case .range(_, let range): "\(range)"
      case .sourceRange(let list, let range): "\(hex(list)) . \(range)"
      case .interface(_, let name): "\"\(name)\""
      case .podSource(let name, let mac, let address): "\"\(name)\" . \(mac) . \(address)"
      case .verdict(_, _, let code, let verdict): "\(hex(code)) : \(verdict)"
      case .subject(_, _, let name, let subject): "\"\(name)\" : \(hex(subject))"
      case .identity(let address, let identity): "\(address) : \(identity)"
      case .block(let table, let range, let identity): "\(hex(table)) . \(range) : \(identity)"
      case .blockTable(_, let number), .revision(_, let number): hex(number)
      case .pair(_, let key, let value):
        "\(hex(key.subject.rawValue)) . \(hex(key.identity.rawValue)) : "
          + "\(hex(value.attribution.rawValue)) . \(hex(value.portSet.rawValue))"
      case .clauseLabel(_, let attribution, let clause, let label):
        "\(hex(attribution)) . \(hex(clause)) : \(hex(label))"
      case .port(_, let set, let port, let clause): "\(hex(set)) . \(port) : \(hex(clause))"
      case .portRange(_, let set, let range, let clause):
        "\(hex(set)) . \(range.lowerBound)-\(range.upperBound) : \(hex(clause))"
      case .clause(_, let attribution, let clause, let verdict):
        "\(hex(attribution)) . \(hex(clause)) : \(verdict)"
      case .foreign(_, _, let key): "\(key)"
      }
    return "\(family == .v4 ? "ip" : "ip6") \(map.rawValue) { \(element) }"
  }

  private func hex(_ number: UInt32) -> String { "0x" + String(number, radix: 16) }
}
