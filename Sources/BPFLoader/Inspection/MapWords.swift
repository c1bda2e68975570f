import DataplaneModel
import NetworkTypes

/// How the elements of a map are read: by its name, and only where its sizes are those of this build's layouts.
public struct MapWords: Sendable {
  /// Bytes; the value's of one processor.
  let (keySize, valueSize): (Int, Int)
  private let readKey: @Sendable (UnsafeRawBufferPointer) -> [Field]
  private let readValue: @Sendable (UnsafeRawBufferPointer) -> [Field]

  private init<Key: MapLayout, Value: MapLayout>(
    _: Key.Type, _: Value.Type, _ key: @escaping @Sendable (Key) -> [Field],
    _ value: @escaping @Sendable (Value) -> [Field]
  ) {
    (keySize, valueSize) = (MemoryLayout<Key>.stride, MemoryLayout<Value>.stride)
    readKey = { key($0.loadUnaligned(as: Key.self)) }
    readValue = { value($0.loadUnaligned(as: Value.self)) }
  }

  private init<Key: LegibleLayout, Value: LegibleLayout>(_: Key.Type, _: Value.Type) {
    self.init(Key.self, Value.self, \.fields, \.fields)
  }
  private init<Key: LegibleLayout>(_: Key.Type, _ value: @escaping @Sendable (UInt32) -> [Field]) {
    self.init(Key.self, UInt32.self, \.fields, value)
  }

  /// A value for each processor, added up.
  private init<Key: MapLayout>(countersBy _: Key.Type, _ key: @escaping @Sendable (Key) -> [Field]) {
    (keySize, valueSize) = (MemoryLayout<Key>.stride, MemoryLayout<CounterLayout>.stride)
    readKey = { key($0.loadUnaligned(as: Key.self)) }
    readValue = { bytes in
      var sum = CounterLayout()
      for offset in stride(from: 0, to: bytes.count, by: MemoryLayout<CounterLayout>.stride) {
        let value = bytes.loadUnaligned(fromByteOffset: offset, as: CounterLayout.self)
        sum.packets += value.packets
        sum.bytes += value.bytes
      }
      return sum.fields
    }
  }

  public func key(_ bytes: UnsafeRawBufferPointer) -> [Field] { readKey(bytes) }
  public func value(_ bytes: UnsafeRawBufferPointer) -> [Field] { readValue(bytes) }

  /// nil for a map that this build knows nothing of, or has in another layout.
  public static func of(_ map: PinnedMap) -> MapWords? {
    guard let words = all[map.name], words.keySize == map.keySize, words.valueSize == map.valueSize else { return nil }
    return words
  }

  /// Maps of which there is nothing to be said: events that nobody reads twice, and programs' working memory.
  public static let silent: Set<String> = ["events", "memory"]

  static let all: [String: MapWords] = [
    "frontends": MapWords(FrontendKeyLayout.self, FrontendLayout.self),
    "sets": MapWords(SetKeyLayout.self, BackendSetLayout.self),
    "slots": MapWords(SlotKeyLayout.self, BackendLayout.self),
    "members": MapWords(MemberKeyLayout.self) { [Field("takes-flows", .flag($0 == 1))] },
    "node_addresses": MapWords(AddressLayout.self) { _ in [] },
    "sources": MapWords(SourceKeyLayout.self) { _ in [] },
    "affinities": MapWords(AffinityKeyLayout.self, AffinityLayout.self),
    "clients": MapWords(UInt64.self, ClientLayout.self, { [Field("netns-cookie", $0)] }, \.fields),
    "connections": MapWords(UInt64.self, ConnectionLayout.self, { [Field("socket", $0)] }, \.fields),
    "told_peers": MapWords(PeerKeyLayout.self, BackendLayout.self, \.fields) { [$0.field("told")] },
    "real_peers": MapWords(PeerKeyLayout.self, BackendLayout.self, \.fields) { [$0.field("real")] },
    "endpoints": MapWords(UInt32.self, EndpointLayout.self, { [Field("device", $0)] }, \.fields),
    "pod_devices": MapWords(AddressLayout.self, PodDeviceLayout.self),
    "addresses": MapWords(AddressLayout.self) { [Field("is", flags: $0, AddressFlags.names)] },
    "ranges": MapWords(
      RangeKeyLayout.self, UInt32.self,
      { key in
        [
          Field("kind", RangeKeyLayout.kinds[key.table] ?? "\(key.table)"),
          Field("prefix", key.prefixLength, key.address),
        ]
      }, { _ in [] }),
    "uplinks": MapWords(UInt32.self, UplinkLayout.self, { [Field("device", $0)] }, \.fields),
    "internal_addresses": MapWords(
      UInt32.self, AddressLayout.self, { [Field("family", $0, of: ["IPv4", "IPv6"])] },
      { [$0.isZero ? Field("address", "none") : Field("address", $0)] }),
    "state": MapWords(
      UInt32.self, UInt32.self,
      { [Field("name", $0, of: ["revision", "blocks-v4", "blocks-v6", "masqueraded-families", "events"])] },
      { [Field("number", $0)] }),
    "identities": MapWords(AddressLayout.self) { [Field("identity", $0)] },
    "blocks": MapWords(RangeKeyLayout.self) { [Field("identity", $0)] },
    "pairs": MapWords(PairKeyLayout.self, PairLayout.self),
    "ports": MapWords(PortKeyLayout.self, { Field.clause($0) }),
    "port_ranges": MapWords(PortKeyLayout.self, { Field.clause($0) }),
    "clauses": MapWords(countersBy: ClauseKeyLayout.self, \.fields),
    "drops": MapWords(countersBy: UInt32.self, drop),
    "lost_events": MapWords(countersBy: UInt32.self) { _ in [Field("name", "lost-events")] },
    "flows": MapWords(TupleLayout.self, FlowLayout.self),
    "attempts": MapWords(TupleLayout.self, FlowLayout.self),
    "translations": MapWords(TupleLayout.self, TranslationLayout.self),
    "fragments": MapWords(FragmentKeyLayout.self, FragmentLayout.self),
  ]

  /// Denials by direction stand behind all reasons: `DROPS_SIZE`.
  private static func drop(_ index: UInt32) -> [Field] {
    let reasons = ["none"] + DropReason.allCases.map(\.rawValue)
    let denied = DropReason.policyDenied.rawValue
    return switch Int(index) {
    case ..<reasons.count: [Field("reason", reasons[Int(index)])]
    case reasons.count: [Field("reason", denied), Field("direction", "ingress")]
    default: [Field("reason", denied), Field("direction", "egress")]
    }
  }
}
