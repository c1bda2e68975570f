import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

@Suite("Shrinking worlds") struct ShrinkTests {
  @Test("of a large world nothing is left but what a denial takes: a pod, its address, its policy")
  func denial() throws {
    var random = WorldRandom(seed: 7)
    var world = RandomWorld.make(using: &random, size: .medium)
    func deniesIngress(_ world: PolicyWorld, _ flow: PolicyFlow) -> Bool {
      !PolicyOracle(world).judge(flow).ingress.verdict.allows
    }
    var flow = world.flow(using: &random)
    for _ in 0..<1000 where !deniesIngress(world, flow) { flow = world.flow(using: &random) }
    try #require(deniesIngress(world, flow))
    world = Shrink.minimal(world) { deniesIngress($0, flow) }

    #expect(world.nodes.count == 1 && world.namespaces.count == 1)
    #expect(world.nodes.first?.internalIPs == [] && world.nodes.first?.podCIDRs == [])
    let pod = try #require(world.pods.first)
    let policy = try #require(world.policies.first)
    #expect(world.pods.count == 1 && pod.podIPs == [flow.destination] && pod.containerPorts.isEmpty)
    #expect(pod.labels.isEmpty || !policy.podSelector.isEmpty)
    #expect(world.policies.count == 1 && policy.isolatesIngress && !policy.isolatesEgress)
    #expect(policy.ingress.isEmpty && policy.egress.isEmpty && policy.mode == .enforce)
  }

  @Test("what the failure needs is kept to the last exception, label and value")
  func keepsWhatMatters() throws {
    var scene = try PolicyScene([
      "noise": "{podSelector: {matchLabels: {app: db}}, egress: [{}]}",
      "np": """
      {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x, y]}, {key: tier, operator: Exists}]},
       policyTypes: [Ingress, Egress], egress: [{}], ingress: [
         {from: [{podSelector: {}}], ports: [{port: http}, {port: 80, endPort: 90}]}, {from: [{ipBlock: {cidr: 0.0.0.0/0,
         except: [10.244.2.2/32, 10.0.0.0/8, 192.168.0.0/16]}}, {namespaceSelector: {matchLabels: {team: blue}}}]}]}
      """,
    ])
    // The failure: a policy has a block with the exception 10.0.0.0/8, and bank/till has the label `app`.
    func fails(_ world: PolicyWorld) -> Bool {
      let peers = world.policies.flatMap(\.ingress).flatMap(\.peers)
      let hasBlock = peers.contains { peer in
        if case .ipBlock(let block) = peer { block.except.contains { $0.prefixLength == 8 } } else { false }
      }
      return hasBlock && world.pods.contains { $0.key == PolicyScene.key("bank/till") && $0.labels["app"] != nil }
    }
    let minimal = Shrink.minimal(scene.world, fails: fails)

    scene.change("bank/till") { $0.podIPs = [] }
    scene.change(namespace: "bank") { $0.labels = [WellKnown.namespaceName: "bank"] }
    scene.change(namespace: "shop") { $0.labels = [WellKnown.namespaceName: "shop"] }
    var expected = PolicyWorld(ownNode: "here", nodes: [Node(name: "here")])
    expected.namespaces = scene.world.namespaces.filter { $0.name != "lab" }
    expected.pods = scene.world.pods.filter { $0.key.name == "till" }
    var policy = NetworkPolicy(key: PolicyScene.key("shop/np"))
    policy.isolatesEgress = true
    let ten = try #require(CIDR("10.0.0.0/8"))
    policy.ingress = [
      NetworkPolicyRule(peers: [.ipBlock(IPBlock(cidr: try #require(CIDR("0.0.0.0/0")), except: [ten]))])
    ]
    expected.policies = [policy]
    #expect(minimal == expected)
  }

  @Test("the result fails, every simpler world does not, and each step is a world of the API", arguments: 0..<6)
  func minimality(seed: UInt64) {
    var random = WorldRandom(seed: seed)
    let world = RandomWorld.make(using: &random)
    let flows = (0..<10).map { _ in world.flow(using: &random) }
    let verdicts = Set(flows.map { PolicyOracle(world).judge($0) })
    // Something of a failure: as many different verdicts as before.
    func fails(_ world: PolicyWorld) -> Bool {
      Set(flows.map { PolicyOracle(world).judge($0) }).count >= verdicts.count
    }
    var asked = 0
    let minimal = Shrink.minimal(world) { candidate in
      asked += 1
      #expect(problems(of: candidate) == [])
      return fails(candidate)
    }
    #expect(fails(minimal) && asked > 0)
    #expect(Shrink.simpler(than: minimal).filter(fails) == [])
  }
}
