import BPFLoader
import ArgumentParser
import ClusterSource
import KubernetesObjects
import Logging
import NFTables
import NetworkTypes

/// An IP address with a port to listen on: `127.0.0.1:10249`, `[::]:10256`.
struct ListenAddress: Sendable, Equatable, ExpressibleByArgument, CustomStringConvertible {
  var host: String
  var port: Int

  init?(argument: String) {
    guard let colon = argument.lastIndex(of: ":"), let port = Int(argument[argument.index(after: colon)...]),
      (1...65535).contains(port)
    else { return nil }
    var host = String(argument[..<colon])
    if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
    guard IPAddress(host) != nil else { return nil }
    self.host = host
    self.port = port
  }

  var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
}

/// Which of the node's addresses NodePorts listen on.
enum NodePortAddresses: Sendable, Equatable, ExpressibleByArgument {
  /// The Node object's InternalIPs.
  case primary
  case within([CIDR])

  init?(argument: String) {
    if argument == "primary" {
      self = .primary
      return
    }
    guard let cidrs = [CIDR](list: argument) else { return nil }
    self = .within(cidrs)
  }
}

/// A comma-separated list of prefixes.
struct CIDRList: Sendable, Equatable, ExpressibleByArgument {
  var cidrs: [CIDR]
  init(_ cidrs: [CIDR]) { self.cidrs = cidrs }
  init?(argument: String) {
    guard let cidrs = [CIDR](list: argument) else { return nil }
    self.cidrs = cidrs
  }
}

extension [CIDR] {
  fileprivate init?(list: String) {
    let parts = list.split(separator: ",", omittingEmptySubsequences: false)
    let cidrs = parts.compactMap { CIDR($0) }
    guard cidrs.count == parts.count else { return nil }
    self = cidrs
  }
}

/// What happens to a live flow when policies change.
enum LiveFlows: String, Sendable, CaseIterable, ExpressibleByArgument {
  case recheck
  case keepEstablished = "keep-established"
}

/// Adjacent bits of a conntrack mark, at least 8.
struct MarkMask: Sendable, Equatable, ExpressibleByArgument {
  var bits: UInt32
  init?(argument: String) {
    let isHex = argument.hasPrefix("0x")
    guard let bits = UInt32(isHex ? String(argument.dropFirst(2)) : argument, radix: isHex ? 16 : 10),
      bits.nonzeroBitCount >= 8, bits.nonzeroBitCount + bits.leadingZeroBitCount + bits.trailingZeroBitCount == 32
    else { return nil }
    self.bits = bits
  }
}

/// `NAME=ELEMENTS`, comma-separated.
struct MapEntries: Sendable, Equatable, ExpressibleByArgument {
  var bounds: [String: Int] = [:]
  init?(argument: String) {
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let pair = part.split(separator: "=", omittingEmptySubsequences: false)
      guard pair.count == 2, !pair[0].isEmpty, let elements = Int(pair[1]), (1...MapBounds.largest).contains(elements),
        bounds.updateValue(elements, forKey: String(pair[0])) == nil
      else { return nil }
    }
  }
}

/// Whom an agent can take a node over from.
enum OtherProxy: String, Sendable, CaseIterable, ExpressibleByArgument { case kubeProxy = "kube-proxy" }

enum EngineName: String, Sendable, CaseIterable, ExpressibleByArgument { case nftables, ebpf }
enum LogLevel: String, Sendable, CaseIterable, ExpressibleByArgument {
  case trace, debug, info, warning, error

  var level: Logger.Level { Logger.Level(rawValue: rawValue) ?? .info }
}

extension LogFormat: ExpressibleByArgument {}

/// Flags of `sluice-agent`. Every one is a key of the config file too; a flag given wins.
struct AgentOptions: ParsableArguments {
  @Option(help: "This node's name, as its Node object has it.") var nodeName: String?
  @Option(help: "Folder of manifests to follow, instead of an API server.") var manifests: String?
  @Option(help: "File that says where the API server is and who we are (default: as a pod of the cluster).")
  var kubeconfig: String?
  @Option(help: "Which context of the kubeconfig (default: its current one).") var context: String?
  @Option(
    help: "API servers' own addresses (https://10.0.0.1:6443), comma-separated: the next where one does not answer.")
  var apiServer: ServerList?
  @Option(help: "Packet path: \(EngineName.allCases.map(\.rawValue).joined(separator: ", ")).") var engine: EngineName?
  @Option(help: "Numbers and other state that outlives a reboot (default /var/lib/sluice).") var stateDir: String?
  @Option(help: "Endpoint records and node facts, gone after a reboot (default /run/sluice).") var runDir: String?
  @Option(help: "Unix socket of the local API (default /run/sluice/agent.sock).") var socket: String?
  @Option(help: "Address of /metrics and /proxyMode (default 127.0.0.1:10249).") var metricsAddress: ListenAddress?
  @Option(help: "Address of /healthz, /livez and /readyz (default 0.0.0.0:10256).") var healthzAddress: ListenAddress?
  @Option(help: "More ranges that pods reach without masquerade, comma-separated.") var clusterCidr: CIDRList?
  @Option(help: "'primary' (default) or prefixes of node addresses that serve NodePorts.")
  var nodeportAddresses: NodePortAddresses?
  @Option(help: "Folder to write the CNI config into once the agent serves; absent: none is written.")
  var cniConfDir: String?
  @Option(help: "Masquerade pod traffic that leaves the cluster: true (default) or false.") var masqueradeEgress: Bool?
  @Option(help: "Seconds between two full comparisons with the kernel (default 60).") var verifyInterval: Int?
  @Option(help: "Milliseconds an ADD waits for its Pod object (default 5000).") var podWait: Int?
  @Option(help: "What a changed policy does to a connection that it denies: recheck (default) or keep-established.")
  var liveFlows: LiveFlows?
  @Option(help: "Bits of conntrack marks that are Sluice's, as one number: at least 8, adjacent (default 0xfffff000).")
  var conntrackMarkMask: MarkMask?
  @Option(help: "Keep other programs from changing our nftables tables, where the kernel can: true (default) or false.")
  var ownTables: Bool?
  @Option(
    help:
      "Connections to Services translated at the socket, by eBPF: off, host or all (default: off; engine ebpf: all).")
  var socketLb: SocketLB?
  @Option(help: "Folder in a BPF file system for what stays while no agent runs (default /sys/fs/bpf/sluice).")
  var bpffs: String?
  @Option(help: "The cgroup (version 2) whose processes are served at the socket (default: the root).")
  var cgroup: String?
  @Option(help: "Room in BPF maps where it is not enough: NAME=ELEMENTS, comma-separated (names: dpctl map list).")
  var bpfMapEntries: MapEntries?
  @Option(help: "Another Service proxy whose rules are in this node's kernel: is taken over from, then removed.")
  var migrateFrom: OtherProxy?
  @Option(help: "trace, debug, info (default), warning or error.") var logLevel: LogLevel?
  @Option(help: "text (default), or json: one object a line.") var logFormat: LogFormat?
  @Option(help: "Config file (YAML) with these flags as keys, in camelCase.") var config: String?
}

/// The settings in force, complete and checked.
struct AgentConfiguration: Sendable {
  var nodeName: String
  var source: AgentSource
  var engine: EngineName
  var stateDir: String
  var runDir: String
  var socket: String
  var metricsAddress: ListenAddress
  var healthzAddress: ListenAddress
  var clusterCIDRs: [CIDR]
  var nodePortAddresses: NodePortAddresses
  var cniConfDir: String?
  var masqueradesEgress: Bool
  var verifyInterval: Int
  var podWait: Int
  var keepsEstablished: Bool
  var conntrackMarkMask: UInt32
  var ownsTables: Bool
  var socketLB: SocketLB
  var bpffs: String
  /// nil: the root of the hierarchy.
  var cgroup: String?
  var mapBounds: MapBounds
  /// nil: an agent does not start beside another proxy's rules.
  var migratesFrom: OtherProxy?
  var logLevel: LogLevel
  var logFormat: LogFormat

  /// Where what an API server told outlives the agent.
  static func objectFolder(stateDir: String) -> String { stateDir + "/objects" }

  typealias FileReader = (_ flag: String, _ path: String) throws -> [UInt8]

  /// Joins flags and file. Throws what names the flag or key.
  ///
  /// - Parameter readFile: reads a file that a flag names.
  init(_ flags: AgentOptions, readFile: FileReader) throws {
    var file = ConfigFile()
    if let path = flags.config { file = try ConfigFile(path: path, bytes: try readFile("--config", path)) }
    nodeName = try flags.nodeName ?? file.string("nodeName") ?? Self.missing("--node-name")
    guard !nodeName.isEmpty else { throw ValidationError("--node-name: must not be empty") }
    source = try AgentSource(flags, file, readFile)
    engine = try flags.engine ?? file.value("engine") ?? .nftables
    stateDir = try flags.stateDir ?? file.string("stateDir") ?? "/var/lib/sluice"
    runDir = try flags.runDir ?? file.string("runDir") ?? "/run/sluice"
    socket = try flags.socket ?? file.string("socket") ?? "/run/sluice/agent.sock"
    metricsAddress =
      try flags.metricsAddress ?? file.value("metricsAddress") ?? Self.address("127.0.0.1:10249")
    healthzAddress = try flags.healthzAddress ?? file.value("healthzAddress") ?? Self.address("0.0.0.0:10256")
    clusterCIDRs = try (flags.clusterCidr ?? file.value("clusterCidr") ?? CIDRList([])).cidrs
    nodePortAddresses = try flags.nodeportAddresses ?? file.value("nodeportAddresses") ?? .primary
    cniConfDir = try flags.cniConfDir ?? file.string("cniConfDir")
    masqueradesEgress = try flags.masqueradeEgress ?? file.value("masqueradeEgress") ?? true
    verifyInterval = try flags.verifyInterval ?? file.value("verifyInterval") ?? 60
    guard verifyInterval >= 1 else { throw ValidationError("--verify-interval: must be at least 1 second") }
    podWait = try flags.podWait ?? file.value("podWait") ?? 5000
    guard (0...60_000).contains(podWait) else { throw ValidationError("--pod-wait: must be 0 to 60000 milliseconds") }
    keepsEstablished = try (flags.liveFlows ?? file.value("liveFlows") ?? .recheck) == .keepEstablished
    conntrackMarkMask =
      try (flags.conntrackMarkMask ?? file.value("conntrackMarkMask"))?.bits
      ?? NFTablesEngine.defaultMarkMask
    ownsTables = try flags.ownTables ?? file.value("ownTables") ?? true
    socketLB = try flags.socketLb ?? file.value("socketLb") ?? (engine == .ebpf ? .all : .off)
    bpffs = try flags.bpffs ?? file.string("bpffs") ?? SocketLB.defaultFolder
    guard bpffs.hasPrefix("/"), bpffs.utf8.count > 1 else {
      throw ValidationError("--bpffs: '\(bpffs)' is no absolute path of a folder")
    }
    cgroup = try flags.cgroup ?? file.string("cgroup")
    mapBounds = MapBounds(try (flags.bpfMapEntries ?? file.value("bpfMapEntries"))?.bounds ?? [:])
    migratesFrom = try flags.migrateFrom ?? file.value("migrateFrom")
    logLevel = try flags.logLevel ?? file.value("logLevel") ?? .info
    logFormat = try flags.logFormat ?? file.value("logFormat") ?? .text
    guard socket.utf8.count < 108 else {
      throw ValidationError("--socket: '\(socket)' is longer than the 107 bytes a socket path may have")
    }
    try file.rejectUnknown()
  }

  private static func missing(_ flag: String) throws -> String {
    throw ValidationError("\(flag): missing (as a flag, or as a key of the config file)")
  }

  private static func address(_ text: String) throws -> ListenAddress {
    guard let address = ListenAddress(argument: text) else { throw ValidationError("'\(text)' is no address:port") }
    return address
  }
}

/// A flat YAML mapping. Remembers which keys were asked for, so that what is left over is unknown.
struct ConfigFile {
  private var path = ""
  private var values: [String: (text: String, line: Int)] = [:]
  static let known: Set<String> = [
    "nodeName", "manifests", "kubeconfig", "context", "apiServer", "engine", "stateDir", "runDir", "socket",
    "metricsAddress", "healthzAddress",
    "clusterCidr", "nodeportAddresses", "cniConfDir", "masqueradeEgress", "verifyInterval", "logLevel", "logFormat",
    "podWait",
    "liveFlows", "conntrackMarkMask", "ownTables", "socketLb", "bpffs", "cgroup",
    "bpfMapEntries", "migrateFrom",
  ]

  init() {}

  init(path: String, bytes: [UInt8]) throws {
    self.path = path
    let root: ManifestNode
    do {
      root = try parseYAMLDocument(bytes)
    } catch {
      throw ValidationError("\(path): \(error)")
    }
    guard case .mapping(let entries, _) = root else {
      throw ValidationError("\(path): must be a mapping of keys to values")
    }
    for entry in entries {
      guard case .scalar(let text, _, let line) = entry.value else {
        throw ValidationError("\(path): \(entry.key): must be one value")
      }
      guard values[entry.key] == nil else { throw ValidationError("\(path): \(entry.key): given twice") }
      values[entry.key] = (text, line)
    }
  }

  func string(_ key: String) throws -> String? { values[key]?.text }

  func value<Value: ExpressibleByArgument>(_ key: String) throws -> Value? {
    guard let (text, line) = values[key] else { return nil }
    guard let value = Value(argument: text) else {
      throw ValidationError("\(path):\(line): \(key): '\(text)' is not a valid value")
    }
    return value
  }

  func rejectUnknown() throws {
    for (key, (_, line)) in values.sorted(by: { $0.value.line < $1.value.line }) where !Self.known.contains(key) {
      throw ValidationError("\(path):\(line): unknown key '\(key)'")
    }
  }
}
