import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

/// Counts, not times: what a change of the cluster may cost in the kernel.
@Suite("A change costs what changes") struct ChangeSizeTests {
  private typealias Cluster = SmallCluster

  /// `shop` has the local pod `api`, 20 pods `app=web` and 10 pods `app=db` elsewhere; no policy yet.
  private static func shop(linger: Duration = .zero) -> SmallCluster {
    var cluster = Cluster(linger: linger)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true))
    cluster.apply(cluster.pods(20, "shop/web", ["app": "web"]) + cluster.pods(10, "shop/db", ["app": "db"]))
    cluster.apply(cluster.pods(5, "bank/till", ["app": "till"]))
    return cluster
  }

  // MARK: Pods

  @Test("a pod of a known class: one identity for each address, and nothing else")
  func knownClass() {
    var cluster = Self.shop()
    cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "web"]))]))
    let come = cluster.apply(cluster.pod("shop/web-new", ["app": "web"]))
    #expect(come.counts == ["identities": 2])
    #expect(cluster.identity("shop/web-new") == cluster.identity("shop/web-1"))
    #expect(cluster.delete(.pod, "shop/web-new").counts == ["identities": 2])
  }

  @Test("a local pod that the policies of another one select: its endpoint beside its addresses")
  func knownSubject() {
    var cluster = Self.shop()
    cluster.apply(Cluster.policy("shop/p", ingress: [.peers(.own(["app": "web"]))], egress: []))
    let come = cluster.apply(cluster.pod("shop/api-2", ["app": "api", "version": "2"], isHere: true))
    #expect(come.counts == ["identities": 2, "endpoints": 1])
    #expect(cluster.subjects("shop/api-2") == cluster.subjects("shop/api"))
    #expect(cluster.delete(.pod, "shop/api-2").counts == ["identities": 2, "endpoints": 1])
  }

  @Test("a label that no policy in force mentions: nothing", arguments: ["shop/web-1", "shop/api"])
  func unmentionedLabel(pod: String) {
    var cluster = Self.shop()
    cluster.apply(
      Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "web"]))]),
      // Mentions the label, and is not in force.
      Cluster.policy("bank/p", ingress: [.peers(.all(["version": "2"]))]))
    #expect(cluster.apply(cluster.changed(pod) { $0.labels["version"] = "2" }).isEmpty)
    #expect(cluster.apply(cluster.changed(pod) { $0.labels["version"] = nil }).isEmpty)
  }

  @Test("a label that a peer asks for: the pod's own addresses")
  func mentionedLabel() {
    var cluster = Self.shop()
    cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "web"]))]))
    let delta = cluster.apply(cluster.changed("shop/db-1") { $0.labels["app"] = "web" })
    #expect(delta.counts == ["identities": 2, "rejudgesFlows": 1])
    #expect(cluster.identity("shop/db-1") == cluster.identity("shop/web-1"))
  }

  // MARK: Policies

  @Test(
    "a policy that tells no two pods apart changes no pod's identity",
    arguments: [
      .peers(), .peers(.own()), .peers(.all()), .peers(.own(["app": "nobody"])), .peers(.block("203.0.113.0/24")),
    ] as [NetworkPolicyRule])
  func noSplit(rule: NetworkPolicyRule) {
    var cluster = Self.shop()
    let classes = Set(["shop/api", "shop/web-1", "shop/db-1", "bank/till-1"].compactMap { cluster.identity($0) })
    let delta = cluster.apply(Cluster.policy("shop/p", ingress: [rule], egress: [rule]))
    #expect(delta.identities.isEmpty)
    #expect(classes.count == 2)
    #expect(TableCheck(cluster.world, cluster.compiler, cluster.tables).partitionProblems() == [])
  }

  @Test("a policy that splits off k pods changes k pods' addresses")
  func split() {
    var cluster = Self.shop()
    let delta = cluster.apply(
      Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "db"]))]))
    #expect(delta.identities.count == 20)
    // The wildcard, and the new class of each family.
    #expect(delta.pairs.count == 3)
    #expect(delta.portSets.count == 2)
    #expect(cluster.identity("shop/db-1") != cluster.identity("shop/web-1"))
  }

  /// Ten of `app=db` are less than the rest of 21, and `app=web`'s twenty more.
  @Test(
    "whoever is split off, the larger part stays what it is, and so it does when they become one again",
    arguments: [
      ([.own(["app": "db"])], moving: 10), ([.own(["app": "web"])], moving: 11),
      ([.own(["app": "web"]), .own(["app": "db"])], moving: 11), ([.own(["app": "api"])], moving: 1),
      (
        [
          .pods(
            LabelSelector(matchExpressions: [.init(key: "app", comparison: .isNotIn, values: ["api"])]), namespaces: nil
          )
        ], moving: 1
      ),
    ] as [([NetworkPolicyPeer], moving: Int)])
  func parts(peers: [NetworkPolicyPeer], moving: Int) {
    for isIngress in [true, false] {
      var cluster = Self.shop()
      let rules = peers.map { NetworkPolicyRule(peers: [$0]) }
      let policy = Cluster.policy(
        "shop/p", selecting: ["app": "api"], ingress: isIngress ? rules : nil, egress: isIngress ? nil : rules)
      #expect(cluster.apply(policy).identities.count == 2 * moving)
      #expect(cluster.problems() == [] && cluster.partitionProblems() == [])
      let removal = cluster.delete(.networkPolicy, "shop/p")
      #expect(removal.identities.isEmpty)
      let rest = cluster.wait(.zero)
      #expect(rest?.identities.count == 2 * moving && rest?.rejudgesFlows == false)
      #expect(cluster.tables.policies == PolicyTable() && cluster.problems() == [])
      #expect(cluster.partitionProblems() == [])
    }
  }

  @Test("one policy takes over from another: only the difference moves")
  func successiveParts() {
    var cluster = Self.shop()
    func policy(_ apps: [String]) -> ClusterObject {
      let pods = LabelSelector(matchExpressions: [.init(key: "app", comparison: .isIn, values: apps)])
      return Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.pods(pods, namespaces: nil))])
    }
    cluster.apply(policy(["db"]))
    // Both are in force until the next change: web and the rest are told apart, and then db and the rest no more.
    #expect(cluster.apply(policy(["web"])).identities.count == 2)
    #expect(cluster.wait(.zero)?.identities.count == 2)
    #expect(cluster.problems() == [] && cluster.partitionProblems() == [])
  }

  /// Of `shop`, `api` is in 10.1.0.0/16; 30 more and all of `bank` are in 10.2.0.0/16 and fd00:2::/64.
  @Test(
    "an ipBlock moves the addresses that it tells from more others, and none where it tells none apart",
    arguments: [
      ([.block("0.0.0.0/0")], moving: 0), ([.block("::/0")], moving: 0),
      ([.block("0.0.0.0/0"), .block("::/0")], moving: 0), ([.block("10.0.0.0/8")], moving: 0),
      ([.block("10.0.0.0/8", except: ["10.77.0.0/16"])], moving: 0),
      ([.block("10.0.0.0/9"), .block("10.0.0.0/8")], moving: 0),
      ([.block("10.1.0.0/16")], moving: 1), ([.block("10.2.0.0/24")], moving: 1), ([.block("fd00:2::/64")], moving: 1),
      ([.block("0.0.0.0/0", except: ["10.1.0.0/16"])], moving: 1), ([.block("172.18.0.0/16")], moving: 0),
      // 10.2.0.2 to 10.2.0.31 and 10.2.0.32 to 10.2.0.36: one of `shop` and all of `bank`.
      ([.block("10.2.0.0/27")], moving: 1), ([.block("10.2.0.0/28")], moving: 14),
      ([.block("10.2.0.16/28")], moving: 15),
    ] as [([NetworkPolicyPeer?], moving: Int)])
  func blocks(peers: [NetworkPolicyPeer?], moving: Int) {
    var cluster = Self.shop()
    let before = cluster.tables
    let policy = Cluster.policy("shop/p", selecting: ["app": "api"], egress: [.init(peers: peers.compactMap { $0 })])
    #expect(cluster.apply(policy).identities.count == moving)
    #expect(cluster.problems() == [] && cluster.partitionProblems() == [])
    cluster.delete(.networkPolicy, "shop/p")
    #expect(cluster.wait(.zero)?.identities.count ?? 0 == moving)
    #expect(cluster.tables.policies == PolicyTable() && cluster.problems() == [])
    #expect(cluster.partitionProblems() == [])
    #expect(cluster.tables.identities.inUse.count == before.identities.inUse.count)
  }

  @Test("a block around everything leaves the block tables alone, too")
  func everywhere() {
    var cluster = Self.shop()
    let policy = Cluster.policy("shop/p", ingress: [.peers(.block("0.0.0.0/0"), .block("::/0"))])
    #expect(cluster.apply(policy).blocks.isEmpty)
    cluster.delete(.networkPolicy, "shop/p")
    #expect(cluster.wait(.zero)?.blocks.isEmpty == true)
  }

  @Test("a policy in a namespace without local pods, or that selects none of them: nothing")
  func notInForce() {
    var cluster = Self.shop()
    for name in ["bank/p", "shop/p"] {
      #expect(
        cluster.apply(Cluster.policy(name, selecting: ["app": "till"], ingress: [.peers(.all(["app": "web"]))])).isEmpty
      )
      #expect(cluster.apply(Cluster.policy(name, selecting: ["app": "till"], egress: [])).isEmpty)
      #expect(cluster.delete(.networkPolicy, name).isEmpty)
    }
  }

  @Test("a removed policy merges what it alone told apart, and leaves nothing")
  func merge() {
    var cluster = Self.shop(linger: .seconds(600))
    let before = cluster.tables
    cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "db"]))]))
    let removal = cluster.delete(.networkPolicy, "shop/p")
    let rest = cluster.wait(.zero)
    #expect(removal.endpoints.count == 1)
    #expect(removal.identities.count + (rest?.identities.count ?? 0) == 20)
    #expect(cluster.tables.policies == before.policies)
    #expect(cluster.tables.identities.inUse.count == before.identities.inUse.count)
    #expect(cluster.identity("shop/db-1") == cluster.identity("shop/web-1"))
  }

  @Test("a change of a policy that tells the same pods apart changes no identity")
  func changedPorts() {
    var cluster = Self.shop()
    let ports = [80, 443].compactMap { Port($0) }
    for port in ports {
      let rule = NetworkPolicyRule(peers: [.own(["app": "db"])], ports: [.init(port: .range(port...port))])
      cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [rule]))
      guard port != ports.first else { continue }
      #expect(cluster.wait(.zero)?.identities.isEmpty != false)
    }
    let rule = NetworkPolicyRule(peers: [.own(["app": "db"])])
    let delta = cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [rule]))
    #expect(delta.identities.isEmpty)
    #expect(delta.endpoints.count == 1)
  }

  // MARK: Lingering

  @Test("the last pod's policies stay in force for a time: its successor costs its endpoint and addresses")
  func successor() {
    var cluster = Self.shop(linger: .seconds(600))
    cluster.apply(Cluster.policy("shop/p", selecting: ["app": "api"], ingress: [.peers(.own(["app": "db"]))]))
    #expect(cluster.delete(.pod, "shop/api").counts == ["identities": 2, "endpoints": 1])
    #expect(cluster.wait(.seconds(599)) == nil)
    #expect(
      cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true)).counts == ["identities": 2, "endpoints": 1])
    // Its time begins anew when it is idle again.
    cluster.delete(.pod, "shop/api")
    #expect(cluster.wait(.seconds(599)) == nil)
    #expect(cluster.wait(.seconds(1))?.identities.count == 20)
    #expect(cluster.tables.policies == PolicyTable())
  }

  // MARK: Namespaces

  @Test("a namespace's label: nothing where no policy asks, else the addresses of its pods")
  func namespaceLabel() {
    var cluster = Self.shop()
    #expect(cluster.apply(.namespace(Namespace(name: "bank", labels: ["team": "blue"]))).isEmpty)
    cluster.apply(Cluster.policy("shop/p", ingress: [.peers(.all(in: ["team": "red"]))]))
    #expect(cluster.apply(.namespace(Namespace(name: "bank", labels: ["team": "green"]))).isEmpty)
    let delta = cluster.apply(.namespace(Namespace(name: "bank", labels: ["team": "red"])))
    #expect(delta.identities.count == 10)
    #expect(delta.blocks.isEmpty && delta.endpoints.isEmpty)
  }
}

extension TableDelta {
  /// How many entries of which tables, those that do not change left out.
  var counts: [String: Int] {
    [
      "identities": identities.count, "blocks": blocks.count, "pairs": pairs.count, "portSets": portSets.count,
      "attributions": attributions.count, "clauses": clauses.count, "endpoints": endpoints.count,
      "podRanges": podRanges.added.count + podRanges.removed.count, "rejudgesFlows": rejudgesFlows ? 1 : 0,
    ].filter { $0.value > 0 }
  }
}
