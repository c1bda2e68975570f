import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// ICMP under policy (policy.md, line 18): what neighbour discovery and live flows need passes, all else follows rules.
@Suite struct PolicyICMPTests {
  private static let denyAll = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
  /// Taken in by every device of the node.
  private static let allNodes = ip("ff02::1")
  private static let linkLocal = ip("fe80::77")

  /// A solicitation or advertisement of a router or neighbour.
  private static func discovery(_ node: PolicyNode, _ type: UInt8) -> ProbeContent {
    // Those about neighbours name a target; the last eight bytes stand where options would.
    let target = type == 135 || type == 136 ? node.address("host", .v6).bytes : []
    return .icmp(type: type, code: 0, body: target)
  }

  @Test("router and neighbour solicitations and advertisements pass an isolated pod with hop limit 255 only")
  func neighbourDiscovery() throws {
    try inNode { findings in
      let node = try PolicyNode(try PolicyScene(["deny": Self.denyAll]).world)
      var trials: [PolicyTrial] = []
      for type: UInt8 in [133, 135, 136] {
        for source in [node.address("shop/web", .v6), Self.linkLocal, .unspecified(.v6)] {
          for destination in [Self.allNodes, node.address("host", .v6)] {
            for hopLimit: UInt8 in [255, 254, 64, 1] {
              // The kernel itself takes nothing from nobody that is sent to one address and no solicitation.
              if source.isUnspecified, !destination.isMulticast { continue }
              let packet = ProbePacket(
                source: source, destination: destination, content: Self.discovery(node, type), hopLimit: hopLimit)
              trials.append(
                PolicyTrial(
                  "type \(type), hop limit \(hopLimit)", packet, from: PolicyNode.pod("shop/web"),
                  to: hopLimit == 255 ? .node : nil))
            }
          }
        }
        let forged = ProbePacket(
          source: node.address("shop/api", .v6), destination: Self.allNodes, content: Self.discovery(node, type),
          hopLimit: 255)
        trials.append(PolicyTrial("type \(type), forged", forged, from: PolicyNode.pod("shop/web"), to: nil))
      }
      try node.check(trials, &findings)
      let counted =
        try node.counted(chain: "deny-egress") + node.counted(chain: "drop-forged")
        + node.counted(chain: "drop-forged-advertisement")
      let dropped = trials.count { $0.to == nil }
      findings.expect(counted == dropped, "\(counted) of \(dropped) counted")
    }
  }

  @Test("multicast reports pass an isolated pod, queries and other ICMP do not")
  func multicastReports() throws {
    try inNode { findings in
      let node = try PolicyNode(try PolicyScene(["deny": Self.denyAll]).world)
      let trials = [UInt8(131), 132, 143, 130, 128, 144].map { type in
        PolicyTrial(
          "type \(type)",
          ProbePacket(
            source: Self.linkLocal, destination: Self.allNodes,
            content: .icmp(type: type, code: 0, body: [UInt8](repeating: 0, count: 16)), hopLimit: 1),
          from: PolicyNode.pod("shop/web"), to: [131, 132, 143].contains(type) ? .node : nil)
      }
      try node.check(trials, &findings)
    }
  }

  @Test("router advertisements and redirects of a pod never pass, isolated or not")
  func routersOnly() throws {
    for policies in [[:], ["deny": Self.denyAll]] {
      try inNode { findings in
        let node = try PolicyNode(try PolicyScene(policies).world)
        var trials: [PolicyTrial] = []
        for type: UInt8 in [134, 137] {
          for source in [Self.linkLocal, node.address("shop/web", .v6)] {
            for destination in [Self.allNodes, node.address("host", .v6), node.address("shop/api", .v6)] {
              for hopLimit: UInt8 in [255, 64] {
                let content = ProbeContent.icmp(type: type, code: 0, body: [UInt8](repeating: 0, count: 32))
                trials.append(
                  PolicyTrial(
                    "type \(type) to \(destination)",
                    ProbePacket(source: source, destination: destination, content: content, hopLimit: hopLimit),
                    from: PolicyNode.pod("shop/web"), to: nil))
              }
            }
          }
        }
        try node.check(trials, &findings)
        let counted = try node.counted(chain: "drop-forged-advertisement")
        findings.expect(counted == trials.count, "\(counted) of \(trials.count) counted")
      }
    }
  }

  @Test("echo follows rules without ports, whatever other rules say of ports", arguments: IPFamily.allCases)
  func echo(family: IPFamily) throws {
    let withPorts = """
      {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress],
       ingress: [{from: [{podSelector: {}}], ports: [{port: 1, endPort: 65535}, {protocol: UDP}]}],
       egress: [{to: [{podSelector: {}}], ports: [{}, {protocol: UDP}, {protocol: SCTP}]}]}
      """
    let withoutPorts = """
      {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress],
       ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}
      """
    for (policy, arrives) in [(withPorts, false), (withoutPorts, true)] {
      try inNode { findings in
        let node = try PolicyNode(try PolicyScene(["np": policy]).world)
        var trials: [PolicyTrial] = []
        for (from, to) in [("shop/web", "shop/api"), ("shop/api", "shop/web"), ("shop/db", "shop/api")] {
          trials.append(node.trial(from, to, .icmpEcho, family, arrives: arrives))
          trials.append(node.trial(from, to, .other(47), family, arrives: arrives))
          trials.append(node.trial(from, to, .tcp(80), family, arrives: true))
          try node.check(trials, &findings)
          trials = []
          try node.rig.forgetFlows()
        }
        // Another peer is denied by both.
        try node.check([node.trial("bank/web", "shop/api", .icmpEcho, family, arrives: false)], &findings)
      }
    }
  }

  @Test("echo replies belong to their request, and nobody may send them unasked", arguments: IPFamily.allCases)
  func echoReplies(family: IPFamily) throws {
    try inNode { findings in
      let ingress = "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}"
      let node = try PolicyNode(try PolicyScene(["in": ingress]).world)
      let request = node.trial("shop/db", "shop/api", .icmpEcho, family, arrives: true)
      guard case .echo(let number) = request.packet.content else { return }
      func reply(_ number: UInt16, arrives: Bool) -> PolicyTrial {
        PolicyTrial(
          "reply \(number)",
          ProbePacket(
            source: request.packet.destination, destination: request.packet.source, content: .echoReply(number)),
          from: PolicyNode.pod("shop/api"), to: arrives ? .outside : nil)
      }
      try node.check([request], &findings)
      try node.check([reply(number, arrives: true), reply(number &+ 1, arrives: false)], &findings)
    }
  }

  /// An error about a packet, as somebody on its way sends it.
  private static func error(about packet: ProbePacket, from source: IPAddress) -> ProbePacket {
    // Port unreachable; it quotes the packet's header and first bytes.
    let quoted = Array(packet.bytes(number: 0).dropLast(ProbePacket.numberBytes))
    let (type, code): (UInt8, UInt8) = source.family == .v4 ? (3, 3) : (1, 4)
    return ProbePacket(
      source: source, destination: packet.source, content: .icmp(type: type, code: code, body: quoted))
  }

  @Test(
    "errors that belong to an allowed flow pass isolated pods in both directions, others do not",
    arguments: IPFamily.allCases)
  func errors(family: IPFamily) throws {
    try inNode { findings in
      let policy = """
        {podSelector: {}, policyTypes: [Ingress, Egress],
         ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{protocol: UDP, port: 53}]}],
         egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{protocol: UDP, port: 53}]}]}
        """
      let node = try PolicyNode(try PolicyScene(["np": policy]).world)
      // Remote pod to local pod, local pod to remote pod, and between two local pods.
      let flows = [("bank/web", "shop/api"), ("shop/web", "bank/web"), ("bank/till", "shop/web")]
      for (from, to) in flows {
        let flow = node.trial(from, to, .udp(53), family, arrives: true)
        try node.check([flow], &findings)
        var unknown = flow.packet
        unknown.content = .udp(source: node.rig.nextPort(), destination: 53)
        guard let receiver = flow.to else { continue }
        let hop = ip(family == .v4 ? "198.51.100.200" : "2001:db8:51::200")
        var trials = [
          PolicyTrial(
            "error of \(to) to \(from)", Self.error(about: flow.packet, from: flow.packet.destination),
            from: receiver, to: flow.from),
          PolicyTrial(
            "error of \(to) about no flow", Self.error(about: unknown, from: flow.packet.destination),
            from: receiver, to: nil),
        ]
        if case .pod = flow.from {
          // A router on the way, that no rule knows.
          trials += [
            PolicyTrial("error of a router", Self.error(about: flow.packet, from: hop), from: .outside, to: flow.from)
          ]
          if from.hasPrefix("shop") {
            trials += [
              PolicyTrial(
                "error of a router about no flow", Self.error(about: unknown, from: hop), from: .outside, to: nil)
            ]
          }
        }
        try node.check(trials, &findings)
      }
    }
  }

  @Test("errors of a flow that a policy has ended since do not pass", arguments: IPFamily.allCases)
  func errorsOfEndedFlows(family: IPFamily) throws {
    try inNode { findings in
      var node = try PolicyNode(try PolicyScene([:]).world)
      for (from, to) in [("bank/web", "shop/api"), ("shop/web", "bank/web")] {
        let flow = node.trial(from, to, .udp(53), family, arrives: true)
        guard let receiver = flow.to else { continue }
        func error(passes: Bool) -> PolicyTrial {
          PolicyTrial(
            "error of \(to) to \(from)", Self.error(about: flow.packet, from: flow.packet.destination),
            from: receiver, to: passes ? flow.from : nil)
        }
        try node.check([flow], &findings)
        try node.check([error(passes: true)], &findings)
        try node.apply(node.changes(to: try PolicyScene(["deny": Self.denyAll]).world))
        var ended = flow
        ended.to = nil
        try node.check([ended], &findings)
        try node.check([error(passes: false)], &findings)
        try node.apply(node.changes(to: try PolicyScene([:]).world))
      }
    }
  }

  @Test("an error about a flow that a policy has ended does not bring it back", arguments: IPFamily.allCases)
  func errorsAndMarks(family: IPFamily) throws {
    try inNode { findings in
      var node = try PolicyNode(try PolicyScene([:]).world)
      // Out of a pod whose policy says nothing of what comes in: the error itself may pass.
      let flow = node.trial("shop/web", "bank/web", .udp(53), family, arrives: true)
      guard let receiver = flow.to, case .udp(let source, let destination) = flow.packet.content else { return }
      let answer = PolicyTrial(
        "answer",
        ProbePacket(
          source: flow.packet.destination, destination: flow.packet.source,
          content: .udp(source: destination, destination: source)), from: receiver, to: flow.from)
      try node.check([flow], &findings)
      try node.check([answer], &findings)
      let egress = "{podSelector: {}, policyTypes: [Egress]}"
      try node.apply(node.changes(to: try PolicyScene(["deny": egress]).world))
      var ended = flow
      ended.to = nil
      try node.check([ended], &findings)
      let error = Self.error(about: flow.packet, from: flow.packet.destination)
      try node.check([PolicyTrial("error", error, from: receiver, to: flow.from)], &findings)
      try node.check([ended], &findings)
    }
  }
}
