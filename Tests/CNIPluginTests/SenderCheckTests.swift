import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import PodFilters
import RawFrames
import Testing

/// Frames that a pod really sends, and what of them is still there behind the chain that asks who sends.
@Suite("What a pod can send")
struct SenderCheckTests {
  private let node: Node

  init() throws { node = try Node() }

  private struct Stage {
    let pod: Pod
    let device: String
    let who: Claimant
  }

  private func stage(_ config: JSONValue? = nil) throws -> Stage {
    let (pod, other) = (try Pod(), try Pod())
    let (ours, theirs) = (try node.add("c1", pod, config), try node.add("c2", other, config))
    func mac(_ result: JSONValue, _ index: Int) throws -> MACAddress {
      let interfaces = try #require(result["interfaces"]?.arrayValue)
      return try #require(interfaces[interfaces.count - 2 + index]["mac"]?.stringValue.flatMap { MACAddress($0) })
    }
    func address(_ result: JSONValue, _ index: Int) throws -> IPAddress {
      let text = try #require((result["ips"]?.arrayValue?[index])?["address"]?.stringValue)
      return try #require(IPAddress(text.prefix { $0 != "/" }))
    }
    // Their links are up.
    #expect(try pod.reaches(try address(theirs, 0)) && other.reaches(try address(ours, 1)))
    let links = try pod.network.namespace.run { try RouteSocket().addresses(family: .v6) }
    let linkLocal = try #require(links.first { $0.scope == 253 })
    return Stage(
      pod: pod, device: try #require(ours["interfaces"]?.arrayValue?.dropLast().last?["name"]?.stringValue),
      who: Claimant(
        mac: try mac(ours, 1), v4: try address(ours, 0), v6: try address(ours, 1),
        linkLocal: linkLocal.address.address, otherMAC: try mac(theirs, 1), otherV4: try address(theirs, 0),
        otherV6: try address(theirs, 1)))
  }

  private func expect(_ frames: [Frame], pass: Bool, _ stage: Stage, _ counter: FrameCounter, _ when: String) throws {
    for frame in frames {
      let before = try counter.count
      let isSent = try stage.pod.network.namespace.run { frame.send(by: "eth0") }
      try #require(isSent, "\(frame)")
      #expect(try counter.count == before + (pass ? 1 : 0), "\(frame) \(when)")
    }
  }

  @Test(
    "without an agent: its own frames pass, no forged one does, and all do where its chain is taken away")
  func alone() throws {
    let stage = try stage()
    let counter = try FrameCounter(node, stage.device)
    try expect(stage.who.honestPackets + stage.who.honestClaims, pass: true, stage, counter, "of its own")
    try expect(stage.who.claims + stage.who.probes + stage.who.packets, pass: false, stage, counter, "forged")
    #expect(try node.run("CHECK", "c1", in: stage.pod, checked(stage)).exitCode == 0)
    // What was dropped was dropped by this.
    let device = stage.device
    try node.network.namespace.run { _ = try SenderChains().remove(device: device) }
    try expect(stage.who.claims + stage.who.probes + stage.who.packets, pass: true, stage, counter, "without the chain")
    let outcome = try node.run("CHECK", "c1", in: stage.pod, checked(stage))
    #expect(outcome.errorCode == 103 && outcome.message.contains("sluice-cni"), "\(outcome)")
    for container in ["c1", "c2"] { #expect(try node.run("DEL", container).exitCode == 0) }
    #expect(try node.leftovers() == [])
  }

  @Test("nor while it is taken away: whoever asks who sends goes last")
  func leaving() throws {
    var sent = 0
    for _ in 0..<10 {
      let stage = try stage()
      let counter = try FrameCounter(node, stage.device)
      let before = try counter.count
      try expect(Array(stage.who.honestPackets.prefix(1)), pass: true, stage, counter, "of its own")
      let forged = try #require(stage.who.packets.first)
      let removal = try node.start("DEL", "c1", netns: stage.pod.path)
      let count = try stage.pod.network.namespace.run { forged.send(by: "eth0", upTo: Self.endless) }
      let outcome = removal.finish()
      #expect(outcome.exitCode == 0, "\(outcome)")
      #expect(count < Self.endless, "its device is gone")
      #expect(try counter.count == before + 1, "of \(count) forged")
      #expect(try node.run("DEL", "c2").exitCode == 0)
      sent += count
    }
    // On a busy machine a DEL may be over before the first is sent.
    #expect(sent > 1_000)
    #expect(try node.leftovers() == [])
  }

  private static let endless = 10_000_000

  /// What CHECK needs of the ADD's result.
  private func checked(_ stage: Stage) -> JSONValue {
    node.config([
      "prevResult": [
        "interfaces": [["name": .string(stage.device)], ["name": "eth0", "sandbox": .string(stage.pod.path)]],
        "ips": [
          ["address": .string("\(stage.who.v4)/32"), "interface": 1],
          ["address": .string("\(stage.who.v6)/128"), "interface": 1],
        ],
      ]
    ])
  }

  @Test("where an engine judges packets: no claim passes, and forged packets get as far as the engine's rules")
  func besideAnEngine() throws {
    let stage = try stage()
    let check = SenderCheck(
      device: stage.device, mac: stage.who.mac, addresses: [stage.who.v4, stage.who.v6], leavesPacketsToEngine: true)
    try node.network.namespace.run { _ = try SenderChains().install(check) }
    let counter = try FrameCounter(node, stage.device)
    try expect(stage.who.honestPackets + stage.who.honestClaims, pass: true, stage, counter, "of its own")
    try expect(stage.who.claims + stage.who.probes, pass: false, stage, counter, "forged")
    try expect(stage.who.packets, pass: true, stage, counter, "the engine's to drop")
  }

  @Test("in the VLANs of a trunk: whatever it says, from its own hardware address and with one tag; in no other")
  func trunk() throws {
    let stage = try stage()
    let check = SenderCheck(
      device: stage.device, mac: stage.who.mac, addresses: [stage.who.v4, stage.who.v6], trunk: [7...7, 10...12],
      leavesPacketsToEngine: false)
    try node.network.namespace.run { _ = try SenderChains().install(check) }
    let counter = try FrameCounter(node, stage.device)
    let (mac, payload) = (stage.who.mac, Frame.arp(.reply, stage.who.mac, stage.who.otherV4, for: stage.who.v4))
    func tagged(_ tag: [UInt8], from sender: MACAddress? = nil, type: UInt16 = 0x8100, _ inner: [UInt8] = [8, 6])
      -> Frame
    {
      Frame("tag \(tag), inside \(inner), type \(type)", from: sender ?? mac, type: type, tag + inner + payload)
    }
    // The tag's first four bits are no part of the VLAN's number.
    let passing = [[0, 7], [0xe0, 7], [0, 10], [0, 11], [0x60, 12]].map { tagged($0) }
    try expect(passing + [tagged([0, 7], [0x88, 0xcc])], pass: true, stage, counter, "in the trunk")
    let dropped =
      [[0, 6], [0, 8], [0, 9], [0, 13], [0, 0], [0xe0, 0], [0, 1], [1, 7], [0x0f, 0xff]].map { tagged($0) } + [
        tagged([0, 7], from: stage.who.otherMAC), tagged([0, 7], type: 0x88a8),
        tagged([0, 7], [0x81, 0, 0, 5, 8, 6]), tagged([0, 7], [0x88, 0xa8, 0, 5, 8, 6]),
      ]
    try expect(dropped, pass: false, stage, counter, "not in the trunk")
    try expect(
      stage.who.claims + stage.who.probes + stage.who.packets, pass: false, stage, counter, "forged, without a tag")
    try expect(stage.who.honestPackets + stage.who.honestClaims, pass: true, stage, counter, "of its own")
  }

  @Test("in a bridge as well, before the bridge learns anything")
  func ofBridge() throws {
    let stage = try stage(
      node.config([
        "mode": "bridge", "bridge": "br-test", "isDefaultGateway": true,
        "ipam": ["ranges": [[["subnet": "10.77.0.0/24"]], [["subnet": "fd00:77::/64"]]]],
      ]))
    let counter = try FrameCounter(node, stage.device)
    try expect(stage.who.honestPackets + stage.who.honestClaims, pass: true, stage, counter, "of its own")
    try expect(stage.who.claims + stage.who.probes + stage.who.packets, pass: false, stage, counter, "forged")
  }

  @Test(
    "DEL, GC and the next ADD take away the chain of a pod whose namespace is gone", arguments: ["DEL", "GC", "ADD"])
  func vanished(command: String) throws {
    let node = node
    @Sendable func chains() throws -> Set<String> { try node.network.namespace.run { try SenderChains().devices() } }
    var pod: Pod? = try Pod()
    try node.add("c1", try #require(pod))
    let chain = try #require(try chains().first)
    pod = nil
    // The pair goes with the namespace, a moment later.
    for _ in 0..<200 where try RouteSocket(in: node.network.namespace).link(named: chain) != nil { usleep(10_000) }
    if command == "ADD" {
      try node.add("c1", Pod())
      #expect(try chains() == [chain])
    }
    let ended =
      command == "GC"
      ? try node.run("GC", "", node.config(["cni.dev/valid-attachments": []]), extra: ["CNI_IFNAME": ""])
      : try node.run("DEL", "c1")
    #expect(ended.exitCode == 0, "\(ended)")
    #expect(try chains() == [])
    #expect(try node.leftovers() == [])
  }
}
