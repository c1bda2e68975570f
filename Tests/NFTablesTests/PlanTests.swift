import DataplaneModel
import NetworkTypes
import Testing

@testable import NFTables

/// Plans as text, and what every step of a plan leaves to packets.
@Suite struct PlanTests {
  private static func tables() -> Tables {
    var tables = Tables()
    _ = tables.change { delta in
      delta.clusterIP(1, "10.96.0.1")
      delta.set(1, backends: [at("10.244.1.2", 80), at("10.244.1.3", 80)])
      delta.clusterIP(2, "10.96.0.2", .udp, 53)
      delta.set(2, backends: [at("10.244.1.2", 53), at("10.244.1.3", 53), at("10.244.1.4", 53)])
      delta.clusterIP(3, "10.96.0.3")
      delta.set(3, backends: [at("10.244.1.9", 80)])
      delta.frontends[FrontendKey(.node(.v4), .tcp, at("::", 30080).port)] = Change(
        old: nil,
        new: Frontend(
          service: id(1), kind: .nodePort, nodeScope: .cluster, outsideScope: .cluster, masquerade: .always))
      delta.nodePortAddresses.added = [ip("192.168.100.1")]
    }
    return tables
  }

  /// The plan for one more change of `tables`, as sorted text: dictionaries have no order.
  private static func plan(_ tables: Tables = tables(), _ change: (inout TableDelta) -> Void) -> String {
    var tables = tables
    var planner = Planner(tables)
    let delta = tables.change(change)
    let plan = planner.plan(delta, after: tables)
    return [("before", plan.before), ("now", plan.now), ("later", plan.later)].filter { !$0.1.isEmpty }
      .map { "\($0):\n" + $1.map { "  \($0)" }.sorted().joined(separator: "\n") }
      .joined(separator: "\n")
  }

  private static func set(_ service: Int, of tables: Tables = tables()) -> BackendSet {
    tables.services.sets[BackendSetID(service: id(service), scope: .cluster, family: .v4)]
      ?? BackendSet(backends: [], emptyAction: .reject)
  }

  @Test("a Service of both families")
  func addService() {
    let text = Self.plan { delta in
      for (address, family) in [("10.96.0.7", IPFamily.v4), ("fd00:10:96::7", .v6)] {
        delta.clusterIP(7, address)
        delta.set(7, family, backends: [at(family == .v4 ? "10.244.1.2" : "fd00:10:244:1::2", 80)])
      }
    }
    #expect(
      text
        == """
        before:
          add chain ip6 balance-1
        now:
          add ip backend-sets { 0x7 : 0x1 }
          add ip backends { 0 . 0x7 : 10.244.1.2:80 }
          add ip frontends { 10.96.0.7 . tcp . 80 : 0x7 }
          add ip service-addresses { 10.96.0.7 }
          add ip6 backend-sets { 0x7 : 0x1 }
          add ip6 backends { 0 . 0x7 : [fd00:10:244:1::2]:80 }
          add ip6 balancers { 0x1 : jump balance-1 }
          add ip6 dispatch { 0x1 : jump balance-1 }
          add ip6 frontends { fd00:10:96::7 . tcp . 80 : 0x7 }
          add ip6 service-addresses { fd00:10:96::7 }
        """)
  }

  @Test("a set grows by one: the slot first, then the count")
  func grow() {
    let text = Self.plan {
      $0.set(3, backends: [at("10.244.1.9", 80), at("10.244.1.8", 80)], was: Self.set(3))
    }
    #expect(
      text
        == """
        now:
          add ip backend-sets { 0x3 : 0x2 }
          add ip backends { 1 . 0x3 : 10.244.1.8:80 }
          delete ip backend-sets { 0x3 : 0x1 }
        later:
          delete chain ip balance-1
          delete ip balancers { 0x1 : jump balance-1 }
          delete ip dispatch { 0x1 : jump balance-1 }
        """)
  }

  @Test("a set shrinks by one: the count at once, the slot after the grace period")
  func shrink() {
    let text = Self.plan {
      $0.set(2, backends: [at("10.244.1.4", 53), at("10.244.1.3", 53)], was: Self.set(2))
    }
    #expect(
      text
        == """
        now:
          add ip backend-sets { 0x2 : 0x2 }
          add ip backends { 0 . 0x2 : 10.244.1.4:53 }
          delete ip backend-sets { 0x2 : 0x3 }
          delete ip backends { 0 . 0x2 : 10.244.1.2:53 }
        later:
          delete chain ip balance-3
          delete ip backends { 2 . 0x2 : 10.244.1.4:53 }
          delete ip balancers { 0x3 : jump balance-3 }
          delete ip dispatch { 0x3 : jump balance-3 }
        """)
  }

  @Test("a Service is deleted: the frontend at once, what it named after the grace period")
  func deleteService() {
    let tables = Self.tables()
    let text = Self.plan { delta in
      let key = FrontendKey(.address(ip("10.96.0.3")), .tcp, at("::", 80).port)
      delta.frontends[key] = Change(old: tables.services.frontends[key], new: nil)
      delta.serviceAddresses.removed = [ip("10.96.0.3")]
      delta.sets[BackendSetID(service: id(3), scope: .cluster, family: .v4)] = Change(old: Self.set(3), new: nil)
    }
    #expect(
      text
        == """
        now:
          delete ip frontends { 10.96.0.3 . tcp . 80 : 0x3 }
          delete ip service-addresses { 10.96.0.3 }
        later:
          delete chain ip balance-1
          delete ip backend-sets { 0x3 : 0x1 }
          delete ip backends { 0 . 0x3 : 10.244.1.9:80 }
          delete ip balancers { 0x1 : jump balance-1 }
          delete ip dispatch { 0x1 : jump balance-1 }
        """)
  }

  @Test("affinity goes on and off")
  func affinity() {
    let key = FrontendKey(.address(ip("10.96.0.3")), .tcp, at("::", 80).port)
    func sticky(_ tables: Tables, _ isOn: Bool) -> (inout TableDelta) -> Void {
      { delta in
        let old = tables.services.frontends[key]
        var new = old
        new?.hasAffinity = isOn
        delta.frontends[key] = Change(old: old, new: new)
        delta.set(3, backends: Self.set(3).backends, was: Self.set(3, of: tables), affinity: isOn ? 60 : nil)
      }
    }
    let tables = Self.tables()
    #expect(
      Self.plan(tables, sticky(tables, true))
        == """
        before:
          add chain ip affinity-60
        now:
          add ip backend-sets { 0x40000003 : 0x4000003c }
          add ip dispatch { 0x4000003c : jump affinity-60 }
          add ip frontends { 10.96.0.3 . tcp . 80 : 0x40000003 }
          add ip sticky-backends { 0xf4ba1a0d . 0x3 : 10.244.1.9:80 }
          add ip sticky-slots { 0 . 0x3 : 0xf4ba1a0d }
          delete ip frontends { 10.96.0.3 . tcp . 80 : 0x3 }
        later:
          delete ip backends { 0 . 0x3 : 10.244.1.9:80 }
        """)
    var after = tables
    _ = after.change(sticky(tables, true))
    #expect(
      Self.plan(after, sticky(after, false))
        == """
        now:
          add ip backends { 0 . 0x3 : 10.244.1.9:80 }
          add ip frontends { 10.96.0.3 . tcp . 80 : 0x3 }
          delete ip frontends { 10.96.0.3 . tcp . 80 : 0x40000003 }
          delete ip sticky-backends { 0xf4ba1a0d . 0x3 : 10.244.1.9:80 }
        later:
          delete chain ip affinity-60
          delete ip backend-sets { 0x40000003 : 0x4000003c }
          delete ip dispatch { 0x4000003c : jump affinity-60 }
          delete ip sticky-slots { 0 . 0x3 : 0xf4ba1a0d }
        """)
  }

  @Test("source ranges come before what asks for them, and go after it")
  func sourceRanges() {
    let key = FrontendKey(.address(ip("203.0.113.9")), .tcp, at("::", 80).port)
    let open = Frontend(
      service: id(3), kind: .loadBalancer, nodeScope: .cluster, outsideScope: .cluster, masquerade: .always)
    var guarded = open
    guarded.sourceRanges = [AddressRange(cidr("192.0.2.0/24"))]
    var tables = Self.tables()
    _ = tables.change { $0.frontends[key] = Change(old: nil, new: open) }
    #expect(
      Self.plan(tables) { $0.frontends[key] = Change(old: open, new: guarded) }
        == """
        before:
          add ip source-ranges { 0x51b048e8 . 192.0.2.0-192.0.2.255 }
        now:
          add ip guarded { 203.0.113.9 . tcp . 80 : 0x51b048e8 }
        """)
    _ = tables.change { $0.frontends[key] = Change(old: open, new: guarded) }
    #expect(
      Self.plan(tables) { $0.frontends[key] = Change(old: guarded, new: open) }
        == """
        now:
          delete ip guarded { 203.0.113.9 . tcp . 80 : 0x51b048e8 }
        later:
          delete ip source-ranges { 0x51b048e8 . 192.0.2.0-192.0.2.255 }
        """)
  }

  @Test("a node address moves: the NodePorts follow in one transaction")
  func nodeAddress() {
    let text = Self.plan {
      $0.nodePortAddresses = SetChange(added: [ip("192.168.100.2")], removed: [ip("192.168.100.1")])
    }
    #expect(
      text
        == """
        now:
          add ip frontends { 192.168.100.2 . tcp . 30080 : 0x80000001 }
          delete ip frontends { 192.168.100.1 . tcp . 30080 : 0x80000001 }
        """)
  }

  @Test("an external policy turns Local: traffic from outside gets its own map and chains")
  func externalTrafficPolicy() {
    let key = FrontendKey(.node(.v4), .tcp, at("::", 30080).port)
    let text = Self.plan { delta in
      let old = Self.tables().services.frontends[key]
      delta.frontends[key] = Change(
        old: old,
        new: Frontend(
          service: id(1), kind: .nodePort, nodeScope: .cluster, outsideScope: .local, masquerade: .hostOnly))
      delta.set(1, scope: .local, backends: [at("10.244.1.2", 80)], empty: .drop)
    }
    #expect(
      text
        == """
        before:
          add chain ip balance-remote-1
        now:
          add ip backend-sets { 0x20000001 : 0x1 }
          add ip backends { 0 . 0x20000001 : 10.244.1.2:80 }
          add ip frontends { 192.168.100.1 . tcp . 30080 : 0x1 }
          add ip remote-balancers { 0x1 : jump balance-remote-1 }
          add ip remote-dispatch { 0x1 : jump balance-remote-1 }
          add ip remote-frontends { 192.168.100.1 . tcp . 30080 : 0x20000001 }
          delete ip frontends { 192.168.100.1 . tcp . 30080 : 0x80000001 }
        """)
  }

  // MARK: Cost

  @Test("one more Service of both families is at most ten netlink messages and no dump")
  func cost() throws {
    try inNode { findings in
      var tables = Self.tables()
      _ = tables.change { delta in
        delta.clusterIP(4, "fd00:10:96::4")
        delta.set(4, .v6, backends: [at("fd00:10:244:1::2", 80)])
      }
      var engine = try NFTablesEngine()
      _ = try engine.resync(tables)
      let delta = tables.change { delta in
        for (address, family) in [("10.96.0.7", IPFamily.v4), ("fd00:10:96::7", .v6)] {
          delta.clusterIP(7, address)
          delta.set(7, family, backends: [at(family == .v4 ? "10.244.1.2" : "fd00:10:244:1::2", 80)])
        }
      }
      let report = try engine.apply(delta, tables: tables)
      findings.expect(report.messages <= 10 && report.batches == 1 && report.dumps == 0, "\(report)")
      let drift = try engine.verify(tables)
      findings.expect(drift == [], "\(drift)")
    }
  }

  /// What makes nf_tables walk through all rules and all elements of every verdict map: an element that leads to a chain,
  /// and a rule that ends in a verdict.
  @Test("neither a policy nor a new revision makes the kernel validate its tables")
  func validation() {
    for kind in Clause.Kind.allCases {
      let entries = Planner.clauseEntries(ClauseKey(AttributionID(rawValue: 6), Clause(kind)), 1, .v4)
      #expect(entries.contains { $0.verdict != nil } && entries.allSatisfy { $0.verdict?.chain == nil }, "\(entries)")
    }
    let layout = Layout(family: .v4, internalAddress: nil, policy: PolicyLayout(revision: 0x5000))
    let changing = layout.chains.filter { chain in
      !Layout(family: .v4, internalAddress: nil, policy: layout.policy.next).chains.contains(chain)
    }
    #expect(changing.map(\.name) == ["stamp-flow"])
    for expression in changing.flatMap(\.rules).flatMap(\.expressions) {
      switch expression {
      case .verdict, .verdictLookup, .lookup: Issue.record("\(expression)")
      default: break
      }
    }
  }

  @Test("a thousand Services of three sizes have the chains and rules of thirty")
  func constantRules() throws {
    try inNode { findings in
      func shape(_ count: Int) throws -> [String: Int] {
        var tables = Tables()
        _ = tables.change { delta in
          for number in 1...count {
            for (prefix, pod, family) in [("10.96.", "10.244.1.", IPFamily.v4), ("fd00:10:96::", "fd00:1::", .v6)] {
              let low = family == .v4 ? "\(number / 250).\(1 + number % 250)" : "\(number)"
              delta.clusterIP(number, prefix + low)
              delta.set(number, family, backends: (0..<1 + number % 3).map { at(pod + "\(2 + $0)", 80) })
            }
          }
        }
        var engine = try NFTablesEngine()
        _ = try engine.resync(tables)
        let drift = try engine.verify(tables)
        findings.expect(drift == [], "\(drift)")
        let connection = try Connection()
        var shape: [String: Int] = [:]
        for family in IPFamily.allCases {
          let table = try connection.readTable(family)
          for (chain, content) in table.chains { shape["\(family) \(chain)"] = content.rules.count }
        }
        return shape
      }
      let (small, large) = (try shape(30), try shape(1000))
      findings.expect(small == large && small.count > 20, "\(small) and \(large)")
    }
  }

  // MARK: Every step

  @Test(
    "after every step of a plan, and between steps, packets meet the old tables or the new", arguments: [true, false])
  func everyPrefix(isFixed: Bool) throws {
    let seed = isFixed ? WalkAgainstKernelTests.fixedSeed : UInt64.random(in: 1 ... .max)
    print("plan prefixes: seed \(seed)")
    var underWay = 0
    for number in 0..<25 {
      var random = SeededGenerator(seed: seed &+ UInt64(number) &* 7919)
      underWay += try Self.checkPrefixes("seed \(seed) world \(number)", &random)
    }
    #expect(underWay > 500, "hardly any packet met a frontend that stays: \(underWay)")
  }

  /// Returns how many packets were looked at between steps.
  private static func checkPrefixes(_ name: String, _ random: inout SeededGenerator) throws -> Int {
    var underWay = 0
    var world = World(services: Int.random(in: 4...12, using: &random), using: &random)
    var tables = Tables()
    var planner = Planner()
    var model = MapModel()
    for family in IPFamily.allCases {
      for map in MapName.allCases {
        var operations: [NFTables.Operation] = []
        planner.forEachEntry(map, family, of: tables) { operations.append(.add($0)) }
        try model.commit(operations)
      }
    }
    for round in 0..<6 {
      let old = tables
      if round > 0 { for _ in 0..<Int.random(in: 1...3, using: &random) { world.change(using: &random) } }
      let delta = world.delta(from: tables)
      tables.apply(delta)
      let plan = planner.plan(delta, after: tables)
      var states = [model]
      for step in [plan.before, plan.now, plan.later] {
        try model.commit(step)
        states.append(model)
      }
      let startsSticking = delta.sets.values.contains {
        $0.old?.affinityTimeout == nil && $0.new?.affinityTimeout != nil
      }
      for _ in 0..<30 {
        let (packet, _) = world.packet(port: 1, random.chance(50) ? old : tables, using: &random)
        let (affinity, remembered) = randomAffinity(packet.source, old, tables, &random)
        let isForged = packet.origin == .pod && [old, tables].contains { $0.walk(packet) == [.dropped(.forgedSource)] }
        guard !isForged else { continue }
        let before = Set(old.walk(packet, affinity: affinity).map(MapWalk.Outcome.init))
        let after = Set(tables.walk(packet, affinity: affinity).map(MapWalk.Outcome.init))
        // Old and new: where affinity begins or ends, a client that is known to one of them need not be to the other.
        // Where it begins, the plain slots serve all alike until they are removed.
        let unknown = startsSticking ? Set(tables.walk(packet).map(MapWalk.Outcome.init)) : []
        let either = before.union(after).union(unknown)
        func check(_ what: String, _ range: ClosedRange<Int>, _ permitted: Set<MapWalk.Outcome>) {
          let met = MapWalk(states: Array(states[range]), packet: packet, remembered: remembered).outcomes()
          #expect(
            met.isSubset(of: permitted),
            """
            \(name) round \(round), \(what): \(packet)
              met \(met), old \(before), new \(after), client \(affinity.entries)
              \(plan)
            """)
        }
        check("before all", 0...0, before)
        check("after the first step", 1...1, before)
        check("after the second step", 2...2, either)
        check("after the last step", 3...3, after)
        // A packet under way during the commits, where the frontend stays: its set may change in any way. (Where the
        // frontend itself comes, goes or changes hands, a packet in that very moment can meet the new entry of one map
        // and miss the old one of another.) A client that is found unknown in the old state may be balanced in the new;
        // and the affinity chain may ask it to come again.
        guard let kept = frontend(of: packet, old), kept == frontend(of: packet, tables) else { continue }
        underWay += 1
        let members = Set((old.walk(packet).union(tables.walk(packet))).map(MapWalk.Outcome.init)).union([.lost])
        check("during the first two steps", 0...2, members)
        check("during the last step", 2...3, members)
      }
    }
    return underWay
  }

  private static func frontend(of packet: Packet, _ tables: Tables) -> Frontend? {
    Port(packet.destinationPort).flatMap { port in
      Planner.winner(
        FrontendKey(.address(packet.destination), packet.proto, port), nodePorts: tables.node.nodePortAddresses
      ) { tables.services.frontends[$0] }
    }
  }

  /// A client that is known to some services with a backend of theirs, old or new.
  private static func randomAffinity(
    _ client: IPAddress, _ old: Tables, _ new: Tables, _ random: inout SeededGenerator
  ) -> (AffinityState, [UInt32: UInt32]) {
    var state = AffinityState()
    var remembered: [UInt32: UInt32] = [:]
    for id in Set(old.services.sets.keys).union(new.services.sets.keys).sorted() where id.family == client.family {
      let backends = [old, new].flatMap { $0.services.sets[id]?.backends ?? [] }
      guard !backends.isEmpty, random.chance(50) else { continue }
      let backend = random.pick(backends)
      state.entries[.init(client: client, service: id.service)] = backend
      remembered[id.service.rawValue] = Planner.backendNumber(backend)
    }
    return (state, remembered)
  }
}
