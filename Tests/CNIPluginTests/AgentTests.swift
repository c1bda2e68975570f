import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("The plugin and the agent")
struct AgentTests {
  private let node: Node

  init() throws { node = try Node() }

  private func config(_ changes: JSONObject = [:]) -> JSONValue {
    var changes = changes
    changes["requireAgent"] = true
    changes["agentTimeoutMilliseconds"] = 300
    return node.config(changes)
  }

  @Test("ADD publishes the record it keeps and waits; DEL takes it back")
  func publish() throws {
    let agent = try node.startAgent()
    let pod = try Pod()
    try node.add("c1", pod, config())
    let record = try #require(try node.endpoints.list().records.first)
    #expect(agent.requests.map(\.line) == ["POST /v1/endpoints"])
    let sent = try JSONValue(parsing: try #require(agent.requests.first).body)
    #expect(try EndpointRecord(json: sent) == record)
    #expect(try node.run("DEL", in: pod, config()).exitCode == 0)
    #expect(agent.requests.last?.line == "DELETE /v1/endpoints/c1/eth0")
  }

  @Test("host ports are told to the agent in either spelling, and an agent that does not serve them fails ADD")
  func hostPorts() throws {
    let pod = try Pod()
    func run(_ command: String, _ mappings: JSONValue) throws -> Outcome {
      try node.run(command, in: pod, config(["runtimeConfig": ["portMappings": mappings]]))
    }
    let mappings: JSONValue = [
      ["HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""],
      ["hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "2001:db8::1"],
      ["hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "2001:db8::1"],
    ]
    let agent = try node.startAgent()
    let outcome = try run("ADD", mappings)
    #expect(outcome.exitCode == 0, "\(outcome)")
    let sent = try EndpointRecord(json: JSONValue(parsing: try #require(agent.requests.first).body))
    #expect(sent.portMappings.map(\.description) == ["tcp/8080", "2001:db8::1 udp/53"])
    #expect(sent.portMappings.map(\.containerPort.number) == [80, 5353])
    #expect(try node.endpoints.list().records == [sent])
    #expect(try run("DEL", mappings).exitCode == 0)

    let old = try node.startAgent(.programsNoHostPorts)
    let failing = try run("ADD", mappings)
    #expect(failing.errorCode == 11 && failing.message.contains("host ports"), "\(failing)")
    #expect(try run("ADD", []).exitCode == 0)
    withExtendedLifetime(old) {}
  }

  @Test("an agent that refuses, is silent or away fails ADD with code 11 and leaves nothing", arguments: 0..<3)
  func failure(kind: Int) throws {
    let agent = kind == 2 ? nil : try node.startAgent(kind == 0 ? .refuses : .silent)
    let pod = try Pod()
    let outcome = try node.run("ADD", in: pod, config())
    #expect(outcome.errorCode == 11, "\(outcome)")
    if kind == 0 { #expect(outcome.message.contains("no room")) }
    #expect(try pod.links() == ["lo"])
    #expect(try node.leftovers() == [])
    if let agent { #expect(agent.requests.last?.line == "DELETE /v1/endpoints/c1/eth0") }
  }

  @Test("nothing goes through the pod's device before the agent has answered, in no direction")
  func closedUntilProgrammed() throws {
    let agent = try node.startAgent(.silent)
    let pod = try Pod()
    let running = try node.start("ADD", netns: pod.path, config(["agentTimeoutMilliseconds": 3000]))
    while agent.requests.isEmpty { usleep(1000) }
    let route = try RouteSocket(in: node.network.namespace)
    let devices = try route.links().filter { $0.name.hasPrefix("slc") }
    #expect(devices.map(\.isUp) == [false])
    let ranges = ["10.77.0.0/24", "fd00:77::/64"].compactMap { CIDR($0) }
    let ways = try route.routes().filter { route in ranges.contains { $0.contains(route.destination.address) } }
    #expect(ways.isEmpty, "\(ways)")
    #expect(running.finish().errorCode == 11)

    let second = try node.startAgent()
    try node.add("c2", pod, config())
    #expect(try route.links().filter { $0.name.hasPrefix("slc") }.map(\.isUp) == [true])
    withExtendedLifetime((agent, second)) {}
  }

  @Test("CHECK leaves who sends to an agent that lives, also where none is required")
  func checkBesideAgent() throws {
    let agent = try node.startAgent()
    let pod = try Pod()
    let result = try node.add("c1", pod)
    let checked = node.config(["prevResult": result])
    #expect(try node.run("CHECK", "c1", in: pod, checked).exitCode == 0)
    withExtendedLifetime(agent) {}
  }

  @Test("DEL succeeds whatever the agent does", arguments: 0..<3)
  func deleteAnyway(kind: Int) throws {
    let pod = try Pod()
    try node.add("c1", pod)
    let agent = kind == 2 ? nil : try node.startAgent(kind == 0 ? .refuses : .silent)
    #expect(try node.run("DEL", in: pod, config()).exitCode == 0)
    #expect(try node.leftovers() == [])
    withExtendedLifetime(agent) {}
  }

  @Test("STATUS is good while an ADD could be served, and names what is in the way")
  func status() throws {
    func message(_ config: JSONValue) throws -> String? {
      let outcome = try node.run("STATUS", "", config, extra: ["CNI_IFNAME": ""])
      guard outcome.exitCode != 0 else { return nil }
      #expect(outcome.errorCode == 50, "\(outcome)")
      return outcome.message
    }
    #expect(try message(node.config()) == nil)
    #expect(try message(config())?.contains("agent") == true)
    var agent = try node.startAgent()
    #expect(try message(config()) == nil)
    #expect(agent.requests.map(\.line) == ["GET /v1/healthz"])
    #expect(try message(config(["ipam": nil]))?.contains("node.json") == true)
    agent = try node.startAgent(.silent)
    #expect(try message(config())?.contains("agent") == true)
    #expect(try node.run("STATUS", "", config(["cniVersion": "1.0.0"])).errorCode == 1)
    #expect(try node.run("STATUS", "", config(["mode": "flat"])).errorCode == 2)

    let small = node.config(["ipam": ["ranges": [[["subnet": "10.77.0.0/30"]]]]])
    let first = try Pod()
    try node.add("c1", first, small)
    do {
      let second = try Pod()
      try node.add("c2", second, small)
      #expect(try message(small)?.contains("in use") == true)
      withExtendedLifetime(second) {}
    }
    // The second pod's namespace is gone: its address can be taken back.
    #expect(try message(small) == nil)
    withExtendedLifetime(first) {}
  }
}
