import KubernetesObjects
import Testing

@testable import PolicyCompiler

@testable import PolicyWorlds

@Suite("A namespace that nobody has told of matches no selector of namespaces") struct UnknownNamespaceTests {
  private typealias Cluster = SmallCluster

  /// Without labels the second would match, and the name that every namespace has is known without an object.
  private static let selectors: [LabelSelector] = [
    LabelSelector(), LabelSelector(matchExpressions: [.init(key: "team", comparison: .doesNotExist)]),
    LabelSelector(matchLabels: [WellKnown.namespaceName: "ghost"]),
  ]

  @Test("whichever comes first, pod or policy, until the namespace does", arguments: [true, false], selectors)
  func order(podFirst: Bool, selector: LabelSelector) {
    var cluster = Cluster()
    cluster.apply(cluster.pod("shop/api", isHere: true))
    let pod = cluster.pod("ghost/a")
    let policy = Cluster.policy("shop/p", ingress: [.peers(.pods(nil, namespaces: selector))])
    for object in podFirst ? [pod, policy] : [policy, pod] { cluster.apply(object) }
    #expect(!cluster.allows("ghost/a", "shop/api"))
    let labels: Labels = [WellKnown.namespaceName: "ghost"]
    cluster.apply(.namespace(Namespace(name: "ghost", labels: labels)))
    #expect(cluster.allows("ghost/a", "shop/api") && cluster.problems() == [])
    cluster.delete(.namespace, "ghost")
    #expect(!cluster.allows("ghost/a", "shop/api") && cluster.problems() == [])
  }

  @Test("its own policies know its pods all the same", arguments: [true, false])
  func own(podFirst: Bool) {
    var cluster = Cluster()
    cluster.apply(cluster.pod("ghost/api", isHere: true))
    let pod = cluster.pod("ghost/a", ["app": "web"])
    let policy = Cluster.policy("ghost/p", ingress: [.peers(.own(["app": "web"]))])
    for object in podFirst ? [pod, policy] : [policy, pod] { cluster.apply(object) }
    #expect(cluster.allows("ghost/a", "ghost/api"))
  }
}
