import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

/// Chains as libcni runs them, with the reference plugins before and after ours.
@Suite("In a chain with the reference plugins", .serialized)
struct ChainTests {
  private static let folder = "/usr/lib/cni"
  private let node: Node
  private let pod: Pod

  init() throws {
    node = try Node()
    pod = try Pod()
  }

  /// One plugin's part of a list, with what libcni adds.
  private func input(_ plugin: JSONValue, _ version: String, _ previous: JSONValue?) -> JSONValue {
    var object = plugin.objectValue ?? JSONObject()
    if plugin["type"] == "sluice" { object = node.config(version: version).objectValue ?? object }
    object["cniVersion"] = .string(version)
    object["name"] = "pods"
    if let previous { object["prevResult"] = previous }
    return .object(object)
  }

  private func run(
    _ command: String, _ plugin: JSONValue, _ version: String, _ previous: JSONValue?
  ) throws -> Outcome {
    let type = try #require(plugin["type"]?.stringValue)
    let environment = [
      "CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0",
      "CNI_PATH": Self.folder, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    return try RunningPlugin.start(
      type == "sluice" ? try Plugin.path() : "\(Self.folder)/\(type)", environment: environment,
      input: input(plugin, version, previous).serialized(), in: node.network.namespace
    ).finish()
  }

  /// ADD of the whole list.
  ///
  /// - Returns: each plugin's result.
  private func add(_ list: [JSONValue], _ version: String) throws -> [JSONValue] {
    var results: [JSONValue] = []
    for plugin in list {
      let outcome = try run("ADD", plugin, version, results.last)
      try #require(outcome.exitCode == 0, "\(plugin): \(outcome)")
      results.append(outcome.json)
    }
    return results
  }

  private func expect(_ command: String, _ list: [JSONValue], _ version: String, _ result: JSONValue) throws {
    for plugin in command == "DEL" ? list.reversed() : list {
      let outcome = try run(command, plugin, version, result)
      #expect(outcome.exitCode == 0, "\(command) \(plugin): \(outcome)")
    }
  }

  private static let loopback: JSONValue = ["type": "loopback"]
  private static let sluice: JSONValue = ["type": "sluice"]
  private static let others: [JSONValue] = [
    ["type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:09", "sysctl": ["net.ipv4.conf.eth0.log_martians": "1"]],
    [
      "type": "bandwidth",
      "runtimeConfig": [
        "bandwidth": [
          "ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 80_000_000, "egressBurst": 800_000,
        ]
      ],
    ],
    ["type": "firewall", "backend": "iptables"],
    [
      "type": "portmap", "snat": true,
      "runtimeConfig": ["portMappings": [["hostPort": 8080, "containerPort": 80, "protocol": "tcp"]]],
    ],
  ]

  @Test(
    "first, in the middle or last: everybody's work is there, checked, and gone at the end",
    arguments: ["0.4.0", "1.0.0"], [false, true])
  func chain(version: String, isBehind: Bool) throws {
    let list = (isBehind ? [Self.loopback] : []) + [Self.sluice] + Self.others
    let results = try add(list, version)
    let result = try #require(results.last)
    // Whoever came before stands first, and is left as it was.
    let names = (result["interfaces"]?.arrayValue ?? []).compactMap { $0["name"]?.stringValue }
    let host = AttachmentName("c1", "eth0").hostInterface
    #expect(Array(names.prefix(isBehind ? 3 : 2)) == (isBehind ? ["lo", host, "eth0"] : [host, "eth0"]))
    if isBehind {
      let before = try #require(results.first)
      #expect(result["interfaces"]?.arrayValue?.first == before["interfaces"]?.arrayValue?.first)
      func addresses(_ result: JSONValue) -> [String] {
        (result["ips"]?.arrayValue ?? []).map {
          "\($0["address"]?.stringValue ?? "") \($0["interface"]?.intValue ?? -1)"
        }
      }
      let theirs = addresses(before)
      #expect(!theirs.isEmpty && Array(addresses(result).prefix(theirs.count)) == theirs)
    }
    let interfaces = result["interfaces"]?.arrayValue?.count ?? 0
    for ip in result["ips"]?.arrayValue ?? [] {
      if let index = ip["interface"]?.intValue { #expect(index >= 0 && index < interfaces, "\(ip)") }
    }
    // tuning's.
    let inPod = try #require(try RouteSocket(in: pod.network.namespace).link(named: "eth0"))
    #expect(inPod.mtu == 1300 && inPod.mac == MACAddress("02:00:00:00:00:09"))
    // bandwidth's: a device beside ours, of which it has found the right one.
    let links = try RouteSocket(in: node.network.namespace).links().map(\.name)
    #expect(links.count == 3 && links.contains(host), "\(links)")
    // portmap 1.1.1 looks for IPv4's rules in IPv6's tables too, where a pod has both.
    try expect("CHECK", list.filter { $0["type"] != "portmap" }, version, result)
    try expect("DEL", list, version, result)
    try expect("DEL", list, version, result)
    #expect(try pod.links() == ["lo"])
    #expect(try node.leftovers() == [])
  }

  @Test("last: behind one that made an interface by another name")
  func last() throws {
    // What it made stays, whatever happens to ours.
    try pod.network.namespace.run {
      try RouteSocket().createVethPair(name: "first", peer: VethPeer(name: "firstpeer"))
    }
    let previous: JSONValue = [
      "cniVersion": "1.0.0",
      "interfaces": [
        ["name": "vethabc", "mac": "02:00:00:00:00:01"],
        ["name": "first", "mac": "02:00:00:00:00:02", "sandbox": .string(pod.path)],
      ],
      "ips": [["address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1]],
      "routes": [["dst": "198.51.100.0/24", "gw": "192.0.2.1"]], "dns": ["nameservers": ["192.0.2.53"]],
    ]
    let outcome = try run("ADD", Self.sluice, "1.0.0", previous)
    try #require(outcome.exitCode == 0, "\(outcome)")
    for key in ["interfaces", "ips", "routes"] {
      let (before, after) = (previous[key]?.arrayValue ?? [], outcome.json[key]?.arrayValue ?? [])
      #expect(Array(after.prefix(before.count)) == before && after.count > before.count, "\(key)")
    }
    #expect(outcome.json["dns"] == previous["dns"])
    #expect(try run("DEL", Self.sluice, "1.0.0", outcome.json).exitCode == 0)
    #expect(try pod.links().contains("first"))
    #expect(try node.leftovers() == [])
  }
}
