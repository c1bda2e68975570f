import KubernetesObjects
import NetworkTypes

/// Random changes of a world, one at a time, as a source of objects would report them.
extension PolicyWorld {
  enum Mutation: CaseIterable, Sendable {
    case podAdded, podRemoved, podReplaced, podRelabelled, podPhase, podTerminating, podPorts, podAddresses
    /// A pod finishes, and another one already has its address.
    case addressReused
    case namespaceAdded, namespaceRelabelled
    case policyAdded, policyRemoved, policyRulesChanged, policySelectorChanged, policyTypesChanged, policyModeChanged
    case nodeAdded, nodePodCIDRs
  }

  /// Makes one random change, of which the world is another one afterwards. More than one object changes only where one
  /// thing happened to several.
  @discardableResult
  mutating func mutate(using random: inout some RandomNumberGenerator) -> [ObjectChange] {
    while true {
      let changes = changes(random.pick(Mutation.allCases), using: &random)
      let before = self
      for change in changes { apply(change) }
      if self != before { return changes }
    }
  }

  /// What a source reports, done to the world's lists.
  mutating func apply(_ change: ObjectChange) {
    switch change {
    case .upsert(.node(let node)): nodes.replaceFirst(by: node) { $0.name == node.name }
    case .upsert(.namespace(let namespace)): namespaces.replaceFirst(by: namespace) { $0.name == namespace.name }
    case .upsert(.pod(let pod)): pods.replaceFirst(by: pod) { $0.key == pod.key }
    case .upsert(.networkPolicy(let policy)): policies.replaceFirst(by: policy) { $0.key == policy.key }
    case .upsert(.service), .upsert(.endpointSlice), .upsert(.serviceCIDR): break
    case .delete(.node, let key): nodes.removeAll { $0.name == key.name }
    case .delete(.namespace, let key): namespaces.removeAll { $0.name == key.name }
    case .delete(.pod, let key): pods.removeAll { $0.key == key }
    case .delete(.networkPolicy, let key): policies.removeAll { $0.key == key }
    case .delete(.service, _), .delete(.endpointSlice, _), .delete(.serviceCIDR, _): break
    }
  }

  /// Empty where there is nothing of that kind to change.
  func changes(_ mutation: Mutation, using random: inout some RandomNumberGenerator) -> [ObjectChange] {
    switch mutation {
    case .podAdded: return [.upsert(.pod(newPod(using: &random)))]
    case .podRemoved: return pods.isEmpty ? [] : [.delete(.pod, random.pick(pods).key)]
    case .podReplaced: return podReplaced(using: &random)
    case .podRelabelled: return pods.isEmpty ? [] : [.upsert(.pod(relabelled(random.pick(pods), using: &random)))]
    case .podPhase: return change(pods.filter(\.isPolicyPod), using: &random, newPhase)
    case .podTerminating: return change(pods, using: &random) { pod, _ in pod.isTerminating = true }
    case .podPorts:
      return change(pods, using: &random) { pod, random in
        pod.containerPorts = RandomWorld.containerPorts(using: &random)
      }
    case .podAddresses:
      return change(pods.filter { !$0.podIPs.isEmpty && !$0.hostNetwork }, using: &random, newAddresses)
    case .addressReused: return addressReused(using: &random)
    case .namespaceAdded: return [.upsert(.namespace(RandomWorld.namespace(in: self, using: &random)))]
    case .namespaceRelabelled:
      guard !namespaces.isEmpty else { return [] }
      let labels = RandomWorld.namespaceLabels(using: &random)
      return [.upsert(.namespace(Namespace(name: random.pick(namespaces).name, labels: labels)))]
    case .policyAdded: return [.upsert(.networkPolicy(RandomWorld.policy(in: self, using: &random)))]
    case .policyRemoved: return policies.isEmpty ? [] : [.delete(.networkPolicy, random.pick(policies).key)]
    case .policyRulesChanged, .policySelectorChanged, .policyTypesChanged, .policyModeChanged:
      return policyChanged(mutation, using: &random)
    case .nodeAdded: return [.upsert(.node(RandomWorld.node(in: self, using: &random)))]
    case .nodePodCIDRs:
      guard var node = nodes.isEmpty ? nil : random.pick(nodes) else { return [] }
      let families = node.podCIDRs.map(\.family)
      let ranges = RandomWorld.podRanges(Int.random(in: 1...8, using: &random) + (random.chance(50) ? 100 : 0))
      // No two nodes have one range.
      guard !nodes.contains(where: { $0.podCIDRs.contains(where: ranges.contains) }) else { return [] }
      node.podCIDRs = ranges.filter { families.contains($0.family) }
      return [.upsert(.node(node))]
    }
  }

  // MARK: Pods

  private func newPod(isLocal: Bool = false, using random: inout some RandomNumberGenerator) -> Pod {
    let templates = pods.isEmpty ? [RandomWorld.podLabels(using: &random)] : pods.map(\.labels)
    return RandomWorld.pod(in: self, templates: templates, isLocal: isLocal, using: &random)
  }

  private func change<Random: RandomNumberGenerator>(
    _ candidates: [Pod], using random: inout Random, _ body: (inout Pod, inout Random) -> Void
  ) -> [ObjectChange] {
    guard var pod = candidates.isEmpty ? nil : random.pick(candidates) else { return [] }
    body(&pod, &random)
    return [.upsert(.pod(pod))]
  }

  /// Deleted and created again under its name, reported as such or as one change.
  private func podReplaced(using random: inout some RandomNumberGenerator) -> [ObjectChange] {
    guard let old = pods.isEmpty ? nil : random.pick(pods) else { return [] }
    var without = self
    without.apply(.delete(.pod, old.key))
    var pod = without.newPod(using: &random)
    guard pod.key.namespace == old.key.namespace else { return [] }
    pod.key = old.key
    return random.chance(50) ? [.delete(.pod, old.key), .upsert(.pod(pod))] : [.upsert(.pod(pod))]
  }

  private func relabelled(_ pod: Pod, using random: inout some RandomNumberGenerator) -> Pod {
    var pod = pod
    let labels = RandomWorld.podLabels(using: &random)
    if random.chance(50) {
      pod.labels = labels
    } else {
      let key = random.pick(RandomWorld.podVocabulary.map(\.0) + ["pod-template-hash"])
      pod.labels[key] = labels[key]
    }
    return pod
  }

  /// Forward only: a pod that finished stays so.
  private func newPhase(_ pod: inout Pod, _ random: inout some RandomNumberGenerator) {
    pod.phase = random.pick([.running, .unknown, .succeeded, .failed])
    guard pod.podIPs.isEmpty, let node = nodes.first(where: { $0.name == pod.nodeName }) ?? nodes.first else { return }
    pod.nodeName = node.name
    pod.podIPs = RandomWorld.addresses(on: node, in: self, using: &random)
  }

  private func newAddresses(_ pod: inout Pod, _ random: inout some RandomNumberGenerator) {
    if pod.podIPs.count > 1, random.chance(30) {
      pod.podIPs.remove(at: random.pick([0, 1]))
    } else if let node = nodes.first(where: { $0.name == pod.nodeName }) {
      pod.podIPs = RandomWorld.addresses(on: node, in: self, using: &random)
    }
  }

  private func addressReused(using random: inout some RandomNumberGenerator) -> [ObjectChange] {
    let candidates = pods.filter { $0.isPolicyPod && !$0.podIPs.isEmpty }
    guard var old = candidates.isEmpty ? nil : random.pick(candidates) else { return [] }
    var new = newPod(using: &random)
    (new.nodeName, new.podIPs) = (old.nodeName, old.podIPs)
    (new.phase, new.hostNetwork) = (.running, false)
    old.phase = random.pick([.succeeded, .failed])
    let changes: [ObjectChange] = [.upsert(.pod(old)), .upsert(.pod(new))]
    return random.chance(50) ? changes : changes.reversed()
  }

  // MARK: Policies

  private func policyChanged(
    _ mutation: Mutation, using random: inout some RandomNumberGenerator
  ) -> [ObjectChange] {
    guard var policy = policies.isEmpty ? nil : random.pick(policies) else { return [] }
    switch mutation {
    case .policySelectorChanged:
      policy.podSelector = RandomWorld.selector(RandomWorld.podVocabulary, using: &random)
    case .policyTypesChanged: RandomWorld.isolate(&policy, using: &random)
    case .policyModeChanged: policy.mode = policy.mode == .enforce ? .audit : .enforce
    default:
      if random.chance(50) {
        change(&policy.ingress, using: &random)
      } else {
        change(&policy.egress, using: &random)
      }
    }
    return [.upsert(.networkPolicy(policy))]
  }

  private func change(_ rules: inout [NetworkPolicyRule], using random: inout some RandomNumberGenerator) {
    let what = Int.random(in: 0..<100, using: &random)
    if rules.isEmpty || what < 20 {
      let place = Int.random(in: 0...rules.count, using: &random)
      return rules.insert(RandomWorld.rule(in: self, using: &random), at: place)
    }
    let index = Int.random(in: rules.indices, using: &random)
    switch what {
    case ..<35: rules.remove(at: index)
    case ..<45: rules.shuffle(using: &random)
    case ..<70: change(&rules[index].peers, using: &random) { RandomWorld.peer(in: self, using: &$0) }
    case ..<85: change(&rules[index].ports, using: &random) { RandomWorld.port(using: &$0) }
    default: changeExceptions(&rules[index], using: &random)
    }
  }

  /// Adds, removes or replaces one.
  private func change<Element, Random: RandomNumberGenerator>(
    _ elements: inout [Element], using random: inout Random, _ make: (inout Random) -> Element
  ) {
    let new = make(&random)
    let index = Int.random(in: 0...elements.count, using: &random)
    if index == elements.count || random.chance(30) {
      elements.insert(new, at: index)
    } else if random.chance(50) {
      elements.remove(at: index)
    } else {
      elements[index] = new
    }
  }

  private func changeExceptions(_ rule: inout NetworkPolicyRule, using random: inout some RandomNumberGenerator) {
    for (index, peer) in rule.peers.enumerated() {
      guard case .ipBlock(var block) = peer else { continue }
      if !block.except.isEmpty, random.chance(50) {
        block.except.removeLast()
      } else if let part = RandomWorld.except(
        in: block.cidr, around: RandomWorld.landmarks(of: self), using: &random)
      {
        block.except.append(part)
      }
      rule.peers[index] = .ipBlock(block)
      return
    }
  }
}

extension Array {
  /// Appends where there is none.
  fileprivate mutating func replaceFirst(by element: Element, where isOld: (Element) -> Bool) {
    if let index = firstIndex(where: isOld) { self[index] = element } else { append(element) }
  }
}
