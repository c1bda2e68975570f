import KubernetesObjects
import NetworkTypes

/// From a world in which something fails to a small one in which it still does: for people to read.
enum Shrink {
  /// Takes away whatever can go, one thing at a time, large things first, until nothing can.
  ///
  /// - Parameters:
  ///   - world: one that fails.
  ///   - fails: asked of many worlds, each one that an API server could hold; must answer the same each time.
  /// - Returns: a world that fails, while every one of `simpler(than: it)` does not.
  static func minimal(_ world: PolicyWorld, fails: (PolicyWorld) -> Bool) -> PolicyWorld {
    var best = world
    var isDone = false
    while !isDone {
      isDone = true
      // From the end: taking an element away leaves the places of those before it, and so of the steps to come.
      for list in Lists.allCases {
        for place in list.places(best).reversed() {
          while let simpler = list.simpler(best, at: place).first(where: fails) {
            best = simpler
            isDone = false
            // What remains at that place may have more to give, if there is still something.
            guard list.places(best).contains(place) else { break }
          }
        }
      }
    }
    return best
  }

  /// All worlds that lack one thing.
  static func simpler(than world: PolicyWorld) -> [PolicyWorld] {
    Lists.allCases.flatMap { list in list.places(world).flatMap { list.simpler(world, at: $0) } }
  }

  private enum Lists: CaseIterable {
    case namespaces, policies, pods, nodes

    func places(_ world: PolicyWorld) -> Range<Int> {
      switch self {
      case .namespaces: world.namespaces.indices
      case .policies: world.policies.indices
      case .pods: world.pods.indices
      case .nodes: world.nodes.indices
      }
    }

    /// Without the object at that place if it can be missed, then with less of it.
    func simpler(_ world: PolicyWorld, at place: Int) -> [PolicyWorld] {
      switch self {
      case .namespaces:
        // With all that is in it: nothing lives in a namespace that does not exist.
        let name = world.namespaces[place].name
        var without = world
        without.namespaces.remove(at: place)
        without.pods.removeAll { $0.key.namespace == name }
        without.policies.removeAll { $0.key.namespace == name }
        return [without] + world.namespaces[place].simpler.map { world.with(\.namespaces, place, $0) }
      case .policies:
        return [world.without(\.policies, place)]
          + world.policies[place].simpler.map { world.with(\.policies, place, $0) }
      case .pods:
        return [world.without(\.pods, place)] + world.pods[place].simpler.map { world.with(\.pods, place, $0) }
      case .nodes:
        let node = world.nodes[place]
        let isNeeded = node.name == world.ownNode || world.pods.contains { $0.nodeName == node.name }
        return (isNeeded ? [] : [world.without(\.nodes, place)]) + node.simpler.map { world.with(\.nodes, place, $0) }
      }
    }
  }
}

/// What lies below a value: a finite number of steps lead from any value to one that has nothing simpler.
private protocol Shrinkable {
  var simpler: [Self] { get }
}

extension Shrinkable {
  fileprivate func with<Value>(_ path: WritableKeyPath<Self, Value>, _ value: Value) -> Self {
    var result = self
    result[keyPath: path] = value
    return result
  }

  fileprivate func with<Element>(_ path: WritableKeyPath<Self, [Element]>, _ index: Int, _ element: Element) -> Self {
    var result = self
    result[keyPath: path][index] = element
    return result
  }

  fileprivate func without<Element>(_ path: WritableKeyPath<Self, [Element]>, _ index: Int) -> Self {
    var result = self
    result[keyPath: path].remove(at: index)
    return result
  }

  /// Without each one element.
  fileprivate func without<Element>(eachOf path: WritableKeyPath<Self, [Element]>) -> [Self] {
    self[keyPath: path].indices.map { without(path, $0) }
  }

  /// With each one element simpler.
  fileprivate func with<Element: Shrinkable>(eachOf path: WritableKeyPath<Self, [Element]>) -> [Self] {
    self[keyPath: path].enumerated().flatMap { index, element in element.simpler.map { with(path, index, $0) } }
  }

  /// With the flag as it is by default, if it is not.
  fileprivate func with<Value: Equatable>(_ path: WritableKeyPath<Self, Value>, default value: Value) -> [Self] {
    self[keyPath: path] == value ? [] : [with(path, value)]
  }
}

extension PolicyWorld: Shrinkable {
  fileprivate var simpler: [PolicyWorld] { Shrink.simpler(than: self) }
}

extension Node: Shrinkable {
  fileprivate var simpler: [Node] { without(eachOf: \.podCIDRs) + without(eachOf: \.internalIPs) }
}

extension Namespace: Shrinkable {
  fileprivate var simpler: [Namespace] {
    // The API server adds its own label again.
    labels.simpler.filter { $0[WellKnown.namespaceName] != nil }.map { with(\.labels, $0) }
  }
}

extension Labels: Shrinkable {
  fileprivate var simpler: [Labels] {
    pairs.map { pair in
      var labels = self
      labels[pair.key] = nil
      return labels
    }
  }
}

extension Pod: Shrinkable {
  fileprivate var simpler: [Pod] {
    // hostNetwork stays: another address would go with it.
    labels.simpler.map { with(\.labels, $0) } + without(eachOf: \.containerPorts) + without(eachOf: \.podIPs)
      + with(\.isTerminating, default: false)
      + (phase == .pending || phase == .unknown ? [with(\.phase, .running)] : [])
  }
}

extension NetworkPolicy: Shrinkable {
  fileprivate var simpler: [NetworkPolicy] {
    without(eachOf: \.ingress) + without(eachOf: \.egress)
      + (isolatesIngress && isolatesEgress ? [with(\.isolatesIngress, false), with(\.isolatesEgress, false)] : [])
      + with(\.mode, default: .enforce) + podSelector.simpler.map { with(\.podSelector, $0) }
      + with(eachOf: \.ingress) + with(eachOf: \.egress)
  }
}

extension NetworkPolicyRule: Shrinkable {
  fileprivate var simpler: [NetworkPolicyRule] {
    without(eachOf: \.peers) + without(eachOf: \.ports) + with(eachOf: \.peers) + with(eachOf: \.ports)
  }
}

extension NetworkPolicyPeer: Shrinkable {
  fileprivate var simpler: [NetworkPolicyPeer] {
    switch self {
    case .ipBlock(let block): return block.simpler.map { .ipBlock($0) }
    case .pods(let pods, let namespaces):
      var all: [NetworkPolicyPeer] = []
      if pods != nil, namespaces != nil {
        all = [.pods(pods, namespaces: nil), .pods(nil, namespaces: namespaces)]
      }
      all += (pods?.simpler ?? []).map { .pods($0, namespaces: namespaces) }
      all += (namespaces?.simpler ?? []).map { .pods(pods, namespaces: $0) }
      return all
    }
  }
}

extension IPBlock: Shrinkable {
  fileprivate var simpler: [IPBlock] { without(eachOf: \.except) }
}

extension LabelSelector: Shrinkable {
  fileprivate var simpler: [LabelSelector] {
    matchLabels.simpler.map { with(\.matchLabels, $0) } + without(eachOf: \.matchExpressions)
      + with(eachOf: \.matchExpressions)
  }
}

extension LabelSelector.Requirement: Shrinkable {
  /// `In` and `NotIn` need a value.
  fileprivate var simpler: [LabelSelector.Requirement] { values.count > 1 ? without(eachOf: \.values) : [] }
}

extension NetworkPolicyPort: Shrinkable {
  fileprivate var simpler: [NetworkPolicyPort] {
    switch port {
    case .any: []
    case .named: [with(\.port, .any)]
    case .range(let range):
      range.count == 1
        ? [with(\.port, .any)]
        : [range.lowerBound...range.lowerBound, range.upperBound...range.upperBound].map { with(\.port, .range($0)) }
    }
  }
}

extension ClosedRange<Port> {
  fileprivate var count: Int { Int(upperBound.number) - Int(lowerBound.number) + 1 }
}
