import KubernetesObjects

// What Sluice reads of each message. Numbers and names are those of the generated.proto files of k8s.io/api and
// k8s.io/apimachinery, which Kubernetes never changes; `pointer` is where the Go types have one.
extension MessageSchema {
  /// Of one object of a kind.
  package static func object(_ kind: ObjectKind) -> MessageSchema {
    switch kind {
    case .service: service
    case .endpointSlice: endpointSlice
    case .node: node
    case .pod: pod
    case .namespace: MessageSchema([1: .message("metadata", objectMeta)])
    case .networkPolicy: networkPolicy
    case .serviceCIDR: serviceCIDR
    }
  }

  // MARK: meta/v1

  private static let objectMeta = MessageSchema([
    1: .text("name"), 3: .text("namespace"), 5: .text("uid"), 6: .text("resourceVersion"),
    8: .time("creationTimestamp"),
    9: .time("deletionTimestamp").pointer, 11: .map("labels"), 12: .map("annotations"),
  ])

  package static let listMeta = MessageSchema([
    2: .text("resourceVersion"), 3: .text("continue"), 4: .number("remainingItemCount").pointer,
  ])

  private static let labelSelector = MessageSchema([
    1: .map("matchLabels"),
    2: .message(
      "matchExpressions", MessageSchema([1: .text("key"), 2: .text("operator"), 3: .text("values").repeated])
    ).repeated,
  ])

  package static let status = MessageSchema([
    1: .message("metadata", listMeta), 2: .text("status"), 3: .text("message"), 4: .text("reason"),
    5: .message("details", MessageSchema([5: .number("retryAfterSeconds")])).pointer, 6: .number("code"),
  ])

  /// Of any object that says no more than how far a watch is.
  static let bookmark = MessageSchema([
    1: .message("metadata", MessageSchema([6: .text("resourceVersion"), 12: .map("annotations")]))
  ])

  // MARK: core/v1

  private static let service = MessageSchema([
    1: .message("metadata", objectMeta),
    2: .message(
      "spec",
      MessageSchema([
        1: .message(
          "ports",
          MessageSchema([
            1: .text("name"), 2: .text("protocol"), 3: .number("port"), 4: .numberOrText("targetPort"),
            5: .number("nodePort"),
          ])
        ).repeated,
        2: .map("selector"), 3: .text("clusterIP"), 4: .text("type"), 5: .text("externalIPs").repeated,
        7: .text("sessionAffinity"), 9: .text("loadBalancerSourceRanges").repeated, 11: .text("externalTrafficPolicy"),
        12: .number("healthCheckNodePort"), 13: .flag("publishNotReadyAddresses"),
        14: .message(
          "sessionAffinityConfig",
          MessageSchema([1: .message("clientIP", MessageSchema([1: .number("timeoutSeconds").pointer])).pointer])
        ).pointer,
        18: .text("clusterIPs").repeated, 22: .text("internalTrafficPolicy").pointer,
      ])),
    3: .message(
      "status",
      MessageSchema([
        1: .message(
          "loadBalancer",
          MessageSchema([
            1: .message(
              "ingress", MessageSchema([1: .text("ip"), 2: .text("hostname"), 3: .text("ipMode").pointer])
            ).repeated
          ]))
      ])),
  ])

  private static let node = MessageSchema([
    1: .message("metadata", objectMeta),
    2: .message(
      "spec",
      MessageSchema([
        1: .text("podCIDR"), 5: .message("taints", MessageSchema([1: .text("key")])).repeated,
        7: .text("podCIDRs").repeated,
      ])),
    3: .message(
      "status",
      MessageSchema([5: .message("addresses", MessageSchema([1: .text("type"), 2: .text("address")])).repeated])),
  ])

  private static let container = MessageSchema([
    6: .message(
      "ports", MessageSchema([1: .text("name"), 3: .number("containerPort"), 4: .text("protocol")])
    ).repeated,
    24: .text("restartPolicy").pointer,
  ])

  private static let pod = MessageSchema([
    1: .message("metadata", objectMeta),
    2: .message(
      "spec",
      MessageSchema([
        2: .message("containers", container).repeated, 10: .text("nodeName"), 11: .flag("hostNetwork"),
        20: .message("initContainers", container).repeated,
      ])),
    3: .message(
      "status",
      MessageSchema([
        1: .text("phase"), 6: .text("podIP"), 12: .message("podIPs", MessageSchema([1: .text("ip")])).repeated,
      ])),
  ])

  // MARK: discovery.k8s.io/v1

  private static let hint = MessageSchema([1: .text("name")])

  private static let endpointSlice = MessageSchema([
    1: .message("metadata", objectMeta),
    2: .message(
      "endpoints",
      MessageSchema([
        1: .text("addresses").repeated,
        2: .message(
          "conditions",
          MessageSchema([1: .flag("ready").pointer, 2: .flag("serving").pointer, 3: .flag("terminating").pointer])),
        6: .text("nodeName").pointer,
        8: .message(
          "hints",
          MessageSchema([1: .message("forZones", hint).repeated, 2: .message("forNodes", hint).repeated])
        ).pointer,
      ])
    ).repeated,
    3: .message(
      "ports",
      MessageSchema([1: .text("name").pointer, 2: .text("protocol").pointer, 3: .number("port").pointer])
    ).repeated,
    4: .text("addressType"),
  ])

  // MARK: networking.k8s.io/v1

  private static let policyPort = MessageSchema([
    1: .text("protocol").pointer, 2: .numberOrText("port").pointer, 3: .number("endPort").pointer,
  ])

  private static let policyPeer = MessageSchema([
    1: .message("podSelector", labelSelector).pointer, 2: .message("namespaceSelector", labelSelector).pointer,
    3: .message("ipBlock", MessageSchema([1: .text("cidr"), 2: .text("except").repeated])).pointer,
  ])

  private static let networkPolicy = MessageSchema([
    1: .message("metadata", objectMeta),
    2: .message(
      "spec",
      MessageSchema([
        1: .message("podSelector", labelSelector),
        2: .message(
          "ingress",
          MessageSchema([1: .message("ports", policyPort).repeated, 2: .message("from", policyPeer).repeated])
        ).repeated,
        3: .message(
          "egress",
          MessageSchema([1: .message("ports", policyPort).repeated, 2: .message("to", policyPeer).repeated])
        ).repeated,
        4: .text("policyTypes").repeated,
      ])),
  ])

  private static let serviceCIDR = MessageSchema([
    1: .message("metadata", objectMeta), 2: .message("spec", MessageSchema([1: .text("cidrs").repeated])),
  ])
}
