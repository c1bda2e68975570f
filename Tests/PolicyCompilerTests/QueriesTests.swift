import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler
@testable import PolicyWorlds

@Suite("Questions to the compiler") struct QueriesTests {
  @Test("whose an address is follows the oracle's rule, in worlds that change", arguments: AgreementTests.seeds)
  func owners(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (pods, nodes) = (0, 0)
    for _ in 0..<100 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random))
      for _ in 0..<5 {
        let world = compiled.world
        let nodeAddresses = Set(world.nodes.flatMap(\.internalIPs))
        for address in Set(world.pods.flatMap(\.podIPs)).union(nodeAddresses) {
          // Two local pods with one address: a matter of moments, in which either may have it.
          let claims = world.localPods.filter { $0.isPolicyPod && $0.podIPs.contains(address) }
          guard claims.count < 2 else { continue }
          let expected: AddressOwner? =
            nodeAddresses.contains(address) ? .node : world.pod(at: address).map { .pod($0.key) }
          if expected == .node { nodes += 1 } else if expected != nil { pods += 1 }
          let found = compiled.compiler.owner(of: address)
          #expect(found == expected, "seed \(seed): \(address)")
          guard found == expected else { return }
        }
        var next = world
        compiled.apply(next.mutate(using: &random))
      }
    }
    #expect(pods > 1000 && nodes > 100, "\(pods) \(nodes)")
  }

  @Test("identities in force are those that the tables name, with as many addresses", arguments: AgreementTests.seeds)
  func identities(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    for _ in 0..<50 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random))
      for _ in 0..<5 {
        let table = compiled.tables.identities
        var counts: [IdentityID: Int] = [:]
        for identity in table.addresses.values { counts[identity, default: 0] += 1 }
        for atom in table.blocks.values.flatMap(\.atoms) where counts[atom.identity] == nil {
          counts[atom.identity] = 0
        }
        let facts = compiled.compiler.identities(in: compiled.state)
        #expect(Dictionary(facts.map { ($0.id, $0.addressCount) }) { $1 } == counts, "seed \(seed)")
        #expect(facts.map(\.id) == facts.map(\.id).sorted())
        #expect(
          facts.allSatisfy { ($0.kind == .pod) == ($0.namespace != nil) && ($0.kind == .pod) != $0.labels.isEmpty })
        var next = compiled.world
        compiled.apply(next.mutate(using: &random))
      }
    }
  }

  @Test("the local pods that a policy selects are those that its selector matches", arguments: AgreementTests.seeds)
  func selection(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var found = 0
    for _ in 0..<100 {
      let compiled = CompiledWorld(RandomWorld.make(using: &random))
      var expected: [ObjectKey: [ObjectKey]] = [:]
      for policy in compiled.world.policies where policy.isolatesIngress || policy.isolatesEgress {
        let pods = compiled.world.localPods.filter {
          $0.isPolicyPod && $0.key.namespace == policy.key.namespace && policy.podSelector.matches($0.labels)
        }
        if !pods.isEmpty { expected[policy.key] = pods.map(\.key).sorted() }
      }
      found += expected.count
      #expect(compiled.compiler.selectedPods == expected, "seed \(seed)")
      #expect(compiled.compiler.policiesInForce == Set(expected.keys), "seed \(seed)")
    }
    #expect(found > 50)
  }

  // MARK: Nearest misses

  /// A server in `shop` with one policy, and who asks it.
  private static func miss(
    _ rules: [NetworkPolicyRule], from labels: Labels?, namespace: String = "shop", to port: UInt16 = 5432,
    address: String = "10.244.2.9"
  ) throws -> String? {
    var world = PolicyWorld(ownNode: "node")
    world.namespaces = [
      Namespace(name: "shop", labels: [WellKnown.namespaceName: "shop", "team": "a"]),
      Namespace(name: "test", labels: [WellKnown.namespaceName: "test", "team": "b"]),
    ]
    var server = Pod(key: ObjectKey(namespace: "shop", name: "db"))
    (server.labels, server.phase, server.nodeName) = (["app": "db"], .running, "node")
    server.podIPs = [try #require(IPAddress("10.244.1.2"))]
    server.containerPorts = [NamedContainerPort(name: "pg", port: try #require(Port(5432)))]
    world.pods = [server]
    let peer = try #require(IPAddress(address))
    if let labels {
      var client = Pod(key: ObjectKey(namespace: namespace, name: "client"))
      (client.labels, client.phase, client.nodeName) = (labels, .running, "other")
      client.podIPs = [peer]
      world.pods.append(client)
    }
    var policy = NetworkPolicy(key: ObjectKey(namespace: "shop", name: "deny-db"))
    policy.isolatesIngress = true
    policy.ingress = rules
    world.policies = [policy]
    let compiled = CompiledWorld(world)
    let packet = PolicyPacket(
      origin: .outside, source: peer, destination: server.podIPs[0], proto: 6, destinationPort: port)
    guard case .decided(let key, let pair) = compiled.tables.judge(packet).ingress else { return "not decided" }
    #expect(key.clause.kind == .defaultDeny)
    let miss = compiled.compiler.nearestMiss(
      pair.subject, isAudit: false, peer: peer, identity: compiled.tables.identities.identity(of: peer), packet,
      in: compiled.state)
    #expect(
      compiled.compiler.nearestMiss(
        pair.subject, isAudit: true, peer: peer, identity: compiled.tables.identities.identity(of: peer), packet,
        in: compiled.state) == nil)
    return miss?.text
  }

  private static func from(_ labels: Labels, in namespaces: Labels? = nil) -> NetworkPolicyPeer {
    .pods(LabelSelector(matchLabels: labels), namespaces: namespaces.map { LabelSelector(matchLabels: $0) })
  }
  private static func tcp(_ first: Int, _ last: Int? = nil) throws -> NetworkPolicyPort {
    NetworkPolicyPort(port: .range(try #require(Port(first))...(try #require(Port(last ?? first)))))
  }

  @Test("no rule: nothing is near")
  func noRule() throws { #expect(try Self.miss([], from: ["app": "cart"]) == nil) }

  @Test("a rule whose peers match comes before one whose ports do")
  func ports() throws {
    let rules = [
      NetworkPolicyRule(peers: [Self.from(["role": "api"])], ports: [try Self.tcp(5432)]),
      NetworkPolicyRule(
        peers: [Self.from(["app": "cart"])],
        ports: [try Self.tcp(8080), try Self.tcp(9000, 9010), NetworkPolicyPort(proto: .udp)]),
    ]
    #expect(
      try Self.miss(rules, from: ["app": "cart"]) == "rule 1 allows tcp 8080, tcp 9000-9010, every udp port only")
    #expect(try Self.miss(rules, from: ["app": "web"]) == "rule 0 needs role=api")
    #expect(try Self.miss(rules, from: ["app": "web"], to: 1) == "rule 0 needs role=api, and tcp 5432")
  }

  @Test("the peer that lacks the least is named with all that it lacks")
  func labels() throws {
    let rules = [
      NetworkPolicyRule(peers: [Self.from(["a": "1", "b": "2", "c": "3"])]),
      NetworkPolicyRule(peers: [Self.from(["a": "1", "b": "2"]), Self.from(["x": "y", "z": "w", "v": "u"])]),
    ]
    #expect(try Self.miss(rules, from: ["a": "1"]) == "rule 1 needs b=2")
    #expect(try Self.miss(rules, from: ["a": "0"]) == "rule 1 needs a=1 and b=2")
  }

  @Test("expressions are told as what would meet them")
  func expressions() throws {
    func text(_ requirement: LabelSelector.Requirement) throws -> String? {
      let peer = NetworkPolicyPeer.pods(LabelSelector(matchExpressions: [requirement]), namespaces: nil)
      return try Self.miss([NetworkPolicyRule(peers: [peer])], from: ["app": "cart"])
    }
    #expect(try text(.init(key: "app", comparison: .isIn, values: ["api"])) == "rule 0 needs app=api")
    #expect(try text(.init(key: "app", comparison: .isIn, values: ["api", "web"])) == "rule 0 needs app in (api,web)")
    #expect(try text(.init(key: "app", comparison: .isNotIn, values: ["cart"])) == "rule 0 needs app not in (cart)")
    #expect(try text(.init(key: "tier", comparison: .exists)) == "rule 0 needs tier to exist")
    #expect(try text(.init(key: "app", comparison: .doesNotExist)) == "rule 0 needs no app")
  }

  @Test("namespaces by name or label, also the policy's own")
  func namespaces() throws {
    let own = [NetworkPolicyRule(peers: [Self.from(["app": "cart"])])]
    #expect(try Self.miss(own, from: ["app": "cart"], namespace: "test") == "rule 0 needs namespace shop")
    let team = [NetworkPolicyRule(peers: [Self.from(["app": "cart"], in: ["team": "a"])])]
    #expect(try Self.miss(team, from: ["app": "cart"], namespace: "test") == "rule 0 needs namespace label team=a")
    let named = [NetworkPolicyRule(peers: [Self.from([:], in: [WellKnown.namespaceName: "shop"])])]
    #expect(try Self.miss(named, from: ["app": "cart"], namespace: "test") == "rule 0 needs namespace shop")
  }

  @Test("ipBlocks with the exception that the address is in; no label helps what is no pod")
  func blocks() throws {
    let block = IPBlock(
      cidr: try #require(CIDR("10.0.0.0/8")),
      except: [try #require(CIDR("10.1.0.0/16")), try #require(CIDR("10.244.0.0/16"))])
    let rules = [
      NetworkPolicyRule(peers: [Self.from(["app": "cart"])]), NetworkPolicyRule(peers: [.ipBlock(block)]),
    ]
    #expect(try Self.miss(rules, from: nil) == "rule 1 allows 10.0.0.0/8 except 10.244.0.0/16")
    #expect(try Self.miss(rules, from: nil, address: "192.0.2.1") == "rule 1 allows 10.0.0.0/8 only")
    #expect(try Self.miss(Array(rules.prefix(1)), from: nil) == "rule 0 needs a pod with app=cart and namespace shop")
  }

  @Test("named ports with the numbers that they have there")
  func namedPorts() throws {
    let rules = [
      NetworkPolicyRule(
        peers: [Self.from(["app": "cart"])],
        ports: [NetworkPolicyPort(port: .named("pg")), NetworkPolicyPort(port: .named("web"))])
    ]
    #expect(
      try Self.miss(rules, from: ["app": "cart"], to: 80)
        == "rule 0 allows tcp pg (5432), tcp web (no port of that name there) only")
  }
}
