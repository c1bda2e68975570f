import ClusterSource
import DataplaneModel
import KubernetesObjects
import NetworkTypes
import ServiceCompiler
import Testing

/// A node of a cluster as the agent sees it: YAML goes in, packets are walked over the tables that come out.
///
/// The node is `here` in zone `a`, with the addresses 192.168.0.1 and fd00:192::1. Pods in 10.244.1.0/24 and
/// fd00:244:1::/64 whose last group is 2, 3 or 9 are local; `client` is one of them.
struct World {
  let state = ClusterState(ownNodeName: "here")
  private(set) var compiler: ServiceCompiler<VolatileNumbering>
  private(set) var tables = Tables()
  /// What the last change made the compiler look at; nil: everything.
  private(set) var lastCompiled: Set<ObjectKey>?

  static let ownNode = """
    apiVersion: v1
    kind: Node
    metadata: {name: here, labels: {topology.kubernetes.io/zone: a}}
    status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: 'fd00:192::1'}]}
    """

  init(slotsInForce: [BackendSetID: [SocketAddress]] = [:]) throws {
    compiler = ServiceCompiler(nodeName: "here", numbering: VolatileNumbering(), slotsInForce: slotsInForce)
    try apply(Self.ownNode)
    let mac = try #require(MACAddress("0a:00:00:00:00:01"))
    changeNode { node in
      for number in [2, 3, 9] {
        let name = "veth\(number)"
        let addresses = [address("10.244.1.\(number)"), address("fd00:244:1::\(number)")]
        node.endpoints[name] = Change(old: nil, new: LocalEndpoint(interface: name, mac: mac, addresses: addresses))
      }
      node.nodePortAddresses.added = [address("192.168.0.1"), address("fd00:192::1")]
      for own in node.nodePortAddresses.added { node.internalAddresses[own.family] = Change(old: nil, new: own) }
      node.clusterRanges.added = Set(["10.0.0.0/8", "192.168.0.0/24", "fd00::/16"].compactMap { CIDR($0) })
    }
  }

  /// A world that has read these documents.
  init(_ documents: String...) throws {
    try self.init()
    for text in documents { try apply(text) }
  }

  // MARK: Changes

  /// Applies documents separated by `---` in one step and returns what that changed.
  @discardableResult
  mutating func apply(_ documents: String...) throws -> TableDelta {
    var changes: [ObjectChange] = []
    for text in documents.flatMap(Self.split) {
      let decoded = decodeObject(try parseYAMLDocument(Array(text.utf8)), file: "test.yaml")
      guard case .object(let object, let problems, _) = decoded, problems.isEmpty else {
        throw NotDecoded(description: "\(decoded)\n\(text)")
      }
      changes.append(.upsert(object))
    }
    return change(changes)
  }

  @discardableResult
  mutating func delete(_ kind: ObjectKind, _ name: String, namespace: String = "shop") -> TableDelta {
    change([.delete(kind, ObjectKey(namespace: kind.isNamespaced ? namespace : "", name: name))])
  }

  /// What the agent does with changes: all Services only where the own node or the ServiceCIDRs changed.
  @discardableResult
  mutating func change(_ changes: [ObjectChange]) -> TableDelta {
    var effect = ChangeEffect()
    for change in changes { effect.formUnion(state.apply(change)) }
    var services = Set(effect.services)
    lastCompiled = effect.ownNodeChanged ? nil : services
    if effect.ownNodeChanged { services.formUnion(state.services.keys) }
    var delta = compiler.compile(services, in: state, tables: tables)
    delta.serviceRanges = SetChange(
      from: tables.services.serviceRanges, to: Set(state.serviceCIDRs.values.flatMap(\.cidrs)))
    tables.apply(delta)
    return delta
  }

  /// What the agent does where local pods come to have a port of the node, or go.
  @discardableResult
  mutating func change(hostPort: UInt16, _ targets: HostPortTarget...) -> TableDelta {
    var delta = TableDelta()
    guard let port = Port(hostPort) else { return delta }
    compiler.compile(hostPort: port, targets, tables: tables, into: &delta)
    tables.apply(delta)
    return delta
  }

  /// Changes what the tables say of the node itself.
  mutating func changeNode(_ body: (inout TableDelta) -> Void) {
    var delta = TableDelta()
    body(&delta)
    tables.apply(delta)
  }

  /// The UDP flows a delta just made leaves behind, as text.
  func stale(_ delta: TableDelta) -> Set<String> {
    Set(delta.staleFlows(after: tables) { compiler.frontendKeys(of: $0) }.map(\.description))
  }

  /// Applies a document and returns what that leaves behind.
  mutating func stale(applying document: String) throws -> Set<String> {
    let delta = try apply(document)
    return stale(delta)
  }

  mutating func stale(deleting kind: ObjectKind, _ name: String) -> Set<String> {
    let delta = delete(kind, name)
    return stale(delta)
  }

  var conflicts: [String] { compiler.conflicts(nodePortAddresses: tables.node.nodePortAddresses).map(\.description) }

  private static func split(_ text: String) -> [String] {
    var documents = [""]
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      if line == "---" { documents.append("") } else { documents[documents.count - 1] += line + "\n" }
    }
    return documents
  }

  // MARK: Packets

  /// Every permitted outcome, as text. Without `source`: the local pod `client`, the node itself, or a stranger.
  func walk(
    _ origin: Origin, to destination: String, _ port: UInt16 = 80, _ proto: L4Protocol = .tcp,
    source: String? = nil, affinity: AffinityState = AffinityState()
  ) -> Set<String> {
    let destination = address(destination)
    let isV4 = destination.family == .v4
    let usual =
      switch origin {
      case .pod: isV4 ? "10.244.1.9" : "fd00:244:1::9"
      case .host: isV4 ? "192.168.0.1" : "fd00:192::1"
      case .outside: isV4 ? "203.0.113.7" : "2001:db8::7"
      }
    let packet = Packet(
      origin: origin, source: address(source ?? usual), destination: destination, proto: proto, sourcePort: 40000,
      destinationPort: port)
    return Set(tables.walk(packet, affinity: affinity).map(\.description))
  }

  /// The same packet from a pod, the node and a stranger, in that order.
  func walkFromEverywhere(to destination: String, _ port: UInt16 = 80, _ proto: L4Protocol = .tcp) -> [Set<String>] {
    [Origin.pod, .host, .outside].map { walk($0, to: destination, port, proto) }
  }
}

struct NotDecoded: Error, CustomStringConvertible { let description: String }

func address(_ text: String, sourceLocation: SourceLocation = #_sourceLocation) -> IPAddress {
  guard let address = IPAddress(text) else {
    Issue.record("not an address: \(text)", sourceLocation: sourceLocation)
    return .unspecified(.v4)
  }
  return address
}

// MARK: Documents

/// A Service; `spec` is the inside of a YAML flow mapping.
func service(
  _ spec: String, name: String = "api", namespace: String = "shop", labels: String = "", created: String = "",
  ingress: String = ""
) -> String {
  """
  apiVersion: v1
  kind: Service
  metadata: {name: \(name), namespace: \(namespace)\(created.isEmpty ? "" : ", creationTimestamp: \(created)"), \
  labels: {\(labels)}}
  spec: {\(spec)}
  \(ingress.isEmpty ? "" : "status: {loadBalancer: {ingress: [\(ingress)]}}")
  """
}

/// An EndpointSlice; `ports` is the inside of a YAML flow list, the family that of the first endpoint.
func slice(
  of service: String = "api", _ endpoints: [String], name: String? = nil, namespace: String = "shop",
  ports: String = "{port: 8080}", labels: String = "", family: IPFamily = .v4
) -> String {
  """
  apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata:
    name: \(name ?? "\(service)-\(family == .v4 ? 4 : 6)")
    namespace: \(namespace)
    labels: {kubernetes.io/service-name: \(service)\(labels.isEmpty ? "" : ", \(labels)")}
  addressType: \(family)
  ports: [\(ports)]
  endpoints: [\(endpoints.joined(separator: ", "))]
  """
}

enum Condition: String, CaseIterable {
  case ready = "{}"
  case notReady = "{ready: false, serving: false, terminating: false}"
  /// Leaving, but still answering.
  case ending = "{ready: false, serving: true, terminating: true}"
  case ended = "{ready: false, serving: false, terminating: true}"
}

/// One endpoint of a slice, on the node `there` unless told otherwise.
func pod(
  _ address: String, on node: String = "there", _ condition: Condition = .ready, zones: [String] = [],
  nodes: [String] = []
) -> String {
  func names(_ hints: [String]) -> String { hints.map { "{name: \($0)}" }.joined(separator: ", ") }
  return "{addresses: ['\(address)'], nodeName: \(node), conditions: \(condition.rawValue), "
    + "hints: {forZones: [\(names(zones))], forNodes: [\(names(nodes))]}}"
}

func backend(_ text: String, _ port: UInt16 = 8080) throws -> SocketAddress {
  SocketAddress(address(text), try #require(Port(port)))
}
