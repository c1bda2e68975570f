import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("Live flows are judged again where their verdict may be another") struct RejudgeTests {
  private typealias Cluster = SmallCluster

  /// `shop/api` is here and takes from `app=web`; `shop/web` and `bank/till` are there.
  private static func cluster() -> SmallCluster {
    var cluster = Cluster()
    cluster.apply(
      cluster.pod("shop/api", ["app": "api"], isHere: true), cluster.pod("shop/web", ["app": "web"]),
      cluster.pod("bank/till", ["app": "till"]),
      Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "web"]))]))
    return cluster
  }

  // MARK: Where it must be

  @Test("a policy that comes, changes or goes")
  func policy() {
    var cluster = Self.cluster()
    #expect(cluster.apply(Cluster.policy("shop/q", ingress: [.peers(.all(["app": "till"]))])).rejudgesFlows)
    #expect(cluster.apply(Cluster.policy("shop/q", ingress: [])).rejudgesFlows)
    #expect(cluster.delete(.networkPolicy, "shop/q").rejudgesFlows)
    #expect(cluster.delete(.networkPolicy, "shop/p").rejudgesFlows)
  }

  @Test("labels of the selected pod, of its peer, of the peer's namespace")
  func labels() {
    var cluster = Self.cluster()
    #expect(cluster.apply(cluster.changed("shop/web") { $0.labels["app"] = "other" }).rejudgesFlows)
    #expect(cluster.apply(cluster.changed("shop/web") { $0.labels["app"] = "web" }).rejudgesFlows)
    #expect(cluster.apply(cluster.changed("shop/api") { $0.labels["app"] = "other" }).rejudgesFlows)
    #expect(cluster.apply(cluster.changed("shop/api") { $0.labels["app"] = "api" }).rejudgesFlows)
    cluster.apply(
      Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.all(in: ["team": "blue"]))]))
    #expect(cluster.apply(.namespace(Namespace(name: "bank", labels: ["team": "blue"]))).rejudgesFlows)
    #expect(cluster.apply(.namespace(Namespace(name: "bank"))).rejudgesFlows)
  }

  @Test("what a port's name means, on the selected pod or on its peer")
  func namedPorts() {
    var cluster = Self.cluster()
    let named = NetworkPolicyRule(ports: [NetworkPolicyPort(port: .named("http"))])
    cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [named], egress: [named]))
    let ports = [Port(8080), Port(8081)].compactMap { $0 }.map { NamedContainerPort(name: "http", port: $0) }
    for name in ["shop/api", "bank/till"] {
      for port in ports {
        #expect(cluster.apply(cluster.changed(name) { $0.containerPorts = [port] }).rejudgesFlows, "\(name) \(port)")
      }
    }
  }

  // MARK: Where it must not be

  @Test("pods that come and go, remote or local")
  func pods() {
    var cluster = Self.cluster()
    #expect(cluster.apply(cluster.pod("shop/web-2", ["app": "web"])).rejudgesFlows == false)
    #expect(cluster.apply(cluster.pod("shop/api-2", ["app": "api"], isHere: true)).rejudgesFlows == false)
    #expect(cluster.delete(.pod, "shop/web", "shop/api-2").rejudgesFlows == false)
    #expect(cluster.apply(cluster.changed("shop/web-2") { $0.phase = .succeeded }).rejudgesFlows == false)
    #expect(cluster.apply(cluster.changed("shop/web-2") { $0.labels["version"] = "2" }).rejudgesFlows == false)
  }

  @Test("a local pod whose policies split classes that are old")
  func splitByNewPod() {
    var cluster = Self.cluster()
    let policy = Cluster.policy("bank/p", ingress: [.peers(.all(["app": "db"])), .peers(.all(["app": "cache"]))])
    cluster.apply(
      cluster.pods(3, "shop/db", ["app": "db"]) + cluster.pods(4, "shop/cache", ["app": "cache"]) + [policy])
    let delta = cluster.apply(cluster.pod("bank/vault", isHere: true))
    // Those of the pod itself, and at least one part of the class.
    #expect(delta.identities.count >= 2 + 6)
    #expect(delta.rejudgesFlows == false)
  }

  @Test("the end of a policy that has been idle")
  func expiry() {
    var cluster = Self.cluster()
    cluster.apply(
      cluster.pod("bank/vault", isHere: true), Cluster.policy("bank/p", ingress: [.peers(.all(["app": "web"]))]))
    let deltas = [cluster.delete(.pod, "bank/vault"), cluster.wait(.zero) ?? TableDelta()]
    #expect(deltas.contains { !$0.pairs.isEmpty })
    #expect(deltas.allSatisfy { $0.rejudgesFlows == false })
  }

  @Test("another class with the same verdicts")
  func sameVerdicts() {
    var cluster = Self.cluster()
    // Told apart by a policy for another pod: from `web` and from `bank` all that shop/api hears is the same.
    cluster.apply(
      cluster.pod("shop/db", ["app": "db"], isHere: true),
      Cluster.policy("shop/q", selecting: ["app": "db"], egress: [.peers(.own(["tier": "front"]))]))
    let local = cluster.subjects("shop/db")
    // No subject's word differs where the pod is one that nobody may talk to.
    cluster.delete(.pod, "shop/db")
    let delta = cluster.apply(cluster.changed("shop/web") { $0.labels["tier"] = "front" })
    #expect(local != .unrestricted)
    #expect(delta.rejudgesFlows == false)
  }

  @Test("nodes, and policies that no local pod has to do with")
  func others() {
    var cluster = Self.cluster()
    var node = Node(name: "new")
    node.podCIDRs = [CIDR("10.3.0.0/16")].compactMap { $0 }
    node.internalIPs = [IPAddress("172.18.0.3")].compactMap { $0 }
    #expect(cluster.apply(.node(node)).rejudgesFlows == false)
    #expect(cluster.apply(Cluster.policy("bank/p", ingress: [], egress: [])).rejudgesFlows == false)
    #expect(cluster.apply(Cluster.policy("shop/q", selecting: ["app": "none"], ingress: [])).rejudgesFlows == false)
  }

  // MARK: Everywhere

  @Test("wherever a verdict changes, in random worlds", arguments: [0, 600], AgreementTests.seeds)
  func random(linger: Int, seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (needed, idle) = (0, 0)
    for number in 0..<60 {
      var compiled = CompiledWorld(RandomWorld.make(using: &random), linger: .seconds(linger))
      var owners = Owners()
      owners.follow(compiled.world)
      for step in 0..<15 {
        let before = compiled
        var next = compiled.world
        let changes = (0..<(number % 2 == 0 ? 1 : 3)).flatMap { _ in next.mutate(using: &random) }
        compiled.apply(changes)
        let difference = Difference(before, compiled)
        let rejudges = compiled.lastDelta.rejudgesFlows
        if difference.ofVerdicts != nil { needed += 1 } else { idle += 1 }
        guard difference.ofVerdicts != nil && !rejudges else { continue }
        Issue.record(
          """
          seed \(seed), world \(number), step \(step): judges again: \(rejudges), reason: \(difference) after \(changes) of
          \(WorldYAML.documents(compiled.world))
          """)
        return
      }
    }
    #expect(needed > 50 && idle > 50)
  }
}

/// What is said of flows that can live on: between a local pod that stays and an address that somebody has before and
/// after, or that nobody has.
private struct Difference {
  /// An example: its end is the endpoint, its peer the address.
  private(set) var ofVerdicts: (interface: String, peer: IPAddress)?
  /// What may be taken for one: an endpoint has another subject, or a subject that was there says something else of an
  /// address, though only pods have it that are new.
  private(set) var isSeeming = false

  var isReason: Bool { ofVerdicts != nil || isSeeming }

  init(_ old: CompiledWorld, _ new: CompiledWorld) {
    let (before, after) = (old.tables, new.tables)
    let (oldPods, newPods) = (Set(old.world.localPods.map(\.sandbox)), Set(new.world.localPods.map(\.sandbox)))
    let staying = oldPods.intersection(newPods).map { CompiledWorld.interface($0.key) }
    let peers = Self.peers(before, after)
    for (interface, new) in after.node.endpoints {
      guard let to = new.subjects else { continue }
      let from = before.node.endpoints[interface]?.subjects
      if let from, from != to { isSeeming = true }
      for direction in PolicyDirection.allCases {
        if let from, staying.contains(interface),
          let peer = Self.difference(from[direction], before, to[direction], after, peers)
        {
          ofVerdicts = (interface, peer)
        }
        let subject = to[direction]
        guard before.policies.pairs[PairKey(subject, .any)] != nil else { continue }
        if Self.difference(subject, before, subject, after, peers) != nil { isSeeming = true }
      }
    }
  }

  /// One for each way that an address' identity may have gone.
  private static func peers(_ before: Tables, _ after: Tables) -> [Change<IdentityID>: IPAddress] {
    let known = before.identities.addresses.keys.filter { after.identities.addresses[$0] != nil }
    let edges = [before, after].flatMap { $0.identities.blocks.values.flatMap { $0.atoms.map(\.range.first) } }
    let unknown = edges.filter {
      before.identities.addresses[$0] == nil && after.identities.addresses[$0] == nil
    }
    let changes = (known + unknown).map { address in
      (Change(old: before.identities.identity(of: address), new: after.identities.identity(of: address)), address)
    }
    return Dictionary(changes) { first, _ in first }
  }

  private static func difference(
    _ old: SubjectID, _ before: Tables, _ new: SubjectID, _ after: Tables, _ peers: [Change<IdentityID>: IPAddress]
  ) -> IPAddress? {
    peers.first { Word(old, $0.key.old, before) != Word(new, $0.key.new, after) }?.value
  }

  private struct Word: Equatable {
    var ports: PortSet?
    var attribution: Attribution?

    init(_ subject: SubjectID, _ identity: IdentityID?, _ tables: Tables) {
      let pairs = tables.policies.pairs
      guard let value = identity.flatMap({ pairs[PairKey(subject, $0)] }) ?? pairs[PairKey(subject, .any)] else {
        return
      }
      ports = tables.policies.portSets[value.portSet]
      attribution = tables.policies.attributions[value.attribution]
    }
  }
}

extension Pod {
  fileprivate struct Sandbox: Hashable {
    var key: ObjectKey
    var uid: String
  }

  /// What says that two pods are one.
  fileprivate var sandbox: Sandbox { Sandbox(key: key, uid: uid) }
}

/// The pod that had each address last. Flows of the one before are not those of the next.
private struct Owners {
  private var last: [IPAddress: Pod.Sandbox] = [:]

  /// Whether an address has gone from one pod to another, perhaps with time between.
  @discardableResult
  mutating func follow(_ world: PolicyWorld) -> Bool {
    var hasHeir = false
    for address in Set(world.pods.flatMap(\.podIPs)) {
      guard let pod = world.pod(at: address) else { continue }
      if let old = last.updateValue(pod.sandbox, forKey: address), old != pod.sandbox { hasHeir = true }
    }
    return hasHeir
  }
}
