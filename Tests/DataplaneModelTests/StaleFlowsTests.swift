import DataplaneModel
import NetworkTypes
import Testing

/// Which UDP flows a delta leaves behind, judged from the delta alone.
@Suite("Stale flows of a delta")
struct StaleFlowsTests {
  /// Service 1 has a ClusterIP in both families and a NodePort, service 2 a TCP port.
  private static func keys(_ id: ServicePortID) throws -> [FrontendKey] {
    switch id.rawValue {
    case 1:
      [
        try key("10.96.0.10", 53, .udp), try key("fd00:96::10", 53, .udp), try nodeKey(30053, .udp),
        try nodeKey(30053, .udp, .v6),
      ]
    case 2: [try key("10.96.0.11")]
    default: []
    }
  }

  private func stale(_ body: (inout TableDelta) throws -> Void) throws -> Set<String> {
    // The state before: what the keys below name.
    var tables = Tables()
    var setup = TableDelta()
    for number in [1, 2] {
      for key in try Self.keys(try service(number)) {
        setup.frontends[key] = Change(old: nil, new: try frontend(number))
      }
    }
    tables.apply(setup)
    var delta = TableDelta()
    try body(&delta)
    tables.apply(delta)
    let known = try [1, 2].map { try service($0) }
    let keys = Dictionary(uniqueKeysWithValues: try known.map { ($0, try Self.keys($0)) })
    return Set(delta.staleFlows(after: tables) { keys[$0] ?? [] }.map(\.description))
  }

  /// What a set's change of service 1, IPv4, leaves behind.
  private func stale(_ old: BackendSet?, _ new: BackendSet?) throws -> Set<String> {
    try stale { $0.sets[try setID(1)] = Change(old: old, new: new) }
  }

  private static let all: Set<String> = ["10.96.0.10 udp/53", "node/IPv4 udp/30053"]
  private func via(_ backend: String) -> Set<String> { Set(Self.all.map { "\($0) via \(backend):8080" }) }

  @Test("a set that grows, or changes its slots, timeout or action, leaves nothing behind")
  func harmless() throws {
    let (a, b) = (try at("10.244.2.1"), try at("10.244.2.2"))
    #expect(try stale(backends(a), backends(a, b)).isEmpty)
    #expect(try stale(backends(a, b), backends(b, a)).isEmpty)
    #expect(try stale(backends(a), BackendSet(backends: [a], emptyAction: .drop, affinityTimeout: 5)).isEmpty)
    #expect(try stale(nil, backends()).isEmpty)
    #expect(try stale(backends(), nil).isEmpty)
    #expect(try stale(backends(), backends(empty: .drop)).isEmpty)
  }

  @Test("a backend that leaves takes its flows along, in the family of the set only")
  func leaves() throws {
    let (a, b) = (try at("10.244.2.1"), try at("10.244.2.2"))
    #expect(try stale(backends(a, b), backends(b)) == via("10.244.2.1"))
    #expect(try stale(backends(a), backends()) == via("10.244.2.1"))
    #expect(try stale(backends(a), nil) == via("10.244.2.1"))
    #expect(try stale(backends(a), backends(b)) == via("10.244.2.1"))
    let v6 = try stale { $0.sets[try setID(1, .cluster, .v6)] = Change(old: backends(try at("fd00::1")), new: nil) }
    #expect(v6 == ["fd00:96::10 udp/53 via [fd00::1]:8080", "node/IPv6 udp/30053 via [fd00::1]:8080"])
  }

  @Test("draining counts as serving, until it ends")
  func draining() throws {
    let (a, b) = (try at("10.244.2.1"), try at("10.244.2.2"))
    #expect(try stale(backends(a, b), backends(b, draining: [a])).isEmpty)
    #expect(try stale(backends(b, draining: [a]), backends(a, b)).isEmpty)
    #expect(try stale(backends(b, draining: [a]), backends(b)) == via("10.244.2.1"))
    #expect(try stale(backends(b, draining: [a]), nil) == via("10.244.2.1").union(via("10.244.2.2")))
  }

  @Test("the first backend ends all flows that were tracked without one")
  func filled() throws {
    let a = try at("10.244.2.1")
    #expect(try stale(nil, backends(a)) == Self.all)
    #expect(try stale(backends(), backends(a)) == Self.all)
    let b = try at("10.244.2.2")
    #expect(try stale(backends(draining: [b]), backends(a)) == Self.all.union(via("10.244.2.2")))
  }

  @Test("a frontend that comes, goes or means another service ends all its flows; one that is altered does not")
  func frontends() throws {
    let address = try key("10.96.0.10", 53, .udp)
    func change(_ old: Frontend?, _ new: Frontend?) throws -> Set<String> {
      try stale { $0.frontends[address] = Change(old: old, new: new) }
    }
    #expect(try change(nil, frontend(1)) == ["10.96.0.10 udp/53"])
    #expect(try change(frontend(1), nil) == ["10.96.0.10 udp/53"])
    #expect(try change(frontend(1), frontend(2)) == ["10.96.0.10 udp/53"])
    #expect(try change(frontend(1), frontend(1, masquerade: .always)).isEmpty)
  }

  @Test("TCP and SCTP are never touched")
  func otherProtocols() throws {
    let found = try stale {
      $0.frontends[try key("10.96.0.11")] = Change(old: nil, new: try frontend(2))
      $0.frontends[try key("10.96.0.11", 80, .sctp)] = Change(old: try frontend(2), new: nil)
      $0.sets[try setID(2)] = Change(old: backends(try at("10.244.2.1")), new: backends())
    }
    #expect(found.isEmpty)
  }

  @Test("an address that begins or ends to serve NodePorts ends the flows that were tracked without or with it")
  func nodePortAddresses() throws {
    let added = try stale { $0.nodePortAddresses.added = [ip("192.168.0.1")] }
    let removed = try stale { $0.nodePortAddresses.removed = [ip("192.168.0.1")] }
    #expect(!added.isEmpty)
    #expect(!removed.isEmpty)
  }
}
