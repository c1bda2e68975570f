import Glibc
import LocalAPI
import NetworkTypes
import Testing

@Suite("What the plugin refuses, and how it says so")
struct ErrorTests {
  private let node: Node

  init() throws { node = try Node() }

  @Test("without a command it introduces itself")
  func about() throws {
    let outcome = try node.run("")
    #expect(outcome.exitCode == 0 && outcome.output.isEmpty && outcome.notes.contains("1.1.0"))
  }

  @Test("VERSION lists the versions and answers in the one asked for")
  func version() throws {
    for asked in ["0.4.0", "1.1.0"] {
      let outcome = try node.run("VERSION", "", ["cniVersion": .string(asked)])
      #expect(outcome.exitCode == 0)
      #expect(outcome.json["cniVersion"]?.stringValue == asked)
      #expect(
        outcome.json["supportedVersions"] == ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    }
  }

  @Test(
    "a bad variable is error 4 and named",
    arguments: [
      ("CNI_COMMAND", "NOPE"), ("CNI_CONTAINERID", ""), ("CNI_CONTAINERID", "../x"), ("CNI_CONTAINERID", "-x"),
      ("CNI_IFNAME", ""), ("CNI_IFNAME", "sixteen-bytes-xx"), ("CNI_IFNAME", "a/b"), ("CNI_IFNAME", ".."),
      ("CNI_IFNAME", "a b"), ("CNI_IFNAME", "a:b"), ("CNI_NETNS", ""), ("CNI_NETNS", "/none"),
      ("CNI_NETNS", "/dev/null"), ("CNI_ARGS", "novalue"), ("CNI_ARGS", "Unknown=1"),
      ("CNI_ARGS", "IgnoreUnknown=maybe"),
    ])
  func environment(variable: String, value: String) throws {
    let outcome = try node.run("ADD", in: Pod(), extra: [variable: value])
    // An empty CNI_COMMAND is none; the others are reported.
    #expect(outcome.exitCode == 1)
    #expect(outcome.errorCode == 4, "\(outcome)")
    #expect(outcome.message.contains(variable), "\(outcome)")
    #expect(try node.leftovers() == [])
  }

  @Test("unknown arguments pass where the runtime says so, and pod names reach the record")
  func arguments() throws {
    let outcome = try node.run(
      "ADD", in: Pod(),
      extra: [
        "CNI_ARGS":
          "IgnoreUnknown=1;X=Y;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1"
      ])
    #expect(outcome.exitCode == 0, "\(outcome)")
    let record = try #require(try node.endpoints.list().records.first)
    #expect(record.podNamespace == "shop" && record.podName == "cart" && record.podUID == "u-1")
    #expect(record.containerID == "c1" && record.interfaceName == "eth0" && record.network == "pods")
    #expect(record.addresses.count == 2)
  }

  @Test(
    "a bad configuration has its code and names the field",
    arguments: [
      ("cniVersion", "9.9.9", 1), ("cniVersion", 1, 7), ("name", "", 7), ("name", "a/b", 7), ("name", ["x"], 7),
      ("mode", "flat", 2), ("mode", 1, 7), ("mtu", -1, 7), ("mtu", 100, 7), ("mtu", 1000, 7), ("mtu", "x", 7),
      ("stateDir", "relative", 7), ("requireAgent", "yes", 7), ("agentTimeoutMilliseconds", 0, 7),
      ("prevResult", "x", 7), ("ipam", "x", 7), ("ipam", ["type": "absent"], 105),
      ("ipam", ["ranges": [[["subnet": "10.0.0.0"]]]], 7), ("ipam", ["ranges": [[]]], 7),
      ("ipam", ["ranges": [[["subnet": "10.0.0.0/24"], ["subnet": "fd00::/64"]]]], 7),
      ("ipam", ["ranges": [[["subnet": "10.0.0.0/24"]], [["subnet": "10.0.0.0/25"]]]], 7),
      ("ipam", ["ranges": [[["subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"]]]], 7),
      ("ipam", ["ranges": [[["subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"]]]], 7),
      ("runtimeConfig", ["portMappings": ["x"]], 7), ("runtimeConfig", ["PortMappings": [["HostPort": 80]]], 7),
      ("runtimeConfig", ["portMappings": [["hostPort": 0, "containerPort": 80]]], 7),
      ("runtimeConfig", ["portMappings": [["hostPort": 70_000, "containerPort": 80]]], 7),
      ("runtimeConfig", ["portMappings": [["hostPort": 80, "containerPort": 80, "protocol": "icmp"]]], 7),
      ("runtimeConfig", ["portMappings": [["hostPort": 80, "containerPort": 80, "hostIP": "x"]]], 7),
      ("runtimeConfig", ["portMappings": [["hostPort": 80, "containerPort": 80, "hostIP": "127.0.0.1"]]], 2),
      (
        "runtimeConfig",
        ["portMappings": [["hostPort": 80, "containerPort": 80], ["hostPort": 80, "containerPort": 81]]], 7
      ),
      // No agent is there to serve it.
      ("runtimeConfig", ["bandwidth": ["ingressRate": 1000]], 7),
      ("runtimeConfig", ["bandwidth": ["egressRate": "x"]], 7),
      ("runtimeConfig", ["bandwidth": ["egressRate": 1000, "egressBurst": 99_999_999_999]], 7),
      ("runtimeConfig", ["mac": "01:00:00:00:00:00"], 7),
      ("runtimeConfig", ["ips": ["x"]], 7),
    ] as [(String, JSONValue, Int64)])
  func config(field: String, value: JSONValue, code: Int64) throws {
    let outcome = try node.run("ADD", in: Pod(), node.config([field: value]))
    #expect(outcome.exitCode == 1)
    #expect(outcome.errorCode == code, "\(outcome)")
    #expect(outcome.message.contains(field), "\(outcome)")
    #expect(try node.leftovers() == [])
  }

  @Test("an input that is no JSON object is error 6", arguments: [nil, [], "x"] as [JSONValue])
  func input(value: JSONValue) throws {
    #expect(try node.run("ADD", in: Pod(), value).errorCode == 6)
  }

  @Test("an exhausted network is error 11, and what a dead pod held is taken back first")
  func exhausted() throws {
    let config = node.config(["ipam": ["ranges": [[["subnet": "10.77.0.0/30"]]]]])
    let living = try Pod()
    try node.add("living", living, config)
    do {
      let dead = try Pod()
      try node.add("dead", dead, config)
      let outcome = try node.run("ADD", "c3", in: Pod(), config)
      #expect(outcome.errorCode == 11 && outcome.message.contains("10.77.0.1-10.77.0.2"), "\(outcome)")
      withExtendedLifetime(dead) {}
    }
    let pod = try Pod()
    let result = try node.add("c3", pod, config)
    #expect(result["ips"]?.arrayValue?.first?["address"] == "10.77.0.2/32")
    #expect(try node.endpoints.list().records.map(\.containerID).sorted() == ["c3", "living"])
    withExtendedLifetime(living) {}
  }

  @Test("an attachment of an earlier boot is replaced, not an error")
  func earlierBoot() throws {
    let owner = AddressReservation(
      network: "pods", containerID: "c1", interfaceName: "eth0", netnsPath: "/run/netns/old", netnsInode: 1,
      bootID: "earlier", createdAt: 1)
    let subnet = try #require(CIDR("10.77.0.0/24"))
    let pool = try #require(AddressPool([AddressRange(subnet)]))
    _ = try node.store.reserve(owner, from: [pool], requested: [IPAddress(v4: 0x0a4d_0005)])
    try node.add("c1", Pod())
    #expect(try node.store.reservations().count == 2)
    #expect(try !node.store.reservations().contains { $0.owner?.bootID == "earlier" })
  }

  @Test("the shipped configuration is one the plugin takes, in every version it names")
  func shippedConfig() throws {
    let bytes = try #require(try LocalFile.read("\(Plugin.packageRoot)/cni-conf/05-sluice.conflist"))
    let list = try JSONValue(parsing: bytes)
    #expect(list["cniVersion"] == "1.0.0")
    #expect(list["cniVersions"] == ["0.4.0", "1.0.0", "1.1.0"])
    var config = try #require(list["plugins"]?.arrayValue?.first?.objectValue)
    #expect(config["type"] == "sluice")
    let facts = NodeFacts(node: "n1", podCIDRs: ["10.5.1.0/24"].compactMap { CIDR($0) }, mtu: nil)
    try LocalFile.replace("\(node.runDirectory)/node.json", with: Array(facts.json.serialized().utf8))
    let agent = try node.startAgent()
    for version in list["cniVersions"]?.arrayValue ?? [] {
      // What libcni adds, and folders of this test.
      config["name"] = list["name"]
      config["cniVersion"] = version
      config["stateDir"] = .string(node.stateDirectory)
      config["runDir"] = .string(node.runDirectory)
      let name = "c\(version.stringValue ?? "")"
      #expect(try node.run("ADD", name, in: Pod(), .object(config)).exitCode == 0)
    }
    withExtendedLifetime(agent) {}
  }
}
