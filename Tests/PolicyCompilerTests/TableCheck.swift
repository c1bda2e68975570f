import DataplaneModel
import KubernetesObjects
import NetworkTypes

@testable import PolicyCompiler

@testable import PolicyWorlds

/// Looks for broken promises in what a compiler made of a world: in the tables alone, and against what it holds itself.
struct TableCheck {
  let world: PolicyWorld
  let compiler: PolicyCompiler
  let tables: Tables

  init(_ world: PolicyWorld, _ compiler: PolicyCompiler, _ tables: Tables) {
    self.world = world
    self.compiler = compiler
    self.tables = tables
  }

  init(_ compiled: CompiledWorld) { self.init(compiled.world, compiled.compiler, compiled.tables) }

  /// In words; empty where every invariant holds.
  func problems() -> [String] {
    var found = Findings()
    checkSubjects(&found)
    checkPairs(&found)
    checkLeftovers(&found)
    checkPortSets(&found)
    checkBlocks(&found)
    checkAddresses(&found)
    checkClasses(&found)
    checkCounters(&found)
    compiler.classes.check(&found)
    return found.problems
  }

  struct Findings {
    var problems: [String] = []

    mutating func expect(_ holds: Bool, _ problem: @autoclosure () -> String) {
      if !holds { problems.append(problem()) }
    }
  }

  private var policies: PolicyTable { tables.policies }
  private var identities: IdentityTable { tables.identities }

  /// The subjects that endpoints name, each as often as it is named.
  private var named: [SubjectID: Int] {
    var named: [SubjectID: Int] = [:]
    for case let subjects? in tables.node.endpoints.values.map(\.subjects) {
      for direction in PolicyDirection.allCases where subjects[direction] != .unrestricted {
        named[subjects[direction], default: 0] += 1
      }
    }
    return named
  }

  // MARK: Subjects and pairs

  private func checkSubjects(_ found: inout Findings) {
    let named = named
    for (id, count) in named {
      found.expect(policies.pairs[PairKey(id, .any)] != nil, "subject \(id) of an endpoint has no wildcard pair")
      found.expect(compiler.subjects[id]?.uses == count, "subject \(id): \(count) uses, not as counted")
    }
    for (id, subject) in compiler.subjects where subject.uses == 0 {
      found.expect(named[id] == nil, "subject \(id) counts as idle, and an endpoint names it")
    }
    for pod in world.localPods {
      let subjects = tables.node.endpoints[CompiledWorld.interface(pod.key)]?.subjects
      found.expect((subjects != nil) == pod.isPolicyPod, "\(pod.key): subjects \(subjects.map { "\($0)" } ?? "none")")
    }
  }

  private func checkPairs(_ found: inout Findings) {
    let classes = Set(compiler.classes.allIdentities)
    for (key, value) in policies.pairs {
      found.expect(compiler.subjects[key.subject] != nil, "pair \(key) of a subject that is gone")
      found.expect(key.identity == .any || classes.contains(key.identity), "pair \(key) of a class that is gone")
      guard let set = policies.portSets[value.portSet], let attribution = policies.attributions[value.attribution]
      else {
        found.expect(false, "pair \(key): no port set or no attribution")
        continue
      }
      for clause in set.entries.map(\.clause) {
        found.expect(
          policies.clauses[ClauseKey(value.attribution, clause)] != nil, "pair \(key): clause \(clause) has no label")
        found.expect(
          clause.kind != .allow || attribution.rule(of: clause) != nil, "pair \(key): clause \(clause) names no rule")
      }
    }
    found.expect(Set(policies.clauses.values).count == policies.clauses.count, "two clauses with one label")
  }

  /// Port sets, attributions and clauses are there for a pair, or because a subject may use them again.
  private func checkLeftovers(_ found: inout Findings) {
    let used = Set(policies.pairs.values).union(compiler.subjects.values.flatMap { $0.known.values })
    found.expect(
      Set(policies.portSets.keys) == Set(used.map(\.portSet)), "port sets that nothing uses, or that are missing")
    found.expect(
      Set(policies.attributions.keys) == Set(used.map(\.attribution)), "attributions left over, or missing")
    let clauses = used.flatMap { value in
      (policies.portSets[value.portSet]?.entries ?? []).map { ClauseKey(value.attribution, $0.clause) }
    }
    found.expect(Set(policies.clauses.keys) == Set(clauses), "clauses left over, or missing")
  }

  private func checkPortSets(_ found: inout Findings) {
    for (id, set) in policies.portSets {
      let ports = set.entries.map(\.ports)
      found.expect(ports.first?.lowerBound == .first, "port set \(id) begins late")
      found.expect(ports.last?.upperBound == .last, "port set \(id) ends early")
      for (entry, next) in zip(set.entries, set.entries.dropFirst()) {
        found.expect(
          UInt64(entry.ports.upperBound.rawValue) + 1 == UInt64(next.ports.lowerBound.rawValue),
          "port set \(id): gap or overlap behind \(entry.ports.upperBound)")
        found.expect(entry.clause != next.clause, "port set \(id): equal neighbours at \(next.ports.lowerBound)")
      }
    }
  }

  // MARK: Identities

  private func checkBlocks(_ found: inout Findings) {
    for family in IPFamily.allCases {
      guard let atoms = identities.blocks[family]?.atoms, let first = atoms.first, let last = atoms.last else {
        found.expect(false, "\(family): no block table")
        continue
      }
      found.expect(first.range.first == .unspecified(family), "\(family): blocks begin at \(first.range.first)")
      let end = CIDR(.unspecified(family), prefixLength: 0)?.last
      found.expect(last.range.last == end, "\(family): blocks end at \(last.range.last)")
      for (atom, next) in zip(atoms, atoms.dropFirst()) {
        found.expect(
          next.range.first.family == family && atom.range.last.number + 1 == next.range.first.number,
          "\(family): gap or overlap behind \(atom.range.last)")
        found.expect(atom.identity != next.identity, "\(family): equal neighbours at \(next.range.first)")
      }
    }
  }

  private func checkAddresses(_ found: inout Findings) {
    let nodes = Set(world.nodes.flatMap(\.internalIPs))
    let pods = Set(world.pods.filter(\.isPolicyPod).flatMap(\.podIPs))
    found.expect(Set(identities.addresses.keys) == nodes.union(pods), "addresses other than the nodes' and pods'")
    found.expect(identities.podRanges == Set(world.nodes.flatMap(\.podCIDRs)), "pod ranges other than the nodes'")
    for (address, identity) in identities.addresses {
      let key = compiler.classes.key(of: identity)
      let kind: IdentityKind = nodes.contains(address) ? .node : .pod
      let namespace = kind == .pod ? world.pod(at: address)?.key.namespace : ""
      found.expect(
        key?.kind == kind && key?.namespace == namespace && key?.family == address.family
          && identity.family == address.family, "\(address): a class of something else")
    }
    for (family, table) in identities.blocks {
      for atom in table.atoms {
        let isPodRange = identities.podRanges.contains { $0.contains(atom.range.first) }
        let key = compiler.classes.key(of: atom.identity)
        found.expect(
          key?.kind == (isPodRange ? .unknown : .world) && key?.family == family && atom.identity.family == family,
          "\(atom.range): a class of something else")
      }
    }
  }

  private func checkClasses(_ found: inout Findings) {
    let used = Set(identities.addresses.values).union(identities.blocks.values.flatMap { $0.atoms.map(\.identity) })
    found.expect(
      Set(compiler.classes.allIdentities) == used, "classes that nothing is in, or that addresses name in vain")
  }

  private func checkCounters(_ found: inout Findings) {
    let atoms = identities.blocks.values.reduce(0) { $0 + $1.atoms.count }
    // One that made room for its closed stand-in has nothing left in the tables.
    let subjects = compiler.subjects.values.count { $0.wildcard != nil }
    for (name, counted, real) in [
      ("pairs", compiler.pairCount, policies.pairs.keys.count { $0.identity != .any }),
      ("port sets", compiler.portSetCount, policies.portSets.count),
      ("addresses", compiler.addressCount, identities.addresses.count), ("atoms", compiler.atomCount, atoms),
      ("subjects", subjects, Set(policies.pairs.keys.map(\.subject)).count),
    ] {
      found.expect(counted == real, "\(counted) \(name) counted, \(real) there")
    }
  }
}

extension TableDelta {
  /// What is wrong with it as the way from one state to another, in words.
  func problems(from before: Tables, to after: Tables) -> [String] {
    var found = TableCheck.Findings()
    func check<Key: Hashable, Value>(
      _ what: String, _ changes: [Key: Change<Value>], _ old: [Key: Value], _ new: [Key: Value],
      isImmutable: Bool = false
    ) {
      for (key, change) in changes {
        found.expect(change.old == old[key], "\(what) \(key): not what was there before")
        found.expect(change.old != change.new, "\(what) \(key): no change")
        found.expect(!isImmutable || change.old == nil || change.new == nil, "\(what) \(key) changed where it stands")
      }
      var applied = old
      for (key, change) in changes { applied[key] = change.new }
      found.expect(applied == new, "\(what): the delta leads elsewhere")
    }
    check("identity of", identities, before.identities.addresses, after.identities.addresses)
    check("blocks", blocks, before.identities.blocks, after.identities.blocks)
    check("pair", pairs, before.policies.pairs, after.policies.pairs, isImmutable: true)
    check("port set", portSets, before.policies.portSets, after.policies.portSets, isImmutable: true)
    check("attribution", attributions, before.policies.attributions, after.policies.attributions, isImmutable: true)
    check("clause", clauses, before.policies.clauses, after.policies.clauses, isImmutable: true)
    found.expect(
      podRanges == SetChange(from: before.identities.podRanges, to: after.identities.podRanges), "pod ranges")
    return found.problems
  }
}
