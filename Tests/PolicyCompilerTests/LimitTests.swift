import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("Above the limit of pairs a subject is closed, by name") struct LimitTests {
  private typealias Cluster = SmallCluster

  /// `shop/api` takes from each of `app=0` to `app=n` by a rule of its own, so that each is a class, and needs a pair for
  /// each in both families. `shop/db` takes from `app=0` alone: three pairs.
  private static func rules(_ count: Int) -> [NetworkPolicyRule] {
    (0..<count).map { number in
      NetworkPolicyRule(
        peers: [.own(["app": "\(number)"])],
        ports: [.init(port: Port(UInt16(1000 + number)).map { .range($0...$0) } ?? .any)])
    }
  }

  private static func cluster(pairLimit: Int, linger: Duration = .zero, clients: Int = 20) -> SmallCluster {
    var cluster = Cluster(linger: linger, pairLimit: pairLimit)
    cluster.apply(
      cluster.pod("shop/db", ["app": "db"], isHere: true), cluster.pod("shop/client-0", ["app": "0"]),
      Cluster.policy("shop/for-db", selecting: ["app": "db"], ingress: [.peers(.own(["app": "0"]))]))
    for number in 1..<clients { cluster.apply(cluster.pod("shop/client-\(number)", ["app": "\(number)"])) }
    return cluster
  }

  private static func wide(_ count: Int = 20) -> ClusterObject {
    Cluster.policy("shop/wide", selecting: ["app": "api"], ingress: rules(count))
  }

  /// The subject is closed for everybody, and says whose it is.
  private static func expectClosed(
    _ cluster: SmallCluster, _ pod: String, by policy: String, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let key = Cluster.key(policy)
    #expect(cluster.compiler.closedSubjects.contains([key]), sourceLocation: sourceLocation)
    for source in ["10.2.0.2", "fd00:2::2", "203.0.113.7"].compactMap({ IPAddress($0) }) {
      guard let destination = cluster.address(pod, source.family) else { continue }
      let packet = PolicyPacket(
        origin: .outside, source: source, destination: destination, proto: 6, destinationPort: 1000)
      guard case .decided(let clause, _) = cluster.tables.judge(packet).ingress else {
        Issue.record("\(packet): \(cluster.tables.judge(packet))", sourceLocation: sourceLocation)
        continue
      }
      #expect(clause.clause.kind == .overLimit, sourceLocation: sourceLocation)
      #expect(
        cluster.tables.policies.attributions[clause.attribution]?.policies(of: clause.clause)
          == [PolicyReference(namespace: key.namespace, name: key.name)], sourceLocation: sourceLocation)
    }
  }

  @Test("a subject that needs more than there is room for; others go on")
  func atOnce() {
    var cluster = Self.cluster(pairLimit: 20)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true), Self.wide())
    Self.expectClosed(cluster, "shop/api", by: "shop/wide")
    #expect(cluster.compiler.pairCount <= 20)
    #expect(cluster.problems() == [])
    #expect(cluster.allows("shop/client-0", "shop/db") && !cluster.allows("shop/client-1", "shop/db"))
    // And still take what is new.
    cluster.apply(cluster.pod("shop/late", ["app": "0"]))
    #expect(cluster.allows("shop/late", "shop/db"))
  }

  @Test("a subject that outgrows the room when classes come; those that know no new class go on", arguments: [0, 600])
  func byAndBy(linger: Int) {
    var cluster = Self.cluster(pairLimit: 20, linger: .seconds(linger), clients: 4)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true), Self.wide())
    #expect(cluster.allows("shop/client-3", "shop/api", port: 1003))
    for number in 4..<20 {
      cluster.apply(cluster.pod("shop/client-\(number)", ["app": "\(number)"]))
      #expect(cluster.compiler.pairCount <= 20)
      #expect(cluster.problems() == [])
      #expect(cluster.allows("shop/client-0", "shop/db") && !cluster.allows("shop/client-1", "shop/db"))
    }
    Self.expectClosed(cluster, "shop/api", by: "shop/wide")
  }

  @Test("a subject that closes makes room: whoever comes next is not closed for it")
  func makesRoom() {
    var cluster = Self.cluster(pairLimit: 20, linger: .seconds(600), clients: 4)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true), Self.wide())
    for number in 4..<12 { cluster.apply(cluster.pod("shop/client-\(number)", ["app": "\(number)"])) }
    Self.expectClosed(cluster, "shop/api", by: "shop/wide")
    cluster.apply(
      cluster.pod("shop/cache", ["app": "cache"], isHere: true),
      Cluster.policy("shop/for-cache", selecting: ["app": "cache"], ingress: [.peers(.own(["app": "1"]))]))
    #expect(cluster.allows("shop/client-1", "shop/cache") && !cluster.allows("shop/client-2", "shop/cache"))
  }

  @Test("pods that share a closed subject, whichever comes and goes", arguments: [0, 600])
  func sharedByMany(linger: Int) {
    var cluster = Self.cluster(pairLimit: 20, linger: .seconds(linger))
    cluster.apply(cluster.pod("shop/api-1", ["app": "api"], isHere: true), Self.wide())
    for (number, time) in [0, 1, 700, 1].enumerated() {
      cluster.wait(.seconds(time))
      cluster.apply(cluster.pod("shop/api-\(number + 2)", ["app": "api"], isHere: true))
      #expect(cluster.problems() == [], "pod \(number + 2)")
    }
    for number in [5, 3, 2] {
      cluster.delete(.pod, "shop/api-\(number)")
      cluster.wait(.seconds(700))
      #expect(cluster.problems() == [], "without pod \(number)")
      Self.expectClosed(cluster, "shop/api-1", by: "shop/wide")
    }
    cluster.delete(.pod, "shop/api-1", "shop/api-4")
    cluster.wait(.seconds(700))
    #expect(cluster.problems() == [])
    #expect(cluster.compiler.closedSubjects.isEmpty)
    #expect(cluster.tables.policies.pairs.count == 3)
  }

  // MARK: Opening again

  @Test("it opens when its policies ask for less")
  func smallerPolicy() {
    var cluster = Self.cluster(pairLimit: 20)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true), Self.wide())
    let delta = cluster.apply(Self.wide(2))
    #expect(delta.rejudgesFlows)
    #expect(cluster.allows("shop/client-1", "shop/api", port: 1001))
    cluster.wait(.zero)
    #expect(cluster.compiler.closedSubjects.isEmpty)
    #expect(cluster.problems() == [])
  }

  @Test("it opens when another one leaves it room")
  func roomByOthers() {
    var cluster = Self.cluster(pairLimit: 60)
    let other = Cluster.policy("shop/other", selecting: ["app": "cache"], ingress: Self.rules(20))
    cluster.apply(cluster.pod("shop/cache", ["app": "cache"], isHere: true), other)
    cluster.apply(cluster.pod("shop/api", ["app": "api"], isHere: true), Self.wide())
    Self.expectClosed(cluster, "shop/api", by: "shop/wide")
    cluster.delete(.pod, "shop/cache")
    cluster.wait(.seconds(1))
    cluster.wait(.seconds(1))
    #expect(cluster.allows("shop/client-1", "shop/api", port: 1001))
    #expect(cluster.problems() == [])
  }

  // MARK: Everywhere

  @Test(
    "in random worlds nothing is allowed that should not be, and what is closed says so",
    arguments: [0, 600], AgreementTests.seeds)
  func random(linger: Int, seed: UInt64) {
    var random = WorldRandom(seed: seed)
    var (open, closed) = (0, 0)
    for number in 0..<40 {
      let limit = Int.random(in: 2...40, using: &random)
      var compiled = CompiledWorld(RandomWorld.make(using: &random), linger: .seconds(linger), pairLimit: limit)
      for step in 0..<15 {
        let oracle = PolicyOracle(compiled.world)
        var problems = TableCheck(compiled).problems()
        if compiled.compiler.pairCount > limit { problems.append("limit exceeded") }
        for _ in 0..<20 where problems.isEmpty {
          let flow = compiled.world.flow(using: &random)
          switch compiled.judge(flow) {
          case .success(let verdict):
            open += 1
            if verdict != oracle.judge(flow) { problems.append("\(flow): \(verdict), not \(oracle.judge(flow))") }
          case .failure(let unexpected):
            closed += 1
            if unexpected.text != "over the limit" || compiled.compiler.closedSubjects.isEmpty {
              problems.append("\(flow): \(unexpected)")
            }
          }
        }
        guard problems.isEmpty else {
          Issue.record(
            """
            seed \(seed), world \(number), step \(step), limit \(limit): \(problems.prefix(5).joined(separator: "; ")) in
            \(WorldYAML.documents(compiled.world))
            """)
          return
        }
        var next = compiled.world
        compiled.apply(next.mutate(using: &random))
      }
    }
    #expect(open > 1000 && closed > 100)
  }
}
