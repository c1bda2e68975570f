import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

/// Make before break: while an engine puts a delta into the kernel piece by piece, every packet meets what the old tables
/// said of it or what the new ones say.
///
/// The pieces: what is new in the policy table; then what addresses and blocks mean, one by one; then endpoints, one by
/// one; then what is gone. A packet that met a new endpoint and an address's old identity could meet a third world: the
/// new subject has no word for a class that is no more, and none for those who have left one.
@Suite("On the way from old to new tables") struct TransitionTests {
  @Test("every packet meets the old world or the new one", arguments: [0, 600], AgreementTests.seeds)
  func flips(linger: Int, seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (flips, changed) = (0, 0)
    for number in 0..<25 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random), linger: .seconds(linger))
      for step in 0..<12 {
        let before = compiled
        var next = compiled.world
        let changes = next.mutate(using: &random)
        compiled.apply(changes)
        let transition = Transition(before, compiled, using: &random)
        flips += transition.flipCount
        changed += transition.changedCount
        guard let problem = transition.problem(using: &random) else { continue }
        Issue.record(
          """
          seed \(seed), world \(number), step \(step), linger \(linger): \(problem)
          while \(changes) happens to
          \(WorldYAML.documents(before.world))
          """)
        return
      }
    }
    // Else nothing has been looked at.
    #expect(flips > 200)
    #expect(changed > 200)
  }
}

/// One delta, taken apart, with packets to watch.
private struct Transition {
  let before: Tables
  let after: Tables
  /// New pairs and all they need, and what no verdict depends on.
  var additions = TableDelta()
  /// One change each.
  var identityFlips: [TableDelta] = []
  var endpointFlips: [TableDelta] = []
  var removals = TableDelta()
  private var watched: [Watched] = []

  private struct Watched {
    var packet: PolicyPacket
    var direction: PolicyDirection
    var old: Said
    var new: Said
  }

  init(_ old: CompiledWorld, _ new: CompiledWorld, using random: inout some RandomNumberGenerator) {
    before = old.tables
    after = new.tables
    let delta = new.lastDelta
    (additions.pairs, removals.pairs) = Self.split(delta.pairs)
    (additions.portSets, removals.portSets) = Self.split(delta.portSets)
    (additions.attributions, removals.attributions) = Self.split(delta.attributions)
    (additions.clauses, removals.clauses) = Self.split(delta.clauses)
    additions.podRanges = delta.podRanges
    // Sorted, so that one seed is one course of events.
    for (address, change) in delta.identities.sorted(by: { $0.key < $1.key }) {
      var flip = TableDelta()
      flip.identities[address] = change
      identityFlips.append(flip)
    }
    for (family, change) in delta.blocks.sorted(by: { $0.key < $1.key }) {
      var flip = TableDelta()
      flip.blocks[family] = change
      identityFlips.append(flip)
    }
    for (interface, change) in delta.endpoints.sorted(by: { $0.key < $1.key }) {
      if change.new == nil {
        removals.endpoints[interface] = change
      } else {
        var flip = TableDelta()
        flip.endpoints[interface] = change
        endpointFlips.append(flip)
      }
    }
    var packets: Set<PolicyPacket> = []
    for world in [old.world, new.world] {
      for _ in 0..<30 { packets.insert(world.flow(using: &random).packet) }
    }
    packets.formUnion(atFlips(delta, using: &random))
    for packet in packets { watch(packet) }
  }

  private static func split<Key, Value>(
    _ changes: [Key: Change<Value>]
  ) -> (additions: [Key: Change<Value>], removals: [Key: Change<Value>]) {
    (changes.filter { $0.value.new != nil }, changes.filter { $0.value.new == nil })
  }

  /// Packets between local pods and the addresses that change their identity.
  private func atFlips(_ delta: TableDelta, using random: inout some RandomNumberGenerator) -> [PolicyPacket] {
    let locals = before.node.endpoints.values.flatMap(\.addresses).sorted()
    let ports: [(UInt8, UInt16)] = [(6, 80), (6, 8080), (17, 53), (1, 0)]
    var packets: [PolicyPacket] = []
    for address in delta.identities.keys.sorted().prefix(40) {
      for local in locals where local.family == address.family && local != address {
        let (proto, port) = random.pick(ports)
        let origin: Origin = before.node.isLocalPod(address) ? .pod : .outside
        packets += [
          PolicyPacket(origin: .pod, source: local, destination: address, proto: proto, destinationPort: port),
          PolicyPacket(origin: origin, source: address, destination: local, proto: proto, destinationPort: port),
        ]
      }
    }
    return packets
  }

  private mutating func watch(_ packet: PolicyPacket) {
    for direction in PolicyDirection.allCases {
      let local = direction == .ingress ? packet.destination : packet.source
      // Of an address that goes from one endpoint to another the order of endpoints decides, not that of policy.
      guard before.node.endpoint(with: local)?.interface == after.node.endpoint(with: local)?.interface else {
        continue
      }
      watched.append(
        Watched(
          packet: packet, direction: direction, old: Said(packet, direction, before),
          new: Said(packet, direction, after)
        ))
    }
  }

  var flipCount: Int { identityFlips.count + endpointFlips.count }

  /// Packets of which the delta changes what is said.
  var changedCount: Int { watched.filter { $0.old != $0.new }.count }

  /// The first packet that meets neither the old world nor the new one; nil: there is none.
  func problem(using random: inout some RandomNumberGenerator) -> String? {
    let flips = identityFlips.shuffled(using: &random) + endpointFlips.shuffled(using: &random)
    var tables = before
    for (number, stage) in ([additions] + flips + [removals]).enumerated() {
      tables.apply(stage)
      for watched in watched {
        let said = Said(watched.packet, watched.direction, tables)
        guard said != watched.old, said != watched.new else { continue }
        let flip = number == 0 ? "additions" : number > flips.count ? "removals" : "flip \(number) of \(flips.count)"
        return "\(watched.direction) of \(watched.packet) after \(flip): \(said), not \(watched.old) or \(watched.new)"
      }
    }
    return tables == after ? nil : "the pieces do not lead to the new tables"
  }
}

/// A decision by what it says, whichever numbers say it.
private enum Said: Equatable {
  case without(PolicyDecision)
  case clause(Clause.Kind, RuleReference?, [PolicyReference])

  init(_ packet: PolicyPacket, _ direction: PolicyDirection, _ tables: Tables) {
    let decision = tables.judge(packet)[direction]
    guard case .decided(let key, _) = decision else {
      self = .without(decision)
      return
    }
    let attribution = tables.policies.attributions[key.attribution]
    self = .clause(
      key.clause.kind, attribution?.rule(of: key.clause), attribution?.policies(of: key.clause) ?? [])
  }
}
