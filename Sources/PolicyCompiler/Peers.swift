import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// A peer that some policy in force names. Equal peers of different policies are one.
enum Peer: Hashable, Sendable {
  case pods(LabelSelector?, scope: NamespaceScope)
  case block(IPBlock)

  init(_ peer: NetworkPolicyPeer, of namespace: String) {
    switch peer {
    case .pods(let pods, nil): self = .pods(pods, scope: .own(namespace))
    case .pods(let pods, let namespaces?): self = .pods(pods, scope: .selected(namespaces))
    case .ipBlock(let block): self = .block(block)
    }
  }
}

struct PeerID: Hashable, Comparable, Sendable {
  let rawValue: UInt32
  static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// A port by name, which means something else on each pod.
struct NamedPort: Hashable, Comparable, Sendable {
  var name: String
  var proto: L4Protocol
  static func < (left: Self, right: Self) -> Bool { (left.name, left.proto) < (right.name, right.proto) }
}

/// What names mean on one pod: those that policies in force ask for, and only those it has.
typealias NamedPortNumbers = [NamedPort: [Port]]

extension [NamedContainerPort] {
  /// Every number of a name and protocol, sorted.
  func numbers(of port: NamedPort) -> [Port] {
    Set(filter { $0.name == port.name && $0.proto == port.proto }.map(\.port)).sorted()
  }

  func numbers(of ports: some Sequence<NamedPort>) -> NamedPortNumbers {
    var result: NamedPortNumbers = [:]
    for port in ports {
      let numbers = numbers(of: port)
      if !numbers.isEmpty { result[port] = numbers }
    }
    return result
  }
}

/// The peers and port names in force, each with the number of subjects that use it.
struct PeerRegistry {
  private(set) var ids: [Peer: PeerID] = [:]
  private(set) var peers: [PeerID: Peer] = [:]
  private var uses: [PeerID: Int] = [:]
  private(set) var selectors = SelectorIndex<PeerID>()
  private(set) var blocks: [PeerID: IPBlock] = [:]
  private(set) var namedPorts: [NamedPort: Int] = [:]
  private var next: UInt32 = 1

  /// Whether the peer is new.
  mutating func retain(_ peer: Peer) -> (id: PeerID, isNew: Bool) {
    if let id = ids[peer] {
      uses[id, default: 0] += 1
      return (id, false)
    }
    let id = PeerID(rawValue: next)
    next += 1
    ids[peer] = id
    peers[id] = peer
    uses[id] = 1
    switch peer {
    case .pods(let pods, let scope): selectors.insert(id, pods: pods, scope: scope)
    case .block(let block): blocks[id] = block
    }
    return (id, true)
  }

  /// The peer, if this was its last use.
  mutating func release(_ id: PeerID) -> Peer? {
    guard let count = uses[id] else { return nil }
    guard count <= 1 else {
      uses[id] = count - 1
      return nil
    }
    uses[id] = nil
    selectors.remove(id)
    blocks[id] = nil
    let peer = peers.removeValue(forKey: id)
    if let peer { ids[peer] = nil }
    return peer
  }

  mutating func retain(_ port: NamedPort) -> Bool {
    namedPorts[port, default: 0] += 1
    return namedPorts[port] == 1
  }

  mutating func release(_ port: NamedPort) -> Bool {
    guard let count = namedPorts[port] else { return false }
    namedPorts[port] = count == 1 ? nil : count - 1
    return count == 1
  }
}
