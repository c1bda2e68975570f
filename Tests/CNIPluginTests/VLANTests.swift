import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

/// Whether this kernel's bridges keep VLANs apart is found out; a virtual machine's do (`scripts/vm-test`).
@Suite("VLANs of a bridge", .serialized)
struct VLANTests {
  static let isPossible: Bool = {
    do {
      let node = try AnonymousNetworkNamespace()
      let socket = try RouteSocket(in: node.namespace)
      try socket.createBridge(name: "br")
      return try socket.link(named: "br").flatMap { try socket.bridgeVLANs(index: $0.index) } != nil
    } catch {
      return false
    }
  }()

  private let node: Node

  init() throws { node = try Node() }

  private func config(_ changes: JSONObject..., pods: String = "10.77.0.0/24", _ pods6: String = "fd00:77::/64")
    -> JSONValue
  {
    var all: JSONObject = [
      "mode": "bridge", "bridge": "br-test",
      "ipam": ["ranges": [[["subnet": .string(pods)]], [["subnet": .string(pods6)]]]],
    ]
    for change in changes.joined() { all[change.key] = change.value }
    return node.config(all)
  }

  /// Of both families.
  private func addresses(_ result: JSONValue) throws -> [IPAddress] {
    let addresses = (result["ips"]?.arrayValue ?? []).compactMap { $0["address"]?.stringValue }
      .compactMap { IPAddress($0.prefix { $0 != "/" }) }
    try #require(addresses.count == 2, "\(result)")
    return addresses
  }

  /// What the kernel says of a port, as `5*` for the VLAN of frames without a tag, `1u` for one that is sent without.
  private func vlans(_ port: String) throws -> [String] {
    let socket = try RouteSocket(in: node.network.namespace)
    let link = try #require(try socket.link(named: port))
    return try socket.vlans(portIndex: link.index).map { "\($0.id)\($0.isDefault ? "*" : $0.isUntagged ? "u" : "")" }
  }

  private func names(_ result: JSONValue) -> [String] {
    (result["interfaces"]?.arrayValue ?? []).compactMap { $0["name"]?.stringValue }
  }

  private func expectNode(reaches addresses: [IPAddress]) throws {
    for address in addresses {
      let isReached = try node.network.namespace.run {
        (0..<3).contains { _ in Echo.reaches(address, milliseconds: 1500) }
      }
      #expect(isReached, "the node to \(address)")
    }
  }

  private func run(_ program: String, _ words: String, in namespace: NetworkNamespace) throws {
    let outcome = try RunningPlugin.start(
      "/usr/sbin/\(program)", arguments: words.split(separator: " ").map(String.init), environment: [:], input: "",
      in: namespace
    ).finish()
    try #require(outcome.exitCode == 0, "\(program) \(words): \(outcome)")
  }

  private func expect(_ addresses: [IPAddress], areReached: Bool, from pod: Pod, _ what: String) throws {
    for address in addresses {
      // Emulated, an answer takes its time, and packets get lost.
      var isReached = false
      for _ in 0..<(areReached ? 3 : 1) where !isReached {
        isReached = try pod.reaches(address, milliseconds: areReached ? 1500 : 300)
      }
      #expect(isReached == areReached, "\(what): \(address)")
    }
  }

  @Test(
    "where the kernel cannot keep VLANs apart, a pod that wants one is refused, and by name; nothing is left of it",
    arguments: [["vlan": 5], ["vlanTrunk": [["id": 7]]]] as [JSONObject])
  func refused(keys: JSONObject) throws {
    let pod = try Pod()
    let outcome = try node.run("ADD", "c1", in: pod, config(keys))
    #expect(Self.isPossible || getenv("SLUICE_OWN_MACHINE") == nil, "the machine for these tests can")
    guard !Self.isPossible else {
      #expect(outcome.exitCode == 0, "\(outcome)")
      return
    }
    #expect(
      outcome.errorCode == 2 && outcome.message.contains("vlan") && outcome.message.contains("kernel"), "\(outcome)")
    #expect(try pod.links() == ["lo"])
    #expect(try node.leftovers() == ["br-test"])
  }

  @Test(
    "pods of one reach each other and their gateway, and none of another; CHECK looks at it; DEL leaves the node's ways",
    .enabled(if: isPossible, "this kernel's bridges do not keep VLANs apart: see scripts/vm-test"),
    arguments: [true, false])
  func apart(keepsDefault: Bool) throws {
    let keys: JSONObject = ["preserveDefaultVlan": .bool(keepsDefault)]
    let five = config(keys, ["vlan": 5, "isDefaultGateway": true])
    // In the same subnet: what keeps them apart is the VLAN.
    let six = config(keys, ["vlan": 6])
    let none = config(keys)
    let pods = try (0..<4).map { _ in try Pod() }
    let results = try [five, five, six, none].enumerated().map { try node.add("c\($0)", pods[$0], $1) }
    let all = try results.map(addresses)
    let ports = results.map { names($0)[1] }
    #expect(names(results[0]) == ["br-test", ports[0], "eth0", "br-test.5"])
    #expect(names(results[2]) == ["br-test", ports[2], "eth0"])
    #expect(results[0]["ips"]?.arrayValue?.allSatisfy { $0["interface"] == 2 } == true)
    let rest = keepsDefault ? ["1u"] : []
    #expect(try [0, 2, 3].map { try vlans(ports[$0]) } == [rest + ["5*"], rest + ["6*"], ["1*"]])
    let way = try #require(
      try RouteSocket(in: node.network.namespace).links().map(\.name).first { $0.hasPrefix("slv") })
    #expect(try vlans(way) == rest + ["5*"])
    for (from, to) in [(0, 1), (1, 0), (0, 2), (1, 3), (2, 0), (2, 3), (3, 1)] {
      try expect(all[to], areReached: from + to == 1, from: pods[from], "\(from) to \(to)")
    }
    try expectNode(reaches: all[0] + all[1])
    let gateways = try ["10.77.0.1", "fd00:77::1"].map { try #require(IPAddress($0)) }
    try expect(gateways, areReached: true, from: pods[0], "gateway of 5")
    try expect(gateways, areReached: false, from: pods[2], "gateway of 5 from 6")

    func expectCheck(_ words: String?) throws {
      var checked = five.objectValue ?? [:]
      checked["prevResult"] = results[0]
      let outcome = try node.run("CHECK", "c0", in: pods[0], .object(checked))
      if let words {
        #expect(outcome.errorCode == 103 && outcome.message.contains(words), "\(outcome)")
      } else {
        #expect(outcome.exitCode == 0, "\(outcome)")
      }
    }
    try expectCheck(nil)
    let device = ports[0]
    try run("bridge", "vlan add dev \(device) vid 6 pvid untagged", in: node.network.namespace)
    try expectCheck("VLAN 5")
    // With its VLAN back it is as it was, but that it is of another as well.
    try run("bridge", "vlan add dev \(device) vid 5 pvid untagged", in: node.network.namespace)
    try expectCheck("VLAN 6")
    try run("bridge", "vlan del dev \(device) vid 6", in: node.network.namespace)
    try expectCheck(nil)
    try run("bridge", "vlan del dev \(way) vid 5", in: node.network.namespace)
    try expectCheck("\(way) is not of VLAN 5")
    try run("bridge", "vlan add dev \(way) vid 5 pvid untagged", in: node.network.namespace)
    try run("ip", "link set br-test type bridge vlan_filtering 0", in: node.network.namespace)
    try expectCheck("does not keep VLANs apart")
    try run("ip", "link set br-test type bridge vlan_filtering 1", in: node.network.namespace)
    try run("ip", "link set br-test.5 down", in: node.network.namespace)
    try expectCheck("br-test.5")
    try run("ip", "link set \(way) nomaster", in: node.network.namespace)
    try expectCheck("\(way) is no port")
    // The next pod mends it.
    let late = try Pod()
    try node.add("late", late, five)
    try expectCheck(nil)
    try expect(gateways, areReached: true, from: late, "gateway again")

    for (name, config) in [("c0", five), ("c1", five), ("c2", six), ("c3", none), ("late", five)] {
      #expect(try node.run("DEL", name, config).exitCode == 0)
    }
    let left = try RouteSocket(in: node.network.namespace).links().map(\.name).sorted()
    #expect(
      left.count == 4 && left.starts(with: ["br-test", "br-test.5", "lo"]) && left[3].hasPrefix("slv"), "\(left)")
    #expect(try node.store.reservations().isEmpty)
  }

  @Test(
    "a trunk carries the VLANs it names and no other, from the pod's hardware address; and many pods at once make one gateway",
    .enabled(if: isPossible, "this kernel's bridges do not keep VLANs apart: see scripts/vm-test"))
  func trunk() throws {
    let trunk = config(["vlan": 5, "vlanTrunk": [["id": 7], ["minID": 10, "maxID": 12], ["id": 5]]])
    let router = try Pod()
    let result = try node.add("router", router, trunk)
    var checked = trunk.objectValue ?? [:]
    checked["prevResult"] = result
    #expect(try node.run("CHECK", "router", in: router, .object(checked)).exitCode == 0)
    for (vlan, isCarried) in [(7, true), (8, false), (10, true), (12, true), (13, false), (5, false)] {
      let pod = try Pod()
      let theirs = try addresses(
        try node.add(
          "v\(vlan)", pod, config(["vlan": .int(Int64(vlan))], pods: "10.\(vlan).0.0/24", "fd00:\(vlan)::/64")))
      try run("ip", "link add link eth0 name eth0.\(vlan) type vlan id \(vlan)", in: router.network.namespace)
      try router.network.namespace.run {
        try Sysctl.write(["net", "ipv6", "conf", "eth0.\(vlan)", "accept_dad"], value: "0")
      }
      try run("ip", "address add 10.\(vlan).0.200/24 dev eth0.\(vlan)", in: router.network.namespace)
      try run("ip", "address add fd00:\(vlan)::200/64 dev eth0.\(vlan) nodad", in: router.network.namespace)
      try run("ip", "link set eth0.\(vlan) up", in: router.network.namespace)
      try expect(theirs, areReached: isCarried, from: router, "VLAN \(vlan)")
      guard vlan == 7 else { continue }
      try run("ip", "link set eth0.7 address 0a:00:00:00:00:77", in: router.network.namespace)
      try expect(theirs, areReached: false, from: router, "from another hardware address")
    }

    let pods = try (0..<12).map { _ in try Pod() }
    let twenty = config(["vlan": 20, "isGateway": true])
    let running = try pods.enumerated().map { try node.start("ADD", "m\($0)", netns: $1.path, twenty) }
    let all = running.map { $0.finish() }
    for outcome in all { #expect(outcome.exitCode == 0, "\(outcome)") }
    try expectNode(reaches: try all.flatMap { try addresses($0.json) })
    let links = try RouteSocket(in: node.network.namespace).links().map(\.name)
    #expect(links.count { $0.hasPrefix("slv") } == 1 && links.contains("br-test.20"), "\(links)")
  }

  @Test(
    "a trunk without a VLAN of its own is of VLAN 1 without tags, and reaches the bridge's gateway there",
    .enabled(if: isPossible, "this kernel's bridges do not keep VLANs apart: see scripts/vm-test"))
  func trunkAlone() throws {
    let pod = try Pod()
    let all = config(["vlanTrunk": [["minID": 1, "maxID": 9]], "isDefaultGateway": true])
    let result = try node.add("c1", pod, all)
    #expect(names(result).count == 3 && names(result).first == "br-test")
    #expect(try vlans(names(result)[1]) == ["1*"] + (2...9).map { "\($0)" })
    try expect(
      try ["10.77.0.1", "fd00:77::1"].map { try #require(IPAddress($0)) }, areReached: true, from: pod, "gateway")
  }

  @Test(
    "a bridge of others that does not keep VLANs apart is left as it is, and the error says how it would",
    .enabled(if: isPossible, "this kernel's bridges do not keep VLANs apart: see scripts/vm-test"))
  func bridgeOfOthers() throws {
    let socket = try RouteSocket(in: node.network.namespace)
    try socket.createBridge(name: "br-test")
    let outcome = try node.run("ADD", "c1", in: Pod(), config(["vlan": 5]))
    #expect(outcome.errorCode == 7 && outcome.message.contains("vlan_filtering 1"), "\(outcome)")
    #expect(try node.store.reservations().isEmpty)
    try run("ip", "link set br-test type bridge vlan_filtering 1", in: node.network.namespace)
    #expect(try node.run("ADD", "c1", in: Pod(), config(["vlan": 5])).exitCode == 0)
  }

  @Test(
    "what makes no VLAN is refused, and the field is named",
    arguments: [
      (["vlan": 4095], "vlan"), (["vlan": -1], "vlan"), (["vlan": "5"], "vlan"), (["vlanTrunk": 5], "vlanTrunk"),
      (["vlanTrunk": [["id": 0]]], "vlanTrunk[0].id"), (["vlanTrunk": [["id": 3], [:]]], "vlanTrunk[1]"),
      (["vlanTrunk": [["minID": 5]]], "vlanTrunk[0].maxID"), (["vlanTrunk": [["maxID": 5]]], "vlanTrunk[0].minID"),
      (["vlanTrunk": [["minID": 9, "maxID": 5]]], "vlanTrunk[0].minID"),
      (["preserveDefaultVlan": "no"], "preserveDefaultVlan"), (["vlanTrunk": [5]], "vlanTrunk[0]"),
      (["vlanTrunk": .array((0..<300).map { ["id": .int(2 * $0 + 1)] })], "vlanTrunk"),
      (["bridge": "br-of-the-house", "vlan": 100, "isGateway": true], "bridge"),
    ] as [(JSONObject, String)])
  func wrong(keys: JSONObject, field: String) throws {
    let outcome = try node.run("ADD", "c1", in: Pod(), config(keys))
    #expect(outcome.errorCode == 7 && outcome.message.contains("\(field):"), "\(outcome)")
    #expect(try node.leftovers() == [])
  }
}
