import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

@Suite("Worlds as manifests") struct WorldYAMLTests {
  @Test("a world that is written and read by the manifest folder is the same world", .timeLimit(.minutes(5)))
  func roundTrip() async throws {
    for seed in 0..<40 as Range<UInt64> {
      var random = WorldRandom(seed: seed)
      var world = RandomWorld.make(using: &random, size: seed % 10 == 0 ? .medium : .small)
      for _ in 0..<10 { world.mutate(using: &random) }
      var copy = PolicyWorld(ownNode: world.ownNode)
      for object in try await objects(inManifests: WorldYAML.documents(world)) { copy.apply(.upsert(object)) }
      #expect(copy.nodes == world.nodes, "seed \(seed)")
      #expect(copy.namespaces == world.namespaces, "seed \(seed)")
      #expect(copy.pods == world.pods, "seed \(seed)")
      #expect(copy.policies == world.policies, "seed \(seed)")
    }
  }

  @Test("the text is what a person would write")
  func example() throws {
    var policy = NetworkPolicy(key: ObjectKey(namespace: "shop", name: "np"))
    policy.podSelector.matchLabels = ["app": "web", "tier": ""]
    policy.podSelector.matchExpressions = [
      .init(key: "env", comparison: .isNotIn, values: ["prod", "yes"]), .init(key: "ghost", comparison: .doesNotExist),
    ]
    policy.isolatesIngress = true
    policy.isolatesEgress = true
    let (low, high) = (try #require(Port(80)), try #require(Port(90)))
    policy.ingress = [
      NetworkPolicyRule(
        peers: [
          .ipBlock(
            IPBlock(cidr: try #require(CIDR("::/0")), except: [try #require(CIDR("fd00:10:244:1::/64"))])),
          .pods(LabelSelector(), namespaces: nil), .pods(nil, namespaces: LabelSelector(matchLabels: ["team": "red"])),
        ],
        ports: [
          NetworkPolicyPort(), NetworkPolicyPort(proto: .udp, port: .named("dns")),
          NetworkPolicyPort(proto: .sctp, port: .range(low...low)), NetworkPolicyPort(port: .range(low...high)),
        ]), NetworkPolicyRule(),
    ]
    policy.mode = .audit
    #expect(
      WorldYAML.document(.networkPolicy(policy)) == """
        ---
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: "np"
          namespace: "shop"
          annotations: {"sluice.dev/mode": "audit"}
        spec:
          podSelector: {matchLabels: {"app": "web", "tier": ""}, matchExpressions: \
        [{key: "env", operator: NotIn, values: ["prod", "yes"]}, {key: "ghost", operator: DoesNotExist}]}
          policyTypes: [Ingress, Egress]
          ingress:
          - from:
            - ipBlock: {cidr: "::/0", except: ["fd00:10:244:1::/64"]}
            - {podSelector: {}}
            - {namespaceSelector: {matchLabels: {"team": "red"}}}
            ports: [{protocol: TCP}, {protocol: UDP, port: "dns"}, {protocol: SCTP, port: 80}, \
        {protocol: TCP, port: 80, endPort: 90}]
          - {}
          egress: []

        """)
    var pod = Pod(key: ObjectKey(namespace: "shop", name: "web"))
    pod.labels = ["env": "yes"]
    pod.nodeName = "node-1"
    pod.podIPs = [try #require(IPAddress("10.244.1.2")), try #require(IPAddress("fd00:10:244:1::2"))]
    pod.phase = .running
    pod.isTerminating = true
    pod.containerPorts = [
      NamedContainerPort(name: "http", port: low), NamedContainerPort(name: "dns", proto: .udp, port: low),
      NamedContainerPort(name: "http", port: high),
    ]
    #expect(
      WorldYAML.document(.pod(pod)) == """
        ---
        apiVersion: v1
        kind: Pod
        metadata:
          name: "web"
          namespace: "shop"
          labels: {"env": "yes"}
          deletionTimestamp: "2026-01-31T12:00:00Z"
        spec:
          nodeName: "node-1"
          containers:
          - name: "c0"
            image: "registry.k8s.io/pause:3.10"
            ports:
            - {name: "http", protocol: TCP, containerPort: 80}
            - {name: "dns", protocol: UDP, containerPort: 80}
          - name: "c1"
            image: "registry.k8s.io/pause:3.10"
            ports:
            - {name: "http", protocol: TCP, containerPort: 90}
        status:
          phase: Running
          podIP: "10.244.1.2"
          podIPs: [{ip: "10.244.1.2"}, {ip: "fd00:10:244:1::2"}]

        """)
  }
}
