import KubernetesObjects
import NetworkTypes
import Testing

@Suite("Decoding Services") struct ServiceDecodingTests {
  @Test("fields that are not given get the API server's defaults")
  func defaults() throws {
    let service = try decodedService([:])
    #expect(service.key.description == "shop/api")
    #expect(service.type == .clusterIP && !service.isHeadless)
    #expect(service.clusterIPs == [IPAddress("10.96.0.1")])
    #expect(service.ports == [ServicePort(name: "", proto: .tcp, port: Port(80)!)])
    #expect(service.affinityTimeoutSeconds == nil && service.creationTimestamp == 0 && service.proxyName == nil)
    #expect(service.internalTrafficPolicy == .cluster && service.externalTrafficPolicy == .cluster)
    #expect(service.loadBalancerIPs.isEmpty && service.healthCheckNodePort == nil)
  }

  @Test("how endpoints are chosen stands in an annotation")
  func loadBalancing() throws {
    func chosen(_ annotations: ManifestNode) throws -> LoadBalancing? {
      let object = try decoded(Manifests.service.with(["metadata": ["annotations": annotations]])).object
      guard case .service(let service) = object else { return nil }
      return service.loadBalancing
    }
    for absent in [nil, [:], ["example.com/load-balancing": "maglev"]] as [ManifestNode] {
      #expect(try chosen(absent) == .random)
    }
    #expect(try chosen(["sluice.dev/load-balancing": "maglev"]) == .maglev)
    #expect(try chosen(["sluice.dev/load-balancing": "random"]) == .random)
    #expect(
      try problem(Manifests.service.with(["metadata": ["annotations": ["sluice.dev/load-balancing": "Maglev"]]]))
        == "Service shop/api: metadata.annotations[sluice.dev/load-balancing]: must be one of random, maglev, is \"Maglev\""
    )
  }

  @Test("every field is read")
  func allFields() throws {
    let manifest = Manifests.service.with([
      "metadata": [
        "creationTimestamp": "2026-01-31T12:00:00Z", "labels": ["service.kubernetes.io/service-proxy-name": "mine"],
      ],
      "spec": [
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "selector": ["app": "api", "tier": "back"],
        "ports": [
          ["name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053, "targetPort": "dns-udp"],
          ["name": "dns-tcp", "port": 53, "nodePort": 30053, "targetPort": 5353],
          ["name": "sig", "protocol": "SCTP", "port": 53, "nodePort": 0, "targetPort": 0],
        ],
        "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": ["clientIP": ["timeoutSeconds": 60]], "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "publishNotReadyAddresses": true,
        "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"],
      ],
      "status": [
        "loadBalancer": [
          "ingress": [
            ["ip": "198.51.100.1"], ["ip": "198.51.100.2", "ipMode": "VIP"], ["ip": "198.51.100.3", "ipMode": "Proxy"],
            ["hostname": "lb.example"],
          ]
        ]
      ],
    ])
    guard case .service(let service) = try decoded(manifest).object else { throw Unexpected(description: "kind") }
    #expect(service.creationTimestamp == 1_769_860_800 && service.proxyName == "mine")
    #expect(service.type == .loadBalancer && service.clusterIPs == [IPAddress("10.96.0.1"), IPAddress("fd00::1")])
    #expect(service.selector.description == "app=api,tier=back")
    #expect(
      service.ports == [
        ServicePort(name: "dns", proto: .udp, port: Port(53)!, nodePort: Port(30053)),
        ServicePort(name: "dns-tcp", proto: .tcp, port: Port(53)!, nodePort: Port(30053)),
        ServicePort(name: "sig", proto: .sctp, port: Port(53)!),
      ])
    #expect(service.externalIPs == [IPAddress("192.0.2.1")] && service.affinityTimeoutSeconds == 60)
    #expect(service.externalTrafficPolicy == .local && service.internalTrafficPolicy == .local)
    #expect(service.healthCheckNodePort == Port(32000) && service.publishNotReadyAddresses)
    #expect(service.loadBalancerSourceRanges == [CIDR("10.0.0.0/8"), CIDR("fd00::/8")])
    #expect(service.loadBalancerIPs == [IPAddress("198.51.100.1"), IPAddress("198.51.100.2")])
  }

  @Test("clusterIP and clusterIPs say the same, and either is enough")
  func clusterIPs() throws {
    #expect(try decodedService(["clusterIP": nil, "clusterIPs": ["fd00::1"]]).clusterIPs == [IPAddress("fd00::1")])
    let headless = try decodedService(["clusterIP": "None", "clusterIPs": ["None"], "ports": nil])
    #expect(headless.isHeadless && headless.clusterIPs.isEmpty && headless.ports.isEmpty)
    let unallocated = try decodedService(["clusterIP": ""])
    #expect(!unallocated.isHeadless && unallocated.clusterIPs.isEmpty)
    let named = try decodedService(["type": "ExternalName", "clusterIP": "", "ports": nil, "externalName": "a.b"])
    #expect(named.type == .externalName && named.clusterIPs.isEmpty)
  }

  @Test("session affinity lasts three hours where no time is given")
  func affinity() throws {
    #expect(try decodedService(["sessionAffinity": "ClientIP"]).affinityTimeoutSeconds == 10800)
    let given = ["clientIP": ["timeoutSeconds": 86400]] as ManifestNode
    let service = try decodedService(["sessionAffinity": "ClientIP", "sessionAffinityConfig": given])
    #expect(service.affinityTimeoutSeconds == 86400)
    #expect(try decodedService(["sessionAffinity": "None"]).affinityTimeoutSeconds == nil)
  }

  @Test("a number is what its field takes for one")
  func numbers() throws {
    for (text, port) in [("80", 80), ("0x50", 80), ("8e1", 80), ("80.0", 80), ("0120", 80), ("0o120", 80), ("1_0", 10)]
    {
      #expect(try decodedService(["ports": [["port": .plain(text)]]]).ports.first?.port == Port(port), "\(text)")
    }
  }

  static let wrong: [(ManifestNode, String)] = [
    (["ports": nil], "spec.ports: is missing: a Service with an address needs at least one port"),
    (["ports": [["port": 70000]]], "spec.ports[0].port: must be 1 to 65535, is 70000"),
    (["ports": [["port": 0]]], "spec.ports[0].port: must be 1 to 65535, is 0"),
    (["ports": [["port": "80"]]], "spec.ports[0].port: must be a whole number, is \"80\""),
    (["ports": [["port": .plain("80.5")]]], "spec.ports[0].port: must be a whole number, is 80.5"),
    (["ports": [["port": .plain("http")]]], "spec.ports[0].port: must be a whole number, is http"),
    (["ports": [nil]], "spec.ports[0].port: is missing"),
    (["ports": ["port": 80]], "spec.ports: must be a list, is a mapping"),
    (["ports": [80]], "spec.ports[0]: must be a mapping, is 80"),
    (
      ["ports": [["port": 80, "protocol": "tcp"]]],
      "spec.ports[0].protocol: must be one of TCP, UDP, SCTP, is \"tcp\""
    ),
    (
      ["ports": [["port": 80, "name": "a"], ["port": 81]]],
      "spec.ports[1].name: is missing: with several ports each needs a name"
    ),
    (
      ["ports": [["port": 80, "name": "a"], ["port": 81, "name": "a"]]],
      "spec.ports[1].name: another port has the name \"a\""
    ),
    (
      ["ports": [["port": 80, "name": "a"], ["port": 80, "name": "b"]]],
      "spec.ports[1].port: another port has the number 80 and TCP"
    ),
    (
      ["ports": [["port": 80, "name": "A_b"]]],
      "spec.ports[0].name: must be lower-case letters, digits and '-', at most 63, beginning and ending with no '-', "
        + "is \"A_b\""
    ),
    (
      ["ports": [["port": 80, "targetPort": "8080"]]],
      "spec.ports[0].targetPort: must be a number from 1 to 65535 or a port's name, is \"8080\""
    ),
    (["ports": [["port": 80, "targetPort": 65536]]], "spec.ports[0].targetPort: must be 1 to 65535, is 65536"),
    (
      ["ports": [["port": 80, "nodePort": 30000]]],
      "spec.ports[0].nodePort: needs type NodePort or LoadBalancer, the type is ClusterIP"
    ),
    (
      [
        "type": "NodePort",
        "ports": [["port": 80, "name": "a", "nodePort": 30000], ["port": 81, "name": "b", "nodePort": 30000]],
      ],
      "spec.ports[1].nodePort: another port has the nodePort 30000 and TCP"
    ),
    (["type": "Cluster"], "spec.type: must be one of ClusterIP, NodePort, LoadBalancer, ExternalName, is \"Cluster\""),
    (["clusterIP": "10.96.0.256"], "spec.clusterIP: must be an IPv4 or IPv6 address, or None, is \"10.96.0.256\""),
    (["clusterIPs": ["10.96.0.2"]], "spec.clusterIPs: the first must be the same as clusterIP"),
    (
      ["clusterIPs": ["10.96.0.1", "10.96.0.2"]],
      "spec.clusterIPs: must have at most one address of each family, has two of IPv4"
    ),
    (["clusterIPs": ["10.96.0.1", "None"]], "spec.clusterIPs: None must stand alone"),
    (["type": "NodePort", "clusterIP": "None"], "spec.clusterIP: None needs type ClusterIP, the type is NodePort"),
    (["type": "ExternalName"], "spec.clusterIP: must not be set with type ExternalName"),
    (["externalIPs": ["127.0.0.1"]], "spec.externalIPs[0]: must not be a loopback address, is 127.0.0.1"),
    (["externalIPs": ["10.0.0.1", "fe80::1"]], "spec.externalIPs[1]: must not be a link-local address, is fe80::1"),
    (
      ["externalIPs": ["::ffff:1.2.3.4"]], "spec.externalIPs[0]: must be an IPv4 or IPv6 address, is \"::ffff:1.2.3.4\""
    ),
    (["sessionAffinity": "Cookie"], "spec.sessionAffinity: must be one of None, ClientIP, is \"Cookie\""),
    (
      ["sessionAffinity": "ClientIP", "sessionAffinityConfig": ["clientIP": ["timeoutSeconds": 0]]],
      "spec.sessionAffinityConfig.clientIP.timeoutSeconds: must be 1 to 86400, is 0"
    ),
    (
      ["sessionAffinity": "ClientIP", "sessionAffinityConfig": ["clientIP": ["timeoutSeconds": 86401]]],
      "spec.sessionAffinityConfig.clientIP.timeoutSeconds: must be 1 to 86400, is 86401"
    ),
    (["sessionAffinityConfig": ["clientIP": [:]]], "spec.sessionAffinityConfig: needs sessionAffinity ClientIP"),
    (
      ["externalTrafficPolicy": "Local"],
      "spec.externalTrafficPolicy: needs type NodePort or LoadBalancer, or externalIPs; the type is ClusterIP"
    ),
    (["internalTrafficPolicy": "Node"], "spec.internalTrafficPolicy: must be one of Cluster, Local, is \"Node\""),
    (
      ["type": "LoadBalancer", "healthCheckNodePort": 32000],
      "spec.healthCheckNodePort: needs type LoadBalancer and externalTrafficPolicy Local"
    ),
    (
      ["loadBalancerSourceRanges": ["10.0.0.0/8"]],
      "spec.loadBalancerSourceRanges: needs type LoadBalancer, the type is ClusterIP"
    ),
    (
      ["type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]],
      "spec.loadBalancerSourceRanges[0]: must be an address range such as 10.0.0.0/8 or fd00::/64, is \"10.0.0.0\""
    ),
    (["publishNotReadyAddresses": "true"], "spec.publishNotReadyAddresses: must be true or false, is \"true\""),
    (
      ["selector": ["version": 1]],
      "spec.selector[version]: must be text, is the number 1 (write it in quotes: \"1\")"
    ),
  ]

  @Test("a wrong field is named, with what would be right", arguments: wrong.indices)
  func wrongFields(index: Int) throws {
    let (spec, message) = Self.wrong[index]
    #expect(try problem(Manifests.service.with(["spec": spec])) == "Service shop/api: \(message)")
  }

  @Test("a wrong status is named")
  func wrongStatus() throws {
    func status(_ type: ManifestNode, _ ingress: ManifestNode) throws -> String {
      try problem(
        Manifests.service.with(["spec": ["type": type], "status": ["loadBalancer": ["ingress": [ingress]]]]))
    }
    #expect(
      try status("ClusterIP", ["ip": "1.2.3.4"])
        == "Service shop/api: status.loadBalancer.ingress: needs spec.type LoadBalancer, the type is ClusterIP")
    #expect(
      try status("LoadBalancer", ["ip": "1.2.3.4", "ipMode": "Tunnel"])
        == "Service shop/api: status.loadBalancer.ingress[0].ipMode: must be one of VIP, Proxy, is \"Tunnel\"")
    #expect(
      try status("LoadBalancer", ["hostname": "a", "ipMode": "VIP"])
        == "Service shop/api: status.loadBalancer.ingress[0].ipMode: needs ip")
    #expect(
      try status("LoadBalancer", ["ip": "one"])
        == "Service shop/api: status.loadBalancer.ingress[0].ip: must be an IPv4 or IPv6 address, is \"one\"")
  }
}
