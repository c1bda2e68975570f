import KubernetesObjects
import NetworkTypes

/// Random clusters in which everything collides: few labels, names, ports and addresses, and every feature of the
/// specification. What comes out is what an API server could hold; everything follows from the generator handed in.
enum RandomWorld {
  struct Size: Sendable {
    var nodes: ClosedRange<Int>
    var namespaces: ClosedRange<Int>
    var pods: ClosedRange<Int>
    var policies: ClosedRange<Int>

    static let small = Size(nodes: 1...3, namespaces: 1...3, pods: 4...14, policies: 1...7)
    static let medium = Size(nodes: 2...5, namespaces: 2...6, pods: 30...80, policies: 10...30)
  }

  static func make(using random: inout some RandomNumberGenerator, size: Size = .small) -> PolicyWorld {
    let nodeCount = Int.random(in: size.nodes, using: &random)
    var world = PolicyWorld(ownNode: "node-\(Int.random(in: 1...nodeCount, using: &random))")
    for _ in 0..<nodeCount { world.nodes.append(node(in: world, using: &random)) }
    for _ in 0..<Int.random(in: size.namespaces, using: &random) {
      world.namespaces.append(namespace(in: world, using: &random))
    }
    let templates = (0..<3).map { _ in podLabels(using: &random) }
    for number in 0..<Int.random(in: size.pods, using: &random) {
      // The first runs on the node under test, so that there is something to judge.
      world.pods.append(pod(in: world, templates: templates, isLocal: number == 0, using: &random))
    }
    for _ in 0..<Int.random(in: size.policies, using: &random) {
      world.policies.append(policy(in: world, using: &random))
    }
    world.pods.shuffle(using: &random)
    world.policies.shuffle(using: &random)
    return world
  }

  // MARK: Nodes and namespaces

  /// The next node: number n has 172.18.0.n and 10.244.n.0/24, and likewise in IPv6; some have one family only.
  static func node(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> Node {
    var number = 1
    while world.nodes.contains(where: { $0.name == "node-\(number)" }) { number += 1 }
    var node = Node(name: "node-\(number)")
    node.internalIPs = ["172.18.0.\(number)", "fd00:172:18::\(hex(number))"].compactMap { IPAddress($0) }
    node.podCIDRs = podRanges(number)
    if random.chance(15) {
      let only = random.pick([IPFamily.v4, .v6])
      node.internalIPs.removeAll { $0.family != only }
      node.podCIDRs.removeAll { $0.family != only }
    }
    return node
  }

  static func podRanges(_ number: Int) -> [CIDR] {
    ["10.244.\(number).0/24", "fd00:10:244:\(hex(number))::/64"].compactMap { CIDR($0) }
  }

  static func hex(_ number: Int) -> String { String(number, radix: 16) }

  static func namespace(in world: PolicyWorld, using random: inout some RandomNumberGenerator) -> Namespace {
    var number = 0
    let names = ["shop", "bank", "lab"]
    func name() -> String { number < names.count ? names[number] : "ns-\(number)" }
    while world.namespaces.contains(where: { $0.name == name() }) { number += 1 }
    return Namespace(name: name(), labels: namespaceLabels(using: &random))
  }

  // MARK: Labels

  /// Values that YAML would read as something else, and the empty one, are among them.
  static let podVocabulary = [
    ("app", ["web", "api", "db", ""]), ("tier", ["front", "1", ""]), ("env", ["prod", "yes"]),
  ]
  static let namespaceVocabulary = [("team", ["red", "blue", ""]), ("env", ["prod", "yes"])]

  static func podLabels(using random: inout some RandomNumberGenerator) -> Labels {
    var labels = labels(podVocabulary, using: &random)
    // One that no policy ever asks for.
    if random.chance(20) { labels["pod-template-hash"] = random.pick(["6d4cf56db6", "7c9f8b7d54"]) }
    return labels
  }

  static func namespaceLabels(using random: inout some RandomNumberGenerator) -> Labels {
    labels(namespaceVocabulary, using: &random)
  }

  private static func labels(
    _ vocabulary: [(String, [String])], using random: inout some RandomNumberGenerator
  ) -> Labels {
    var labels = Labels()
    for (key, values) in vocabulary where random.chance(60) { labels[key] = random.pick(values) }
    return labels
  }

  // MARK: Pods

  static let portNames = ["http", "dns", "metrics"]
  static let portNumbers: [UInt16] = [53, 80, 443, 8080, 8081, 9090]

  /// A pod of any namespace, nearly always with the labels of one of the templates.
  static func pod(
    in world: PolicyWorld, templates: [Labels], isLocal: Bool, using random: inout some RandomNumberGenerator
  ) -> Pod {
    let namespace = random.pick(world.namespaces.map(\.name))
    var number = 0
    // The same few names in every namespace.
    func key() -> ObjectKey { ObjectKey(namespace: namespace, name: "pod-\(number)") }
    while world.pods.contains(where: { $0.key == key() }) { number += 1 }
    var pod = Pod(key: key())
    pod.uid = uid(using: &random)
    pod.labels = random.chance(75) ? random.pick(templates) : podLabels(using: &random)
    pod.containerPorts = containerPorts(using: &random)
    let own = world.nodes.filter { $0.name == world.ownNode }
    let node = random.pick(isLocal || random.chance(40) ? own : world.nodes)
    if isLocal {
      (pod.nodeName, pod.phase) = (node.name, .running)
      pod.podIPs = addresses(on: node, in: world, using: &random)
      return pod
    }
    switch Int.random(in: 0..<100, using: &random) {
    case ..<70: pod.phase = .running
    case ..<80: pod.phase = .pending
    case ..<83: pod.phase = .unknown
    case ..<92: pod.phase = .succeeded
    default: pod.phase = .failed
    }
    // Not scheduled yet, or no sandbox yet.
    if pod.phase == .pending, random.chance(40) {
      pod.nodeName = random.chance(50) ? node.name : nil
      return pod
    }
    pod.nodeName = node.name
    pod.isTerminating = random.chance(8)
    pod.hostNetwork = random.chance(7)
    pod.podIPs = pod.hostNetwork ? node.internalIPs : addresses(on: node, in: world, using: &random)
    return pod
  }

  static func uid(using random: inout some RandomNumberGenerator) -> String { "uid-\(random.next() % 1_000_000_000)" }

  /// Names are few and numbers too: one name has several numbers and protocols, one number several names.
  static func containerPorts(using random: inout some RandomNumberGenerator) -> [NamedContainerPort] {
    var ports: [NamedContainerPort] = []
    for _ in 0..<Int.random(in: 0...5, using: &random) {
      guard let number = Port(random.pick(portNumbers)) else { continue }
      var port = NamedContainerPort(
        name: random.pick(portNames), proto: random.pick([.tcp, .tcp, .udp, .sctp]), port: number)
      if let other = ports.last, random.chance(60) {
        port.name = other.name
        if random.chance(60) { port.proto = other.proto }
      }
      ports.append(port)
    }
    return ports
  }

  // MARK: Addresses

  /// Addresses of one or two families from the node's ranges, perhaps such that a finished pod of the node still lists.
  static func addresses(
    on node: Node, in world: PolicyWorld, using random: inout some RandomNumberGenerator
  ) -> [IPAddress] {
    // One remote pod in twenty-five claims what a pod somewhere else has: a status that was not yet written.
    let running = world.pods.filter { $0.isPolicyPod && !$0.podIPs.isEmpty }
    if node.name != world.ownNode, !running.isEmpty, random.chance(4) { return random.pick(running).podIPs }

    let finished = world.pods.filter { $0.nodeName == node.name && !$0.isPolicyPod && !$0.hostNetwork }
    let left = finished.flatMap(\.podIPs).filter { world.pod(at: $0) == nil }
    var ranges = node.podCIDRs
    if ranges.count > 1, random.chance(40) { ranges.remove(at: random.chance(65) ? 1 : 0) }
    return ranges.compactMap { range in
      let reusable = left.filter { $0.family == range.family }
      if !reusable.isEmpty, random.chance(50) { return random.pick(reusable) }
      return freeAddress(in: range, of: world, using: &random)
    }
  }

  private static func freeAddress(
    in range: CIDR, of world: PolicyWorld, using random: inout some RandomNumberGenerator
  ) -> IPAddress? {
    // Mostly close together, so that blocks cut between them; beside the edges of the range too.
    for _ in 0..<1000 {
      let offset =
        random.chance(85)
        ? UInt128.random(in: 2...40, using: &random) : random.pick([127, 128, 250, 251, 252, 253, 254])
      let address = IPAddress(family: range.family, number: range.address.number + offset)
      if let address, world.pod(at: address) == nil { return address }
    }
    return (2...254).lazy.compactMap { IPAddress(family: range.family, number: range.address.number + $0) }
      .first { world.pod(at: $0) == nil }
  }
}

/// SplitMix64: small, and the same everywhere for one seed.
struct WorldRandom: RandomNumberGenerator {
  private var bits: UInt64

  init(seed: UInt64) { bits = seed }

  mutating func next() -> UInt64 {
    bits &+= 0x9e37_79b9_7f4a_7c15
    var mixed = bits
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}

extension RandomNumberGenerator {
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }

  /// - Parameter values: not empty.
  mutating func pick<Value>(_ values: [Value]) -> Value { values[Int.random(in: values.indices, using: &self)] }
}
