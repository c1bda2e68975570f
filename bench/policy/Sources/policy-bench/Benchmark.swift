import DataplaneModel
import KubernetesObjects
import NetworkTypes
import PolicyCompiler

/// All that is measured, in order. Each part leaves the cluster as it was.
struct Benchmark {
  let cluster: BigCluster
  private var agent = Agent()

  init(_ cluster: BigCluster) { self.cluster = cluster }

  /// What follows compiling everything.
  enum Part: String, CaseIterable {
    case restart, pods, policies, splits, firstPod, blocks
  }

  mutating func run(_ parts: [Part]) throws {
    try everything()
    for part in parts {
      switch part {
      case .restart: try restart()
      case .pods: try pods()
      case .policies: try policies()
      case .splits: try splits()
      case .firstPod: try firstPod()
      case .blocks: try blocks()
      }
    }
    Report.line("memory at the end", Report.memory())
    try verify()
  }

  // MARK: Everything

  private mutating func everything() throws {
    Report.line("memory before", Report.memory())
    let kernelBefore = Kernel.memory()
    let times = try agent.apply(cluster.objects.map { .upsert($0) })
    Report.line("objects into the indexed state, delta into the tables", times.other)
    Report.line("compile everything", times.compile, agent.lastDelta)
    let compiler = agent.compiler
    Report.line(
      "  of it",
      "\(compiler.identityCount) identities of \(compiler.addressCount) addresses, \(compiler.subjectCount) subjects")
    Report.line("memory with everything", Report.memory())
    Report.line("program everything", try agent.start())
    Report.line("memory then", Report.memory())
    Report.line("memory of the kernel, more than before", "\(Kernel.memory() - kernelBefore) MiB")
    Report.line("rules in both families", "\(try Kernel.ruleCount())")
    try verify()
  }

  private mutating func verify() throws {
    let (differences, time) = try agent.verify()
    Report.line("differences between tables and kernel", "\(differences), read in \(Report.milliseconds(time)) ms")
  }

  private func restart() throws {
    var other = Agent(inForce: IdentitiesInForce(agent.tables))
    let times = try other.apply(cluster.objects.map { .upsert($0) })
    let new = other.tables.identities.addresses
    let moved = agent.tables.identities.addresses.count { new[$0.key] != $0.value }
    Report.line("compile everything over the tables of another agent", times.compile)
    Report.line("  addresses that get another identity by it", "\(moved)")
  }

  // MARK: Single changes

  /// Does and undoes something `count` times.
  private mutating func measure(
    _ name: String, count: Int = 100, _ change: (Int) -> [ObjectChange], _ undoing: String,
    undo: (Int) -> [ObjectChange]
  ) throws {
    var (done, undone, expired): ([Agent.Times], [Agent.Times], [Agent.Times]) = ([], [], [])
    var (delta, reverse) = (TableDelta(), TableDelta())
    for number in 0..<count {
      done.append(try agent.apply(change(number)))
      delta = agent.lastDelta
      undone.append(try agent.apply(undo(number)))
      reverse = agent.lastDelta
      expired.append(try agent.expire())
    }
    Report.line(name, done, delta)
    Report.line("  \(undoing)", undone, reverse)
    Report.line("  what is idle put out of force", expired, agent.lastDelta)
  }

  private mutating func pods() throws {
    let all = cluster.namespaceCount
    let cluster = cluster
    try measure("a remote pod", { [cluster.newPod(in: $0 % all)] }, "it goes") {
      [.delete(.pod, BigCluster.key($0 % all, "new"))]
    }
    try measure("a local pod of a known subject", { [cluster.newPod(in: $0 * 10 % all, isLocal: true)] }, "it goes") {
      [.delete(.pod, BigCluster.key($0 * 10 % all, "new"))]
    }
    // In a namespace whose team a policy in force lets in from `tier=front`.
    func labelled(_ number: Int, _ tier: String) -> [ObjectChange] {
      var pod = cluster.pod(50, in: number * 10 % all)
      pod.labels["tier"] = tier
      return [.upsert(.pod(pod))]
    }
    try measure("a remote pod gets another label", { labelled($0, "front") }, "and once more") { labelled($0, "back") }
    func named(_ namespace: Int, _ team: String) -> [ObjectChange] {
      let labels: Labels = ["team": team, "half": namespace % 2 == 0 ? "even" : "odd"]
      return [.upsert(.namespace(Namespace(name: BigCluster.namespace(namespace), labels: labels)))]
    }
    try measure("a namespace of 100 pods gets another label", { named($0 * 10 % all, "none") }, "and the one it had") {
      named($0 * 10 % all, "team-\($0 * 10 % all % 50)")
    }
  }

  private mutating func policies() throws {
    let all = cluster.namespaceCount
    func policy(_ namespace: Int, _ rules: [NetworkPolicyRule]) -> [ObjectChange] {
      [.upsert(.networkPolicy(BigCluster.policy("new", in: namespace, ingress: rules)))]
    }
    let own = NetworkPolicyRule(
      peers: [.pods(LabelSelector(), namespaces: nil)], ports: [BigCluster.port(.tcp, 7000)])
    try measure("a policy without a split", { policy($0 * 10 % all, [own]) }, "it goes") {
      [.delete(.networkPolicy, BigCluster.key($0 * 10 % all, "new"))]
    }
    try measure("a policy where no pod is local", { policy($0 * 10 % all + 1, [own]) }, "it goes") {
      [.delete(.networkPolicy, BigCluster.key($0 * 10 % all + 1, "new"))]
    }
    let everybody = [IPFamily.v4, .v6].compactMap { CIDR(.unspecified($0), prefixLength: 0) }
      .map { NetworkPolicyPeer.ipBlock(IPBlock(cidr: $0)) }
    try measure(
      "a policy with the blocks 0.0.0.0/0 and ::/0", count: 5, { policy($0 * 10 % all, [.init(peers: everybody)]) },
      "it goes"
    ) {
      [.delete(.networkPolicy, BigCluster.key($0 * 10 % all, "new"))]
    }
  }

  // MARK: Splits

  /// Pods by app, of which there are 100 in equal parts, in every `half` of the namespaces or in all.
  private func peer(apps: Int, half: String? = nil) -> NetworkPolicyPeer {
    var namespaces = LabelSelector()
    if let half { namespaces.matchLabels["half"] = half }
    let names = (0..<apps).map { "app-\($0 * 4 + 1)" }
    let pods = LabelSelector(matchExpressions: [.init(key: "app", comparison: .isIn, values: names)])
    return .pods(pods, namespaces: namespaces)
  }

  private mutating func splits() throws {
    for (name, peer) in [
      ("a policy that splits off 1,000 addresses", peer(apps: 1, half: "even")),
      ("a policy that splits off 50,000 addresses", peer(apps: 25)),
    ] {
      let policy = BigCluster.policy("split", in: 0, ingress: [NetworkPolicyRule(peers: [peer])])
      try measure(name, count: 5, { _ in [.upsert(.networkPolicy(policy))] }, "it goes") { _ in
        [.delete(.networkPolicy, BigCluster.key(0, "split"))]
      }
    }
  }

  /// Namespace 1 has no local pod.
  private mutating func firstPod() throws {
    let cluster = cluster
    let rules = [NetworkPolicyRule(peers: [peer(apps: 25)])]
    for (name, egress) in [("one", nil), ("both", [NetworkPolicyRule(peers: [peer(apps: 20)])])] {
      let policy = BigCluster.policy("split", in: 1, ingress: rules, egress: egress)
      try agent.apply([.upsert(.networkPolicy(policy))])
      try measure(
        "the first pod of a namespace with 50,000 peers in \(name) direction\(egress == nil ? "" : "s")", count: 5,
        { _ in [cluster.newPod(in: 1, isLocal: true)] }, "it goes"
      ) { _ in
        [.delete(.pod, BigCluster.key(1, "new"))]
      }
      try agent.apply([.delete(.networkPolicy, policy.key)])
    }
  }

  // MARK: Blocks

  private mutating func blocks() throws {
    let policies = cluster.blockPolicies
    let times = try agent.apply(policies.map { .upsert(.networkPolicy($0)) })
    Report.line("\(policies.count) policies of a block with ten excepts, at once", times, agent.lastDelta)
    Report.line(
      "  tables then",
      "\(agent.compiler.atomCount) atoms, \(agent.compiler.identityCount) identities, "
        + "\(agent.compiler.pairCount) pairs"
    )
    let idle = try agent.expire()
    Report.line("  what was idle put out of force", idle, agent.lastDelta)
    guard let policy = policies.last, case .ipBlock(var block) = policy.egress.first?.peers.first else { return }
    block.except.removeLast()
    let smaller = BigCluster.policy(
      policy.key.name, in: cluster.namespaceCount - 10, egress: [NetworkPolicyRule(peers: [.ipBlock(block)])])
    try measure(
      "one of them loses an except", count: 5, { _ in [.upsert(.networkPolicy(smaller))] }, "and has it again"
    ) { _ in
      [.upsert(.networkPolicy(policy))]
    }
    Report.line("memory with them", Report.memory())
    try agent.apply(policies.map { .delete(.networkPolicy, $0.key) })
    try agent.expire()
  }
}
