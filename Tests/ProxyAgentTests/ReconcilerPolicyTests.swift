import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@testable import ProxyAgent

@Suite("What the agent tells about policy") struct ReconcilerPolicyTests {
  // MARK: Explain

  private static func text(_ answer: JSONValue, _ direction: String, path: Int = 0) -> String? {
    answer.at("paths", "\(path)", direction, "text")?.stringValue
  }

  @Test("a denial is explained with what isolates the pod and the nearest rule; the kernel says the same")
  func denial() async throws {
    let agent = try await AgentUnderTest()
    let answer = try await agent.explain("shop/cart-1", "shop/db-0", "5432")
    #expect(answer["verdict"] == "denied")
    #expect(
      Self.text(answer, "ingress")
        == "DENY isolated by shop/deny-db; no rule matches app=cart; nearest: rule 0 allows tcp 8080 only")
    let ingress = try #require(answer.at("paths", "0", "ingress"))
    #expect(ingress["verdict"] == "deny" && ingress["applies"] == true && ingress["rule"] == .null)
    #expect(ingress["policies"] == ["shop/deny-db"])
    #expect(
      ingress["nearest"] == ["policy": "shop/deny-db", "index": 0, "text": "rule 0 allows tcp 8080 only"])
    #expect(ingress.at("kernel", "agrees") == true)
    #expect(ingress.at("kernel", "text") == ingress["text"])
    #expect(answer.at("paths", "0", "egress", "verdict") == "audit-deny")
    #expect(answer.at("paths", "0", "egress", "kernel", "agrees") == true)
    #expect(
      answer["source"]
        == [
          "text": "shop/cart-1", "address": "10.244.1.2", "kind": "pod",
          "identity": answer.at("source", "identity") ?? .null,
          "labels": "app=cart", "local": true,
        ])
    #expect(answer.at("source", "identity")?.intValue != nil)
  }

  @Test("an allowed flow names its rule, in both families")
  func allowed() async throws {
    let agent = try await AgentUnderTest()
    for family in ["IPv4", "IPv6"] {
      let answer = try await agent.explain("shop/cart-1", "shop/db-0", "8080", family: family)
      #expect(answer["verdict"] == "allowed")
      #expect(answer.at("paths", "0", "ingress", "rule") == ["policy": "shop/deny-db", "index": 0])
      #expect(answer.at("paths", "0", "ingress", "kernel", "agrees") == true)
      #expect(answer.at("source", "address") == .string(family == "IPv4" ? "10.244.1.2" : "fd00:10:244:1::2"))
    }
    let block = try await agent.explain("10.1.2.3", "shop/db-0", nil, proto: "icmp")
    #expect(Self.text(block, "ingress") == "ALLOW shop/deny-db rule 2")
    #expect(block.at("source", "kind") == "world")
  }

  @Test("a Service is followed to each of its backends")
  func service() async throws {
    let agent = try await AgentUnderTest()
    let answer = try await agent.explain("shop/cart-1", "shop/db", "5432")
    #expect(
      answer["service"]
        == ["text": "shop/db", "frontend": "10.96.0.10:5432/tcp", "outcome": "translated", "reason": .null])
    #expect(answer["verdict"] == "mixed")
    #expect(answer["morePaths"] == 0)
    let paths = try #require(answer["paths"]?.arrayValue)
    #expect(paths.map { $0["backend"] } == ["10.244.1.3:5432", "10.244.2.3:5432"])
    #expect(paths.map { $0["backendText"] } == ["shop/db-0", "shop/db-1"])
    #expect(paths.map { $0["allowed"] } == [false, true])
    #expect(Self.text(answer, "ingress", path: 1) == "shop/db-1 is judged on its own node, node-2")
    #expect(answer.at("destination", "kind") == "service")
    // By its address just the same.
    #expect(try await agent.explain("shop/cart-1", "10.96.0.10", "5432")["service"] == answer["service"])
  }

  @Test("what a Service refuses never gets as far as a policy")
  func refusals() async throws {
    let agent = try await AgentUnderTest()
    let answer = try await agent.explain("shop/cart-1", "svc/shop/db", "99")
    #expect(answer["verdict"] == "rejected")
    #expect(answer.at("service", "reason") == "undefined-port")
    #expect(answer["paths"] == [])
  }

  @Test("this node's own processes reach its pods, the world does not")
  func origins() async throws {
    let agent = try await AgentUnderTest()
    let host = try await agent.explain("host", "shop/db-0", "5432")
    #expect(host["verdict"] == "allowed")
    #expect(host.at("paths", "0", "ingress", "verdict") == "exempt")
    #expect(host.at("source", "kind") == "host")
    let world = try await agent.explain("world", "shop/db-0", "5432")
    #expect(world["verdict"] == "denied")
    #expect(
      Self.text(world, "ingress")
        == "DENY isolated by shop/deny-db; no rule matches 192.0.2.1; nearest: rule 2 allows 10.0.0.0/8 only")
    let itself = try await agent.explain("shop/db-0", "shop/db-0", "5432")
    #expect(itself["verdict"] == "allowed")
    #expect(itself.at("paths", "0", "ingress", "kernel", "agrees") == true)
  }

  @Test(
    "an end that nobody can find is named",
    arguments: [
      ("shop/nobody", "shop/db-0", "source: no Pod of the name 'shop/nobody'"),
      ("shop/cart-1", "shop/nobody", "destination: no Pod or Service of the name 'shop/nobody'"),
      ("shop/cart-1", "svc/shop/cart-1", "destination: no Service of the name 'svc/shop/cart-1'"),
      ("shop/cart-1", "shop/headless", "destination: Service shop/headless has no cluster address"),
      ("shop/job", "shop/db-0", "source: Pod shop/job has ended (Succeeded)"),
      (
        "10.0.0.1", "fd00::1",
        "destination: '10.0.0.1' and 'fd00::1' have no address family in common"
      ),
    ])
  func unknown(source: String, destination: String, message: String) async throws {
    let agent = try await AgentUnderTest()
    var problem: RequestProblem?
    do {
      _ = try await agent.explain(source, destination, "80")
    } catch let error as RequestProblem {
      problem = error
    }
    #expect(problem?.description == message)
    let isMissing = message.contains("no Pod") || message.contains("no Service") || message.contains("ended")
    #expect(problem?.status == (isMissing ? .notFound : .badRequest))
  }

  @Test("a family that one end lacks is refused by name")
  func family() async throws {
    let agent = try await AgentUnderTest()
    await #expect(throws: RequestProblem.self) {
      try await agent.explain("shop/cart-1", "shop/db-1", "80", family: "IPv6")
    }
  }

  // MARK: Lists

  @Test("policies are listed with the pods they select, and their rules")
  func policies() async throws {
    let agent = try await AgentUnderTest()
    let items = try #require(try await agent.reconciler.policyList(namespace: nil, name: nil)["items"]?.arrayValue)
    #expect(items.map { $0["name"] } == ["audit-cart", "deny-db"])
    #expect(items.map { $0["mode"] } == ["audit", "enforce"])
    #expect(items.map { $0["pods"] } == [["shop/cart-1"], ["shop/db-0"]])
    #expect(items.map { $0["directions"] } == [["egress"], ["ingress"]])
    #expect(items.map { $0["inForce"] } == [true, true])
    #expect(items.map { $0["rules"]?.arrayValue?.count } == [1, 3])
    #expect(items[1].at("rules", "2") == ["direction": "ingress", "index": 2, "packets": 0, "bytes": 0])
    #expect(items[1]["denied"] == items[0]["wouldDeny"])
    let one = try await agent.reconciler.policyList(namespace: "shop", name: "deny-db")
    #expect(one["items"] == .array([items[1]]))
    #expect(try await agent.reconciler.policyList(namespace: "test", name: nil)["items"] == [])
  }

  @Test("identities tell pods, nodes, the world and what is unknown apart")
  func identities() async throws {
    let agent = try await AgentUnderTest()
    let items = try #require(await agent.reconciler.identityList()["items"]?.arrayValue)
    let v4 = items.filter { $0["family"] == "IPv4" }
    let cart = try #require(v4.first { $0["labels"] == ["app=cart"] })
    #expect(cart["kind"] == "pod" && cart["namespace"] == "shop" && cart["addresses"] == 1)
    // The database's ingress treats it specially, and so does the cart's egress, as any pod of the namespace.
    #expect(cart["pairs"] == 2)
    #expect(Set(v4.compactMap { $0["kind"]?.stringValue }) == ["pod", "node", "world", "unknown"])
    #expect(Set(items.compactMap { $0["id"]?.intValue }).count == items.count)
    let world = v4.filter { $0["kind"] == "world" }
    #expect(world.map { $0["pairs"] }.contains(1), "10.0.0.0/8 has a pair of its own: \(world)")
  }

  @Test("nothing differs; what the kernel lacks is named, and what is not policy's is left out")
  func differences() async throws {
    let agent = try await AgentUnderTest()
    #expect(try await agent.reconciler.policyDiff()["differences"] == [])
    try agent.damage()
    let found = try #require(try await agent.reconciler.policyDiff()["differences"]?.arrayValue)
    #expect(found.map { $0["between"] }.allSatisfy { $0 == "agent and kernel" })
    #expect(
      found.contains { $0["object"]?.stringValue?.hasPrefix("ip pair-values {") == true && $0["kind"] == "missing" })
    #expect(!found.contains { $0["object"]?.stringValue?.contains("frontends") == true })
    let explained = try await agent.explain("shop/cart-1", "shop/db-0", "5432")
    #expect(explained.at("paths", "0", "ingress", "kernel", "agrees") == false)
    #expect(Self.text(explained, "ingress")?.hasPrefix("DENY isolated by shop/deny-db") == true)
    #expect(explained.at("paths", "0", "ingress", "kernel", "text")?.stringValue?.hasPrefix("DROP no-verdict") == true)
  }

  @Test("metrics count policies, identities, drops and events")
  func metrics() async throws {
    let agent = try await AgentUnderTest()
    await agent.reconciler.note([try Self.denied(mark: 0)])
    await agent.reconciler.events.noteLost(3, at: .now)
    let text = await agent.reconciler.metricsText()
    for line in [
      "sluice_policies_in_force 2.0", "sluice_policy_subjects 2.0", "sluice_subjects_closed 0.0",
      "sluice_events_total{type=\"drop\"} 1", "sluice_events_total{type=\"audit\"} 0", "sluice_events_lost_total 3",
      "sluice_drop_packets_total{reason=\"policy-denied\",direction=\"ingress\"} 0",
      "sluice_policy_verdict_packets_total{direction=\"ingress\",policy=\"shop/deny-db\",rule=\"\",verdict=\"deny\"} 0",
    ] {
      #expect(text.contains(line + "\n"), "\(line)")
    }
  }

  // MARK: Events

  /// A SYN from cart-1 to db-0.
  private static func denied(mark: UInt32, prefix: String = "policy ingress") throws -> PacketLogMessage {
    var packet: [UInt8] = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 2, 10, 244, 1, 3]
    packet += [0x9c, 0xba, 0x15, 0x38, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]
    return PacketLogMessage(
      prefix: prefix, mark: mark, hook: 2, inputInterface: 9999, payload: packet,
      timestamp: .init(seconds: 1_795_262_641, microseconds: 221_000))
  }

  private func events(_ messages: [PacketLogMessage], _ agent: AgentUnderTest) async -> [JSONValue] {
    await agent.reconciler.note(messages)
    let ring = await agent.reconciler.events
    return await ring.reader(last: nil, follows: false).next()?.map(\.json) ?? []
  }

  @Test("a denied packet's event has the policy's and both pods' names")
  func event() async throws {
    let agent = try await AgentUnderTest()
    let label = try #require(await agent.label(of: .defaultDeny, .ingress))
    let events = await events([try Self.denied(mark: label)], agent)
    let event = try #require(events.first)
    #expect(events.count == 1)
    let expected: JSONValue = [
      "time": "2026-11-21T12:04:01.221Z", "type": "drop", "reason": "policy-denied", "direction": "ingress",
      "source": [
        "address": "10.244.1.2", "port": 40122, "pod": "shop/cart-1", "kind": "pod",
        "identity": event.at("source", "identity") ?? .null,
      ],
      "destination": [
        "address": "10.244.1.3", "port": 5432, "pod": "shop/db-0", "kind": "pod",
        "identity": event.at("destination", "identity") ?? .null,
      ],
      "protocol": "tcp", "flags": "SYN", "icmpType": .null, "length": 40, "policies": ["shop/deny-db"],
      "rule": .null, "isDefaultDeny": true, "interface": .null, "translated": .null, "isReply": false, "place": .null,
      "revision": event["revision"] ?? .null, "lost": 0,
    ]
    #expect(event == expected)
    #expect(event.at("source", "identity")?.intValue != nil)
  }

  @Test("audits, other reasons, unknown marks and torn packets have what can be known")
  func others() async throws {
    let agent = try await AgentUnderTest()
    let label = try #require(await agent.label(of: .auditDeny, .egress))
    var torn = try Self.denied(mark: 0)
    torn.payload = Array(torn.payload.prefix(10))
    var sent = try Self.denied(mark: 0, prefix: "no-verdict")
    sent.inputInterface = nil
    let events = await events(
      [
        try Self.denied(mark: label, prefix: "policy egress"), try Self.denied(mark: 0), torn, sent,
        try Self.denied(mark: label, prefix: "forged-source"),
      ], agent)
    #expect(events.map { $0["type"] } == ["audit", "drop", "drop", "drop", "drop"])
    #expect(
      events.map { $0["reason"] } == [
        "policy-denied", "policy-denied", "policy-denied", "no-verdict", "forged-source",
      ])
    #expect(events.map { $0["direction"] } == ["egress", "ingress", "ingress", .null, .null])
    #expect(events.map { $0["policies"] } == [["shop/audit-cart"], [], [], [], []])
    #expect(events[2]["source"] == .null && events[2]["protocol"] == .null)
    #expect(events[3].at("source", "kind") == "host")
  }
}

extension AgentUnderTest {
  /// What a log message has as its mark for some clause of that kind.
  func label(of kind: Clause.Kind, _ direction: PolicyDirection) async -> UInt32? {
    let tables = await reconciler.tables
    return tables.policies.clauses.first { key, _ in
      key.clause.kind == kind && tables.policies.attributions[key.attribution]?.direction == direction
    }?.value
  }

  /// Takes from the kernel what policies and Services need.
  func damage() throws {
    try namespace.namespace.run {
      for map in ["pair-values", "frontends"] {
        guard system("nft flush map ip sluice \(map)") == 0 else { throw AgentError(what: "nft flush map \(map)") }
      }
    }
  }
}
