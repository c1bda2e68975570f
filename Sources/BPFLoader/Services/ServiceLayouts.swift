import DataplaneModel
import NetworkTypes

/// The structures of bpf/include/tables.h. Numbers are in host order, addresses and ports as on the wire; padding is
/// written out and zero, because hash maps compare every byte.

/// `struct address`: IPv4 as ::ffff:a.b.c.d. Four words, not two: C's has the alignment of its words.
public struct AddressLayout: MapLayout {
  private var word0: UInt32 = 0
  private var word1: UInt32 = 0
  private var word2: UInt32 = 0
  private var word3: UInt32 = 0

  public init() {}
  public init(_ address: IPAddress) {
    switch address.family {
    case .v4: (word2, word3) = (UInt32(0xffff).bigEndian, UInt32(truncatingIfNeeded: address.low).bigEndian)
    case .v6:
      let (high, low) = (address.high.bigEndian, address.low.bigEndian)
      (word0, word1) = (UInt32(truncatingIfNeeded: high), UInt32(truncatingIfNeeded: high >> 32))
      (word2, word3) = (UInt32(truncatingIfNeeded: low), UInt32(truncatingIfNeeded: low >> 32))
    }
  }
  /// Whether it is the higher one in the order of flows' ends (`comes_after` in bpf/include/flows.h): by words as they lie
  /// in memory.
  func comes(after other: AddressLayout) -> Bool {
    (word0, word1, word2, word3) > (other.word0, other.word1, other.word2, other.word3)
  }
  public var address: IPAddress? {
    let words = [word0, word1, word2, word3].map { UInt64(UInt32(bigEndian: $0)) }
    if words[0] == 0, words[1] == 0, words[2] == 0xffff { return IPAddress(v4: UInt32(words[3])) }
    return IPAddress(v6High: words[0] << 32 | words[1], low: words[2] << 32 | words[3])
  }
}

/// `struct frontend_key`.
public struct FrontendKeyLayout: MapLayout {
  var address = AddressLayout()
  /// Big-endian.
  var port: UInt16 = 0
  var proto: UInt8 = 0
  var pad: UInt8 = 0

  public init() {}
  public init(_ key: FrontendKey) {
    switch key.destination {
    case .address(let address): self.address = AddressLayout(address)
    case .node(let family): address = AddressLayout(.unspecified(family))
    }
    port = key.port.number.bigEndian
    proto = key.proto.rawValue
  }
}

/// `struct frontend`.
public struct FrontendLayout: MapLayout {
  var service: UInt32 = 0
  var sourceList: UInt32 = 0
  var kind: UInt8 = 0
  var nodeScope: UInt8 = 0
  var outsideScope: UInt8 = 0
  var masquerade: UInt8 = 0

  public init() {}
  public init(_ frontend: Frontend, sourceList: UInt32) {
    service = frontend.service.rawValue
    self.sourceList = sourceList
    kind = frontend.kind.rawValue
    nodeScope = frontend.nodeScope.rawValue
    outsideScope = frontend.outsideScope.rawValue
    masquerade = frontend.masquerade.rawValue
  }
}

/// `struct set_key`.
public struct SetKeyLayout: MapLayout {
  var service: UInt32 = 0
  var scope: UInt8 = 0
  var family: UInt8 = 0
  var pad: UInt16 = 0

  public init() {}
  public init(_ id: BackendSetID) {
    service = id.service.rawValue
    scope = id.scope.rawValue
    family = id.family == .v4 ? 4 : 6
  }
}

/// `struct backend_set`.
public struct BackendSetLayout: MapLayout {
  var count: UInt32 = 0
  var affinity: UInt32 = 0
  var emptyAction: UInt8 = 0
  var isHashed: UInt8 = 0
  var pad: UInt16 = 0

  public init() {}
  public init(_ set: BackendSet) {
    count = UInt32(set.slotCount)
    isHashed = set.maglev == nil ? 0 : 1
    affinity = set.affinityTimeout ?? 0
    emptyAction = set.emptyAction.rawValue
  }
}

/// `struct slot_key`.
public struct SlotKeyLayout: MapLayout {
  var set = SetKeyLayout()
  var slot: UInt32 = 0

  public init() {}
  public init(_ id: BackendSetID, _ slot: Int) {
    set = SetKeyLayout(id)
    self.slot = UInt32(slot)
  }
}

/// `struct backend`.
public struct BackendLayout: MapLayout {
  var address = AddressLayout()
  /// Big-endian.
  var port: UInt16 = 0
  var pad: UInt16 = 0

  public init() {}
  /// - Parameter port: big-endian.
  init(_ address: AddressLayout, _ port: UInt16) { (self.address, self.port) = (address, port) }
  public init(_ backend: SocketAddress) {
    address = AddressLayout(backend.address)
    port = backend.port.number.bigEndian
  }
}

/// `struct member_key`.
public struct MemberKeyLayout: MapLayout {
  var set = SetKeyLayout()
  var backend = BackendLayout()

  public init() {}
  public init(_ id: BackendSetID, _ backend: SocketAddress) {
    set = SetKeyLayout(id)
    self.backend = BackendLayout(backend)
  }
}

/// `struct source_key`.
public struct SourceKeyLayout: MapLayout {
  var prefixLength: UInt32 = 0
  var list: UInt32 = 0
  var address = AddressLayout()

  public init() {}
  public init(list: UInt32, _ range: CIDR) {
    // 32 bits of list, and of IPv4 the 96 before its address.
    prefixLength = 32 + (range.family == .v4 ? 96 : 0) + UInt32(range.prefixLength)
    self.list = list
    address = AddressLayout(range.address)
  }
}

/// `struct affinity_key`.
public struct AffinityKeyLayout: MapLayout {
  var client = AddressLayout()
  var service: UInt32 = 0

  public init() {}
  public init(client: IPAddress, service: ServicePortID) {
    self.client = AddressLayout(client)
    self.service = service.rawValue
  }
}

/// `struct affinity`.
public struct AffinityLayout: MapLayout {
  var backend = BackendLayout()
  var pad: UInt32 = 0
  /// Nanoseconds of the monotonic clock.
  var used: UInt64 = 0

  public init() {}
  public init(_ backend: SocketAddress, used: UInt64) {
    self.backend = BackendLayout(backend)
    self.used = used
  }
}

extension BackendSetID {
  /// nil where the key is none that tables lead to.
  init?(_ key: SetKeyLayout) {
    guard let service = ServicePortID(key.service), let scope = BackendScope(rawValue: key.scope),
      let family = IPFamily(rawValue: key.family)
    else { return nil }
    self.init(service: service, scope: scope, family: family)
  }
}
