import DataplaneModel
import NetworkTypes

/// What the elements of Services' maps say. Enumerations are in the order of bpf/include/tables.h.
extension AddressLayout: LegibleLayout {
  public var fields: [Field] { [Field("address", self)] }
  public var description: String { address.map { "\($0)" } ?? "none" }

  /// Zero: what stands for "none" where an address may be missing.
  var isZero: Bool { self == AddressLayout() }
}

extension FrontendKeyLayout: LegibleLayout {
  public var fields: [Field] {
    // The unspecified address stands for this node's own.
    let isNode = address.address.map { $0 == .unspecified($0.family) } ?? false
    let place =
      isNode
      ? Field("address", "node/\(address.address?.family.description ?? "")") : Field("address", address)
    return [place, Field("port", port: port), Field("protocol", proto: proto)]
  }
}

extension FrontendLayout: LegibleLayout {
  static let scopes = BackendScope.allCases.map(\.description)

  public var fields: [Field] {
    [
      Field("service", service), Field("kind", kind, of: FrontendKind.allCases.map(\.description)),
      Field("from-node", nodeScope, of: Self.scopes), Field("from-outside", outsideScope, of: Self.scopes),
      Field("masquerade", masquerade, of: ["except-pods", "always", "host-only"]),
      sourceList == 0 ? Field("sources", "anyone") : Field("source-list", sourceList),
    ]
  }
}

extension SetKeyLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("service", service), Field("scope", scope, of: FrontendLayout.scopes),
      Field("family", IPFamily(rawValue: family)?.description ?? "\(family)"),
    ]
  }
}

extension BackendSetLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("slots", count), Field("affinity-seconds", affinity),
      Field("when-empty", emptyAction, of: ["reject", "drop"]), Field("slot-by", isHashed, of: ["random", "maglev"]),
    ]
  }
}

extension SlotKeyLayout: LegibleLayout {
  public var fields: [Field] { self.set.fields + [Field("slot", slot)] }
}

extension BackendLayout: LegibleLayout {
  public var fields: [Field] { [Field("address", address), Field("port", port: port)] }

  /// As one field: an address with its port.
  func field(_ name: String) -> Field {
    guard let address = address.address else { return Field(name, "none") }
    return Field(name, SocketAddressText.of(address, UInt16(bigEndian: port)))
  }
}

/// `10.0.0.1:80`, `[fd00::1]:80`; without a port just the address.
public enum SocketAddressText {
  public static func of(_ address: IPAddress, _ port: UInt16) -> String {
    guard port != 0 else { return "\(address)" }
    return address.family == .v4 ? "\(address):\(port)" : "[\(address)]:\(port)"
  }
}

extension MemberKeyLayout: LegibleLayout {
  public var fields: [Field] { self.set.fields + backend.fields }
}

extension SourceKeyLayout: LegibleLayout {
  public var fields: [Field] { [Field("source-list", list), Field("prefix", prefixLength, address)] }
}

extension AffinityKeyLayout: LegibleLayout {
  public var fields: [Field] { [Field("client", client), Field("service", service)] }
}

extension AffinityLayout: LegibleLayout {
  public var fields: [Field] { [backend.field("backend"), Field("age-seconds", MonotonicClock.seconds(since: used))] }
}

extension Field {
  /// Of a map of prefixes whose first 32 bits are a table's number.
  init(_ name: String, _ prefixLength: UInt32, _ address: AddressLayout) {
    var key = RangeKeyLayout()
    (key.prefixLength, key.address) = (prefixLength, address)
    self.init(name, key.range.map { .prefix($0) } ?? .text("\(address) with \(prefixLength) bits"))
  }
}
