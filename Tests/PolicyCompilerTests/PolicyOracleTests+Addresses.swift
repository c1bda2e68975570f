import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

@Suite("The policy oracle: addresses and what they belong to") struct PolicyOracleAddressTests {
  private func from(_ blocks: String, policies: [String: String] = [:]) throws -> PolicyScene {
    try PolicyScene(policies.merging(["np": "{podSelector: {}, ingress: [\(blocks)]}"]) { $1 })
  }

  @Test("policy.md 12: an ipBlock matches addresses, those of pods and nodes included")
  func blocks() throws {
    let scene = try from("{from: [{ipBlock: {cidr: 10.244.2.0/30}}]}, {from: [{ipBlock: {cidr: 172.18.0.2/32}}]}")
    #expect(scene.ingress("shop/db", "shop/web") == "allowed by shop/np rule 0")
    #expect(scene.ingress("bank/web", "shop/web") == "allowed by shop/np rule 0")
    #expect(scene.ingress("lab/bare", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("172.18.0.2", "shop/web") == "allowed by shop/np rule 1")
    #expect(scene.ingress("172.18.0.3", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("10.244.1.255", "shop/web") == "denied, isolated by shop/np")
    // The same pod by its other address.
    #expect(scene.ingress("shop/db v6", "shop/web v6") == "denied, isolated by shop/np")
  }

  @Test("policy.md 12: except subtracts from its own item only")
  func exceptions() throws {
    let whole = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.2/32, 10.244.2.128/25]}}"
    let scene = try from("{from: [\(whole)]}")
    #expect(scene.ingress("shop/db", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("10.244.2.1", "shop/web") == "allowed by shop/np rule 0")
    #expect(scene.ingress("10.244.2.127", "shop/web") == "allowed by shop/np rule 0")
    #expect(scene.ingress("10.244.2.128", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("10.244.2.255", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("10.244.3.0", "shop/web") == "allowed by shop/np rule 0")
    let again = try from("{from: [\(whole), {ipBlock: {cidr: 10.244.2.200/32}}]}, {from: [{podSelector: {}}]}")
    #expect(again.ingress("10.244.2.200", "shop/web") == "allowed by shop/np rule 0")
    #expect(again.ingress("shop/db", "shop/web") == "allowed by shop/np rule 1")
    #expect(again.ingress("10.244.2.201", "shop/web") == "denied, isolated by shop/np")
    let other = try from(
      "{from: [\(whole)]}", policies: ["other": "{ingress: [{from: [{ipBlock: {cidr: 10.244.2.128/25}}]}]}"])
    #expect(other.ingress("10.244.2.201", "shop/web") == "allowed by shop/other rule 0")
  }

  @Test("policy.md 12: a block of one family never covers the other")
  func families() throws {
    let v4 = try from("{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}")
    #expect(v4.ingress("203.0.113.7", "shop/web") == "allowed by shop/np rule 0")
    #expect(v4.ingress("2001:db8::7", "shop/web v6") == "denied, isolated by shop/np")
    let v6 = try from("{from: [{ipBlock: {cidr: '::/0', except: ['2001:db8::/33']}}]}")
    #expect(v6.ingress("203.0.113.7", "shop/web") == "denied, isolated by shop/np")
    #expect(v6.ingress("2001:db8::7", "shop/web v6") == "denied, isolated by shop/np")
    #expect(v6.ingress("2001:db8:8000::7", "shop/web v6") == "allowed by shop/np rule 0")
    #expect(v6.ingress("shop/db v6", "shop/web v6") == "allowed by shop/np rule 0")
  }

  @Test("policy.md 12: leading zeros are decimal, host bits are ignored, mapped addresses are no block")
  func spellings() throws {
    let scene = try from("{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}, {from: [{ipBlock: {cidr: 192.168.7.9/24}}]}")
    #expect(scene.ingress("10.9.9.9", "shop/web") == "allowed by shop/np rule 0")
    #expect(scene.ingress("8.9.9.9", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("192.168.7.200", "shop/web") == "allowed by shop/np rule 1")
    #expect(scene.ingress("192.168.8.0", "shop/web") == "denied, isolated by shop/np")
    for wrong in ["'::ffff:10.0.0.0/104'", "10.0.0.0", "10.0.0.0/33", "web"] {
      #expect(throws: PolicyScene.NotDecoded.self) { try from("{from: [{ipBlock: {cidr: \(wrong)}}]}") }
    }
  }

  @Test("policy.md 12: addresses in no pod's possession match blocks and any-peer rules only")
  func unknownAddresses() throws {
    let scene = try from("{from: [{namespaceSelector: {}}]}, {from: [{ipBlock: {cidr: 10.244.2.64/26}}]}")
    #expect(scene.ingress("10.244.2.99", "shop/web") == "allowed by shop/np rule 1")
    #expect(scene.ingress("10.244.2.63", "shop/web") == "denied, isolated by shop/np")
    #expect(try from("{}").ingress("10.244.2.63", "shop/web") == "allowed by shop/np rule 0")
  }

  @Test("policy.md 13: the pod behind a Service is judged, by the source this node sees: of a NodePort, the other node")
  func services() throws {
    let scene = try from("{from: [{podSelector: {matchLabels: {app: db}}}]}")
    // Behind the translation only the pod is left of the Service: its port is the container's.
    #expect(scene.ingress("shop/db", "shop/web", .tcp(8080)) == "allowed by shop/np rule 0")
    // The same client through the NodePort of the other node, which masquerades.
    #expect(scene.ingress("172.18.0.2", "shop/web", .tcp(8080)) == "denied, isolated by shop/np")
    // An address that no Service translated is a plain address, a ClusterIP too.
    let egress = try PolicyScene([
      "np": "{policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}, {to: [{ipBlock: {cidr: 10.96.0.9/32}}]}]}"
    ])
    #expect(egress.egress("shop/web", "10.96.0.1") == "denied, isolated by shop/np")
    #expect(egress.egress("shop/web", "10.96.0.9") == "allowed by shop/np rule 1")
  }

  @Test("policy.md 14: a pod to itself is always allowed, by each of its addresses and by loopback")
  func itself() throws {
    let scene = try PolicyScene(["np": "{policyTypes: [Ingress, Egress]}"])
    for own in ["shop/web", "shop/web v6"] {
      #expect("\(scene.judge("shop/web", own))" == "egress exempt; ingress exempt")
    }
    for loopback in ["127.0.0.1", "::1"] {
      #expect("\(scene.judge("shop/web", loopback))" == "egress exempt; ingress not applicable")
    }
    #expect(
      "\(scene.judge("shop/web", "shop/api"))"
        == "egress denied, isolated by shop/np; ingress denied, isolated by shop/np")
    // Through the NodePort of another node it is that node that comes.
    #expect(scene.ingress("172.18.0.2", "shop/web") == "denied, isolated by shop/np")
  }

  @Test("policy.md 15: the pod's own node may always reach it, as an origin and not as an address")
  func ownNode() throws {
    let scene = try PolicyScene(["np": "{policyTypes: [Ingress, Egress]}"])
    #expect("\(scene.judge("host", "shop/web"))" == "egress not applicable; ingress exempt")
    #expect("\(scene.judge("host", "shop/web v6", .icmpEcho))" == "egress not applicable; ingress exempt")
    #expect("\(scene.judge("host", "shop/db"))" == "egress not applicable; ingress not applicable")
    // The node's address from a wire is nobody's exemption (and forged: it is dropped before anyone judges it).
    #expect(scene.ingress("172.18.0.1", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("172.18.0.2", "shop/web") == "denied, isolated by shop/np")
    // From the node by an address of its own that is no Node address, as a bridge's.
    let flow = PolicyFlow(
      origin: .host, source: PolicyScene.address("192.168.99.1"), destination: PolicyScene.address("10.244.1.2"),
      proto: .tcp(80))
    #expect(PolicyOracle(scene.world).judge(flow).ingress == .init(.exempt))
  }

  @Test("policy.md 15: egress to the own node is not exempt")
  func toOwnNode() throws {
    let closed = try PolicyScene(["np": "{policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}"])
    #expect("\(closed.judge("shop/web", "172.18.0.1"))" == "egress denied, isolated by shop/np; ingress not applicable")
    #expect(closed.egress("shop/web", "fd00:172:18::1") == "denied, isolated by shop/np")
    let open = try PolicyScene(["np": "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.18.0.1/32}}]}]}"])
    #expect(open.egress("shop/web", "172.18.0.1") == "allowed by shop/np rule 0")
    #expect(open.egress("shop/web", "172.18.0.2") == "denied, isolated by shop/np")
  }

  @Test("policy.md 16: a hostNetwork pod is its node's address: neither selected nor a peer, but in a block")
  func hostNetwork() throws {
    var scene = try from(
      "{from: [{podSelector: {}}, {namespaceSelector: {}}]}, {from: [{ipBlock: {cidr: 172.18.0.2/32}}]}")
    for (name, node, address) in [("shop/agent-1", 1, "172.18.0.1"), ("shop/agent-2", 2, "172.18.0.2")] {
      scene.add(name, node, 0, ["app": "web"], [("http", .tcp, 80)])
      scene.change(name) { pod in
        pod.hostNetwork = true
        pod.podIPs = [PolicyScene.address(address)]
      }
    }
    #expect(scene.ingress("172.18.0.2", "shop/web") == "allowed by shop/np rule 1")
    #expect(scene.ingress("172.18.0.1", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("shop/db", "172.18.0.1") == "not applicable")
    #expect(scene.ingress("host", "172.18.0.1") == "not applicable")
    #expect(scene.egress("shop/agent-1", "shop/db") == "not applicable")
    let named = try PolicyScene([
      "np": "{policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}"
    ])
    scene.world.policies = named.world.policies
    #expect(scene.egress("shop/web", "172.18.0.2") == "denied, isolated by shop/np")
  }

  @Test("policy.md 17: every address of a pod is the pod")
  func bothFamilies() throws {
    var scene = try from("{from: [{podSelector: {matchLabels: {app: db}}}]}")
    for (from, to) in [("shop/db", "shop/web"), ("shop/db v6", "shop/web v6")] {
      #expect(scene.ingress(from, to) == "allowed by shop/np rule 0")
      #expect(scene.ingress(from.replacing("shop/db", with: "lab/bare"), to) == "denied, isolated by shop/np")
    }
    scene.change("shop/db") { $0.podIPs.removeLast() }
    #expect(scene.ingress("fd00:10:244:2::2", "shop/web v6") == "denied, isolated by shop/np")
    scene.change("shop/web") { $0.podIPs.removeFirst() }
    #expect(scene.ingress("shop/db", "10.244.1.2") == "not applicable")
  }

  @Test("policy.md 20: a finished pod is neither subject nor peer", arguments: [PodPhase.succeeded, .failed])
  func finished(phase: PodPhase) throws {
    var scene = try from("{from: [{podSelector: {}}]}")
    scene.change("shop/db") { $0.phase = phase }
    #expect(scene.ingress("10.244.2.2", "shop/web") == "denied, isolated by shop/np")
    scene.change("shop/web") { $0.phase = phase }
    #expect("\(scene.judge("lab/bare", "shop/web"))" == "egress not applicable; ingress not applicable")
    #expect(scene.egress("shop/web", "lab/bare") == "not applicable")
    // Its address is another pod's by now: here, and on the other node.
    scene.add("shop/next", 1, 2, ["app": "next"])
    scene.add("shop/heir", 2, 2, ["app": "heir"])
    #expect(scene.ingress("shop/heir", "shop/next") == "allowed by shop/np rule 0")
    #expect(scene.ingress("lab/bare", "10.244.1.2") == "denied, isolated by shop/np")
  }

  @Test("policy.md 20: pods that end, begin or are not heard of are subject and peer")
  func otherPhases() throws {
    var scene = try from("{from: [{podSelector: {matchLabels: {app: db}}}]}")
    for phase in [PodPhase.pending, .running, .unknown] {
      for isTerminating in [false, true] {
        for name in ["shop/db", "shop/web"] {
          scene.change(name) { pod in
            pod.phase = phase
            pod.isTerminating = isTerminating
          }
        }
        #expect(scene.ingress("shop/db", "shop/web") == "allowed by shop/np rule 0")
        #expect(scene.ingress("lab/bare", "shop/web") == "denied, isolated by shop/np")
      }
    }
  }

  @Test("an address that two running pods claim is the local one's, else that of the key that sorts first")
  func claims() throws {
    var scene = try from("{from: [{podSelector: {matchLabels: {app: mine}}}]}")
    scene.add("shop/aaa", 2, 99, ["app": "mine"])
    scene.add("shop/zzz", 2, 99, ["app": "other"])
    for _ in 0..<2 {
      #expect(scene.ingress("10.244.2.99", "shop/web") == "allowed by shop/np rule 0")
      scene.world.pods.reverse()
    }
    scene.change("shop/zzz") { $0.nodeName = "here" }
    #expect(scene.ingress("10.244.2.99", "shop/web") == "denied, isolated by shop/np")
    #expect(scene.ingress("lab/bare", "10.244.2.99") == "denied, isolated by shop/np")
  }

  @Test("audit policies deny nothing, allow nothing, and say what they would have denied")
  func audit() throws {
    let alone = try PolicyScene(
      ["b": "{podSelector: {}}", "a": "{ingress: [{ports: [{port: 81}]}]}"], audit: ["a", "b"])
    #expect(alone.ingress("shop/db", "shop/web", .tcp(81)) == "not isolated")
    #expect(
      alone.ingress("shop/db", "shop/web", .tcp(80)) == "not isolated, would be denied by audit of shop/a, shop/b")
    #expect(alone.judge("shop/db", "shop/web", .tcp(80)).isAllowed)
    #expect(alone.ingress("host", "shop/web", .tcp(80)) == "exempt")
    #expect(alone.egress("shop/web", "shop/db", .tcp(80)) == "not isolated")
    // Beside an enforced policy, nothing can come to be denied: rules add up. Nor does an audit rule allow.
    let beside = try PolicyScene(
      ["b": "{ingress: [{ports: [{port: 80}]}]}", "a": "{ingress: [{ports: [{port: 80}, {port: 81}]}]}"], audit: ["a"])
    #expect(beside.ingress("shop/db", "shop/web", .tcp(80)) == "allowed by shop/b rule 0")
    #expect(beside.ingress("shop/db", "shop/web", .tcp(81)) == "denied, isolated by shop/b")
    // Each direction by itself, each pod by itself.
    let egress = try PolicyScene(
      ["in": "{podSelector: {}}", "out": "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"],
      audit: ["out"])
    #expect(egress.egress("shop/web", "lab/bare") == "not isolated, would be denied by audit of shop/out")
    #expect(egress.egress("shop/api", "lab/bare") == "not isolated")
    #expect(egress.ingress("lab/bare", "shop/web") == "denied, isolated by shop/in")
  }
}
