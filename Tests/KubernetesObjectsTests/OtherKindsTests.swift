import KubernetesObjects
import NetworkTypes
import Testing

@Suite("Decoding EndpointSlices") struct EndpointSliceDecodingTests {
  @Test("conditions that are not given mean ready, serving and not terminating")
  func defaults() throws {
    let slice = try decodedSlice([:]).slice
    #expect(slice.serviceKey?.description == "shop/api" && slice.family == .v4 && !slice.isHeadless)
    #expect(slice.ports == [EndpointPort(name: "", proto: .tcp, port: Port(8080)!)])
    #expect(slice.endpoints == [Endpoint(address: IPAddress("10.0.0.1")!)])
    #expect(slice.endpoints[0].ready && slice.endpoints[0].serving && !slice.endpoints[0].terminating)
    #expect(slice.lastChangeTriggerTime == nil)
  }

  @Test("every field is read")
  func allFields() throws {
    let slice = try decodedSlice([
      "metadata": [
        "labels": ["service.kubernetes.io/headless": ""],
        "annotations": ["endpoints.kubernetes.io/last-change-trigger-time": "2026-01-31T12:00:00.25Z"],
      ],
      "addressType": "IPv6",
      "ports": [["name": "dns", "protocol": "UDP", "port": 53], ["name": "all"], ["name": "zero", "port": 0]],
      "endpoints": [
        [
          "addresses": ["fd00::1", "fd00::2"], "nodeName": "node-1",
          "conditions": ["ready": false, "serving": true, "terminating": true],
          "hints": ["forZones": [["name": "a"], ["name": "b"]], "forNodes": [["name": "node-1"]]],
        ]
      ],
    ]).slice
    #expect(slice.isHeadless && slice.family == .v6 && slice.lastChangeTriggerTime == 1_769_860_800_250)
    #expect(slice.ports == [EndpointPort(name: "dns", proto: .udp, port: Port(53)!)])
    #expect(
      slice.endpoints == [
        Endpoint(
          address: IPAddress("fd00::1")!, ready: false, serving: true, terminating: true, nodeName: "node-1",
          zoneHints: ["a", "b"], nodeHints: ["node-1"])
      ])
  }

  @Test("an address that cannot be used costs its endpoint only, and is reported")
  func badAddresses() throws {
    let (slice, problems) = try decodedSlice([
      "endpoints": [
        ["addresses": ["10.0.0.1"]], ["addresses": ["127.0.0.1"]], ["addresses": ["169.254.169.254"]],
        ["addresses": ["224.0.0.1"]], ["addresses": ["0.0.0.0"]], ["addresses": ["fd00::1"]], ["addresses": []],
        [:], ["addresses": ["ten"]], ["addresses": ["10.0.0.2"]],
      ]
    ])
    #expect(slice.endpoints.map(\.address) == [IPAddress("10.0.0.1"), IPAddress("10.0.0.2")])
    #expect(
      problems == [
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[1].addresses[0]: must not be a loopback address, is 127.0.0.1",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[2].addresses[0]: must not be a link-local address, is "
          + "169.254.169.254",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[3].addresses[0]: must not be a multicast address, is 224.0.0.1",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[4].addresses[0]: must not be the unspecified address, is "
          + "0.0.0.0",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[5].addresses[0]: must be an IPv4 address as addressType says, "
          + "is fd00::1",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[6].addresses: must have an address",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[7].addresses: is missing",
        "f.yaml:1: EndpointSlice shop/api-1: endpoints[8].addresses[0]: must be an IPv4 or IPv6 address, is \"ten\"",
      ])
  }

  @Test("a slice of host names has no endpoints, and one without its label no Service")
  func fqdn() throws {
    let slice = try decodedSlice(["addressType": "FQDN", "endpoints": [["addresses": ["a.example"]]]]).slice
    #expect(slice.family == nil && slice.endpoints.isEmpty)
    #expect(try decodedSlice(["metadata": ["labels": ["kubernetes.io/service-name": nil]]]).slice.serviceKey == nil)
  }

  @Test("a trigger time that is none is no problem")
  func badTriggerTime() throws {
    let annotations: ManifestNode = ["endpoints.kubernetes.io/last-change-trigger-time": "soon"]
    let (slice, problems) = try decodedSlice(["metadata": ["annotations": annotations]])
    #expect(slice.lastChangeTriggerTime == nil && problems.isEmpty)
  }

  static let wrong: [(ManifestNode, String)] = [
    (["addressType": nil], "addressType: is missing"),
    (["addressType": "ipv4"], "addressType: must be one of IPv4, IPv6, FQDN, is \"ipv4\""),
    (["ports": [["port": 65536]]], "ports[0].port: must be 0 to 65535, is 65536"),
    (["ports": [["port": 1], ["port": 2]]], "ports[1].name: another port has the name \"\""),
    (["ports": [["port": 1, "protocol": "ICMP"]]], "ports[0].protocol: must be one of TCP, UDP, SCTP, is \"ICMP\""),
    (
      ["endpoints": [["addresses": ["10.0.0.1"], "conditions": ["ready": "yes"]]]],
      "endpoints[0].conditions.ready: must be true or false, is \"yes\""
    ),
    (
      ["endpoints": [["addresses": ["10.0.0.1"], "hints": ["forZones": [[:]]]]]],
      "endpoints[0].hints.forZones[0].name: is missing"
    ),
    (
      ["endpoints": .sequence(Array(repeating: [:], count: 1001), line: 1)],
      "endpoints: must be at most 1000 endpoints, are 1001"
    ),
  ]

  @Test("a wrong field is named", arguments: wrong.indices)
  func wrongFields(index: Int) throws {
    #expect(
      try problem(Manifests.slice.with(Self.wrong[index].0)) == "EndpointSlice shop/api-1: \(Self.wrong[index].1)")
  }
}

@Suite("Decoding nodes, pods, namespaces and ranges") struct WorkloadDecodingTests {
  @Test("a node is its internal addresses, pod ranges, zone, taints and whether it goes away")
  func node() throws {
    guard
      case .node(let node) = try decoded(
        Manifests.node.with([
          "metadata": [
            "labels": ["topology.kubernetes.io/zone": "a"], "deletionTimestamp": "2026-01-31T12:00:00+01:00",
          ],
          "spec": [
            "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"],
            "taints": [["key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"]],
          ],
          "status": [
            "addresses": [
              ["type": "Hostname", "address": "node-1"], ["type": "InternalIP", "address": "192.0.2.1"],
              ["type": "InternalIP", "address": "fd00::1"],
            ]
          ],
        ])
      ).object
    else { throw Unexpected(description: "kind") }
    #expect(node.internalIPs == [IPAddress("192.0.2.1"), IPAddress("fd00::1")])
    #expect(node.podCIDRs == [CIDR("10.1.0.0/24"), CIDR("fd01::/64")])
    #expect(node.zone == "a" && node.isBeingDeleted && node.taintKeys == ["ToBeDeletedByClusterAutoscaler"])
    guard case .node(let bare) = try decoded(Manifests.node.with(["spec": ["podCIDR": "10.2.0.0/24"]])).object
    else { throw Unexpected(description: "kind") }
    #expect(bare.podCIDRs == [CIDR("10.2.0.0/24")] && bare.zone == nil && !bare.isBeingDeleted)
  }

  @Test("a pod is its addresses, phase, labels and named ports")
  func pod() throws {
    guard case .pod(let bare) = try decoded(Manifests.pod).object else { throw Unexpected(description: "kind") }
    #expect(bare.phase == .pending && bare.uid == "u-1" && bare.podIPs.isEmpty && bare.nodeName == nil)
    guard
      case .pod(let pod) = try decoded(
        Manifests.pod.with([
          "metadata": ["labels": ["app": "api"], "deletionTimestamp": "2026-01-31T12:00:00Z"],
          "spec": [
            "nodeName": "node-1", "hostNetwork": true,
            "containers": [["ports": [["containerPort": 8080, "name": "http"], ["containerPort": 9]]], [:]],
            "initContainers": [
              ["restartPolicy": "Always", "ports": [["containerPort": 53, "name": "dns", "protocol": "UDP"]]],
              ["ports": [["containerPort": 1, "name": "gone"]]],
            ],
          ],
          "status": ["phase": "Running", "podIP": "10.0.0.1", "podIPs": [["ip": "10.0.0.1"], ["ip": "fd00::1"]]],
        ])
      ).object
    else { throw Unexpected(description: "kind") }
    #expect(pod.nodeName == "node-1" && pod.hostNetwork && pod.isTerminating && pod.phase == .running)
    #expect(pod.podIPs == [IPAddress("10.0.0.1"), IPAddress("fd00::1")] && pod.labels["app"] == "api")
    #expect(
      pod.containerPorts == [
        NamedContainerPort(name: "http", port: Port(8080)!),
        NamedContainerPort(name: "dns", proto: .udp, port: Port(53)!),
      ])
  }

  static let wrong: [(ManifestNode, String)] = [
    (
      Manifests.node.with(["spec": ["podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"]]]),
      "Node node-1: spec.podCIDRs: the first must be the same as podCIDR"
    ),
    (
      Manifests.node.with(["spec": ["podCIDRs": ["10.1.0.0/24", "10.2.0.0/24"]]]),
      "Node node-1: spec.podCIDRs: must have at most one range of each family, has two of IPv4"
    ),
    (
      Manifests.node.with(["status": ["addresses": [["type": "InternalIP", "address": "node"]]]]),
      "Node node-1: status.addresses[0].address: must be an IPv4 or IPv6 address, is \"node\""
    ),
    (
      Manifests.pod.with(["status": ["podIP": "10.0.0.2", "podIPs": [["ip": "10.0.0.1"]]]]),
      "Pod shop/api-0: status.podIPs: the first must be the same as podIP"
    ),
    (
      Manifests.pod.with(["status": ["phase": "Done"]]),
      "Pod shop/api-0: status.phase: must be one of Pending, Running, Succeeded, Failed, Unknown, is \"Done\""
    ),
    (
      Manifests.pod.with(["spec": ["containers": [["ports": [["containerPort": 1, "name": "80"]]]]]]),
      "Pod shop/api-0: spec.containers[0].ports[0].name: must be lower-case letters, digits and single '-', at most 15, "
        + "with a letter, beginning and ending with no '-', is \"80\""
    ),
    (Manifests.serviceCIDR.with(["spec": ["cidrs": []]]), "ServiceCIDR kubernetes: spec.cidrs: is missing"),
    (
      Manifests.serviceCIDR.with(["spec": ["cidrs": ["10.0.0.0/8", "11.0.0.0/8"]]]),
      "ServiceCIDR kubernetes: spec.cidrs: must have at most one range of each family, has two of IPv4"
    ),
    (
      Manifests.serviceCIDR.with(["spec": ["cidrs": ["::ffff:10.0.0.0/104"]]]),
      "ServiceCIDR kubernetes: spec.cidrs[0]: must be an address range such as 10.0.0.0/8 or fd00::/64, is "
        + "\"::ffff:10.0.0.0/104\""
    ),
  ]

  @Test("a wrong field is named", arguments: wrong.indices)
  func wrongFields(index: Int) throws {
    #expect(try problem(Self.wrong[index].0) == Self.wrong[index].1)
  }

  @Test("ranges are read")
  func ranges() throws {
    guard case .serviceCIDR(let range) = try decoded(Manifests.serviceCIDR).object else {
      throw Unexpected(description: "kind")
    }
    #expect(range.cidrs == [CIDR("10.96.0.0/16"), CIDR("fd00:96::/112")])
  }
}
