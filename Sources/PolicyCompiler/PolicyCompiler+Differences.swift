import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// Whether the tables are what the objects ask for.
extension PolicyCompiler {
  /// Compiles everything anew and names what the tables have otherwise. For `dpctl`: it costs what the cluster costs.
  ///
  /// Two compilers with other pasts need not have equal tables: policies stay in force for some time, and identities are
  /// finer meanwhile. So what is compared is what is said about every local pod and every address, by content. A pod whose
  /// object is gone keeps its policies until its sandbox goes, and subjects that were closed for their size stay so: these
  /// are not compared.
  public func differences(in state: ClusterState, from tables: Tables) -> [String] {
    var everything = ChangeEffect()
    everything.nodes = Array(state.nodes.keys)
    everything.namespaces = Array(state.namespaces.keys)
    everything.pods = Array(state.pods.keys)
    everything.networkPolicies = Array(state.networkPolicies.keys)
    var fresh = PolicyCompiler(pairLimit: .max, linger: linger)
    var wanted = Tables()
    let delta = fresh.compile(
      everything, endpoints: locals.mapValues { LocalPod?.some($0) }, in: state, tables: wanted)
    wanted.apply(delta)
    var found: [String] = []
    let subjects = compareSubjects(with: fresh, tables, state, &found)
    if tables.identities.podRanges != wanted.identities.podRanges { found.append("pod ranges") }
    var sides: [Sides: IPAddress] = [:]
    let (have, want) = (tables.identities.addresses, wanted.identities.addresses)
    for (address, identity) in want {
      if let old = have[address] {
        if sides[Sides(have: old, want: identity)] == nil { sides[Sides(have: old, want: identity)] = address }
      } else {
        found.append("identity of \(name(address)) is missing")
      }
    }
    for address in have.keys where want[address] == nil { found.append("identity of \(name(address)) is left over") }
    for family in IPFamily.allCases {
      compareAtoms(tables.identities.blocks[family], wanted.identities.blocks[family], family, &sides, &found)
    }
    var comparison = Comparison(have: tables.policies, want: wanted.policies)
    for (pair, policies) in subjects {
      for (identities, address) in sides where !comparison.agree(pair, identities) {
        found.append("NetworkPolicy \(policies) for \(name(address))")
      }
    }
    return found.sorted()
  }

  /// A subject, or an identity, as the tables have it and as it should be.
  private struct Pairing<ID: Hashable>: Hashable {
    var have: ID
    var want: ID
  }
  private typealias Sides = Pairing<IdentityID>

  private func name(_ address: IPAddress) -> String {
    switch owner(of: address) {
    case .pod(let pod): "Pod \(pod) (\(address))"
    case .node: "node \(address)"
    case nil: "\(address)"
    }
  }

  /// The subjects to compare further, with the names of their policies.
  private func compareSubjects(
    with fresh: PolicyCompiler, _ tables: Tables, _ state: ClusterState, _ found: inout [String]
  ) -> [Pairing<SubjectID>: String] {
    var result: [Pairing<SubjectID>: String] = [:]
    for (interface, local) in locals {
      let isFinished = local.pod.flatMap { state.pod($0) }.map { !$0.isSelectable } ?? false
      if local.pod != nil, object(of: local, state) == nil, !isFinished { continue }
      let name = "endpoint \(interface)\(local.pod.map { " of Pod \($0)" } ?? "")"
      guard let have = tables.node.endpoints[interface]?.subjects, let want = fresh.subjects(of: interface) else {
        let isSame = tables.node.endpoints[interface]?.subjects == nil && fresh.subjects(of: interface) == nil
        if !isSame { found.append("\(name): whether its policies are known") }
        continue
      }
      for direction in PolicyDirection.allCases {
        let (old, new) = (subjects[have[direction]]?.key, fresh.subjects[want[direction]]?.key)
        guard old?.isClosed != true else { continue }
        if old != new {
          found.append("\(name): \(direction)")
        } else if let new {
          result[Pairing(have: have[direction], want: want[direction])] = new.policies.map { "\($0.key)" }
            .joined(separator: ", ")
        }
      }
    }
    return result
  }

  /// Every combination of identities that some address beyond pods and nodes has.
  private func compareAtoms(
    _ have: BlockTable?, _ want: BlockTable?, _ family: IPFamily, _ sides: inout [Sides: IPAddress],
    _ found: inout [String]
  ) {
    guard let have, let want else {
      if have != want { found.append("ipBlocks of \(family)") }
      return
    }
    // Both are total: whatever begins in one lies in some atom of the other.
    for start in Set(have.atoms.map(\.range.first)).union(want.atoms.map(\.range.first)) {
      guard let old = have.identity(of: start), let new = want.identity(of: start) else {
        found.append("ipBlocks of \(family) at \(start)")
        continue
      }
      if sides[Sides(have: old, want: new)] == nil { sides[Sides(have: old, want: new)] = start }
    }
  }

  /// Compares pairs by what they say, each two values once.
  private struct Comparison {
    let have: PolicyTable
    let want: PolicyTable
    private var known: [Pairing<PairValue>: Bool] = [:]

    init(have: PolicyTable, want: PolicyTable) { (self.have, self.want) = (have, want) }

    mutating func agree(_ subjects: Pairing<SubjectID>, _ identities: Sides) -> Bool {
      guard let old = Self.value(have, subjects.have, identities.have),
        let new = Self.value(want, subjects.want, identities.want)
      else { return false }
      let pairing = Pairing(have: old, want: new)
      if let known = known[pairing] { return known }
      let isEqual =
        have.portSets[old.portSet] != nil && have.portSets[old.portSet] == want.portSets[new.portSet]
        && have.attributions[old.attribution] == want.attributions[new.attribution]
      known[pairing] = isEqual
      return isEqual
    }

    private static func value(_ table: PolicyTable, _ subject: SubjectID, _ identity: IdentityID) -> PairValue? {
      table.pairs[PairKey(subject, identity)] ?? table.pairs[PairKey(subject, .any)]
    }
  }
}
