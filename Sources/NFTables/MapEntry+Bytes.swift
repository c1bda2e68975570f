import DataplaneModel
import NetworkTypes

/// Elements as the kernel holds them: every field padded to 4 bytes, addresses and ports in network order, numbers in
/// the host's.
extension MapEntry {
  /// The key, or an interval's first key.
  func writeKey(_ out: inout ElementBytes) {
    switch self {
    case .frontend(_, let address, let port, _):
      out.append(address)
      out.append([port.proto, 0, 0, 0])
      out.append(port: port.port)
    case .set(_, let key, _): out.append(key)
    case .backend(let slot, let set, _), .stickySlot(_, let slot, let set, _), .stickyBackend(let slot, let set, _):
      out.append(slot)
      out.append(set)
    case .address(.hairpin, let address):
      out.append(address)
      out.append(address)
    case .address(_, let address): out.append(address)
    case .range(_, let range): out.append(range.first)
    case .sourceRange(let list, let range):
      out.append(list)
      out.append(range.first)
    case .interface(_, let name): out.append(interface: name)
    case .podSource(let name, let mac, let address):
      out.append(interface: name)
      out.append(mac.bytes)
      out.append([0, 0])
      out.append(address)
    case .verdict(_, _, let code, _): out.append(code)
    case .foreign(_, _, let key): out.append(key)
    case .subject(_, _, let name, _): out.append(interface: name)
    case .identity(let address, _): out.append(address)
    case .block(let table, let range, _):
      out.append(table)
      out.append(range.first)
    case .blockTable: out.append(UInt32(0))
    case .revision(_, let revision): out.append(revision)
    case .pair(_, let key, _):
      out.append(key.subject.rawValue)
      out.append(key.identity.rawValue)
    case .clause(_, let first, let second, _), .clauseLabel(_, let first, let second, _):
      out.append(first)
      out.append(second)
    case .port(_, let set, let port, _):
      out.append(set)
      out.append(port)
    case .portRange(_, let set, let range, _):
      out.append(set)
      out.append(range.lowerBound)
    }
  }

  /// An interval's first key *behind* it; false where it ends with the key space.
  func writeEnd(_ out: inout ElementBytes) -> Bool {
    switch self {
    case .range(_, let range): out.append(range.last)
    case .sourceRange(let list, let range):
      out.append(list)
      out.append(range.last)
    case .block(let table, let range, _):
      out.append(table)
      out.append(range.last)
    case .portRange(_, let set, let range, _):
      out.append(set)
      out.append(range.upperBound)
    default: return false
    }
    return out.increment()
  }

  func writeData(_ out: inout ElementBytes) {
    switch self {
    case .frontend(_, _, _, let value): out.append(value)
    case .set(_, _, let code): out.append(code)
    case .backend(_, _, let backend), .stickyBackend(_, _, let backend):
      out.append(backend.address)
      out.append(port: backend.port.number)
    case .stickySlot(_, _, _, let backend): out.append(backend)
    case .subject(_, _, _, let value), .identity(_, let value), .block(_, _, let value), .blockTable(_, let value),
      .clauseLabel(_, _, _, let value), .port(_, _, _, let value), .portRange(_, _, _, let value):
      out.append(value)
    case .pair(_, _, let value):
      out.append(value.attribution.rawValue)
      out.append(value.portSet.rawValue)
    default: break
    }
  }

  /// Reads an element back. `end` is the key behind an interval. What does not decode is `foreign`.
  init(family: IPFamily, map: MapName, key: [UInt8], end: [UInt8]?, data: [UInt8], verdict: Verdict?) {
    self =
      Self.decode(family: family, map: map, key: key, end: end, data: data, verdict: verdict)
      ?? .foreign(family, map, key: key)
  }

  private static func decode(
    family: IPFamily, map: MapName, key: [UInt8], end: [UInt8]?, data: [UInt8], verdict: Verdict?
  ) -> MapEntry? {
    let spec = MapSpec(map, family)
    guard key.count == Int(spec.keyLength) else { return nil }
    var reader = ElementReader(key)
    switch map {
    case .frontends, .remoteFrontends, .guarded:
      guard let address = reader.address(family), let value = ElementReader(data).only() else { return nil }
      let proto = key[family.addressBytes]
      let port = UInt16(key[family.addressBytes + 4]) << 8 | UInt16(key[family.addressBytes + 5])
      return .frontend(map, address, TransportPort(proto: proto, port: port), value: value)
    case .sets:
      guard let code = ElementReader(data).only() else { return nil }
      return .set(family, key: reader.number(), code: code)
    case .backends, .stickyBackends:
      let (slot, set) = (reader.number(), reader.number())
      var value = ElementReader(data)
      guard data.count == family.addressBytes + 4, let address = value.address(family), let port = value.port() else {
        return nil
      }
      let backend = SocketAddress(address, port)
      return map == .backends
        ? .backend(slot: slot, set: set, backend) : .stickyBackend(backend: slot, set: set, backend)
    case .stickySlots:
      guard let backend = ElementReader(data).only() else { return nil }
      return .stickySlot(family, slot: reader.number(), set: reader.number(), backend: backend)
    case .serviceAddresses, .otherAddresses: return reader.address(family).map { .address(map, $0) }
    case .hairpin:
      guard let first = reader.address(family), first == reader.address(family) else { return nil }
      return .address(map, first)
    case .serviceRanges, .clusterRanges:
      return range(family, first: key, end: end).map { .range(map, $0) }
    case .sourceRanges:
      let list = reader.number()
      return range(family, first: Array(key.dropFirst(4)), end: end.map { Array($0.dropFirst(4)) })
        .map { .sourceRange(list: list, $0) }
    case .localInterfaces: return .interface(family, reader.interface())
    case .podSources:
      let name = reader.interface()
      guard let mac = MACAddress(bytes: key[16..<22]) else { return nil }
      reader.skip(8)
      return reader.address(family).map { .podSource(name, mac, $0) }
    case .dispatch, .remoteDispatch, .balancers, .remoteBalancers, .outcomes:
      return verdict.map { .verdict(family, map, code: reader.number(), $0) }
    case .affinity: return nil
    case .revision: return .revision(family, reader.number())
    case .ownAddresses: return reader.address(family).map { .address(map, $0) }
    case .podRanges: return range(family, first: key, end: end).map { .range(map, $0) }
    case .verdicts:
      return verdict.map { .clause(family, attribution: reader.number(), clause: reader.number(), $0) }
    case .pairs:
      guard data.count == 8 else { return nil }
      let key = PairKey(SubjectID(rawValue: reader.number()), IdentityID(rawValue: reader.number()))
      var value = ElementReader(data)
      let attribution = AttributionID(rawValue: value.number())
      return .pair(family, key, PairValue(portSet: PortSetID(rawValue: value.number()), attribution: attribution))
    case .egressSubjects, .ingressSubjects, .identities, .blocks, .blockTable, .clauseLabels, .ports, .portRanges:
      guard let value = ElementReader(data).only() else { return nil }
      return decodePolicy(family, map, key, end, value)
    }
  }

  private static func decodePolicy(
    _ family: IPFamily, _ map: MapName, _ key: [UInt8], _ end: [UInt8]?, _ value: UInt32
  ) -> MapEntry? {
    var reader = ElementReader(key)
    switch map {
    case .egressSubjects, .ingressSubjects: return .subject(family, map, reader.interface(), value)
    case .identities: return reader.address(family).map { .identity($0, value) }
    case .blocks:
      let table = reader.number()
      return range(family, first: Array(key.dropFirst(4)), end: end.map { Array($0.dropFirst(4)) })
        .map { .block(table: table, $0, value) }
    case .blockTable: return reader.number() == 0 ? .blockTable(family, value) : nil
    case .clauseLabels:
      return .clauseLabel(family, attribution: reader.number(), clause: reader.number(), value)
    case .ports:
      let set = reader.number()
      return .port(family, set: set, reader.portKey(), clause: value)
    case .portRanges:
      let set = reader.number()
      let first = reader.portKey()
      guard let end, end.prefix(4) == key.prefix(4) else { return nil }
      // The end is the key behind the last port: that port's, and 1.
      var last = ElementReader(Array(end.dropFirst(4)))
      let upper = last.portKey()
      guard end.last == 1, first <= upper else { return nil }
      return .portRange(family, set: set, first...upper, clause: value)
    default: return nil
    }
  }

  private static func range(_ family: IPFamily, first: [UInt8], end: [UInt8]?) -> AddressRange? {
    guard let low = IPAddress(bytes: first) else { return nil }
    let all: UInt128 = family == .v4 ? 0xffff_ffff : .max
    guard let end, !end.allSatisfy({ $0 == 0 }) else {
      return IPAddress(family: family, number: all).flatMap { AddressRange(first: low, last: $0) }
    }
    let behind = end.reduce(UInt128(0)) { $0 << 8 | UInt128($1) }
    return IPAddress(family: family, number: behind - 1).flatMap { AddressRange(first: low, last: $0) }
  }
}

/// A small buffer for one key or value; re-used, so that 100,000 elements cost no allocation.
struct ElementBytes {
  private(set) var bytes: [UInt8] = []

  init() { bytes.reserveCapacity(64) }
  mutating func clear() { bytes.removeAll(keepingCapacity: true) }
  mutating func append(_ more: [UInt8]) { bytes.append(contentsOf: more) }
  mutating func append(_ number: UInt32) {
    withUnsafeBytes(of: number) { bytes.append(contentsOf: $0) }
  }
  mutating func append(port: UInt16) {
    bytes.append(UInt8(port >> 8))
    bytes.append(UInt8(truncatingIfNeeded: port))
    bytes.append(0)
    bytes.append(0)
  }
  mutating func append(_ port: PortKey) {
    append([port.proto, 0, 0, 0])
    append(port: port.port)
  }
  mutating func append(_ address: IPAddress) {
    if address.family == .v4 {
      withUnsafeBytes(of: UInt32(truncatingIfNeeded: address.low).bigEndian) { bytes.append(contentsOf: $0) }
    } else {
      withUnsafeBytes(of: address.high.bigEndian) { bytes.append(contentsOf: $0) }
      withUnsafeBytes(of: address.low.bigEndian) { bytes.append(contentsOf: $0) }
    }
  }
  mutating func append(interface name: String) {
    let utf8 = Array(name.utf8.prefix(15))
    bytes.append(contentsOf: utf8)
    for _ in utf8.count..<16 { bytes.append(0) }
  }
  /// Adds one to the bytes as one big-endian number; false on overflow.
  mutating func increment() -> Bool {
    for index in bytes.indices.reversed() {
      bytes[index] &+= 1
      if bytes[index] != 0 { return true }
    }
    return false
  }
}

/// Reads the fields of a key whose length has been checked.
private struct ElementReader {
  private var rest: ArraySlice<UInt8>
  init(_ bytes: [UInt8]) { rest = bytes[...] }

  mutating func skip(_ count: Int) { rest = rest.dropFirst(count) }
  mutating func address(_ family: IPFamily) -> IPAddress? {
    defer { skip(family.addressBytes) }
    return IPAddress(bytes: rest.prefix(family.addressBytes))
  }
  mutating func number() -> UInt32 {
    defer { skip(4) }
    return rest.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }
  mutating func port() -> Port? {
    defer { skip(4) }
    return Port(rest.prefix(2).reduce(UInt16(0)) { $0 << 8 | UInt16($1) })
  }
  mutating func portKey() -> PortKey {
    defer { skip(8) }
    let bytes = Array(rest.prefix(8))
    return PortKey(proto: bytes[0], port: UInt16(bytes[4]) << 8 | UInt16(bytes[5]))
  }
  mutating func interface() -> String {
    defer { skip(16) }
    return String(decoding: rest.prefix(16).prefix { $0 != 0 }, as: UTF8.self)
  }
  /// The value, if it is one number.
  func only() -> UInt32? {
    guard rest.count == 4 else { return nil }
    var copy = self
    return copy.number()
  }
}
