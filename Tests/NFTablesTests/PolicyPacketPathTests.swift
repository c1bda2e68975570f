import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import NFTables

@testable import PolicyWorlds

/// What NetworkPolicy promises of packets and no table shows: translation, origins, forgery.
@Suite struct PolicyPacketPathTests {
  private static let families = IPFamily.allCases
  private static let denyAll = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
  private static let outsider: [IPFamily: String] = [.v4: "203.0.113.7", .v6: "2001:db8::7"]

  // MARK: Services

  private static let clusterIP: [IPFamily: IPAddress] = [.v4: ip("10.96.0.10"), .v6: ip("fd00:10:96::10")]
  private static let external: [IPFamily: IPAddress] = [.v4: ip("198.51.100.80"), .v6: ip("2001:db8:51::80")]

  /// A Service of `shop/api`, port 80, target port 8081: as ClusterIP, and from outside with every source masqueraded.
  private static func addService(backend: [IPAddress], to delta: inout TableDelta) {
    for address in backend {
      let family = address.family
      guard let own = clusterIP[family], let external = external[family] else { continue }
      delta.clusterIP(1, "\(own)")
      delta.frontends[FrontendKey(.address(external), .tcp, at("\(external)", 80).port)] = Change(
        old: nil,
        new: Frontend(
          service: id(1), kind: .loadBalancer, nodeScope: .cluster, outsideScope: .cluster, masquerade: .always))
      delta.set(1, family, backends: [at("\(address)", 8081)])
      delta.internalAddresses[family] = Change(
        old: nil, new: PolicyScene.address(family == .v4 ? "172.18.0.1" : "fd00:172:18::1"))
    }
  }

  private static func serviceNode(_ policies: [String: String]) throws -> PolicyNode {
    let scene = try PolicyScene(policies)
    let backend = scene.world.pods.first { $0.key == PolicyScene.key("shop/api") }?.podIPs ?? []
    return try PolicyNode(scene.world) { addService(backend: backend, to: &$0) }
  }

  /// A packet to a Service's address that has to arrive at `shop/api`, or nowhere.
  private static func toService(
    _ node: PolicyNode, _ from: String, _ service: [IPFamily: IPAddress], _ family: IPFamily, arrives: Bool,
    _ note: String
  ) -> PolicyTrial {
    var trial = node.trial(from, "\(service[family] ?? .unspecified(family))", .tcp(80), family, arrives: false, note)
    if arrives { trial.to = PolicyNode.pod("shop/api") }
    return trial
  }

  @Test("rules see the pod and port behind a Service, never the Service's own address (line 13)")
  func afterDestinationNAT() throws {
    try inNode { findings in
      let toPod = """
        {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
          {to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8081}]}]}
        """
      let node = try Self.serviceNode(["to-pod": toPod])
      var trials: [PolicyTrial] = []
      for family in Self.families {
        trials.append(Self.toService(node, "shop/web", Self.clusterIP, family, arrives: true, "allowed by the pod"))
        trials.append(node.trial("shop/web", "shop/api", .tcp(80), family, arrives: false, "the Service's port"))
      }
      let arrivals = try node.check(trials, &findings)
      for arrival in arrivals.compactMap({ $0 }) {
        findings.expect(
          arrival.destination == node.address("shop/api", arrival.source.family), "not translated: \(arrival)")
      }
    }
    try inNode { findings in
      let toService = """
        {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
          {to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: 'fd00:10:96::/48'}}]}]}
        """
      let node = try Self.serviceNode(["to-service": toService])
      try node.check(
        Self.families.map {
          Self.toService(node, "shop/web", Self.clusterIP, $0, arrives: false, "allowed by the Service's address")
        }, &findings)
    }
  }

  @Test("rules see the client behind a masquerade, never the node (line 13)")
  func beforeMasquerade() throws {
    let clients = "{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}, {podSelector: {}}"
    let nodeItself = "{ipBlock: {cidr: 172.18.0.1/32}}, {ipBlock: {cidr: 'fd00:172:18::1/128'}}"
    for (peers, arrives) in [(clients, true), (nodeItself, false)] {
      try inNode { findings in
        let node = try Self.serviceNode([
          "from": "{podSelector: {matchLabels: {app: api}}, ingress: [{from: [\(peers)]}]}"
        ])
        var trials: [PolicyTrial] = []
        for family in Self.families {
          for sender in [Self.outsider[family] ?? "", "shop/web"] {
            trials.append(Self.toService(node, sender, Self.external, family, arrives: arrives, "from \(peers)"))
          }
        }
        let arrivals = try node.check(trials, &findings)
        // Not vacuous: the source was exchanged on the way.
        for arrival in arrivals.compactMap({ $0 }) {
          findings.expect(
            arrival.source == node.address("host", arrival.source.family), "not masqueraded: \(arrival)")
        }
      }
    }
  }

  @Test("answers of a masqueraded flow are its client's, also when the flow is judged again (lines 13 and 19)")
  func answersOfMasquerade() throws {
    try inNode { findings in
      let from = """
        {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress],
         ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}]}]}
        """
      var node = try Self.serviceNode(["from": from])
      var flows: [(PolicyTrial, PolicyTrial)] = []
      for family in Self.families {
        let request = Self.toService(
          node, Self.outsider[family] ?? "", Self.external, family, arrives: true, "request")
        guard let there = try node.check([request], &findings)[0],
          case .tcp(let port, _, _) = request.packet.content
        else { return }
        let client = port
        // Its source port may have been exchanged too: conntrack knows.
        let flow = try node.rig.conntrack.entries().first { $0.original.sourcePort == client }
        let answer = ProbePacket(
          source: there.destination, destination: there.source,
          content: .tcp(source: 8081, destination: flow?.reply.destinationPort ?? 0, [.synchronize, .acknowledge]),
          sequence: 1000, acknowledgement: 10)
        flows.append(
          (request, PolicyTrial("answer, \(family)", answer, from: PolicyNode.pod("shop/api"), to: .outside)))
      }
      for round in ["at once", "judged again"] {
        let answers = flows.map { $0.1 }.map { trial in
          PolicyTrial("\(round): \(trial.name)", trial.packet, from: trial.from, to: trial.to)
        }
        for (arrival, flow) in zip(try node.check(answers, &findings), flows) {
          findings.expect(
            arrival?.source == flow.0.packet.destination && arrival?.destination == flow.0.packet.source,
            "\(round): \(flow.1.name): arrived as \(String(describing: arrival))")
        }
        // Another policy for the same pod that changes nothing for this client.
        let more = try PolicyScene(["more": "{podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 1}]}]}"]
        )
        let delta = try node.apply(more.world.policies.map { .upsert(.networkPolicy($0)) })
        findings.expect(round != "at once" || delta.rejudgesFlows, "nothing is judged again: \(delta)")
      }
    }
  }

  @Test("a pod reaches itself: by its own address, and through its own Service (lines 13 and 14)")
  func toItself() throws {
    try inNode { findings in
      var trials: [PolicyTrial] = []
      let node = try Self.serviceNode(["deny": Self.denyAll])
      for family in Self.families {
        for proto in [FlowProtocol.tcp(80), .udp(53), .sctp(9), .icmpEcho, .other(47)] {
          trials.append(node.trial("shop/api", "shop/api", proto, family, arrives: true, "own address"))
        }
        trials.append(Self.toService(node, "shop/api", Self.clusterIP, family, arrives: true, "own Service"))
        trials.append(node.trial("shop/api", "shop/web", .tcp(80), family, arrives: false, "another pod"))
        trials.append(Self.toService(node, "shop/web", Self.clusterIP, family, arrives: false, "another's Service"))
      }
      try node.check(trials, &findings)
    }
  }

  // MARK: Origins

  @Test("the node reaches its isolated pods, they do not reach it (line 15)")
  func ownNode() throws {
    try inNode { findings in
      let scene = try PolicyScene(["deny": Self.denyAll])
      let node = try PolicyNode(scene.world)
      var trials: [PolicyTrial] = []
      for family in Self.families {
        // Of protocols without ports both directions are one flow.
        trials.append(node.trial("shop/api", "host", .other(50), family, arrives: false))
        for proto in [FlowProtocol.tcp(80), .udp(53), .sctp(9), .icmpEcho, .other(47)] {
          trials.append(node.trial("host", "shop/api", proto, family, arrives: true))
          if proto != .other(47) { trials.append(node.trial("shop/api", "host", proto, family, arrives: false)) }
          // Not isolated.
          trials.append(node.trial("bank/till", "host", proto, family, arrives: true))
          let other = family == .v4 ? "172.18.0.2" : "fd00:172:18::2"
          trials.append(node.trial(other, "shop/api", proto, family, arrives: false, "another node"))
        }
        // Whatever address of the node it uses.
        var fromUplink = node.trial("host", "shop/api", .tcp(80), family, arrives: true, "from the uplink's address")
        fromUplink.packet.source = PolicyRig.uplink(family)
        trials.append(fromUplink)
      }
      try node.check(trials, &findings)
    }
  }

  @Test("an isolated pod answers its node: probes work (lines 15 and 19)")
  func answersToNode() throws {
    try inNode { findings in
      let scene = try PolicyScene(["deny": Self.denyAll])
      var node = try PolicyNode(scene.world)
      for family in Self.families {
        let probe = node.trial("host", "shop/api", .tcp(80), family, arrives: true, "probe")
        guard case .tcp(let port, _, _) = probe.packet.content else { return }
        let answer = PolicyTrial(
          "answer, \(family)",
          ProbePacket(
            source: probe.packet.destination, destination: probe.packet.source,
            content: .tcp(source: 80, destination: port, [.synchronize, .acknowledge]), sequence: 1000,
            acknowledgement: 10),
          from: PolicyNode.pod("shop/api"), to: .node)
        try node.check([probe], &findings)
        try node.check([answer], &findings)
        let more = try PolicyScene(["more-\(family == .v4 ? 4 : 6)": Self.denyAll])
        try node.apply(more.world.policies.map { .upsert(.networkPolicy($0)) })
        try node.check([answer], &findings)
      }
    }
  }

  // MARK: Forgery

  /// Each comes in as a real frame: what our own chain counted says that nothing before it took them.
  @Test("a forged source is dropped: this node's, from a wire or a pod; a pod's, from a wire or another pod (line 15)")
  func forgery() throws {
    try inNode { findings in
      // Not isolated: nothing but the forgery is in the way.
      let scene = try PolicyScene([:])
      let node = try PolicyNode(scene.world)
      var forged: [PolicyTrial] = []
      var honest: [PolicyTrial] = []
      for family in Self.families {
        for proto in [FlowProtocol.tcp(80), .udp(53), .sctp(9), .icmpEcho, .other(47)] {
          func add(_ name: String, as source: IPAddress, from: PolicyRig.Place, mac: MACAddress? = nil) {
            for target in ["shop/api", "shop/db", "host"] {
              var trial = node.trial("bank/till", target, proto, family, arrives: false, name)
              trial.packet.source = source
              (trial.from, trial.mac) = (from, mac)
              forged.append(trial)
            }
          }
          let own = [node.address("host", family), PolicyRig.uplink(family)]
          for address in own {
            add("wire as the node", as: address, from: .outside)
            add("pod as the node", as: address, from: PolicyNode.pod("shop/web"))
          }
          add("wire as a pod", as: node.address("shop/web", family), from: .outside)
          add("wire as the pod it sends to", as: node.address("shop/api", family), from: .outside)
          add("pod as another", as: node.address("bank/till", family), from: PolicyNode.pod("shop/web"))
          add("pod as a remote pod", as: node.address("shop/db", family), from: PolicyNode.pod("shop/web"))
          add(
            "pod as a stranger", as: node.address(Self.outsider[family] ?? "", family), from: PolicyNode.pod("shop/web")
          )
          add(
            "pod with another hardware address", as: node.address("shop/web", family),
            from: PolicyNode.pod("shop/web"), mac: PacketRig.mac(7, 7))
          honest.append(node.trial("shop/web", "shop/api", proto, family, arrives: true))
          honest.append(node.trial("shop/web", "host", proto, family, arrives: true))
          honest.append(node.trial(Self.outsider[family] ?? "", "shop/api", proto, family, arrives: true))
          honest.append(node.trial("host", "shop/api", proto, family, arrives: true))
        }
      }
      try node.check(honest, &findings)
      let before = try node.counted(chain: "drop-forged")
      try node.check(forged, &findings)
      let after = try node.counted(chain: "drop-forged")
      findings.expect(after - before == forged.count, "\(after - before) of \(forged.count) counted as forged")
    }
  }

  @Test("a frame to everybody carries no forged source past either", arguments: families)
  func forgedBroadcast(family: IPFamily) throws {
    try inNode { findings in
      let node = try PolicyNode(try PolicyScene([:]).world)
      func trial(_ source: String, _ from: PolicyRig.Place, _ to: String, arrives: Bool) -> PolicyTrial {
        var trial = node.trial("bank/till", to, .udp(53), family, arrives: arrives, "\(from) as \(source)")
        (trial.packet.source, trial.from, trial.isBroadcast) = (node.address(source, family), from, true)
        return trial
      }
      let pod = PolicyNode.pod("shop/web")
      var trials: [PolicyTrial] = []
      for to in ["host", "shop/api"] {
        trials.append(trial("host", .outside, to, arrives: false))
        trials.append(trial("host", pod, to, arrives: false))
        trials.append(trial("shop/web", .outside, to, arrives: false))
        trials.append(trial("bank/till", pod, to, arrives: false))
        trials.append(trial(Self.outsider[family] ?? "", pod, to, arrives: false))
      }
      // The node itself takes such frames from everybody; it does not route them.
      trials.append(trial(Self.outsider[family] ?? "", .outside, "host", arrives: true))
      trials.append(trial("shop/web", pod, "host", arrives: true))
      try node.check(trials, &findings)
      try node.check([trial("shop/web", pod, "host", arrives: true)], &findings)
    }
  }

  // MARK: Pods that nobody knows yet

  @Test("of a pod that the tables do not know nothing comes and nothing gets there (line 21)")
  func unknownPod() throws {
    try inNode { findings in
      let scene = try PolicyScene([:])
      let node = try PolicyNode(scene.world)
      // The plugin made its device; the agent has not heard of it.
      var known = node.tables
      var delta = TableDelta()
      let addresses = [ip("10.244.1.77"), ip("fd00:10:244:1::77")]
      delta.endpoints["slc-new"] = Change(
        old: nil, new: LocalEndpoint(interface: "slc-new", mac: PacketRig.mac(0, 77), addresses: addresses))
      known.apply(delta)
      try node.rig.follow(known.node)
      var trials: [PolicyTrial] = []
      for address in addresses {
        let family = address.family
        for target in ["shop/web", "shop/db", "host"] {
          var trial = node.trial("bank/till", target, .tcp(80), family, arrives: false, "from the new pod")
          trial.packet.source = address
          trial.from = .pod("slc-new")
          trials.append(trial)
        }
        for sender in ["shop/web", "shop/db"] {
          trials.append(node.trial(sender, "\(address)", .tcp(80), family, arrives: false, "to the new pod"))
        }
      }
      try node.check(trials, &findings)
      let counted = try node.counted(chain: "drop-unknown-endpoint")
      findings.expect(counted == trials.count, "\(counted) of \(trials.count) counted as of an unknown endpoint")
    }
  }

  // MARK: Answers

  @Test("nothing is answered to what is denied (line 22)")
  func silence() throws {
    try inNode { findings in
      let scene = try PolicyScene(["deny": Self.denyAll])
      let node = try PolicyNode(scene.world)
      var trials: [PolicyTrial] = []
      for family in Self.families {
        for proto in [FlowProtocol.tcp(80), .udp(53), .sctp(9), .icmpEcho, .other(47)] {
          trials.append(node.trial("shop/api", "shop/web", proto, family, arrives: false))
          trials.append(node.trial("shop/api", "host", proto, family, arrives: false))
          trials.append(node.trial("shop/api", "shop/db", proto, family, arrives: false))
          trials.append(node.trial("bank/till", "shop/api", proto, family, arrives: false))
          trials.append(node.trial(Self.outsider[family] ?? "", "shop/api", proto, family, arrives: false))
        }
      }
      try node.check(trials, &findings)
      findings.expect(node.rig.answers == [:], "answered: \(node.rig.answers)")
      let counted = try node.counted(chain: "deny-egress") + node.counted(chain: "deny-ingress")
      findings.expect(counted == trials.count, "\(counted) of \(trials.count) denied")
      // The rig would see answers: one of a closed port of the node.
      try node.check([node.trial("bank/till", "host", .udp(80), .v4, arrives: true)], &findings)
      _ = try node.rig.arrivals(expecting: [])
      findings.expect(node.rig.answers[PolicyNode.pod("bank/till")] == 1, "no error seen: \(node.rig.answers)")
    }
  }
}
