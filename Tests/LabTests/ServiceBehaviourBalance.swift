// Which backend a new connection gets: an even share, the one its client had before, or the one a hash of the client says.
import DataplaneModel
import Glibc
import Lab
import NetworkTypes
import Testing

extension ServiceBehaviour {
  @Suite("balance")
  struct Balance {
    private struct Case {
      var traffic: Traffic
      var place: LabTarget
      var address: IPAddress
      var port: Int
      var count: Int
    }

    @Test("new connections evenly over all backends, from a pod, the node and outside")
    func distribution() throws {
      try ServiceScene.run("spread") { scene in
        let service = ServiceSpec(type: "NodePort")
        try scene.apply(service)
        for (index, node) in ["node1", "node1", "node1", "node2", "node2"].enumerated() {
          try scene.backend("web-\(index)", on: node)
        }
        let pod = try scene.clientPod("asker", on: "node1")
        try scene.sync()
        var cases: [Case] = []
        for traffic in Traffic.all {
          let virtual = try service.clusterIP(traffic.family)
          let node = try scene.lab.nodeAddress("node1", traffic.family)
          // One full run; the others show that no way in is different.
          let isFull = traffic.family == .v4 && traffic.transport == .tcp
          cases += [
            Case(traffic: traffic, place: scene.target(pod), address: virtual, port: 80, count: isFull ? 20_000 : 4000),
            Case(traffic: traffic, place: .node("node1"), address: virtual, port: 80, count: 2000),
            Case(traffic: traffic, place: .node("node1"), address: node, port: 30080, count: 1000),
            Case(traffic: traffic, place: .client, address: node, port: 30080, count: 2000),
          ]
        }
        for one in cases { try expectEven(one, scene) }
      }
    }

    private func expectEven(_ one: Case, _ scene: ServiceScene) throws {
      let report = try scene.probe(
        one.traffic, from: one.place, to: one.address, one.port, count: one.count, milliseconds: 10_000)
      let counts = (0..<5).map { report.backends["web-\($0)"] ?? 0 }
      let (statistic, probability) = ChiSquare.evenness(of: counts)
      let what = Comment(
        rawValue: "\(one.traffic) from \(one.place) to \(one.address) port \(one.port): \(one.count) connections, "
          + "\(report.summary); chi-square \(statistic), p \(probability)")
      // The kernel's own generator draws: there is no seed to repeat it with, the counts are the record.
      print("distribution: \(what)")
      #expect(report.answered == one.count, what)
      #expect(probability >= ChiSquare.significance, what)
    }

    @Test("by a hash of its client where the Service asks for it: to the backend that any other node would choose")
    func maglev() throws {
      try ServiceScene.run("maglev") { scene in
        var service = ServiceSpec(type: "NodePort")
        service.annotations = ["sluice.dev/load-balancing: maglev"]
        try scene.apply(service)
        var pods: [LabPod] = []
        for index in 0..<5 { pods.append(try scene.backend("web-\(index)", on: index < 3 ? "node1" : "node2")) }
        try scene.sync()
        try expectHashed(scene, among: pods, firstPort: 20_000)
        let moved = pods.removeLast()
        try scene.lab.setReady(moved.name, false)
        try scene.sync()
        try expectHashed(scene, among: pods, firstPort: 20_100)

        service.annotations = []
        try scene.apply(service)
        try scene.sync()
        // 40 connections by chance all where the hash would have sent them: once in 10^24 times.
        let counts = try Traffic.all.map { try misses(scene, $0, among: pods, ports: 20_200..<20_240).count }
        #expect(counts.allSatisfy { $0 > 0 }, "at random again")
      }
    }

    private func expectHashed(_ scene: ServiceScene, among pods: [LabPod], firstPort: Int) throws {
      for traffic in Traffic.all {
        let found = try misses(scene, traffic, among: pods, ports: firstPort..<firstPort + 40)
        #expect(found == [], "\(traffic), \(pods.count) backends")
      }
    }

    /// Connections from outside that did not reach the backend which their address and port lead to.
    private func misses(
      _ scene: ServiceScene, _ traffic: Traffic, among pods: [LabPod], ports: Range<Int>
    ) throws -> [String] {
      let target = SocketAddress(try scene.lab.nodeAddress("node1", traffic.family), try #require(Port(30080)))
      let podPort = try #require(ServiceScene.targetPorts[traffic.transport].flatMap { Port($0) })
      var names: [SocketAddress: String] = [:]
      for pod in pods { names[SocketAddress(try #require(pod.address(traffic.family)), podPort)] = pod.name.name }
      let backends = names.keys.sorted()
      let table = try #require(MaglevTable(backends))
      var misses: [String] = []
      for port in ports {
        var spec = ProbeSpec(traffic.mode, to: target, count: 1)
        (spec.sourcePort, spec.timeoutMilliseconds) = (Port(port), 10_000)
        let report = try scene.lab.probe(from: .client, spec)
        let client = try #require(LabAddresses.client.first { $0.family == traffic.family })
        let slot = MaglevTable.slot(client: client, port: UInt16(port))
        let wanted = names[backends[Int(table.owners[slot])]]
        if report.backends.keys.first != wanted { misses.append("\(port): \(report.summary), not \(wanted ?? "")") }
      }
      return misses
    }

    /// What each of a set of clients got, and when.
    private struct Round {
      var picks: [String: String] = [:]
      var begin = monotonicNanoseconds()
      var end: UInt64 = 0
    }

    @Test("a client's connections to one backend while they keep coming: ClientIP affinity, with its end")
    func affinity() throws {
      try ServiceScene.run("sticky") { scene in
        let service = ServiceSpec(
          type: "NodePort", "sessionAffinity: ClientIP", "sessionAffinityConfig: {clientIP: {timeoutSeconds: 6}}")
        try scene.apply(service)
        for index in 0..<4 { try scene.backend("web-\(index)", on: index < 2 ? "node1" : "node2") }
        let pod = try scene.clientPod("asker", on: "node1")
        for range in LabAddresses.serviceCIDRs { try scene.routeFromClient("\(range)", via: "node1") }
        let clients = try IPFamily.allCases.flatMap { family in
          try (0..<12).map { number in
            let text = family == .v4 ? "192.168.100.\(100 + number)" : "fd00:100::100:\(number)"
            let address = try #require(IPAddress(text))
            try scene.addAddress(address, to: .client)
            return address
          }
        }
        try scene.sync()

        // Each client once through NodePort, then once through ClusterIP, and again: the frontends share their memory.
        var rounds: [Round] = []
        for number in 0..<8 {
          rounds.append(try round(scene, service, clients, pod, throughNodePort: number % 2 == 0))
          if number >= 2 { usleep(1_400_000) }
        }
        #expect(rounds[7].end - rounds[0].begin > 6_500_000_000, "longer than the timeout: each connection renews it")
        var compared = 0
        for (earlier, later) in zip(rounds, rounds.dropFirst()) where isPrompt(earlier, later) {
          #expect(earlier.picks == later.picks)
          compared += 1
        }
        #expect(compared >= 3, "the machine was too slow to tell")
        for traffic in Traffic.all {
          let backends = Set(picks(of: traffic, rounds[0]).values)
          #expect(backends.count > 1, "\(traffic): clients are spread")
        }

        try moveFromLostBackend(scene, service, clients, pod)

        let before = try round(scene, service, clients, pod, throughNodePort: true)
        usleep(6_700_000)
        let after = try round(scene, service, clients, pod, throughNodePort: true)
        for traffic in Traffic.all {
          // Twelve clients that pick one of four anew all pick the same again once in 16 million times.
          #expect(picks(of: traffic, before) != picks(of: traffic, after), "\(traffic): forgotten after 6 s")
        }
      }
    }

    /// The clients of a backend that is no longer ready go elsewhere, at once; all others stay where they were.
    private func moveFromLostBackend(
      _ scene: ServiceScene, _ service: ServiceSpec, _ clients: [IPAddress], _ pod: LabPod
    ) throws {
      for _ in 0..<5 {
        let before = try round(scene, service, clients, pod, throughNodePort: true)
        let lost = try #require(before.picks.values.sorted().first)
        try scene.lab.setReady(PodName(ServiceSpec.namespace, lost), false)
        try scene.sync()
        let after = try round(scene, service, clients, pod, throughNodePort: false)
        try scene.lab.setReady(PodName(ServiceSpec.namespace, lost), true)
        try scene.sync()
        guard isPrompt(before, after) else { continue }
        #expect(!after.picks.values.contains(lost))
        #expect(before.picks.filter { $0.value != lost } == after.picks.filter { before.picks[$0.key] != lost })
        return
      }
      Issue.record("the machine was too slow to tell")
    }

    /// No client waited anything like 6 s between the two.
    private func isPrompt(_ earlier: Round, _ later: Round) -> Bool { later.end - earlier.begin < 5_400_000_000 }

    private func picks(of traffic: Traffic, _ round: Round) -> [String: String] {
      round.picks.filter { $0.key.hasPrefix("\(traffic) ") }
    }

    private func round(
      _ scene: ServiceScene, _ service: ServiceSpec, _ clients: [IPAddress], _ pod: LabPod, throughNodePort: Bool
    ) throws -> Round {
      var round = Round()
      for traffic in Traffic.all {
        let address =
          throughNodePort
          ? try scene.lab.nodeAddress("node1", traffic.family) : try service.clusterIP(traffic.family)
        let port = throughNodePort ? 30080 : 80
        func ask(_ who: String, _ place: LabTarget, _ source: IPAddress?) throws {
          let report = try scene.probe(traffic, from: place, to: address, port, count: 2, source: source)
          #expect(report.answered == 2 && report.backends.count == 1, "\(traffic) \(who): \(report.summary)")
          round.picks["\(traffic) \(who)"] = report.backends.keys.first
        }
        try ask("pod", scene.target(pod), nil)
        try ask("node", .node("node1"), nil)
        for client in clients where client.family == traffic.family { try ask("\(client)", .client, client) }
      }
      round.end = monotonicNanoseconds()
      return round
    }
  }
}
