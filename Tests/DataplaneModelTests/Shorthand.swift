import DataplaneModel
import NetworkTypes
import Testing

/// Short ways to write tables and packets.
func ip(_ text: String, sourceLocation: SourceLocation = #_sourceLocation) -> IPAddress {
  guard let address = IPAddress(text) else {
    Issue.record("not an address: \(text)", sourceLocation: sourceLocation)
    return .unspecified(.v4)
  }
  return address
}

func port(_ number: Int) throws -> Port { try #require(Port(number)) }
func service(_ number: Int) throws -> ServicePortID { try #require(ServicePortID(number)) }
func at(_ text: String, _ number: Int = 8080) throws -> SocketAddress { SocketAddress(ip(text), try port(number)) }

func setID(_ number: Int, _ scope: BackendScope = .cluster, _ family: IPFamily = .v4) throws -> BackendSetID {
  BackendSetID(service: try service(number), scope: scope, family: family)
}

func key(_ address: String, _ number: Int = 80, _ proto: L4Protocol = .tcp) throws -> FrontendKey {
  FrontendKey(.address(ip(address)), proto, try port(number))
}

func nodeKey(_ number: Int, _ proto: L4Protocol = .tcp, _ family: IPFamily = .v4) throws -> FrontendKey {
  FrontendKey(.node(family), proto, try port(number))
}

func frontend(
  _ number: Int, _ kind: FrontendKind = .clusterIP, node: BackendScope = .cluster, outside: BackendScope = .cluster,
  masquerade: MasqueradeRule = .exceptPods
) throws -> Frontend {
  Frontend(
    service: try service(number), kind: kind, nodeScope: node, outsideScope: outside, masquerade: masquerade)
}

func backends(_ addresses: SocketAddress..., empty: EmptyAction = .reject, draining: [SocketAddress] = []) -> BackendSet
{
  BackendSet(backends: addresses, emptyAction: empty, draining: draining)
}

extension Tables {
  /// Tables made by one delta from nothing.
  init(_ body: (inout TableDelta) throws -> Void) rethrows {
    self.init()
    try change(body)
  }

  @discardableResult
  mutating func change(_ body: (inout TableDelta) throws -> Void) rethrows -> TableDelta {
    var delta = TableDelta()
    try body(&delta)
    apply(delta)
    return delta
  }
}

extension Dictionary {
  /// Adds an entry to a delta.
  mutating func add<Entry>(_ key: Key, _ value: Entry) where Value == Change<Entry> {
    self[key] = Change(old: nil, new: value)
  }
}

/// A generator whose sequence follows from its seed.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
