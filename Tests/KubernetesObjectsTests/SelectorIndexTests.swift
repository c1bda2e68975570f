import NetworkTypes
import Testing

@testable import KubernetesObjects

@Suite("Which selectors match a pod") struct SelectorIndexTests {
  private let front: Labels = [WellKnown.namespaceName: "shop", "tier": "front"]

  private func index(_ selectors: [String: (LabelSelector?, NamespaceScope)]) -> SelectorIndex<String> {
    var index = SelectorIndex<String>()
    for (id, (pods, scope)) in selectors { index.insert(id, pods: pods, scope: scope) }
    return index
  }

  private func matching(_ index: SelectorIndex<String>, _ labels: Labels, in namespace: String = "shop") -> [String] {
    let namespaceLabels = namespace == "shop" ? front : [WellKnown.namespaceName: namespace]
    return index.matching(namespace: namespace, namespaceLabels: namespaceLabels, labels: labels).sorted()
  }

  @Test("selectors of one namespace are found for its pods only, by every operator")
  func ownNamespace() {
    func expression(_ comparison: LabelSelector.Operator, _ values: String...) -> (LabelSelector?, NamespaceScope) {
      (LabelSelector(matchExpressions: [.init(key: "a", comparison: comparison, values: values)]), .own("shop"))
    }
    let index = index([
      "nil": (nil, .own("shop")), "empty": (LabelSelector(), .own("shop")), "other": (nil, .own("other")),
      "a=x": (LabelSelector(matchLabels: ["a": "x"]), .own("shop")),
      "a=": (LabelSelector(matchLabels: ["a": ""]), .own("shop")),
      "in x": expression(.isIn, "x"), "in x,,x": expression(.isIn, "x", "", "x"), "in nothing": expression(.isIn),
      "not in x": expression(.isNotIn, "x"), "not in ,": expression(.isNotIn, ""),
      "exists": expression(.exists), "does not exist": expression(.doesNotExist),
    ])
    #expect(index.count == 12)
    #expect(matching(index, [:]) == ["does not exist", "empty", "nil", "not in ,", "not in x"])
    #expect(matching(index, ["b": "x"]) == ["does not exist", "empty", "nil", "not in ,", "not in x"])
    #expect(matching(index, ["a": ""]) == ["a=", "empty", "exists", "in x,,x", "nil", "not in x"])
    #expect(matching(index, ["a": "x", "b": "x"]) == ["a=x", "empty", "exists", "in x", "in x,,x", "nil", "not in ,"])
    #expect(matching(index, ["a": "y"]) == ["empty", "exists", "nil", "not in ,", "not in x"])
    #expect(matching(index, ["a": "x"], in: "other") == ["other"] && matching(index, ["a": "x"], in: "third").isEmpty)
  }

  @Test("selectors of namespaces are found by the namespace's labels and the pod's")
  func selectedNamespaces() {
    let notFront = LabelSelector(matchExpressions: [.init(key: "tier", comparison: .isNotIn, values: ["front"])])
    let tiers = LabelSelector(matchExpressions: [.init(key: "tier", comparison: .isIn, values: ["front", "back"])])
    let web = LabelSelector(matchLabels: ["app": "web"])
    let index = index([
      "everything": (nil, .selected(LabelSelector())), "web": (web, .selected(LabelSelector())),
      "front": (nil, .selected(LabelSelector(matchLabels: ["tier": "front"]))), "web of tiers": (web, .selected(tiers)),
      "not front": (nil, .selected(notFront)), "web not front": (web, .selected(notFront)),
      "web of shop": (web, .selected(LabelSelector(matchLabels: [WellKnown.namespaceName: "shop"]))),
    ])
    #expect(matching(index, ["app": "web"]) == ["everything", "front", "web", "web of shop", "web of tiers"])
    #expect(matching(index, ["app": "api"]) == ["everything", "front"])
    #expect(matching(index, ["app": "web"], in: "other") == ["everything", "not front", "web", "web not front"])
    #expect(matching(index, [:], in: "other") == ["everything", "not front"])
  }

  @Test("an ID has one selector; removed, it has none, and what is not there is removed without effect")
  func replacing() {
    var index = index(["a": (LabelSelector(matchLabels: ["app": "x"]), .own("shop")), "b": (nil, .own("shop"))])
    index.insert("a", pods: LabelSelector(matchLabels: ["app": "y"]), scope: .own("shop"))
    #expect(index.count == 2 && matching(index, ["app": "x"]) == ["b"] && matching(index, ["app": "y"]) == ["a", "b"])
    index.remove("c")
    index.remove("b")
    index.remove("b")
    #expect(index.count == 1 && matching(index, ["app": "y"]) == ["a"])
    index.insert("c", pods: nil, scope: .selected(LabelSelector()))
    #expect(matching(index, ["app": "y"]) == ["a", "c"] && matching(index, ["app": "x"]) == ["c"])
    index.remove("a")
    index.remove("c")
    #expect(index.isEmpty && matching(index, ["app": "y"]).isEmpty)
  }

  @Test("In with very many values of namespaces and of pods is found as well")
  func manyValues() {
    func values(_ key: String, _ count: Int) -> LabelSelector {
      LabelSelector(matchExpressions: [.init(key: key, comparison: .isIn, values: (0..<count).map { "v\($0)" })])
    }
    var index = SelectorIndex<Int>()
    for count in [2, 64, 65, 1000] {
      index.insert(count, pods: values("app", count), scope: .selected(values("tier", count)))
    }
    func matching(_ tier: String, _ app: String) -> [Int] {
      index.matching(namespace: "shop", namespaceLabels: ["tier": tier], labels: ["app": app]).sorted()
    }
    #expect(matching("v1", "v1") == [2, 64, 65, 1000] && matching("v1", "v63") == [64, 65, 1000])
    #expect(matching("v64", "v1") == [65, 1000] && matching("v999", "v999") == [1000])
    #expect(matching("v1000", "v1").isEmpty && matching("v1", "v1000").isEmpty && matching("v1", "").isEmpty)
  }

  @Test("any pod finds the selectors that trying all of them finds, while selectors come and go")
  func againstBruteForce() throws {
    var world = SelectorWorld(seed: 2)
    var index = SelectorIndex<Int>()
    var registered: [Int: (pods: LabelSelector?, scope: NamespaceScope)] = [:]
    for _ in 0..<40 {
      for _ in 0..<50 { _ = world.change() }
      for _ in 0..<300 {
        let id = Int.random(in: 0..<400, using: &world)
        if Int.random(in: 0..<4, using: &world) == 0 {
          index.remove(id)
          registered[id] = nil
        } else {
          let (pods, scope) = (world.selectorOrNil(), world.scope())
          index.insert(id, pods: pods, scope: scope)
          registered[id] = (pods, scope)
        }
      }
      #expect(index.count == registered.count)
      let truth = world.truth
      for key in truth.groups.keys {
        let namespaceLabels = try #require(truth.namespaceLabels[key.namespace])
        let found = index.matching(namespace: key.namespace, namespaceLabels: namespaceLabels, labels: key.labels)
        let expected = registered.filter { truth.matches(key, $0.value.pods, $0.value.scope) }.keys
        #expect(found.count == Set(found).count && Set(found) == Set(expected))
      }
    }
  }

  // MARK: Cost

  private func evaluations(_ index: SelectorIndex<Int>, _ namespace: Labels, _ labels: Labels, finds: Int) -> Int {
    var evaluations = 0
    let name = namespace[WellKnown.namespaceName] ?? ""
    let found = index.matching(
      namespace: name, namespaceLabels: namespace, labels: labels, evaluations: &evaluations)
    #expect(found.count == finds)
    return evaluations
  }

  @Test("one pod among 10,000 selectors tries fewer than 50, though all ask for a label that every pod has")
  func cost() {
    var index = SelectorIndex<Int>()
    let notOld = LabelSelector.Requirement(key: "release", comparison: .isNotIn, values: ["old"])
    let managed = LabelSelector.Requirement(key: "all", comparison: .exists)
    for number in 0..<10_000 {
      // 1,000 apps in 500 namespaces of 100 teams; of each app's selectors half are of their own namespace.
      let pods = LabelSelector(
        matchLabels: ["app": "a\(number % 1000)", "all": "yes", "tier": "t\(number % 3)"],
        matchExpressions: [managed, notOld])
      let namespaces = LabelSelector(matchLabels: ["env": "prod", "team": "team\(number % 100)"])
      index.insert(number, pods: pods, scope: number % 2 == 0 ? .own("n\(number % 500)") : .selected(namespaces))
    }
    for number in [0, 1, 2, 4999, 9999] {
      let namespace: Labels = [
        WellKnown.namespaceName: "n\(number % 500)", "env": "prod", "team": "team\(number % 100)",
      ]
      var labels: Labels = [
        "app": "a\(number % 1000)", "all": "yes", "tier": "t\(number % 3)", "release": "new",
      ]
      // Of ten selectors with this app, those with its tier.
      let matches = (0..<10_000).count { $0 % 1000 == number % 1000 && $0 % 3 == number % 3 }
      #expect(matches > 0)
      #expect(evaluations(index, namespace, labels, finds: matches) < 50)
      labels["release"] = "old"
      #expect(evaluations(index, namespace, labels, finds: 0) < 50)
      labels["app"] = "unknown"
      labels["release"] = "new"
      #expect(evaluations(index, namespace, labels, finds: 0) < 50)
      #expect(evaluations(index, [WellKnown.namespaceName: "elsewhere"], labels, finds: 0) == 0)
    }
  }

  @Test("a selector of several values is tried only for pods that have one of them, in namespaces as in pods")
  func costOfSeveralValues() {
    func either(_ key: String, _ number: Int) -> LabelSelector {
      LabelSelector(matchExpressions: [.init(key: key, comparison: .isIn, values: ["a\(number)", "b\(number)"])])
    }
    var index = SelectorIndex<Int>()
    for number in 0..<1000 {
      index.insert(number, pods: either("app", number / 10), scope: .selected(either("team", number % 10)))
    }
    for team in ["a3", "b3"] {
      for app in ["a7", "b7"] { #expect(evaluations(index, ["team": team], ["app": app], finds: 1) == 1) }
    }
    #expect(evaluations(index, ["team": "a3"], ["app": "c7"], finds: 0) == 0)
  }

  @Test("after all selectors were removed nothing is tried and nothing is kept")
  func nothingLeft() {
    var world = SelectorWorld(seed: 3)
    var index = SelectorIndex<Int>()
    let namespace: Labels = [WellKnown.namespaceName: "n0", "a": "x"]
    for id in 0..<500 { index.insert(id, pods: world.selectorOrNil(), scope: world.scope()) }
    var evaluations = 0
    _ = index.matching(
      namespace: "n0", namespaceLabels: namespace, labels: ["a": "x", "b": "y"], evaluations: &evaluations)
    #expect(evaluations > 0 && !index.holdsNothing)
    for id in 0..<500 { index.remove(id) }
    #expect(self.evaluations(index, namespace, ["a": "x", "b": "y"], finds: 0) == 0)
    #expect(index.holdsNothing)
  }
}

// MARK: Random clusters

/// Random pods, namespaces and selectors over few labels, and what matches what by trying everything. SplitMix64: the
/// same everywhere for one seed.
struct SelectorWorld: RandomNumberGenerator {
  private var state: UInt64
  private(set) var pods: [ObjectKey: Pod] = [:]
  private var namespaceObjects: [String: Labels] = [:]

  private static let namespaces = (0..<8).map { "n\($0)" }
  private static let keys = ["a", "b", "c", WellKnown.namespaceName]
  private static let values = ["", "x", "y", "n0"]

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  private mutating func number(_ range: Range<Int>) -> Int { Int.random(in: range, using: &self) }
  private mutating func isOne(of count: Int) -> Bool { number(0..<count) == 0 }
  private mutating func any(_ array: [String]) -> String { array[number(0..<array.count)] }

  // MARK: Changes

  mutating func change() -> ObjectChange {
    if isOne(of: 5) { return namespaceChange() }
    let key = ObjectKey(namespace: any(Self.namespaces), name: "p\(number(0..<20))")
    if isOne(of: 4) {
      pods[key] = nil
      return .delete(.pod, key)
    }
    var pod = pods[key] ?? Pod(key: key)
    if !isOne(of: 4) { pod.labels = labels(["a", "b", "c"]) }
    pod.phase = isOne(of: 6) ? .succeeded : .running
    pod.hostNetwork = isOne(of: 8)
    pod.containerPorts = isOne(of: 3) ? ports() : pod.containerPorts
    pods[key] = pod
    return .upsert(.pod(pod))
  }

  private mutating func namespaceChange() -> ObjectChange {
    let name = any(Self.namespaces)
    if isOne(of: 3) {
      namespaceObjects[name] = nil
      return .delete(.namespace, ObjectKey(namespace: "", name: name))
    }
    let namespace = Namespace(name: name, labels: labels(["a", "b"]))
    namespaceObjects[name] = namespace.labels
    return .upsert(.namespace(namespace))
  }

  private mutating func labels(_ keys: [String]) -> Labels {
    var labels = Labels()
    for key in keys where !isOne(of: 2) { labels[key] = any(Self.values) }
    return labels
  }

  private mutating func ports() -> [NamedContainerPort] {
    (0..<number(0..<3)).compactMap { _ in
      Port(number(1..<3)).map { NamedContainerPort(name: "http", proto: isOne(of: 2) ? .tcp : .udp, port: $0) }
    }
  }

  // MARK: Selectors

  mutating func selector() -> LabelSelector {
    var selector = LabelSelector()
    while isOne(of: 3) { selector.matchLabels[any(Self.keys)] = any(Self.values) }
    while isOne(of: 2) {
      let comparison = LabelSelector.Operator.allCases[number(0..<4)]
      let takesValues = comparison == .isIn || comparison == .isNotIn
      let values = takesValues ? (0..<number(1..<4)).map { _ in any(Self.values) } : []
      selector.matchExpressions.append(.init(key: any(Self.keys), comparison: comparison, values: values))
    }
    return selector
  }

  mutating func selectorOrNil() -> LabelSelector? { isOne(of: 10) ? nil : selector() }

  mutating func scope() -> NamespaceScope { isOne(of: 2) ? .own(any(Self.namespaces)) : .selected(selector()) }

  // MARK: What is right

  /// By trying everything, as things stand.
  var truth: Truth { Truth(pods: pods.values, namespaceObjects: namespaceObjects) }

  struct Truth {
    /// Members by what distinguishes groups.
    var groups: [PodGroup.Key: Set<ObjectKey>] = [:]
    /// Of those that are objects or have pods that selectors see.
    var namespaceLabels: [String: Labels]

    fileprivate init(pods: some Sequence<Pod>, namespaceObjects: [String: Labels]) {
      namespaceLabels = namespaceObjects
      for pod in pods where !pod.hostNetwork && pod.phase != .succeeded && pod.phase != .failed {
        let namespace = pod.key.namespace
        let ports = Set(pod.containerPorts).sorted { ($0.proto, $0.port) < ($1.proto, $1.port) }
        groups[PodGroup.Key(namespace: namespace, labels: pod.labels, containerPorts: ports), default: []]
          .insert(pod.key)
        if namespaceLabels[namespace] == nil { namespaceLabels[namespace] = [WellKnown.namespaceName: namespace] }
      }
    }

    func matches(_ key: PodGroup.Key, _ pods: LabelSelector?, _ scope: NamespaceScope) -> Bool {
      switch scope {
      case .own(let name): if name != key.namespace { return false }
      case .selected(let selector): if !selector.matches(namespaceLabels[key.namespace] ?? Labels()) { return false }
      }
      return pods?.matches(key.labels) ?? true
    }
  }
}
