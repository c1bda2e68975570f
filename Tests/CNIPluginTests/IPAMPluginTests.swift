import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("Addresses of another plugin")
struct IPAMPluginTests {
  private let node: Node
  private let pod: Pod

  init() throws {
    node = try Node()
    pod = try Pod()
    try LocalFile.createDirectories(folder)
    // Notes how it was called, fails where it is told to, and answers what it is told to.
    try LocalFile.create(
      "\(folder)/teller",
      with: Array(
        """
        #!/bin/sh
        cd \(node.folder)
        echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:-none}" >> calls
        cat > "input.$CNI_COMMAND"
        if [ -e "fault.$CNI_COMMAND" ]; then cat "fault.$CNI_COMMAND"; exit 1; fi
        if [ "$CNI_COMMAND" = ADD ]; then cat answer; fi

        """.utf8), mode: 0o755, sync: false)
  }

  private var folder: String { "\(node.folder)/cni" }
  private static let answer: JSONValue = [
    "cniVersion": "1.1.0",
    "ips": [["address": "10.99.0.7/24", "gateway": "10.99.0.1"], ["address": "fd00:99::7/64"]],
    "routes": [["dst": "0.0.0.0/0"], ["dst": "192.0.2.0/24", "gw": "10.99.0.9"], ["dst": "2001:db8::/32"]],
    "dns": ["nameservers": ["10.99.0.53"]],
  ]

  private func config(_ type: String = "teller", _ changes: JSONObject = [:]) -> JSONValue {
    var changes = changes
    changes["ipam"] = ["type": .string(type), "note": "for the other plugin"]
    return node.config(changes)
  }

  private func run(
    _ command: String, _ containerID: String = "c1", netns: String? = nil, by config: JSONValue? = nil
  ) throws -> Outcome {
    var extra = ["CNI_PATH": "/nowhere:\(folder)"]
    if containerID.isEmpty { extra["CNI_IFNAME"] = "" }
    return try node.run(command, containerID, netns: netns ?? pod.path, config ?? self.config(), extra: extra)
  }

  private func write(_ name: String, _ text: String) throws {
    try LocalFile.create("\(node.folder)/\(name)", with: Array(text.utf8), flags: O_TRUNC, sync: false)
  }

  private func calls() throws -> [String] {
    let text = try LocalFile.read("\(node.folder)/calls").map { String(decoding: $0, as: UTF8.self) } ?? ""
    unlink("\(node.folder)/calls")
    return text.split(separator: "\n").map(String.init)
  }

  @Test("is asked with our environment and the whole configuration, and what it gives is what the pod has")
  func use() throws {
    try write("answer", Self.answer.serialized())
    let outcome = try run("ADD")
    try #require(outcome.exitCode == 0, "\(outcome)")
    #expect(try calls() == ["ADD c1 eth0 \(pod.path)"])
    let input = try JSONValue(parsing: try #require(try LocalFile.read("\(node.folder)/input.ADD")))
    #expect(input == config())
    let result = outcome.json
    #expect(result["ips"]?.arrayValue?.map { $0["address"] } == ["10.99.0.7/32", "fd00:99::7/128"])
    #expect(
      result["routes"]?.arrayValue?.map { $0["dst"] } == ["0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8::/32"])
    #expect(result["dns"] == ["nameservers": ["10.99.0.53"]])
    let routes = try RouteSocket(in: pod.network.namespace).routes(table: Route.mainTable)
    for text in ["192.0.2.0/24", "2001:db8::/32"] {
      let destination = try #require(CIDR(text))
      #expect(routes.contains { $0.destination == destination && $0.gateway != nil }, "\(routes)")
    }
    #expect(try node.endpoints.list().records.first?.addresses.map(\.description) == ["10.99.0.7", "fd00:99::7"])

    let check = try run("CHECK", by: config("teller", ["prevResult": result]))
    #expect(check.exitCode == 0, "\(check)")
    try write("fault.CHECK", #"{"code": 103, "msg": "not mine"}"#)
    let failing = try run("CHECK", by: config("teller", ["prevResult": result]))
    #expect(failing.errorCode == 103 && failing.message.contains("teller: CHECK: not mine"), "\(failing)")
    #expect(try run("STATUS", "").exitCode == 0)
    #expect(try run("DEL").exitCode == 0)
    #expect(
      try calls() == [
        "CHECK c1 eth0 \(pod.path)", "CHECK c1 eth0 \(pod.path)", "STATUS   \(pod.path)", "DEL c1 eth0 \(pod.path)",
      ])
    #expect(try node.leftovers() == [])
  }

  @Test("in a bridge it gives prefix and gateway; the first of the subnet where it names none")
  func bridge() throws {
    try write("answer", Self.answer.serialized())
    let bridge: JSONObject = ["mode": "bridge", "bridge": "br-test", "isDefaultGateway": true]
    let outcome = try run("ADD", by: config("teller", bridge))
    try #require(outcome.exitCode == 0, "\(outcome)")
    let ips = outcome.json["ips"]?.arrayValue ?? []
    #expect(ips.map { $0["address"]?.stringValue } == ["10.99.0.7/24", "fd00:99::7/64"])
    #expect(ips.map { $0["gateway"]?.stringValue } == ["10.99.0.1", "fd00:99::1"])
    for gateway in ["10.99.0.1", "fd00:99::1"] { #expect(try pod.reaches(try #require(IPAddress(gateway)))) }
    let routes = try RouteSocket(in: pod.network.namespace).routes()
    let ways = routes.filter { $0.destination.prefixLength == 0 }.compactMap { $0.gateway?.description }
    #expect(Set(ways) == ["10.99.0.1", "fd00:99::1"])
    #expect(try run("DEL", by: config("teller", bridge)).exitCode == 0)
  }

  @Test("gives in the form of old versions too", arguments: ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
  func versions(version: String) throws {
    let old: JSONValue = ["ip4": ["ip": "10.99.0.7/24"], "ip6": ["ip": "fd00:99::7/64"]]
    try write("answer", (version == "0.2.0" ? old : Self.answer).serialized())
    let outcome = try run("ADD", by: config("teller", ["cniVersion": .string(version)]))
    #expect(outcome.exitCode == 0, "\(outcome)")
    #expect(try node.endpoints.list().records.first?.addresses.map(\.description) == ["10.99.0.7", "fd00:99::7"])
  }

  @Test("is told to take its addresses back when the ADD fails after it, or in it")
  func failure() throws {
    try write("answer", Self.answer.serialized())
    // No agent is there.
    let outcome = try run("ADD", by: config("teller", ["requireAgent": true, "agentTimeoutMilliseconds": 100]))
    #expect(outcome.errorCode == 11, "\(outcome)")
    #expect(try calls() == ["ADD c1 eth0 \(pod.path)", "DEL c1 eth0 \(pod.path)"])
    #expect(try node.leftovers() == [])

    try write("fault.ADD", #"{"code": 11, "msg": "no address left", "details": "of 254"}"#)
    let refused = try run("ADD")
    #expect(refused.errorCode == 11 && refused.message.contains("teller: ADD: no address left"), "\(refused)")
    #expect(refused.json["details"] == "of 254")
    #expect(try calls() == ["ADD c1 eth0 \(pod.path)", "DEL c1 eth0 \(pod.path)"])
    #expect(try node.leftovers() == [])
  }

  @Test(
    "that gives nonsense is named, and nothing is left",
    arguments: [
      "", "no JSON", "{}", #"{"ips": []}"#, #"{"ips": [{"address": "10.99.0.x/24"}]}"#, #"{"ips": [{}]}"#,
      #"{"ips": [{"address": "10.99.0.7/24"}, {"address": "10.99.0.7/24"}]}"#,
      #"{"ips": [{"address": "10.99.0.7/24"}], "routes": [{"dst": "10.0.0.0"}]}"#,
      #"{"ips": [{"address": "10.99.0.7/24"}], "routes": [{"dst": "2001:db8::/32"}]}"#,
    ])
  func nonsense(answer: String) throws {
    try write("answer", answer)
    let outcome = try run("ADD")
    #expect(outcome.errorCode == 105 && outcome.message.contains("teller"), "\(outcome)")
    #expect(try calls().map { $0.prefix(3) } == ["ADD", "DEL"])
    #expect(try node.leftovers() == [])
  }

  @Test("that fails without an error of the protocol is named with what it said")
  func wordsOnly() throws {
    try write("fault.ADD", "panic: out of cheese")
    let outcome = try run("ADD")
    #expect(outcome.errorCode == 105, "\(outcome)")
    #expect(outcome.message.contains("status 1: panic: out of cheese"), "\(outcome)")
    let path = try run("ADD", by: config("../teller"))
    #expect(path.errorCode == 7 && path.message.contains("ipam.type"), "\(path)")
  }

  @Test("that is missing keeps ADD and STATUS from succeeding, by name, and a DEL only of what it has given")
  func missing() throws {
    let absent = config("absent")
    let status = try run("STATUS", "", by: absent)
    #expect(status.errorCode == 50 && status.message.contains("absent"), "\(status)")
    let outcome = try run("ADD", by: absent)
    #expect(outcome.errorCode == 105 && outcome.message.contains("absent"), "\(outcome)")
    #expect(try node.leftovers() == [])
    #expect(try run("DEL", by: absent).exitCode == 0)

    try write("answer", Self.answer.serialized())
    #expect(try run("ADD", "c2").exitCode == 0)
    #expect(rename("\(folder)/teller", "\(folder)/away") == 0)
    let failing = try run("DEL", "c2")
    #expect(failing.errorCode == 105 && failing.message.contains("teller"), "\(failing)")
    // The device is gone all the same; and when the plugin is back, so is the address.
    #expect(try pod.links() == ["lo"])
    #expect(rename("\(folder)/away", "\(folder)/teller") == 0)
    _ = try calls()
    #expect(try run("DEL", "c2").exitCode == 0)
    #expect(try calls() == ["DEL c2 eth0 \(pod.path)"])
  }

  @Test("says by STATUS that it cannot serve; one that does not know the command can")
  func status() throws {
    try write("fault.STATUS", #"{"code": 51, "msg": "the store is read-only"}"#)
    let impaired = try run("STATUS", "")
    #expect(impaired.errorCode == 51 && impaired.message.contains("read-only"), "\(impaired)")
    try write("fault.STATUS", #"{"code": 1, "msg": "incompatible"}"#)
    #expect(try run("STATUS", "").errorCode == 50)
    try write("fault.STATUS", #"{"code": 4, "msg": "unknown CNI_COMMAND: STATUS"}"#)
    #expect(try run("STATUS", "").exitCode == 0)
  }

  @Test("hears of each stale attachment at GC, and of GC; those it fails for are named, the others go")
  func garbage() throws {
    let other = try Pod()
    try write("answer", Self.answer.serialized())
    #expect(try run("ADD").exitCode == 0)
    try write("answer", #"{"ips": [{"address": "10.99.0.8/24"}]}"#)
    #expect(try run("ADD", "c2", netns: other.path).exitCode == 0)
    _ = try calls()
    let all = config("teller", ["cni.dev/valid-attachments": []])
    try write("fault.DEL", #"{"code": 5, "msg": "disk full"}"#)
    let failing = try run("GC", "", netns: "", by: all)
    #expect(failing.errorCode == 106, "\(failing)")
    for name in ["c1 eth0", "c2 eth0"] { #expect(failing.message.contains(name), "\(failing)") }
    #expect(try calls().sorted() == ["DEL c1 eth0 none", "DEL c2 eth0 none", "GC   none"])
    unlink("\(node.folder)/fault.DEL")
    // One that does not know the command.
    try write("fault.GC", #"{"code": 4, "msg": "unknown CNI_COMMAND: GC"}"#)
    #expect(try run("GC", "", netns: "", by: all).exitCode == 0)
    #expect(try calls().sorted() == ["DEL c1 eth0 none", "DEL c2 eth0 none", "GC   none"])
    #expect(try node.leftovers() == [])
  }

  @Test("works with the reference host-local, also for containers of an earlier boot")
  func hostLocal() throws {
    func config() -> JSONValue {
      node.config([
        "cniVersion": "1.0.0",
        "ipam": [
          "type": "host-local", "dataDir": .string("\(node.folder)/host-local"),
          "ranges": [[["subnet": "10.99.0.0/29"]], [["subnet": "fd00:99::/64"]]],
          "routes": [["dst": "198.51.100.0/24"]],
        ],
      ])
    }
    let reference = ["CNI_PATH": "/usr/lib/cni"]
    func reserved() throws -> [String] {
      try LocalFile.names(in: "\(node.folder)/host-local/pods").filter { IPAddress($0) != nil }.sorted()
    }
    let second = try Pod()
    let first = try node.run("ADD", "c1", in: pod, config(), extra: reference)
    try #require(first.exitCode == 0, "\(first)")
    #expect(try node.run("ADD", "c2", in: second, config(), extra: reference).exitCode == 0)
    #expect(try reserved() == ["10.99.0.2", "10.99.0.3", "fd00:99::2", "fd00:99::3"])
    #expect(try pod.reaches(try #require(IPAddress("10.99.0.3"))))
    #expect(try pod.reaches(try #require(IPAddress("fd00:99::3"))))
    var changed = try #require(config().objectValue)
    changed["prevResult"] = first.json
    #expect(try node.run("CHECK", "c1", in: pod, .object(changed), extra: reference).exitCode == 0)

    // The reboot: namespaces and devices are gone, files are not.
    try RouteSocket(in: node.network.namespace).deleteLink(named: AttachmentName("c1", "eth0").hostInterface)
    let new = try Pod()
    let again = try node.run("ADD", "c1", in: new, config(), extra: reference)
    #expect(again.exitCode == 0, "\(again)")
    #expect(try reserved().count == 4)
    for name in ["c1", "c2"] { #expect(try node.run("DEL", name, config(), extra: reference).exitCode == 0) }
    #expect(try reserved() == [])
    #expect(try node.leftovers() == [])
    withExtendedLifetime(second) {}
  }
}
