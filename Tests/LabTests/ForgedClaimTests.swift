// What a pod says of itself by ARP and neighbour discovery, under a real agent: frames that it really sends.
import Glibc
import Lab
import LocalAPI
import Netlink
import NetworkTypes
import RawFrames
import Testing

@testable import Lab

@Suite(
  "What a pod claims by ARP and neighbour discovery", .serialized,
  .enabled(if: LabHarness.canRun("sluice-agent", "sluice")))
struct ForgedClaimTests {
  private static let node = "node1"

  @Test(
    "gets further than its device where it is true, and not where it is forged, whichever agent made or found the pod")
  func claims() throws {
    var configuration = LabHarness.configuration("claims", nodes: 1)
    configuration.agentArguments += ["--verify-interval", "1"]
    try LabHarness.withLab(configuration) { lab in
      let (pod, other) = (
        try lab.addPod(PodSpec("shop", "sends", node: Self.node)),
        try lab.addPod(PodSpec("shop", "other", node: Self.node))
      )
      let who = try Self.claimant(lab, pod, other)
      let device = AttachmentName(pod.containerID, "eth0").hostInterface
      func nft(_ command: String) throws -> String {
        try lab.exec(in: .node(Self.node), [LabHarness.nft, command]).stdout
      }
      _ = try nft(
        "add table netdev test; add chain netdev test in { type filter hook ingress device \(device) priority 10; };"
          + "add rule netdev test in ether daddr \(Frame.destination) counter")
      func passed() throws -> Int {
        let words = try nft("list chain netdev test in").split(separator: " ")
        let index = try #require(words.firstIndex(of: "packets"))
        return try #require(Int(words[index + 1]))
      }
      func expect(_ frames: [Frame], pass: Bool, _ when: String) throws {
        for frame in frames {
          let before = try passed()
          #expect(try lab.network(of: .pod(pod.name)).run { frame.send(by: "eth0") }, "\(frame)")
          #expect(try passed() == before + (pass ? 1 : 0), "\(frame) \(when)")
        }
      }
      try expect(who.honestClaims, pass: true, "true")
      try expect(who.claims, pass: false, "forged")
      // Killed and started again; what somebody has taken away is made again.
      try lab.killAgent(Self.node)
      try expect(who.claims, pass: false, "forged, the agent killed")
      if configuration.engine == "nftables" {
        _ = try nft("delete table netdev sluice-cni")
        try expect(Array(who.claims.prefix(2)), pass: true, "without the chain")
      }
      try lab.startAgent(Self.node)
      try LabHarness.eventually(milliseconds: 20_000, "claims are asked about again") {
        let before = try passed()
        let frame = try #require(who.claims.first)
        #expect(try lab.network(of: .pod(pod.name)).run { frame.send(by: "eth0") })
        return try passed() == before
      }
      try expect(who.claims, pass: false, "forged, the agent started again")
      try expect(who.honestClaims, pass: true, "true, the agent started again")
      _ = try nft("delete table netdev test")
      for pod in [pod, other] { try lab.removePod(pod.name, graceful: false) }
      #expect(try !nft("list tables").contains("sluice-cni"))
    }
  }

  private static func claimant(_ lab: Lab, _ pod: LabPod, _ other: LabPod) throws -> Claimant {
    func ends(_ pod: LabPod) throws -> (mac: MACAddress, v4: IPAddress, v6: IPAddress, linkLocal: IPAddress) {
      let socket = try RouteSocket(in: try lab.network(of: .pod(pod.name)))
      let link = try #require(try socket.link(named: "eth0"))
      let addresses = try socket.addresses(interfaceIndex: link.index)
      let linkLocal = try #require(addresses.first { $0.scope == 253 }).address.address
      return (
        try #require(link.mac), try #require(pod.address(.v4)), try #require(pod.address(.v6)), linkLocal
      )
    }
    let (mine, theirs) = (try ends(pod), try ends(other))
    return Claimant(
      mac: mine.mac, v4: mine.v4, v6: mine.v6, linkLocal: mine.linkLocal, otherMAC: theirs.mac, otherV4: theirs.v4,
      otherV6: theirs.v6)
  }
}
