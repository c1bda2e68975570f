import NetworkTypes
import Testing

@testable import KubernetesObjects

@Suite("Groups of pods, found by label") struct PodGroupsTests {
  private let state = ClusterState(ownNodeName: "node-1")

  private func key(_ name: String, _ namespace: String = "shop") -> ObjectKey {
    ObjectKey(namespace: namespace, name: name)
  }

  private func pod(
    _ name: String, _ labels: Labels = [:], in namespace: String = "shop", ports: [NamedContainerPort] = []
  ) -> Pod {
    var pod = Pod(key: key(name, namespace))
    pod.labels = labels
    pod.phase = .running
    pod.containerPorts = ports
    return pod
  }

  private func put(_ pods: Pod...) { for pod in pods { state.apply(.upsert(.pod(pod))) } }

  private func remove(_ name: String, in namespace: String = "shop") {
    state.apply(.delete(.pod, key(name, namespace)))
  }

  /// The names of the pods that match, sorted.
  private func pods(_ selector: LabelSelector?, _ scope: NamespaceScope = .own("shop")) throws -> [String] {
    let groups = state.groups(matching: selector, inNamespaces: scope)
    #expect(groups == Set(groups).sorted())
    return try groups.flatMap { try #require(state.group($0)).members.map(\.name) }.sorted()
  }

  // MARK: Groups

  @Test("namespace, labels and named ports make a group, in whatever order the pod has its ports")
  func partition() throws {
    let http = NamedContainerPort(name: "http", port: try #require(Port(80)))
    let dns = NamedContainerPort(name: "http", proto: .udp, port: try #require(Port(53)))
    put(pod("a", ["app": "x"], ports: [http, dns]), pod("b", ["app": "x"], ports: [dns, http, dns]))
    put(pod("c", ["app": "x"], ports: [http]), pod("d", ["app": "y"], ports: [http, dns]))
    put(pod("e", ["app": "x"], in: "other", ports: [http, dns]))
    let groups = try ["a", "b", "c", "d"].map { try #require(state.groupID(ofPod: key($0))) }
    let other = try #require(state.groupID(ofPod: key("e", "other")))
    #expect(groups[0] == groups[1])
    #expect(Set(groups + [other]).count == 4 && Set(state.groupIDs) == Set(groups + [other]))
    let group = try #require(state.group(groups[0]))
    #expect(group.namespace == "shop" && group.labels == ["app": "x"] && group.containerPorts == [http, dns])
    #expect(group.id == groups[0] && group.members == [key("a"), key("b")])
  }

  @Test("what selectors do not see changes no group; what they see moves the pod")
  func changes() throws {
    put(pod("a", ["app": "x"]), pod("b", ["app": "x"]))
    let first = try #require(state.groupID(ofPod: key("a")))
    var changed = pod("a", ["app": "x"])
    changed.podIPs = [try #require(IPAddress("10.0.0.1")), try #require(IPAddress("fd00::1"))]
    changed.isTerminating = true
    changed.phase = .unknown
    #expect(state.apply(.upsert(.pod(changed))).pods == [key("a")])
    #expect(state.groupID(ofPod: key("a")) == first && state.pod(key("a")) == changed)

    changed.labels["app"] = "y"
    #expect(state.apply(.upsert(.pod(changed))).pods == [key("a")] && state.apply(.upsert(.pod(changed))).isEmpty)
    let second = try #require(state.groupID(ofPod: key("a")))
    #expect(second != first && state.group(first)?.members == [key("b")] && state.group(second)?.members == [key("a")])
    #expect(try pods(LabelSelector(matchLabels: ["app": "x"])) == ["b"])
    #expect(try pods(LabelSelector(matchLabels: ["app": "y"])) == ["a"])
  }

  @Test("a pod of the host's network and one that ended belong to no group, whatever they were before")
  func notSelectable() throws {
    var host = pod("host", ["app": "x"])
    host.hostNetwork = true
    put(host, pod("a", ["app": "x"]))
    #expect(state.groupID(ofPod: key("host")) == nil && state.groupID(ofPod: key("nobody")) == nil)
    #expect(try pods(nil) == ["a"])
    for phase in PodPhase.allCases {
      var changed = pod("a", ["app": "x"])
      changed.phase = phase
      put(changed)
      let ended = phase == .succeeded || phase == .failed
      #expect((state.groupID(ofPod: key("a")) == nil) == ended)
      #expect(try pods(nil) == (ended ? [] : ["a"]), "\(phase)")
      put(pod("a", ["app": "x"]))
      #expect(try pods(LabelSelector(matchLabels: ["app": "x"])) == ["a"])
    }
    host.hostNetwork = false
    put(host)
    #expect(state.groupID(ofPod: key("host")) == state.groupID(ofPod: key("a")))
  }

  @Test("a group without members is forgotten, and its number is not used again")
  func forgotten() throws {
    put(pod("a", ["app": "x"]), pod("b", ["app": "x"]))
    let first = try #require(state.groupID(ofPod: key("a")))
    remove("a")
    #expect(state.groupID(ofPod: key("a")) == nil && state.group(first)?.members == [key("b")])
    put(pod("b", ["app": "y"]))
    #expect(state.group(first) == nil && state.groupIDs.count == 1)
    put(pod("b", ["app": "x"]))
    let second = try #require(state.groupID(ofPod: key("b")))
    #expect(second > first && state.group(second)?.labels == ["app": "x"])
    remove("b")
    #expect(state.groupIDs.isEmpty)
    #expect(try pods(nil).isEmpty && pods(LabelSelector(), .selected(LabelSelector())).isEmpty)
  }

  @Test("the pods of a group share the storage of their labels and ports, through changes too")
  func sharing() throws {
    func storage<Element>(_ array: [Element]?) -> UnsafePointer<Element>? {
      array?.withUnsafeBufferPointer { $0.baseAddress }
    }
    let port = NamedContainerPort(name: "http", port: try #require(Port(80)))
    for name in ["a", "b", "c"] { put(pod(name, ["app": "x", "tier": "y"], ports: [port])) }
    var changed = pod("b", ["app": "x", "tier": "y"], ports: [port])
    changed.phase = .pending
    var ended = pod("c", ["app": "x", "tier": "y"], ports: [port])
    ended.phase = .succeeded
    put(changed, ended)
    let first = try #require(state.pod(key("a")))
    for name in ["b", "c"] {
      #expect(storage(state.pod(key(name))?.labels.pairs) == storage(first.labels.pairs), "\(name)")
      #expect(storage(state.pod(key(name))?.containerPorts) == storage(first.containerPorts), "\(name)")
    }
    #expect(MemoryLayout<Pod>.stride <= 104 && MemoryLayout<PodGroup>.stride <= 48)
  }

  // MARK: Queries

  static let operators: [(LabelSelector, [String])] = {
    func expression(_ key: String, _ comparison: LabelSelector.Operator, _ values: String...) -> LabelSelector {
      LabelSelector(matchExpressions: [.init(key: key, comparison: comparison, values: values)])
    }
    var both = expression("a", .isIn, "x", "y")
    both.matchLabels = ["b": "1"]
    return [
      (LabelSelector(), ["a-empty", "a-x", "a-x-b", "a-y-b", "b", "none"]),
      (LabelSelector(matchLabels: ["a": "x"]), ["a-x", "a-x-b"]),
      (LabelSelector(matchLabels: ["a": ""]), ["a-empty"]),
      (LabelSelector(matchLabels: ["a": "x", "b": "1"]), ["a-x-b"]),
      (LabelSelector(matchLabels: ["a": "z"]), []),
      (LabelSelector(matchLabels: ["c": "x"]), []),
      (expression("a", .isIn, "x"), ["a-x", "a-x-b"]),
      (expression("a", .isIn, "x", "", "x"), ["a-empty", "a-x", "a-x-b"]),
      (expression("a", .isIn, "x", "z"), ["a-x", "a-x-b"]),
      (expression("a", .isIn), []),
      (expression("a", .isNotIn, "x"), ["a-empty", "a-y-b", "b", "none"]),
      (expression("a", .isNotIn, ""), ["a-x", "a-x-b", "a-y-b", "b", "none"]),
      (expression("a", .exists), ["a-empty", "a-x", "a-x-b", "a-y-b"]),
      (expression("a", .doesNotExist), ["b", "none"]),
      (both, ["a-x-b", "a-y-b"]),
      (
        LabelSelector(matchExpressions: [
          .init(key: "a", comparison: .exists), .init(key: "b", comparison: .doesNotExist),
          .init(key: "a", comparison: .isNotIn, values: ["x"]),
        ]), ["a-empty"]
      ),
      (
        LabelSelector(
          matchLabels: ["a": "x"], matchExpressions: [.init(key: "a", comparison: .isIn, values: ["y", "z"])]), []
      ),
    ]
  }()

  private func putPodsOfEveryShape(in namespace: String) {
    put(pod("none", in: namespace), pod("b", ["b": "1"], in: namespace), pod("a-empty", ["a": ""], in: namespace))
    put(pod("a-x", ["a": "x"], in: namespace), pod("a-x-b", ["a": "x", "b": "1"], in: namespace))
    put(pod("a-y-b", ["a": "y", "b": "1"], in: namespace))
  }

  @Test("every operator selects what the API says, in one namespace and in all", arguments: operators.indices)
  func everyOperator(index: Int) throws {
    let (selector, expected) = Self.operators[index]
    putPodsOfEveryShape(in: "shop")
    #expect(try pods(selector) == expected)
    #expect(try pods(selector, .selected(LabelSelector())) == expected)
    #expect(try pods(selector, .own("other")).isEmpty)
    putPodsOfEveryShape(in: "other")
    #expect(try pods(selector) == expected)
    #expect(try pods(selector, .selected(LabelSelector(matchLabels: [WellKnown.namespaceName: "other"]))) == expected)
    #expect(try pods(selector, .selected(LabelSelector())).count == 2 * expected.count)
  }

  @Test("nil selects all pods, of the namespaces in scope only")
  func allPods() throws {
    put(pod("a"), pod("b", ["app": "x"]), pod("c", in: "other"))
    #expect(try pods(nil) == ["a", "b"] && pods(nil, .own("nowhere")).isEmpty)
    #expect(try pods(nil, .selected(LabelSelector())) == ["a", "b", "c"])
  }

  @Test("namespaces are found by the labels of their objects; one without an object has its name only")
  func namespaces() throws {
    func named(_ name: String) -> LabelSelector { LabelSelector(matchLabels: [WellKnown.namespaceName: name]) }
    let front = LabelSelector(matchLabels: ["tier": "front"])
    let notFront = LabelSelector(matchExpressions: [.init(key: "tier", comparison: .isNotIn, values: ["front"])])
    #expect(state.labels(ofNamespace: "shop") == [WellKnown.namespaceName: "shop"])
    #expect(state.namespaces(matching: LabelSelector()).isEmpty)

    put(pod("a"))
    #expect(state.labels(ofNamespace: "shop") == [WellKnown.namespaceName: "shop"])
    #expect(
      state.namespaces(matching: LabelSelector()) == ["shop"] && state.namespaces(matching: named("shop")) == ["shop"])
    #expect(state.namespaces(matching: front).isEmpty && state.namespaces(matching: notFront) == ["shop"])
    #expect(try pods(nil, .selected(front)).isEmpty && pods(nil, .selected(notFront)) == ["a"])

    state.apply(.upsert(.namespace(Namespace(name: "shop", labels: ["tier": "front"]))))
    state.apply(.upsert(.namespace(Namespace(name: "empty", labels: ["tier": "front"]))))
    #expect(state.labels(ofNamespace: "shop") == [WellKnown.namespaceName: "shop", "tier": "front"])
    #expect(state.namespaces(matching: front) == ["empty", "shop"] && state.namespaces(matching: notFront).isEmpty)
    #expect(try pods(nil, .selected(front)) == ["a"] && pods(nil, .selected(named("shop"))) == ["a"])

    state.apply(.upsert(.namespace(Namespace(name: "shop", labels: ["tier": "back"]))))
    #expect(state.namespaces(matching: front) == ["empty"] && state.namespaces(matching: notFront) == ["shop"])
    #expect(try pods(nil, .selected(front)).isEmpty)

    for name in ["shop", "empty"] {
      #expect(state.apply(.delete(.namespace, key(name, ""))).namespaces == [name])
    }
    #expect(state.namespaces(matching: LabelSelector()) == ["shop"])
    #expect(state.labels(ofNamespace: "shop") == [WellKnown.namespaceName: "shop"])
    remove("a")
    #expect(state.namespaces(matching: LabelSelector()).isEmpty && state.namespaces(matching: named("shop")).isEmpty)
  }

  @Test("any selector finds what trying every pod finds, while pods, labels and namespaces come and go")
  func againstBruteForce() throws {
    var world = SelectorWorld(seed: 1)
    for _ in 0..<100 {
      for _ in 0..<40 { state.apply(world.change()) }
      let truth = world.truth
      let labels = truth.namespaceLabels
      #expect(state.namespaces(matching: LabelSelector()) == labels.keys.sorted())
      for (name, labels) in labels { #expect(state.labels(ofNamespace: name) == labels) }
      #expect(state.groupIDs.count == truth.groups.count)
      for (key, members) in truth.groups {
        let id = try #require(members.first.flatMap { state.groupID(ofPod: $0) })
        let group = try #require(state.group(id))
        #expect(group.key == key && group.members == members)
      }
      for pod in world.pods.values {
        #expect(state.pod(pod.key) == pod && (state.groupID(ofPod: pod.key) != nil) == pod.isSelectable)
      }
      for _ in 0..<100 {
        let (selector, scope) = (world.selectorOrNil(), world.scope())
        let found = state.groups(matching: selector, inNamespaces: scope)
        let keys = found.compactMap { state.group($0)?.key }
        #expect(found == found.sorted() && keys.count == found.count && Set(keys).count == found.count)
        let expected = truth.groups.keys.filter { truth.matches($0, selector, scope) }
        #expect(Set(keys) == Set(expected), "\(selector as Any) in \(scope)")
        let namespaceSelector = world.selector()
        #expect(
          state.namespaces(matching: namespaceSelector)
            == labels.filter { namespaceSelector.matches($0.value) }.keys.sorted(), "\(namespaceSelector)")
      }
      for (name, proto) in [("http", L4Protocol.tcp), ("http", .udp), ("http", .sctp), ("other", .tcp)] {
        let found = state.groups(withPortNamed: name, proto)
        let expected = truth.groups.keys.filter { key in
          key.containerPorts.contains { $0.name == name && $0.proto == proto }
        }
        #expect(found == Set(found).sorted() && Set(found.compactMap { state.group($0)?.key }) == Set(expected))
      }
    }
    #expect(!state.groupIndex.holdsNothing)
    for key in state.pods.keys { state.apply(.delete(.pod, key)) }
    for name in state.namespaces.keys { state.apply(.delete(.namespace, key(name, ""))) }
    #expect(state.groupIndex.holdsNothing)
  }

  // MARK: Cost

  /// 50 namespaces, one in ten `tier=front`; in each 40 apps, and all pods `managed-by=helm`.
  private func putManyPods() {
    for namespace in 0..<50 {
      let labels: Labels = ["tier": namespace % 10 == 0 ? "front" : "back"]
      state.apply(.upsert(.namespace(Namespace(name: "n\(namespace)", labels: labels))))
      for app in 0..<40 {
        put(pod("p\(app)", ["app": "a\(app)", "managed-by": "helm"], in: "n\(namespace)"))
      }
    }
    put(pod("only", ["app": "only", "managed-by": "helm"], in: "n7"))
  }

  private func visits(_ pods: LabelSelector, _ scope: NamespaceScope, finding count: Int) -> Int {
    var visits = 0
    #expect(state.groupIndex.groups(matching: pods, in: scope, visits: &visits).count == count)
    return visits
  }

  @Test("a query looks only at groups that the rarest label or the scope leaves")
  func queryCost() {
    putManyPods()
    func not(_ key: String, _ value: String) -> LabelSelector.Requirement {
      .init(key: key, comparison: .isNotIn, values: [value])
    }
    let everywhere = NamespaceScope.selected(LabelSelector())
    let front = NamespaceScope.selected(LabelSelector(matchLabels: ["tier": "front"]))
    let notBack = NamespaceScope.selected(LabelSelector(matchExpressions: [not("tier", "back")]))
    let helm = LabelSelector(matchLabels: ["managed-by": "helm"])
    let a1 = LabelSelector(matchLabels: ["app": "a1", "managed-by": "helm"])
    let only = LabelSelector(matchLabels: ["app": "only"])
    let notA2 = LabelSelector(matchExpressions: [not("app", "a2")])
    #expect(visits(a1, everywhere, finding: 50) == 50)
    #expect(visits(a1, .own("n3"), finding: 1) == 40)
    #expect(visits(only, .own("n7"), finding: 1) == 1)
    #expect(visits(notA2, .own("n3"), finding: 39) == 40)
    #expect(visits(LabelSelector(), .own("n3"), finding: 40) == 40)
    // The namespaces first: 5 of them, or 50 to leave out most; then the groups of the 5.
    #expect(visits(helm, front, finding: 200) == 5 + 200)
    #expect(visits(notA2, front, finding: 195) == 5 + 200)
    #expect(visits(helm, notBack, finding: 200) == 50 + 200)
    // The groups first, then the namespace of each.
    #expect(visits(only, front, finding: 0) == 1 + 1)
    #expect(visits(a1, front, finding: 5) == 50 + 50)
    let two = LabelSelector(
      matchLabels: ["managed-by": "helm"],
      matchExpressions: [.init(key: "app", comparison: .isIn, values: ["only", "a1"])])
    #expect(visits(two, everywhere, finding: 51) == 51)
    // More groups than namespaces, yet fewer than all groups of the namespaces in scope.
    #expect(visits(two, .selected(LabelSelector(matchLabels: ["tier": "back"])), finding: 46) == 45 + 51 + 51)
  }
}
