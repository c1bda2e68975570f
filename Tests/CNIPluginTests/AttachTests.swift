import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("ADD, CHECK and DEL of a routed pod")
struct AttachTests {
  private let node: Node

  init() throws { node = try Node() }

  private func addresses(_ result: JSONValue) -> [IPAddress] {
    (result["ips"]?.arrayValue ?? []).compactMap { $0["address"]?.stringValue }
      .compactMap { IPAddress($0.prefix { $0 != "/" }) }
  }

  @Test("two pods reach each other over both families, and no longer after DEL")
  func ping() throws {
    let (first, second) = (try Pod(), try Pod())
    let ours = addresses(try node.add("c1", first))
    #expect(ours.map(\.family) == [.v4, .v6])
    let theirs = addresses(try node.add("c2", second))
    for (mine, other) in zip(ours, theirs) {
      #expect(try first.reaches(other), "\(mine) -> \(other)")
      #expect(try second.reaches(mine), "\(other) -> \(mine)")
    }
    // The node reaches its pods as well (health checks).
    try node.network.namespace.run {
      try RouteSocket().addAddress(
        InterfaceAddress(host: IPAddress(v4: 0xc0a8_0001)), interfaceIndex: 1)
    }
    let v4 = try #require(ours.first)
    #expect(try node.network.namespace.run { Echo.reaches(v4, milliseconds: 1000) })
    #expect(try first.reaches(IPAddress(v4: 0xc0a8_0001)))

    #expect(try node.run("DEL", "c2", in: second).exitCode == 0)
    for other in theirs { #expect(try !first.reaches(other, milliseconds: 200)) }
    #expect(try second.links() == ["lo"])
    #expect(try node.run("DEL", "c1", in: first).exitCode == 0)
    #expect(try node.leftovers() == [])
  }

  @Test("the result has the form of each version", arguments: ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
  func result(version: String) throws {
    let pod = try Pod()
    let result = try node.add("c1", pod, node.config(version: version))
    #expect(result["cniVersion"]?.stringValue == version)
    let interfaces = try #require(result["interfaces"]?.arrayValue)
    #expect(interfaces.count == 2)
    #expect(interfaces[0]["sandbox"] == nil)
    #expect(interfaces[0]["name"]?.stringValue?.hasPrefix("sl") == true)
    #expect(interfaces[1]["name"] == "eth0")
    #expect(interfaces[1]["sandbox"]?.stringValue == pod.path)
    #expect(interfaces.allSatisfy { ($0["mtu"] != nil) == (version == "1.1.0") })
    let ips = try #require(result["ips"]?.arrayValue)
    #expect(ips.map { $0["address"]?.stringValue } == ["10.77.0.1/32", "fd00:77::1/128"])
    #expect(ips.map { $0["gateway"]?.stringValue } == ["169.254.1.1", "fe80::1"])
    #expect(ips.allSatisfy { $0["interface"] == 1 })
    #expect(ips.map { $0["version"]?.stringValue } == (version < "1" ? ["4", "6"] : [nil, nil]))
    #expect(result["routes"]?.arrayValue?.map { $0["dst"]?.stringValue } == ["0.0.0.0/0", "::/0"])
  }

  @Test("the result has the old form where none or an old version is asked for", arguments: ["", "0.1.0", "0.2.0"])
  func oldResult(version: String) throws {
    let result = try node.add("c1", Pod(), node.config(version: version))
    #expect(result["cniVersion"]?.stringValue == (version.isEmpty ? "0.1.0" : version))
    #expect(result["ip4"]?["ip"] == "10.77.0.1/32")
    #expect(result["ip6"]?["gateway"] == "fe80::1")
    #expect(result["ip4"]?["routes"]?.arrayValue?.count == 1)
    #expect(result["ips"] == nil && result["interfaces"] == nil)
  }

  @Test("routes have the attributes that specification 1.1 gives them, in the kernel and in the result of that version")
  func routeAttributes() throws {
    let ipam: JSONValue = [
      "ranges": [[["subnet": "10.77.0.0/24"]], [["subnet": "fd00:77::/64"]]],
      "routes": [
        ["dst": "192.0.2.0/24", "mtu": 1400, "advmss": 1300, "priority": 77],
        ["dst": "198.51.100.0/24", "table": 100], ["dst": "2001:db8::/32", "mtu": 1300, "table": 100],
        ["dst": "0.0.0.0/0", "priority": 5],
      ],
    ]
    let pod = try Pod()
    let result = try node.add("c1", pod, node.config(["ipam": ipam]))
    func told(_ destination: String, _ result: JSONValue) -> JSONValue? {
      result["routes"]?.arrayValue?.first { $0["dst"]?.stringValue == destination }
    }
    #expect(told("192.0.2.0/24", result)?["mtu"] == 1400 && told("192.0.2.0/24", result)?["advmss"] == 1300)
    #expect(told("192.0.2.0/24", result)?["priority"] == 77 && told("2001:db8::/32", result)?["table"] == 100)
    let routes = try RouteSocket(in: pod.network.namespace).routes()
    func route(_ destination: String) throws -> Route {
      let cidr = try #require(CIDR(destination))
      return try #require(routes.first { $0.destination == cidr }, "\(destination) in \(routes)")
    }
    let first = try route("192.0.2.0/24")
    #expect(first.mtu == 1400 && first.segmentSize == 1300 && first.priority == 77 && first.table == Route.mainTable)
    #expect(try route("198.51.100.0/24").table == 100)
    let third = try route("2001:db8::/32")
    #expect(third.table == 100 && third.mtu == 1300)
    // The default one is there once, as it was asked for.
    #expect(routes.filter { $0.destination == Route.defaultDestination(.v4) }.map(\.priority) == [5])
    #expect(try node.run("DEL", "c1", in: pod).exitCode == 0)
    let older = try node.add("c2", pod, node.config(version: "1.0.0", ["ipam": ipam]))
    #expect(told("192.0.2.0/24", older) != nil && told("192.0.2.0/24", older)?["mtu"] == nil)
    let refused = try node.run(
      "ADD", "c3", in: Pod(), node.config(["ipam": ipam.settingRoute(["dst": "192.0.2.0/24", "mtu": "x"])]))
    #expect(refused.errorCode == 7 && refused.message.contains("ipam.routes[0].mtu"), "\(refused)")
  }

  @Test("what earlier plugins of a chain made passes through, with ours added")
  func previousResult() throws {
    let previous: JSONValue = [
      "cniVersion": "1.0.0", "extra": ["kept": true], "interfaces": [["name": "other0", "mac": "x"]],
      "ips": [["address": "192.0.2.1/24", "interface": 0]], "dns": ["nameservers": ["192.0.2.53"]],
    ]
    let result = try node.add("c1", Pod(), node.config(version: "1.0.0", ["prevResult": previous]))
    #expect(result["extra"] == ["kept": true])
    #expect(result["interfaces"]?.arrayValue?.count == 3)
    #expect(result["interfaces"]?.arrayValue?.first == previous["interfaces"]?.arrayValue?.first)
    #expect(result["ips"]?.arrayValue?.map { $0["interface"]?.intValue } == [0, 2, 2])
    #expect(result["dns"] == previous["dns"])
  }

  @Test("an interface that exists is an error that leaves nothing behind and touches nothing")
  func interfaceExists() throws {
    let pod = try Pod()
    try RouteSocket(in: pod.network.namespace).createBridge(name: "eth0")
    let outcome = try node.run("ADD", in: pod)
    #expect(outcome.errorCode == 101 && outcome.message.contains("eth0"))
    #expect(try pod.links() == ["lo", "eth0"])
    #expect(try node.leftovers() == [])
  }

  @Test("a second ADD is refused and leaves the first alone")
  func addTwice() throws {
    let (pod, other) = (try Pod(), try Pod())
    let result = try node.add("c1", pod)
    #expect(try node.run("ADD", "c1", in: pod).errorCode == 101)
    #expect(try node.run("ADD", "c1", in: other).errorCode == 104)
    #expect(try node.run("CHECK", in: pod, node.config(["prevResult": result])).exitCode == 0)
    #expect(try other.links() == ["lo"])
  }

  @Test("the node's own namespace is refused before anything is touched")
  func hostNamespace() throws {
    let outcome = try node.run("ADD", netns: node.network.namespace.path)
    #expect(outcome.errorCode == 4 && outcome.message.contains("CNI_NETNS"))
    #expect(try node.leftovers() == [])
  }

  @Test("the MTU is the configured one, the agent's, or that of the default route's device")
  func mtu() throws {
    func mtu(_ name: String, _ changes: JSONObject = [:]) throws -> Int64? {
      let pod = try Pod()
      let result = try node.add(name, pod, node.config(changes))
      let link = try #require(try RouteSocket(in: pod.network.namespace).link(named: "eth0"))
      let announced = result["interfaces"]?.arrayValue?.last?["mtu"]?.intValue
      #expect(announced == Int64(link.mtu))
      return announced
    }
    #expect(try mtu("a") == 1500)
    try node.network.namespace.run {
      let socket = try RouteSocket()
      try socket.createBridge(name: "uplink", mtu: 1490)
      let index = try socket.link(named: "uplink")?.index ?? 0
      try socket.setLink(index: index, LinkChanges(isUp: true))
      try socket.addRoute(Route(destination: Route.defaultDestination(.v4), interfaceIndex: index))
    }
    #expect(try mtu("b") == 1490)
    let facts = NodeFacts(node: "n1", podCIDRs: [], mtu: 1440)
    try LocalFile.replace("\(node.runDirectory)/node.json", with: Array(facts.json.serialized().utf8))
    #expect(try mtu("c") == 1440)
    #expect(try mtu("d", ["mtu": 1300]) == 1300)
  }

  @Test("without ranges of its own a network takes the node's pod ranges")
  func nodeRanges() throws {
    let config = node.config(["ipam": nil])
    let outcome = try node.run("ADD", in: Pod(), config)
    #expect(outcome.errorCode == 11 && outcome.message.contains("node.json"))
    let facts = NodeFacts(
      node: "n1", podCIDRs: ["10.5.1.0/24", "fd05:1::/64"].compactMap { CIDR($0) }, mtu: nil)
    try LocalFile.replace("\(node.runDirectory)/node.json", with: Array(facts.json.serialized().utf8))
    #expect(addresses(try node.add("c1", Pod(), config)).map(\.description) == ["10.5.1.1", "fd05:1::1"])
  }

  @Test("a network of one family works, also in a sandbox that was made without IPv6", arguments: IPFamily.allCases)
  func oneFamily(family: IPFamily) throws {
    let config = node.config([
      "ipam": ["ranges": [[["subnet": family == .v4 ? "10.78.0.0/24" : "fd00:78::/64"]]]]
    ])
    let pods = [try Pod(), try Pod()]
    for pod in pods {
      try pod.network.namespace.run {
        for name in ["all", "default"] { try Sysctl.write("net", "ipv6", "conf", name, "disable_ipv6", value: 1) }
      }
    }
    let found = try pods.enumerated().flatMap { addresses(try node.add("c\($0)", $1, config)) }
    #expect(found.map(\.family) == [family, family])
    #expect(try pods[0].reaches(try #require(found.last)))
    let disabled = try pods[0].network.namespace.run { try Sysctl.read("net", "ipv6", "conf", "eth0", "disable_ipv6") }
    #expect(disabled == (family == .v4 ? "1" : "0"))
  }

  @Test("requested address and MAC are given as they are, or the attachment fails")
  func requested() throws {
    // As containerd spells it.
    let config = node.config(["runtimeConfig": ["IPs": ["10.77.0.99/24"], "MAC": "02:00:00:00:00:99"]])
    let pod = try Pod()
    #expect(addresses(try node.add("c1", pod, config)).map(\.description) == ["10.77.0.99", "fd00:77::1"])
    let link = try #require(try RouteSocket(in: pod.network.namespace).link(named: "eth0"))
    #expect(link.mac?.description == "02:00:00:00:00:99")
    let taken = try node.run("ADD", "c2", in: Pod(), config)
    #expect(taken.errorCode == 102 && taken.message.contains("10.77.0.99"))
    let outside = try node.run(
      "ADD", "c2", in: Pod(), node.config(["runtimeConfig": ["ips": ["10.78.0.1"]]]))
    #expect(outside.errorCode == 102)
    #expect(try node.store.reservations().count == 2)
  }

  @Test("CHECK is content with what ADD made, and with what later plugins add")
  func check() throws {
    let pod = try Pod()
    let result = try node.add("c1", pod)
    let config = node.config(["prevResult": result])
    #expect(try node.run("CHECK", in: pod, config).exitCode == 0)
    let socket = try RouteSocket(in: pod.network.namespace)
    let index = try #require(try socket.link(named: "eth0")).index
    try socket.setLink(index: index, LinkChanges(mac: MACAddress("02:00:00:00:00:01")))
    try socket.addAddress(InterfaceAddress(host: IPAddress(v4: 0xc000_0201)), interfaceIndex: index)
    #expect(try node.run("CHECK", in: pod, config).exitCode == 0)
    #expect(try node.run("CHECK", in: pod).errorCode == 7)
    #expect(try node.run("CHECK", in: pod, node.config(version: "0.3.1")).errorCode == 1)
    #expect(try node.run("CHECK", "unknown", in: pod, config).errorCode == 3)
  }

  @Test("CHECK names what is missing", arguments: ["address", "pod route", "node route", "neighbour", "down", "link"])
  func checkFails(missing: String) throws {
    let pod = try Pod()
    let result = try node.add("c1", pod)
    let (inPod, onNode) = (
      try RouteSocket(in: pod.network.namespace), try RouteSocket(in: node.network.namespace)
    )
    let podLink = try #require(try inPod.link(named: "eth0"))
    let hostLink = try #require(try onNode.links().first { $0.name.hasPrefix("sl") })
    let address = try #require(addresses(result).last)
    switch missing {
    case "address": try inPod.deleteAddress(InterfaceAddress(host: address), interfaceIndex: podLink.index)
    case "pod route":
      try inPod.deleteRoute(
        Route(destination: Route.defaultDestination(.v6), interfaceIndex: podLink.index))
    case "node route":
      try onNode.deleteRoute(Route(destination: CIDR(host: address), interfaceIndex: hostLink.index))
    case "neighbour": try onNode.deleteNeighbour(address, interfaceIndex: hostLink.index)
    case "down": try inPod.setLink(index: podLink.index, LinkChanges(isUp: false))
    default: try onNode.deleteLink(index: hostLink.index)
    }
    let outcome = try node.run("CHECK", in: pod, node.config(["prevResult": result]))
    #expect(outcome.errorCode == 103, "\(outcome)")
    #expect(!outcome.message.isEmpty)
  }

  @Test("a limited pod has its devices, CHECK misses them, DEL and GC take them away")
  func bandwidth() throws {
    // Bursts below the longest packet are raised to it: nothing would ever go.
    let limits: JSONValue = [
      "ingressRate": 8_000_000, "ingressBurst": 8000, "EgressRate": 8_000_000, "EgressBurst": 8000,
    ]
    let (first, second) = (try Pod(), try Pod())
    let config = node.config(["runtimeConfig": ["bandwidth": limits]])
    let theirs = addresses(try node.add("c2", second))
    let onNode = try RouteSocket(in: node.network.namespace)
    let shaper = AttachmentName("c1", "eth0").shaperInterface
    for command in ["DEL", "GC"] {
      let result = try node.add("c1", first, config)
      #expect(try onNode.link(named: shaper)?.isUp == true)
      for other in theirs { #expect(try first.reaches(other)) }
      let check = node.config(["runtimeConfig": ["bandwidth": limits], "prevResult": result])
      #expect(try node.run("CHECK", "c1", in: first, check).exitCode == 0)
      try onNode.deleteLink(named: shaper)
      let missing = try node.run("CHECK", "c1", in: first, check)
      #expect(missing.errorCode == 103 && missing.message.contains(shaper), "\(missing)")
      #expect(try node.run("DEL", "c1", in: first, config).exitCode == 0)

      try node.add("c1", first, config)
      let others: JSONValue = [["containerID": "c2", "ifname": "eth0"]]
      let end =
        command == "DEL"
        ? try node.run("DEL", "c1", in: first, node.config())
        : try node.run("GC", "", node.config(["cni.dev/valid-attachments": others]), extra: ["CNI_IFNAME": ""])
      #expect(end.exitCode == 0, "\(end)")
      #expect(try onNode.links().count == 2, "\(command)")
    }
    #expect(try node.run("DEL", "c2", in: second).exitCode == 0)
    #expect(try node.leftovers() == [])
  }

  @Test("DEL succeeds for what never was, twice, without namespace, and with broken or lost state")
  func delete() throws {
    func delete(_ name: String, netns: String = "", _ config: JSONValue? = nil) throws {
      let outcome = try node.run("DEL", name, netns: netns, config)
      #expect(outcome.exitCode == 0 && outcome.output.isEmpty, "\(outcome)")
    }
    try delete("unknown")
    try delete("unknown", netns: "/run/netns/none")
    let pod = try Pod()
    for _ in 0..<2 {
      try node.add("c1", pod)
      try delete("c1", netns: pod.path)
      try delete("c1", netns: pod.path)
    }
    try node.add("c2", pod)
    try delete("c2")
    #expect(try node.leftovers() == [])

    // A changed configuration: the network has no ranges any more, and another shape.
    try node.add("c3", pod)
    try delete("c3", node.config(["ipam": ["type": "other"], "mode": "bridge", "requireAgent": "x", "prevResult": 1]))
    #expect(try node.leftovers() == [])

    try node.add("c4", pod)
    for path in try LocalFile.names(in: "\(node.store.directory)/owners").map({ "\(node.store.directory)/owners/\($0)" }
    )
      + LocalFile.names(in: node.endpoints.directory).map({ "\(node.endpoints.directory)/\($0)" })
    {
      let descriptor = open(path, O_WRONLY | O_TRUNC)
      _ = write(descriptor, "garbage", 7)
      close(descriptor)
    }
    try delete("c4")
    #expect(try node.leftovers() == [])

    // All state lost: the device goes all the same.
    try node.add("c5", pod)
    #expect(rename("\(node.stateDirectory)", "\(node.folder)/lost") == 0)
    try delete("c5")
    #expect(try pod.links() == ["lo"])
  }

  @Test("DEL of one container leaves the others alone")
  func ownerOnly() throws {
    let (first, second) = (try Pod(), try Pod())
    try node.add("c1", first)
    let result = try node.add("c2", second)
    #expect(try node.run("DEL", "c1", in: second).exitCode == 0)
    #expect(try node.run("CHECK", "c2", in: second, node.config(["prevResult": result])).exitCode == 0)
  }
}

extension JSONValue {
  fileprivate func settingRoute(_ route: JSONValue) -> JSONValue {
    var object = objectValue ?? JSONObject()
    object["routes"] = [route]
    return .object(object)
  }
}
