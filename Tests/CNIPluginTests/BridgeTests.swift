import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("Pods of a bridge")
struct BridgeTests {
  private let node: Node

  init() throws { node = try Node() }

  /// As the reference plugin takes it, but for the type.
  private func config(_ changes: JSONObject = [:]) -> JSONValue {
    var all: JSONObject = [
      "mode": "bridge", "bridge": "br-test", "isDefaultGateway": true,
      "ipam": ["ranges": [[["subnet": "10.77.0.0/24"]], [["subnet": "fd00:77::/64"]]]],
    ]
    for change in changes { all[change.key] = change.value }
    return node.config(all)
  }

  private func addresses(_ result: JSONValue) -> [IPAddress] {
    (result["ips"]?.arrayValue ?? []).compactMap { $0["address"]?.stringValue }
      .compactMap { IPAddress($0.prefix { $0 != "/" }) }
  }

  private func bridge() throws -> (link: Link, addresses: [String]) {
    let socket = try RouteSocket(in: node.network.namespace)
    let link = try #require(try socket.link(named: "br-test"))
    let addresses = try socket.addresses(interfaceIndex: link.index).filter { $0.scope == 0 }
    return (link, addresses.map(\.address.description))
  }

  @Test(
    "reach each other and the node over both families; the result names bridge, subnet and gateway; DEL leaves the bridge alone"
  )
  func attach() throws {
    let (first, second) = (try Pod(), try Pod())
    let result = try node.add("c1", first, config())
    let names = (result["interfaces"]?.arrayValue ?? []).compactMap { $0["name"]?.stringValue }
    #expect(names.count == 3 && names[0] == "br-test" && names[2] == "eth0", "\(names)")
    let ips = try #require(result["ips"]?.arrayValue)
    #expect(ips.map { $0["address"]?.stringValue } == ["10.77.0.2/24", "fd00:77::2/64"])
    #expect(ips.map { $0["gateway"]?.stringValue } == ["10.77.0.1", "fd00:77::1"])
    #expect(ips.allSatisfy { $0["interface"] == 2 })
    let mac = try bridge().link.mac
    #expect(result["interfaces"]?.arrayValue?[0]["mac"]?.stringValue == mac?.description)
    let theirs = addresses(try node.add("c2", second, config()))
    for (mine, other) in zip(addresses(result), theirs) {
      #expect(try first.reaches(other) && second.reaches(mine), "\(mine) and \(other)")
      #expect(try node.network.namespace.run { Echo.reaches(mine, milliseconds: 1000) }, "the node to \(mine)")
    }
    for gateway in ["10.77.0.1", "fd00:77::1"] { #expect(try first.reaches(try #require(IPAddress(gateway)))) }
    let (link, gateways) = try bridge()
    #expect(Set(gateways) == ["10.77.0.1/24", "fd00:77::1/64"])
    #expect(link.mac == mac, "the bridge took another address with its ports")
    #expect(try node.run("CHECK", "c1", in: first, config(["prevResult": result])).exitCode == 0)
    for container in ["c1", "c2"] { #expect(try node.run("DEL", container, config()).exitCode == 0) }
    #expect(try first.links() == ["lo"] && second.links() == ["lo"])
    #expect(try node.store.reservations().isEmpty)
    #expect(try RouteSocket(in: node.network.namespace).links().map(\.name).sorted() == ["br-test", "lo"])
  }

  @Test(
    "are isolated from one another where that is asked for, in either spelling, and not from the node",
    arguments: ["portIsolation", "isolation"])
  func isolation(key: String) throws {
    let (first, second) = (try Pod(), try Pod())
    let config = config([key: true])
    let ours = addresses(try node.add("c1", first, config))
    let theirs = addresses(try node.add("c2", second, config))
    for (mine, other) in zip(ours, theirs) {
      #expect(try !first.reaches(other, milliseconds: 300), "\(mine) -> \(other)")
      #expect(try node.network.namespace.run { Echo.reaches(mine, milliseconds: 1000) })
    }
  }

  @Test("hear of a new owner of an address they know, at once")
  func announcement() throws {
    let (first, second, third) = (try Pod(), try Pod(), try Pod())
    _ = try node.add("c1", first, config())
    let address = config(["runtimeConfig": ["ips": ["10.77.0.9", "fd00:77::9"]]])
    let shared = addresses(try node.add("c2", second, address))
    for address in shared { #expect(try first.reaches(address)) }
    #expect(try node.run("DEL", "c2", config()).exitCode == 0)
    try node.add("c3", third, address)
    // What the first knew of it is another's hardware address: without a word it would ask again only some 30 s later.
    for address in shared { #expect(try first.reaches(address, milliseconds: 900), "\(address)") }
  }

  @Test(
    "get the node's address where they leave their subnet, and only there; GC takes that away with the last of them")
  func masquerade() throws {
    let (pod, other, outside) = (try Pod(), try Pod(), try AnonymousNetworkNamespace())
    let config = config(["ipMasq": true])
    let ours = addresses(try node.add("c1", pod, config))
    let theirs = addresses(try node.add("c2", other, config))
    try node.network.namespace.run {
      let socket = try RouteSocket()
      let descriptor = try outside.namespace.open()
      try socket.createVethPair(
        name: "wire", peer: VethPeer(name: "wire", namespaceDescriptor: descriptor.number))
      let link = try #require(try socket.link(named: "wire"))
      try socket.setLink(index: link.index, LinkChanges(isUp: true))
      for (address, length) in [("192.0.2.1", 24), ("2001:db8::1", 64)] {
        let address = try #require(IPAddress(address).flatMap { InterfaceAddress($0, prefixLength: length) })
        try socket.addAddress(address, interfaceIndex: link.index, withoutDAD: true)
      }
    }
    try outside.namespace.run {
      let socket = try RouteSocket()
      let link = try #require(try socket.link(named: "wire"))
      try Sysctl.write("net", "ipv6", "conf", "wire", "accept_dad", value: 0)
      try socket.setLink(index: link.index, LinkChanges(isUp: true))
      for (address, length) in [("192.0.2.2", 24), ("2001:db8::2", 64)] {
        let address = try #require(IPAddress(address).flatMap { InterfaceAddress($0, prefixLength: length) })
        try socket.addAddress(address, interfaceIndex: link.index, withoutDAD: true)
      }
    }
    // Outside nobody knows a way to the pods: whoever gets an answer had the node's address.
    for address in ["192.0.2.2", "2001:db8::2"] {
      #expect(try pod.reaches(try #require(IPAddress(address))), "\(address)")
    }
    for address in theirs { #expect(try pod.reaches(address)) }
    func chains() throws -> [String] {
      let filter = try FilterSocket(in: node.network.namespace)
      return try [.ipv4, .ipv6].flatMap { try filter.chains(in: FilterTable($0, "sluice-cni")) }
    }
    #expect(try chains().count == 2)
    // A later pod's subnet, of the same network.
    let third = try Pod()
    let elsewhere = config.setting("ipam", ["ranges": [[["subnet": "10.78.0.0/24"]]]])
    try node.add("c3", third, elsewhere)
    #expect(try third.reaches(try #require(IPAddress("192.0.2.2"))))
    #expect(try chains().count == 3)
    #expect(try node.run("DEL", "c3", elsewhere).exitCode == 0)
    for container in ["c1", "c2"] { #expect(try node.run("DEL", container, config).exitCode == 0) }
    let collected = try node.run("GC", "", config.setting("cni.dev/valid-attachments", []), extra: ["CNI_IFNAME": ""])
    #expect(collected.exitCode == 0, "\(collected)")
    #expect(try chains() == [])
    #expect(!ours.isEmpty)
  }

  @Test("share one bridge however many come at once; an address it has already is left alone, or not, as is asked for")
  func shared() throws {
    let pods = try (0..<20).map { _ in try Pod() }
    let running = try pods.enumerated().map { try node.start("ADD", "c\($0)", netns: $1.path, config()) }
    for outcome in running.map({ $0.finish() }) { #expect(outcome.exitCode == 0, "\(outcome)") }
    let late = try Pod()
    let other = config([
      "ipam": ["ranges": [[["subnet": "10.77.0.0/24", "rangeStart": "10.77.0.100", "gateway": "10.77.0.254"]]]]
    ])
    let refused = try node.run("ADD", "late", in: late, other)
    #expect(refused.errorCode == 7 && refused.message.contains("10.77.0.1/24"), "\(refused)")
    #expect(try late.links() == ["lo"])
    #expect(try bridge().addresses.contains("10.77.0.1/24"))
    try node.add("late", late, other.setting("forceAddress", true))
    #expect(try !bridge().addresses.contains("10.77.0.1/24") && bridge().addresses.contains("10.77.0.254/24"))
  }

  @Test(
    "CHECK names what is missing of bridge and port",
    arguments: [
      ("nomaster", "no port"), ("type bridge_slave hairpin off", "other settings"), ("down", "down"), ("", "gateway"),
    ])
  func check(change: String, words: String) throws {
    let pod = try Pod()
    let config = config(["hairpinMode": true])
    let result = try node.add("c1", pod, config)
    let checked = config.setting("prevResult", result)
    #expect(try node.run("CHECK", "c1", in: pod, checked).exitCode == 0)
    let device = try #require(result["interfaces"]?.arrayValue?[1]["name"]?.stringValue)
    let changed = try RunningPlugin.start(
      "/usr/sbin/ip",
      arguments: change.isEmpty
        ? ["address", "flush", "dev", "br-test"]
        : ["link", "set", "dev", device] + change.split(separator: " ").map(String.init),
      environment: [:], input: "", in: node.network.namespace
    ).finish()
    try #require(changed.exitCode == 0, "\(changed)")
    let outcome = try node.run("CHECK", "c1", in: pod, checked)
    #expect(outcome.errorCode == 103 && outcome.message.contains(words), "\(outcome)")
  }

  @Test(
    "what the shape does not have is refused by name",
    arguments: [
      ("requireAgent", true, 7), ("disableContainerInterface", true, 2), ("bridge", "a/b", 7),
      ("isGateway", "yes", 7), ("runtimeConfig", ["portMappings": [["hostPort": 80, "containerPort": 80]]], 2),
    ] as [(String, JSONValue, Int64)])
  func refused(key: String, value: JSONValue, code: Int64) throws {
    let outcome = try node.run("ADD", "c1", in: Pod(), config([key: value]))
    #expect(outcome.errorCode == code && outcome.message.contains(key), "\(outcome)")
    #expect(try node.store.reservations().isEmpty)
  }

  @Test("a device of the bridge's name that is none is an error, and left as it is")
  func noBridge() throws {
    try RouteSocket(in: node.network.namespace).createIntermediateBlock(name: "br-test")
    let outcome = try node.run("ADD", "c1", in: Pod(), config())
    #expect(outcome.errorCode == 7 && outcome.message.contains("is no bridge"), "\(outcome)")
    #expect(try RouteSocket(in: node.network.namespace).link(named: "br-test")?.kind == "ifb")
  }
}

extension JSONValue {
  fileprivate func setting(_ key: String, _ value: JSONValue) -> JSONValue {
    var object = objectValue ?? JSONObject()
    object[key] = value
    return .object(object)
  }
}
