import LocalAPI
import NetworkTypes

/// One node of a lab, before it exists.
public struct LabNodeSpec: Sendable, Hashable {
  public var name: String
  /// `topology.kubernetes.io/zone`.
  public var zone: String
  public var labels: [String: String] = [:]

  public init(name: String, zone: String) {
    self.name = name
    self.zone = zone
  }
}

/// What a lab is to be like.
public struct LabConfiguration: Sendable {
  /// `^[a-z0-9][a-z0-9-]*$`, at most 40 characters; labs of different names stand side by side.
  public var name: String
  public var nodes: [LabNodeSpec]
  /// Where `dpctl`, `sluice` and `sluice-agent` are.
  public var binDirectory: String
  /// Whether every node starts its agent with the lab. Without agents the nodes get a static CNI configuration.
  public var startsAgents = true
  /// Appended to the agent's command line.
  public var agentArguments: [String] = []
  /// Whether agents follow an API server, which serves the folder of manifests, instead of the folder.
  public var usesAPIServer = false
  /// The API server's objects are changed by kubectl, not by the manifests: its controllers turn, and it runs the pods.
  public var hasControllers = false
  /// The data plane: `--engine`.
  public var engine = "nftables"
  /// Whose connections are translated at the socket: `--socket-lb`; nil: what the engine does by itself.
  public var socketLB: String?
  /// Whether programs on the cgroup of all labs see sockets.
  /// The agents' `--socket-lb`.
  public var socketMode: String { socketLB ?? (engine == "ebpf" ? "all" : "off") }
  var servesSockets: Bool { socketLB != nil || engine == "ebpf" }

  /// Nodes `node1`, `node2`… in the zones a, b, c in turn.
  public init(name: String = "default", nodes: Int = 2, binDirectory: String) {
    let zones = ["zone-a", "zone-b", "zone-c"]
    self.init(
      name: name, nodes: (0..<nodes).map { LabNodeSpec(name: "node\($0 + 1)", zone: zones[$0 % zones.count]) },
      binDirectory: binDirectory)
  }

  public init(name: String, nodes: [LabNodeSpec], binDirectory: String) {
    self.name = name
    self.nodes = nodes
    self.binDirectory = binDirectory
  }

  func validate() throws(LabError) {
    try Self.validate("lab name", name)
    guard (1...100).contains(nodes.count) else {
      throw .invalid(field: "nodes", value: "\(nodes.count)", reason: "a lab has 1 to 100 nodes")
    }
    var seen: Set<String> = ["client", "switch", "manifests", "apiserver"]
    for node in nodes {
      try Self.validate("node name", node.name)
      guard seen.insert(node.name).inserted else {
        throw .invalid(field: "node name", value: node.name, reason: "is reserved, or used twice")
      }
    }
  }

  /// Names become folders, cgroups and objects.
  static func validate(_ field: String, _ name: String) throws(LabError) {
    let allowed = name.utf8.allSatisfy { byte in
      (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
        || byte == UInt8(ascii: "-")
    }
    guard allowed, (1...40).contains(name.utf8.count), !name.hasPrefix("-") else {
      throw .invalid(field: field, value: name, reason: "1 to 40 of a-z, 0-9 and -, not starting with -")
    }
  }
}

/// The addresses of a lab. Every lab uses the same ones: its switch is its own world.
public enum LabAddresses {
  public static let serviceCIDRs = ["10.96.0.0/16", "fd00:10:96::/112"].compactMap { CIDR($0) }
  public static let nodeCIDRs = ["192.168.100.0/24", "fd00:100::/64"].compactMap { CIDR($0) }
  /// All nodes' pod ranges.
  public static let clusterCIDRs = ["10.244.0.0/16", "fd00:10:244::/48"].compactMap { CIDR($0) }
  /// The switch: the nodes' default gateway.
  public static let gateway = addresses(host: 1)
  public static let client = addresses(host: 200)

  /// The InternalIPs of the node at that place, counted from 0: one of each family.
  public static func node(_ index: Int) -> [IPAddress] { addresses(host: 11 + index) }

  /// The pod ranges of the node at that place: one of each family.
  public static func podCIDRs(_ index: Int) -> [CIDR] {
    ["10.244.\(index + 1).0/24", "fd00:10:244:\(index + 1)::/64"].compactMap { CIDR($0) }
  }

  private static func addresses(host: Int) -> [IPAddress] {
    ["192.168.100.\(host)", "fd00:100::\(host)"].compactMap { IPAddress($0) }
  }
}

/// A pod's name with its namespace.
public struct PodName: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var namespace: String
  public var name: String

  public init(_ namespace: String, _ name: String) {
    self.namespace = namespace
    self.name = name
  }

  /// Parses `namespace/name`.
  public init?(_ text: some StringProtocol) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else { return nil }
    self.init(String(parts[0]), String(parts[1]))
  }

  public var description: String { "\(namespace)/\(name)" }

  public static func < (left: PodName, right: PodName) -> Bool {
    (left.namespace, left.name) < (right.namespace, right.name)
  }
}

/// One container port of a pod.
public struct PodPort: Sendable, Hashable {
  public enum Service: String, Sendable, Hashable {
    /// Answers HTTP (TCP only).
    case http
    /// Greets and echoes.
    case echo
  }

  public var name: String
  public var `protocol`: L4Protocol
  public var port: Port
  /// What the built-in server does on it.
  public var service: Service
  /// A port of the node that leads to it.
  public var hostPort: HostPort?

  public struct HostPort: Sendable, Hashable {
    public var port: Port
    /// nil: at the node's addresses.
    public var address: IPAddress?

    public init(_ port: Port, at address: IPAddress? = nil) {
      self.port = port
      self.address = address
    }
  }

  /// A TCP port named `http…` answers HTTP unless told otherwise; all others greet and echo.
  public init(
    _ name: String, _ protocol: L4Protocol, _ port: Port, service: Service? = nil, hostPort: HostPort? = nil
  ) {
    self.hostPort = hostPort
    self.name = name
    self.protocol = `protocol`
    self.port = port
    self.service = service ?? (`protocol` == .tcp && name.hasPrefix("http") ? .http : .echo)
  }
}

/// A pod to be started.
public struct PodSpec: Sendable, Hashable {
  public var pod: PodName
  public var node: String
  public var labels: [String: String]
  public var ports: [PodPort]
  /// What runs in it; nil is the built-in server on `ports`.
  public var command: [String]?
  /// Of the Pod object where somebody else has made it; nil: a new one.
  public var uid: String?
  /// Whether it counts as ready as soon as its server listens.
  public var startsReady = true
  /// What the runtime asks for in its name.
  public var bandwidth: Bandwidth?

  /// Bits a second, and bits at once; nil: no limit.
  public struct Bandwidth: Sendable, Hashable {
    public var ingress: Limit?
    public var egress: Limit?

    public struct Limit: Sendable, Hashable {
      public var rate: Int64
      public var burst: Int64

      public init(rate: Int64, burst: Int64) { (self.rate, self.burst) = (rate, burst) }
    }

    public init(ingress: Limit? = nil, egress: Limit? = nil) { (self.ingress, self.egress) = (ingress, egress) }

    var json: JSONValue {
      var object = JSONObject()
      for (name, limit) in [("ingress", ingress), ("egress", egress)] {
        guard let limit else { continue }
        object["\(name)Rate"] = .int(limit.rate)
        object["\(name)Burst"] = .int(limit.burst)
      }
      return .object(object)
    }
  }

  public init(
    _ namespace: String, _ name: String, node: String, labels: [String: String] = [:], ports: [PodPort] = [],
    command: [String]? = nil
  ) {
    pod = PodName(namespace, name)
    self.node = node
    self.labels = labels
    self.ports = ports
    self.command = command
  }
}

/// A place in the lab where a program can run or a socket can be opened.
public enum LabTarget: Sendable, Hashable, CustomStringConvertible {
  case node(String)
  case pod(PodName)
  /// The machine outside the cluster, on the nodes' network.
  case client
  case `switch`

  /// Parses `client`, `switch`, `namespace/pod`, or a node's name.
  public init(_ text: String) {
    switch text {
    case "client": self = .client
    case "switch": self = .switch
    default: self = PodName(text).map { .pod($0) } ?? .node(text)
    }
  }

  public var description: String {
    switch self {
    case .node(let name): "node \(name)"
    case .pod(let pod): "pod \(pod)"
    case .client: "client"
    case .switch: "switch"
    }
  }
}
