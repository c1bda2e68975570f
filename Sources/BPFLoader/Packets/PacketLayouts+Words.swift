import DataplaneModel
import NetworkTypes

/// What the elements of the packet programs' maps say. Enumerations are in the order of bpf/include/tables.h.
extension MACLayout: CustomStringConvertible {
  public var description: String {
    withUnsafeBytes(of: self) { MACAddress(bytes: Array($0)) }.map { "\($0)" } ?? ""
  }
}

extension EndpointLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Self.subject("ingress-subject", ingress), Self.subject("egress-subject", egress),
      Field("flags", flags: flags, ["known", "shaped"]),
      Field("mac", "\(mac)"), Field("ipv4", v4), Field("ipv6", v6),
    ]
  }

  private static func subject(_ name: String, _ number: UInt32) -> Field {
    number == 0 ? Field(name, "unrestricted") : Field(name, number)
  }
}

extension PodDeviceLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("device", device), Field("flags", flags: flags, ["known", "shaped"]), Field("mac", "\(mac)"),
      Field("gateway-mac", "\(gatewayMAC)"),
    ]
  }
}

extension AddressFlags {
  static let names = ["own", "service", "other-proxys-service", "node"]
}

extension RangeKeyLayout: LegibleLayout {
  /// Of map `ranges`; in map `blocks` the table is a number.
  static let kinds: [UInt32: String] = [cluster: "cluster", service: "service", pod: "pod"]

  public var fields: [Field] { [Field("table", table), Field("prefix", prefixLength, address)] }
}

extension PairKeyLayout: LegibleLayout {
  public var fields: [Field] {
    [Field("subject", subject), identity == 0 ? Field("identity", "any") : Field("identity", identity)]
  }
}

extension PairLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("port-set", portSet), Field("attribution", attribution),
      Field("direction", AttributionID(rawValue: attribution).direction.description),
    ]
  }
}

extension PortKeyLayout: LegibleLayout {
  public var fields: [Field] {
    let port = UInt16(portHigh) << 8 | UInt16(portLow)
    let bits = Int(prefixLength) - 32
    var fields = [Field("port-set", portSet)]
    switch bits {
    case ..<8: fields.append(Field("protocol", bits <= 0 ? "any" : "\(proto)/\(bits)"))
    case 24: fields += [Field("protocol", proto: proto), Field("port", port)]
    default:
      let last = bits >= 24 ? port : port | UInt16.max >> UInt16(max(0, bits - 8))
      fields += [Field("protocol", proto: proto), Field("ports", bits == 8 ? "any" : "\(port)-\(last)")]
    }
    return fields
  }
}

extension Field {
  /// What a clause does, and which it is.
  static func clause(_ number: UInt32) -> [Field] {
    guard let clause = Clause(rawValue: number) else { return [Field("clause", "unknown \(number)")] }
    return [Field("verdict", clause.isAllowed ? "allow" : "deny"), Field("clause", clause.words)]
  }
}

extension Clause {
  /// One word: `rule-0`, `default-deny`.
  var words: String {
    switch kind {
    case .allow: "rule-\(index)"
    case .notIsolated: "not-isolated"
    case .defaultDeny: "default-deny"
    case .auditDeny: "audit-deny"
    case .overLimit: "over-limit"
    }
  }
}

extension ClauseKeyLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("attribution", attribution),
      Field("direction", AttributionID(rawValue: attribution).direction.description),
    ] + Field.clause(clause)
  }
}

extension CounterLayout: LegibleLayout {
  public var fields: [Field] { [Field("packets", packets), Field("bytes", bytes)] }
}

extension UplinkLayout: LegibleLayout {
  public var fields: [Field] {
    [("masquerade-v4", v4), ("masquerade-v6", v6)].filter { !$0.1.isZero }.map { Field($0.0, $0.1) }
      + [Field("header-bytes", headerLength)]
  }
}

extension TupleLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("protocol", proto: proto), Field("source", source), Field("source-port", port: sourcePort),
      Field("destination", destination), Field("destination-port", port: destinationPort),
    ] + (step == 0 ? [] : [Field("changes", step, of: ["nothing", "destination", "source"])])
  }
}

extension FlowLayout: LegibleLayout {
  static let flagNames = [
    "begun-by-second", "begun-by-node", "balanced", "masqueraded", "bit-4", "bit-5", "asked-sender", "asked-recipient",
  ]

  public var fields: [Field] {
    [
      Field("state", FlowState(rawValue: state).map { "\($0)" } ?? "\(state)"),
      Field("flags", flags: UInt32(flags), Self.flagNames),
      Field("closed", flags: UInt32(closed), ["first", "second", "first-reset", "second-reset"]),
      Field("revision", revision),
      Field("age-seconds", MonotonicClock.seconds(since: seen)),
    ]
  }
}

extension TranslationLayout: LegibleLayout {
  public var fields: [Field] {
    [
      to.first.field("to-source"), to.second.field("to-destination"),
      Field("why", isMasquerade != 0 ? "masquerade" : "service"),
    ] + (isMasquerade != 0 ? [] : set.fields)
  }
}

extension FragmentKeyLayout: LegibleLayout {
  public var fields: [Field] { [Field("source", source), Field("destination", destination), Field("id", id)] }
}

extension FragmentLayout: LegibleLayout {
  public var fields: [Field] {
    [
      Field("protocol", proto: proto), Field("source-port", port: sourcePort),
      Field("destination-port", port: destinationPort),
    ]
  }
}
