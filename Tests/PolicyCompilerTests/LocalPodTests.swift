import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

@Suite("Local pods come and go by their sandboxes, not by their objects") struct LocalPodTests {
  private typealias Cluster = SmallCluster

  /// `shop/api` is here, and hears only `app=web`: `shop/web`, which is there.
  private static func cluster() -> SmallCluster {
    var cluster = Cluster()
    cluster.apply(
      cluster.pod("shop/api", ["app": "api"], isHere: true), cluster.pod("shop/web", ["app": "web"]),
      Cluster.policy("shop/p", ingress: [.peers(.own(["app": "web"]))]))
    return cluster
  }

  private static func attachment(of pod: ClusterObject, uid: String? = nil) -> LocalPod? {
    guard case .pod(let pod) = pod else { return nil }
    return LocalPod(interface: "slc", pod: pod.key, uid: uid ?? pod.uid, addresses: pod.podIPs)
  }

  @Test("a sandbox whose pod is not known yet is closed, and open to its policies when it is")
  func beforeItsObject() {
    var cluster = Self.cluster()
    let pod = cluster.pod("shop/late", ["app": "late"])
    cluster.attach("slc", Self.attachment(of: pod))
    #expect(cluster.compiler.subjects(of: "slc") == nil)
    cluster.apply(pod)
    #expect(cluster.compiler.subjects(of: "slc") == cluster.subjects("shop/api"))
  }

  @Test("a pod whose object is gone keeps its policies until its sandbox goes")
  func afterItsObject() {
    var cluster = Self.cluster()
    let pod = cluster.pod("shop/going", ["app": "going"])
    cluster.attach("slc", Self.attachment(of: pod))
    cluster.apply(pod)
    let subjects = cluster.compiler.subjects(of: "slc")
    cluster.delete(.pod, "shop/going")
    #expect(subjects != nil && cluster.compiler.subjects(of: "slc") == subjects)
    cluster.attach("slc", nil)
    #expect(cluster.compiler.subjects(of: "slc") == nil)
    #expect(cluster.problems() == [])
  }

  @Test("another pod of the same name says nothing about the sandbox of the one before")
  func anotherUID() {
    var cluster = Self.cluster()
    let pod = cluster.pod("shop/db-0", ["app": "db"])
    cluster.attach("slc", Self.attachment(of: pod, uid: "before"))
    cluster.apply(pod)
    #expect(cluster.compiler.subjects(of: "slc") == nil)
    cluster.attach("slc", Self.attachment(of: pod))
    #expect(cluster.compiler.subjects(of: "slc") != nil)
  }

  @Test("an interface that is another pod's now is closed until that pod is known")
  func anotherPod() {
    var cluster = Self.cluster()
    let (first, second) = (cluster.pod("shop/first"), cluster.pod("shop/second"))
    cluster.attach("slc", Self.attachment(of: first))
    cluster.apply(first)
    #expect(cluster.compiler.subjects(of: "slc") != nil)
    cluster.attach("slc", Self.attachment(of: second))
    #expect(cluster.compiler.subjects(of: "slc") == nil)
    cluster.apply(second)
    #expect(cluster.compiler.subjects(of: "slc") == cluster.subjects("shop/api"))
  }

  @Test("an interface that is nobody's pod any more leaves its policies idle")
  func nobodysPod() {
    var cluster = Self.cluster()
    let pod = cluster.pod("bank/till")
    cluster.apply(pod, Cluster.policy("bank/p", ingress: [.peers(.all(["app": "web"]))]))
    cluster.attach("slc", Self.attachment(of: pod))
    let pairs = cluster.tables.policies.pairs.count
    cluster.attach("slc", LocalPod(interface: "slc", pod: nil, uid: nil, addresses: []))
    #expect(cluster.compiler.subjects(of: "slc") == .unrestricted)
    cluster.wait(.zero)
    #expect(cluster.tables.policies.pairs.count < pairs)
    #expect(cluster.compiler.subjects.values.allSatisfy { $0.uses > 0 })
  }

  @Test("an address is the local pod's that may run, whoever else claims it and whichever sandbox goes")
  func sharedAddress() {
    for isReversed in [false, true] {
      var cluster = Self.cluster()
      // `bank/ghost`, elsewhere, sorts first and claims what a finished pod here had and a new one has.
      guard case .pod(let new) = cluster.pod("shop/new", ["app": "web"], isHere: true) else { return }
      var (old, ghost) = (new, new)
      (old.key, old.uid, old.phase) = (Cluster.key("shop/old"), "old", .succeeded)
      (ghost.key, ghost.uid, ghost.nodeName) = (Cluster.key("bank/ghost"), "ghost", "there")
      let pods = [old, ghost, new].map { ClusterObject.pod($0) }
      for pod in isReversed ? pods.reversed() : pods { cluster.apply(pod) }
      #expect(cluster.identity("shop/new") == cluster.identity("shop/web"), "reversed: \(isReversed)")
      cluster.delete(.pod, "shop/old")
      #expect(cluster.identity("shop/new") == cluster.identity("shop/web"), "reversed: \(isReversed)")
      cluster.delete(.pod, "shop/new")
      let heir = cluster.identity("bank/ghost").flatMap { cluster.compiler.classes.key(of: $0) }
      #expect(heir?.namespace == "bank", "reversed: \(isReversed)")
    }
  }
}
