import FoundationEssentials
import KubernetesObjects
import NetworkTypes

@testable import PolicyWorlds

/// A random world and what the oracle expects of it, in the form that scripts/policy-check compares with another
/// program: Tests/Independent/README.md describes it.
struct ExportedWorld {
  /// A connection between two ends, each a pod as `namespace/name` or an address.
  struct Judgement: Codable, Hashable {
    var from: String
    var to: String
    var family: String
    var proto: String
    var port: UInt16
    var allowed: Bool

    enum CodingKeys: String, CodingKey {
      case from, to, family, port, allowed
      case proto = "protocol"
    }
  }

  var world: PolicyWorld
  var judgements: [Judgement]

  /// - Parameter flows: how many to think of; those that the other program has no notion of, and repetitions, are left
  ///   out. At least one stays.
  init(using random: inout some RandomNumberGenerator, size: RandomWorld.Size, flows: Int) {
    var judgements: [Judgement] = []
    repeat {
      world = Self.world(using: &random, size: size)
      var seen: Set<Judgement> = []
      for _ in 0..<flows {
        guard let judgement = Self.judgement(in: world, using: &random), seen.insert(judgement).inserted else {
          continue
        }
        judgements.append(judgement)
      }
    } while judgements.isEmpty
    self.judgements = judgements
  }

  /// As it comes, or some changes later. Of two pods with one address, the other program would take either.
  private static func world(using random: inout some RandomNumberGenerator, size: RandomWorld.Size) -> PolicyWorld {
    var world = RandomWorld.make(using: &random, size: size)
    for _ in 0..<random.pick([0, 0, 5, 20]) { world.mutate(using: &random) }
    let crowded = world
    world.pods.removeAll { pod in
      pod.isPolicyPod && pod.podIPs.contains { crowded.pod(at: $0)?.key != pod.key }
    }
    return world
  }

  // MARK: Judgements

  /// What is expected of a flow that one of the nodes carries; nil where it has no port or no pod.
  private static func judgement(
    in world: PolicyWorld, using random: inout some RandomNumberGenerator
  ) -> Judgement? {
    let flow = world.seen(from: random.pick(world.nodes).name).flow(using: &random)
    let (source, destination) = (flow.source, flow.destination)
    guard let (proto, port) = flow.proto.transport, port != 0,
      world.pod(at: source) != nil || world.pod(at: destination) != nil
    else { return nil }
    return Judgement(
      from: end(source, in: world, using: &random), to: end(destination, in: world, using: &random),
      family: "\(source.family)", proto: proto.kubernetesName, port: port,
      allowed: world.allows(from: source, to: destination, flow.proto))
  }

  /// A name for an address: mostly that of a pod that has it, be it finished or on its node's network.
  private static func end(
    _ address: IPAddress, in world: PolicyWorld, using random: inout some RandomNumberGenerator
  ) -> String {
    let pods = world.pods.filter { $0.podIPs.contains(address) }
    return pods.isEmpty || random.chance(20) ? "\(address)" : "\(random.pick(pods).key)"
  }

  // MARK: Files

  /// Writes `world.yaml` and `expected.json` into a folder, which is made. Throws what the file system says.
  func write(to folder: String) throws {
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try WorldYAML.documents(world).write(toFile: "\(folder)/world.yaml", atomically: false, encoding: .utf8)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    let lines = try judgements.map { String(decoding: try encoder.encode($0), as: UTF8.self) }
    try "[\n\(lines.joined(separator: ",\n"))\n]\n"
      .write(toFile: "\(folder)/expected.json", atomically: false, encoding: .utf8)
  }
}

extension PolicyWorld {
  func seen(from node: String) -> PolicyWorld {
    var world = self
    world.ownNode = node
    return world
  }

  /// Whether the policies at both ends of a connection allow it: each is asked of the oracle on the pod's own node.
  func allows(from source: IPAddress, to destination: IPAddress, _ proto: FlowProtocol) -> Bool {
    func verdict(on node: String) -> OracleVerdict {
      let view = seen(from: node)
      let isHost = nodes.contains { $0.name == node && $0.internalIPs.contains(source) }
      let origin: FlowOrigin =
        if let sender = view.pod(at: source), sender.nodeName == node { .localPod(sender.key) } else {
          isHost ? .host : .wire
        }
      let flow = PolicyFlow(origin: origin, source: source, destination: destination, proto: proto)
      return PolicyOracle(view).judge(flow)
    }
    let sending = pod(at: source)?.nodeName
    let receiving = pod(at: destination)?.nodeName
    return sending.map { verdict(on: $0).egress.verdict.allows } != false
      && receiving.map { verdict(on: $0).ingress.verdict.allows } != false
  }
}

extension FlowProtocol {
  /// The protocol and destination port, of those that have ports.
  fileprivate var transport: (L4Protocol, UInt16)? {
    switch self {
    case .tcp(let port): (.tcp, port)
    case .udp(let port): (.udp, port)
    case .sctp(let port): (.sctp, port)
    case .icmpEcho, .other: nil
    }
  }
}
