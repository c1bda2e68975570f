import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import PolicyWorlds

/// One packet, and where it has to arrive.
struct PolicyTrial {
  var name: String
  var packet: ProbePacket
  var from: PolicyRig.Place
  /// nil: nowhere.
  var to: PolicyRig.Place?
  /// The source that a pod claims to be.
  var mac: MACAddress?
  /// In a frame to everybody.
  var isBroadcast = false

  init(
    _ name: String, _ packet: ProbePacket, from: PolicyRig.Place, to: PolicyRig.Place?, mac: MACAddress? = nil
  ) {
    self.name = name
    self.packet = packet
    self.from = from
    self.to = to
    self.mac = mac
  }
}

extension PolicyNode {
  /// The place of a pod of this node: `shop/web`.
  static func pod(_ name: String) -> PolicyRig.Place { .pod(CompiledWorld.interface(PolicyScene.key(name))) }

  /// A pod's address; for `host` the node's InternalIP, for anything else the address itself.
  func address(_ name: String, _ family: IPFamily) -> IPAddress {
    if name == "host" { return PolicyScene.address(family == .v4 ? "172.18.0.1" : "fd00:172:18::1") }
    if let address = IPAddress(name) { return address }
    return world.pods.first { $0.key == PolicyScene.key(name) }?.podIPs.first { $0.family == family }
      ?? .unspecified(family)
  }

  /// Sends the packets, and says of each that did not arrive where it had to, or did and should not.
  ///
  /// - Returns: the arrivals, in the packets' order.
  @discardableResult
  func check(
    _ trials: [PolicyTrial], _ findings: inout Findings, location: SourceLocation = #_sourceLocation
  ) throws -> [PolicyRig.Arrival?] {
    var expected: Set<UInt64> = []
    let numbers = try trials.map { trial in
      let number = try rig.send(trial.packet, from: trial.from, mac: trial.mac, isBroadcast: trial.isBroadcast)
      if trial.to != nil { expected.insert(number) } else { rig.forbidden[number] = trial.name }
      return number
    }
    let arrivals = try rig.arrivals(expecting: expected)
    for arrival in arrivals where !numbers.contains(arrival.number) {
      let name = rig.forbidden[arrival.number]
      findings.expect(name == nil, "\(name ?? ""), late: arrived at \(arrival.place)", location: location)
    }
    return zip(trials, numbers).map { trial, number in
      let found = arrivals.filter { $0.number == number }
      let said = found.map { "\($0.place)" }.joined(separator: ", ")
      findings.expect(
        found.map(\.place) == (trial.to.map { [$0] } ?? []),
        "\(trial.name): \(trial.packet) arrived at [\(said)], not \(trial.to.map { "\($0)" } ?? "nowhere")",
        location: location)
      return found.first
    }
  }

  /// The first packet of a flow between two ends by name (see `address`), from a pod, the node (`host`) or outside.
  func trial(
    _ from: String, _ to: String, _ proto: FlowProtocol, _ family: IPFamily, arrives: Bool, _ note: String = ""
  ) -> PolicyTrial {
    let source = address(from, family)
    let destination = address(to, family)
    let sender = world.localPods.first { $0.key == PolicyScene.key(from) }
    let origin: FlowOrigin = from == "host" ? .host : sender.map { .localPod($0.key) } ?? .wire
    let flow = PolicyFlow(origin: origin, source: source, destination: destination, proto: proto)
    let (packet, place) = packet(flow)
    let target: PolicyRig.Place =
      tables.node.endpoint(with: destination).map { .pod($0.interface) }
      ?? (rig.ownAddresses.contains(destination) ? .node : .outside)
    return PolicyTrial(
      "\(note.isEmpty ? "" : "\(note): ")\(from) to \(to), \(family), \(proto)", packet, from: place,
      to: arrives ? target : nil)
  }

  /// Packets that a chain of ours has counted, both families.
  func counted(chain: String) throws -> Int {
    try IPFamily.allCases.reduce(0) { sum, family in
      let listing = try run("nft list chain \(family == .v4 ? "ip" : "ip6") sluice \(chain)").output
      let words = listing.split(whereSeparator: \.isWhitespace)
      return words.indices.dropLast().reduce(sum) {
        $0 + (words[$1] == "packets" ? Int(words[$1 + 1]) ?? 0 : 0)
      }
    }
  }
}
