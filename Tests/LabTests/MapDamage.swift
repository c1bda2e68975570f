import CLibBPF
import Glibc
import Lab
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import Lab

/// Elements of a pinned map of a node, taken out as if by hand.
struct MapDamage {
  private let pin: String
  private var elements: [(key: [UInt8], value: [UInt8])] = []

  static func pins(_ lab: Lab, _ node: String) throws -> PinFolder {
    try PinFolder(reading: try lab.path("/sys/fs/bpf/sluice", on: node))
  }

  /// - Parameters:
  ///   - limit: so many at most.
  ///   - isMeant: of which elements, by their key's words.
  init(
    _ lab: Lab, _ node: String, map name: String, limit: Int = 1, where isMeant: (String) -> Bool = { _ in true }
  ) throws {
    let pins = try Self.pins(lab, node)
    let pinned = try #require(try PinnedMap.all(in: pins).first { $0.name == name })
    let words = try #require(MapWords.of(pinned))
    var found: [(key: [UInt8], value: [UInt8])] = []
    try pinned.forEach { key, value in
      if isMeant(words.key(key).text) { found.append((Array(key), Array(value))) }
      return found.count < limit
    }
    try #require(!found.isEmpty, "nothing in map \(name)")
    elements = found
    pin = "\(pins.path)/\(pinned.pin)"
  }

  private func withMap<Result>(_ body: (CInt) throws -> Result) throws -> Result {
    let map = bpf_obj_get(pin)
    try #require(map >= 0, "\(pin)")
    defer { close(map) }
    return try body(map)
  }

  func takeOut() throws {
    try withMap { map in for element in elements { #expect(bpf_map_delete_elem(map, element.key) == 0) } }
  }

  func whileGone<Result>(_ body: () throws -> Result) throws -> Result {
    try takeOut()
    defer {
      do {
        try withMap { map in
          for element in elements { #expect(bpf_map_update_elem(map, element.key, element.value, 0) == 0) }
        }
      } catch { Issue.record("\(error)") }
    }
    return try body()
  }
}

/// What somebody else does to this node's kernel objects, by either engine, and what names it where it is repaired.
struct ForeignHand: CustomStringConvertible {
  var description: String
  var named: [String]
  private let act: (Lab) throws -> Void

  static let node = "node1"

  /// Tables that others can change; nothing tells who writes into a BPF map, that is found by looking.
  static let agentArguments =
    LabHarness.configuration("").engine == "ebpf" ? ["--verify-interval", "1"] : LabHarness.sharedTables

  func strike(_ lab: Lab) throws { try act(lab) }

  private init(nft command: [String], named: [String]) {
    description = "nft \(command.joined(separator: " "))"
    self.named = named
    act = { lab in
      let result = try lab.exec(in: .node(Self.node), ["/usr/sbin/nft"] + command)
      #expect(result.status == 0, "\(command): \(result.stderr)")
    }
  }

  private init(map: String, where isMeant: @escaping (String) -> Bool = { _ in true }, limit: Int, named: [String]) {
    description = "\(limit == 1 ? "an element" : "all") of map \(map) deleted"
    self.named = named
    act = { lab in try MapDamage(lab, Self.node, map: map, limit: limit, where: isMeant).takeOut() }
  }

  private init(detaching prefix: String, named: [String]) {
    description = "\(prefix) detached"
    self.named = named
    act = { lab in
      let pins = try MapDamage.pins(lab, Self.node)
      let names = pins.names.filter { $0.hasPrefix(prefix) }
      try #require(!names.isEmpty, "\(pins.names)")
      for name in names {
        let link = bpf_obj_get("\(pins.path)/\(name)")
        try #require(link >= 0, "\(name)")
        #expect(bpf_link_detach(link) == 0, "\(name)")
        close(link)
      }
    }
  }

  /// Backends that a Service loses.
  static func backends(_ engine: String) -> ForeignHand {
    engine == "ebpf"
      ? ForeignHand(map: "slots", limit: .max, named: ["map slots"])
      : ForeignHand(nft: ["flush", "map", "ip", "sluice", "backends"], named: ["backend"])
  }

  /// All that a test of repairs goes through.
  ///
  /// - Parameters:
  ///   - service: a cluster address with TCP port 80.
  ///   - pod: a backend's address.
  static func all(_ engine: String, service: String, pod: String) -> [ForeignHand] {
    if engine == "ebpf" {
      return [
        ForeignHand(
          map: "frontends", where: { $0.contains("\(service) ") && $0.contains("tcp") }, limit: 1, named: [service]),
        ForeignHand(map: "slots", limit: .max, named: ["map slots"]),
        ForeignHand(map: "sets", limit: .max, named: ["map sets"]),
        ForeignHand(map: "pod_devices", where: { $0.contains(pod) }, limit: 1, named: [pod]),
        ForeignHand(map: "addresses", where: { $0.contains(service) }, limit: 1, named: [service]),
        ForeignHand(map: "endpoints", limit: .max, named: ["map endpoints"]),
        ForeignHand(detaching: "tc-from_pod", named: ["program from_pod at device"]),
        ForeignHand(detaching: "tc-", named: ["program to_pod at device", "program from_wire at device"]),
        ForeignHand(detaching: "link-connect", named: ["link connect4", "link connect6"]),
      ]
    }
    return [
      ForeignHand(
        nft: ["delete", "element", "ip", "sluice", "frontends", "{ \(service) . tcp . 80 }"], named: [service]),
      ForeignHand(nft: ["flush", "map", "ip", "sluice", "backends"], named: [pod]),
      ForeignHand(nft: ["flush", "map", "ip6", "sluice", "backend-sets"], named: ["ip6", "backend-sets"]),
      ForeignHand(nft: ["flush", "chain", "ip", "sluice", "services"], named: ["chain ip services"]),
      ForeignHand(nft: ["add", "element", "ip", "sluice", "service-addresses", "{ 10.96.9.9 }"], named: ["10.96.9.9"]),
      ForeignHand(nft: ["delete", "table", "ip6", "sluice"], named: ["table ip6 sluice"]),
      ForeignHand(nft: ["flush", "ruleset"], named: ["table ip sluice", "table ip6 sluice"]),
    ]
  }
}
