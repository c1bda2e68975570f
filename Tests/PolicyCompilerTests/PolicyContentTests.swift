import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyCompiler

/// A subject is its policies' contents, as numbers: two contents with one number would leave a changed policy unnoticed.
@Suite("Policies that say something else have another number") struct PolicyContentTests {
  /// Each says something else than all others, and many look alike when written one after the other.
  private static let rules: [NetworkPolicyRule] = {
    func selector(_ labels: Labels = [:], _ expressions: LabelSelector.Requirement...) -> LabelSelector {
      LabelSelector(matchLabels: labels, matchExpressions: expressions)
    }
    let selectors = [
      selector(), selector(["app": "Exists"]), selector([:], .init(key: "app", comparison: .exists)),
      selector(["app": "Exists", "b": "c"]), selector(["b": "c"], .init(key: "app", comparison: .exists)),
      selector([:], .init(key: "app", comparison: .doesNotExist)), selector(["app": "DoesNotExist"]),
      selector([:], .init(key: "k", comparison: .isIn, values: ["a", "b", "Exists"])),
      selector(
        [:], .init(key: "k", comparison: .isIn, values: ["a"]), .init(key: "b", comparison: .exists)),
      selector([:], .init(key: "k", comparison: .isNotIn, values: ["a"])),
      selector([:], .init(key: "k", comparison: .isIn, values: ["a"])),
    ]
    var peers: [NetworkPolicyPeer] = selectors.flatMap {
      [.pods($0, namespaces: nil), .pods(nil, namespaces: $0), .pods($0, namespaces: selector())]
    }
    let blocks: [NetworkPolicyPeer?] = [
      .block("10.0.0.0/8"), .block("10.0.0.0/9"), .block("10.0.0.0/8", except: ["10.1.0.0/16"]),
      .block("10.0.0.0/8", except: ["10.1.0.0/16", "10.2.0.0/16"]), .block("0.0.0.0/0"), .block("::/0"),
    ]
    peers += blocks.compactMap { $0 }
    let ports = [
      port(.any), port(.any, .udp), port(.named("xyz")), port(.named("xy")), range(0x7978, 0xff7a), range(80, 80),
      range(80, 81), range(80, 80, .udp),
    ]
    return peers.map { NetworkPolicyRule(peers: [$0]) } + ports.map { NetworkPolicyRule(ports: [$0]) } + [
      NetworkPolicyRule(), NetworkPolicyRule(peers: [.own(), .all()]),
      NetworkPolicyRule(peers: [.block("10.0.0.0/8"), .block("10.1.0.0/16")].compactMap { $0 }),
      NetworkPolicyRule(peers: [.own()], ports: [port(.any)]),
    ]
  }()

  private static func port(_ number: NetworkPolicyPort.Number, _ proto: L4Protocol = .tcp) -> NetworkPolicyPort {
    NetworkPolicyPort(proto: proto, port: number)
  }

  private static func range(_ first: UInt16, _ last: UInt16, _ proto: L4Protocol = .tcp) -> NetworkPolicyPort {
    guard let first = Port(first), let last = Port(last) else { return port(.any, proto) }
    return port(.range(first...last), proto)
  }

  private static func policy(_ rules: [NetworkPolicyRule]) -> NetworkPolicy {
    var policy = NetworkPolicy(key: ObjectKey(namespace: "shop", name: "p"))
    (policy.ingress, policy.egress) = (rules, rules)
    return policy
  }

  @Test("each rule by itself, two as one or as two, and in either order")
  func rules() {
    var contents: [UInt64: [NetworkPolicyRule]] = [:]
    func note(_ rules: [NetworkPolicyRule]) {
      let number = Self.policy(rules).contentHash(.ingress)
      #expect(contents[number] == nil, "\(rules) and \(contents[number] ?? [])")
      contents[number] = rules
      #expect(Self.policy(rules).contentHash(.egress) == number)
    }
    note([])
    for rule in Self.rules { note([rule]) }
    for (first, second) in zip(Self.rules, Self.rules.dropFirst()) {
      note([first, second])
      note([second, first])
    }
    #expect(contents.count > 100)
  }

  @Test("its direction's rules and its mode, and not whom it selects")
  func rest() {
    let plain = Self.policy([NetworkPolicyRule()])
    var audit = plain
    audit.mode = .audit
    #expect(audit.contentHash(.ingress) != plain.contentHash(.ingress))
    var narrower = plain
    narrower.podSelector = LabelSelector(matchLabels: ["app": "web"])
    #expect(narrower.contentHash(.ingress) == plain.contentHash(.ingress))
    var inward = plain
    inward.egress = []
    #expect(inward.contentHash(.ingress) == plain.contentHash(.ingress))
    #expect(inward.contentHash(.egress) != plain.contentHash(.egress))
  }

  @Test("a policy that changes from a label's value to its existence means the latter")
  func changed() {
    var cluster = SmallCluster()
    cluster.apply(cluster.pod("shop/api", isHere: true), cluster.pod("shop/web", ["app": "web"]))
    cluster.apply(SmallCluster.policy("shop/p", ingress: [.peers(.own(["app": "Exists"]))]))
    #expect(!cluster.allows("shop/web", "shop/api"))
    let exists = LabelSelector(matchExpressions: [.init(key: "app", comparison: .exists)])
    cluster.apply(SmallCluster.policy("shop/p", ingress: [.peers(.pods(exists, namespaces: nil))]))
    #expect(cluster.allows("shop/web", "shop/api"))
  }
}
