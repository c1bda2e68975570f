import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Synchronization

/// A cluster in namespaces on this machine, for tests, benchmarks and `make run`.
///
/// A node is a network namespace, a mount namespace in which Sluice's default paths are private, and a cgroup; a small
/// process holds them. Nothing of the machine's own namespaces is touched. All processes live below one cgroup, so that
/// `down` (also that of another process, after a crash) finds and ends all of them.
///
/// The lab plays the parts of a cluster that Sluice does not have: kubelet and container runtime (namespaces, the plugin,
/// the pods' processes and status) and the endpoint slice controller, all into one folder of manifests.
///
/// Calls block. They may come from any thread; those that change pods or manifests are serialized.
public final class Lab: Sendable {
  struct Members {
    var pods: [PodName: LabPod] = [:]
    /// By manifest file.
    private(set) var services: [String: [LabService]] = [:]
    /// Where the Services of a lab that another process brought up stand: read when they are needed, as there may be many.
    var unreadManifests: String?
    var namespaces: Set<String> = []
    var agents: [String: ChildProcess] = [:]
    var apiServer: ChildProcess?
    /// Holders, pods' servers and whatever else was started: waited for when the lab goes down.
    var children: [ChildProcess] = []

    /// Changes what Services there are.
    mutating func withServices<Result>(_ body: (inout [String: [LabService]]) throws -> Result) rethrows -> Result {
      if let folder = unreadManifests {
        for file in Files.names(in: folder) where !file.hasPrefix(".") {
          services[file] = try? LabService.read(yaml: Files.text("\(folder)/\(file)") ?? "", file: file)
        }
        unreadManifests = nil
      }
      return try body(&services)
    }
  }

  public let configuration: LabConfiguration
  let state: LabState
  let members = Mutex(Members())
  private let isInterrupted = Atomic(false)

  /// A lab that does not exist yet: `up()` makes it.
  public init(_ configuration: LabConfiguration) throws {
    try configuration.validate()
    self.configuration = configuration
    state = try LabState(name: configuration.name)
  }

  /// A lab that another process brought up.
  public init(attachingTo name: String) throws {
    try LabConfiguration.validate("lab name", name)
    state = try LabState(name: name)
    configuration = try state.loadConfiguration()
    guard state.isAlive else { throw LabError.process(name: "lab \(name)", reason: "is dead: dpctl lab down") }
    let pods = try configuration.nodes.flatMap { try state.loadPods(of: $0.name) }
    members.withLock { members in
      for pod in pods { members.pods[pod.name] = pod }
      members.unreadManifests = state.manifests
    }
  }

  public var name: String { configuration.name }
  /// The folder all agents follow: `/run/sluice-lab/NAME/manifests`, the same path inside every node.
  public var manifestsDirectory: String { state.manifests }

  // MARK: Life cycle

  /// The labs of which something exists on this machine, alive or left over.
  public static func allNames() throws -> [String] { try LabState.allNames() }

  /// Ends and removes a lab by its name, whoever brought it up and however it died.
  public static func down(_ name: String) throws { try LabState(name: name).removeEverything() }

  /// Brings the lab up. When it throws, nothing is left.
  public func up() throws {
    try checkMachine()
    if state.exists {
      guard !state.isAlive else { throw LabError.exists(kind: "lab", name: name) }
      try state.removeEverything()
    }
    do {
      if configuration.servesSockets { try OwnControlGroup.join() }
      try build()
    } catch {
      // The first error tells more than one of the removal would.
      try? down()
      throw error
    }
  }

  /// Ends everything and removes everything. Succeeds also when there is nothing.
  public func down() throws {
    try state.removeEverything()
    let children = members.withLock { members in
      defer { members = Members() }
      return members.children + members.agents.values
    }
    for child in children { child.wait(milliseconds: 2000) }
  }

  /// Makes the call in progress, and every later one but `down`, fail with `LabError.interrupted`.
  public func interrupt() { isInterrupted.store(true, ordering: .relaxed) }

  public var wasInterrupted: Bool { isInterrupted.load(ordering: .relaxed) }

  func checkInterrupted() throws(LabError) {
    if wasInterrupted { throw .interrupted }
  }

  private func checkMachine() throws(LabError) {
    guard geteuid() == 0 else { throw .machine("a lab needs root: namespaces and cgroups are made") }
    for program in ["dpctl"] + (configuration.startsAgents ? ["sluice-agent", "sluice"] : [])
      + (configuration.usesAPIServer ? ["apiserver-double"] : [])
    {
      let path = binary(program)
      guard access(path, X_OK) == 0 else { throw .missingBinary(path: path) }
    }
  }

  func binary(_ program: String) -> String { "\(configuration.binDirectory)/\(program)" }

  private func build() throws {
    try Files.makeDirectories(state.manifests)
    try state.save(configuration)
    let hosts = [LabState.switchHost, LabState.clientHost] + configuration.nodes.map(\.name)
    for host in hosts {
      try checkInterrupted()
      try startHolder(of: host, kind: configuration.nodes.contains { $0.name == host } ? .node : .host)
    }
    try connectHosts()
    for (index, node) in configuration.nodes.enumerated() {
      try install(on: node.name)
      try writeManifest(
        "node_\(node.name)",
        [ObjectManifests.node(node, addresses: LabAddresses.node(index), podCIDRs: LabAddresses.podCIDRs(index))])
      if !configuration.startsAgents { try writeStaticNetworkConfiguration(node: node.name, index: index) }
    }
    if configuration.usesAPIServer { try startAPIServer() }
    guard configuration.startsAgents else { return }
    // All first, then wait for all: they start side by side.
    for node in configuration.nodes { try startAgent(node.name, waits: false) }
    for node in configuration.nodes { try waitUntilAgentIsReady(node.name) }
  }

  private func startHolder(of host: String, kind: NamespaceHolder.Kind) throws {
    let folders = [state.directory(of: host)] + (kind == .node ? [state.podDirectory(of: host)] : [])
    for folder in folders { try Files.makeDirectories(folder) }
    let groups = [state.holderGroup(of: host), state.execGroup(of: host), state.agentGroup(of: host)]
    for group in groups { try group.create() }
    let holder = try ChildProcess.startReporting(
      [
        binary("dpctl"), "lab", "hold", "--kind", kind.rawValue, "--state-directory", state.directory, "--cgroup",
        state.holderGroup(of: host).path, "--ready-fd", "3",
      ], name: "holder of \(host)", in: nil, log: "\(state.directory(of: host))/holder.log")
    members.withLock { $0.children.append(holder) }
  }

  private func connectHosts() throws {
    let network = LabNetwork(switchNamespace: try surroundings(of: .switch).network)
    try network.createSwitch()
    try network.connect(
      try surroundings(of: .client).network, port: 0, addresses: LabAddresses.client, hasDefaultRoute: false,
      forwards: false)
    for (index, node) in configuration.nodes.enumerated() {
      try checkInterrupted()
      try network.connect(
        try surroundings(of: .node(node.name)).network, port: index + 1, addresses: LabAddresses.node(index),
        hasDefaultRoute: true, forwards: true)
    }
  }

  /// The plugin, where the runtime looks for it. Built or not: a lab without agents is of use without it too.
  private func install(on node: String) throws {
    guard Files.exists(binary("sluice")) else { return }
    try Files.copy(binary("sluice"), to: try path("/opt/cni/bin/sluice", on: node), mode: 0o755)
  }

  // MARK: Places

  func index(ofNode name: String) throws(LabError) -> Int {
    guard let index = configuration.nodes.firstIndex(where: { $0.name == name }) else {
      throw .unknown(kind: "node", name: name)
    }
    return index
  }

  private func holder(of host: String) throws(LabError) -> pid_t {
    guard let holder = state.holderGroup(of: host).processes.first else {
      throw .process(name: "holder of \(host)", reason: "does not run")
    }
    return holder
  }

  /// A path inside a node, as this process can open it. A link in it is followed on this side.
  public func path(_ path: String, on node: String) throws -> String {
    _ = try index(ofNode: node)
    return "/proc/\(try holder(of: node))/root\(path)"
  }

  /// The network namespace of a place, for sockets of the caller's own.
  public func network(of target: LabTarget) throws -> NetworkNamespace { try surroundings(of: target).network }

  func surroundings(of target: LabTarget) throws -> Surroundings {
    func place(_ host: String) throws -> Surroundings {
      let holder = try holder(of: host)
      return Surroundings(
        network: NetworkNamespace(path: "/proc/\(holder)/ns/net"), mounts: "/proc/\(holder)/ns/mnt",
        controlGroup: state.execGroup(of: host))
    }
    switch target {
    case .client: return try place(LabState.clientHost)
    case .switch: return try place(LabState.switchHost)
    case .node(let name):
      _ = try index(ofNode: name)
      return try place(name)
    case .pod(let name):
      let pod = try pod(name)
      var surroundings = try place(pod.node)
      surroundings.network = NetworkNamespace(path: try path(pod.netnsPath, on: pod.node))
      surroundings.controlGroup = state.podGroup(pod)
      return surroundings
    }
  }

  public func nodeAddress(_ node: String, _ family: IPFamily) throws -> IPAddress {
    guard let address = LabAddresses.node(try index(ofNode: node)).first(where: { $0.family == family }) else {
      throw LabError.unknown(kind: "\(family) address of node", name: node)
    }
    return address
  }

  // MARK: Programs and traffic

  /// Runs a program to its end in a place of the lab: its network, its files, its cgroup.
  public func exec(
    in target: LabTarget, _ arguments: [String], input: String = "", milliseconds: Int = 30_000
  ) throws -> ExecResult {
    try ChildProcess.run(
      arguments, name: "\(arguments.first ?? "") in \(target)", in: try surroundings(of: target),
      input: Array(input.utf8), milliseconds: milliseconds)
  }

  /// Starts a program in a place of the lab. It ends with the lab at the latest; its output goes to a file.
  public func spawn(in target: LabTarget, _ arguments: [String], log: String) throws -> ChildProcess {
    let output = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard output >= 0 else { throw LabError.system(operation: "open", object: log, errno: errno) }
    defer { close(output) }
    let child = try ChildProcess.start(
      arguments, name: "\(arguments.first ?? "") in \(target)", in: try surroundings(of: target),
      descriptors: [nil, output, output])
    members.withLock { $0.children.append(child) }
    return child
  }

  /// Replaces this program by another one in a place of the lab: `dpctl lab exec`.
  public func become(in target: LabTarget, _ arguments: [String]) throws -> Never {
    let surroundings = try surroundings(of: target)
    try surroundings.network.run(mountNamespace: surroundings.mounts) {
      try Files.write("0", to: surroundings.controlGroup.procsFile)
      var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
      // From whichever thread: the program that takes over gets that thread's namespaces.
      execvp(arguments.first ?? "", &argv)
      let code = errno
      for pointer in argv { free(pointer) }
      throw LabError.system(operation: "start", object: arguments.first ?? "", errno: code)
    }
    throw LabError.process(name: arguments.first ?? "", reason: "did not take over")
  }

  /// Sends probes from a place and waits for them.
  public func probe(from target: LabTarget, _ spec: ProbeSpec) throws -> ProbeReport {
    try checkInterrupted()
    return try network(of: target).run { [self] in try Probe.run(spec) { wasInterrupted } }
  }

  /// Sends probes from a place while something else happens.
  public func startProbe(from target: LabTarget, _ spec: ProbeSpec) throws -> BackgroundWork<ProbeReport> {
    let network = try network(of: target)
    return BackgroundWork { [self] shouldStop in
      try network.run { try Probe.run(spec) { shouldStop() || self.wasInterrupted } }
    }
  }

  /// Keeps long-lived flows going from a place while something else happens. All are open when it returns.
  public func startFlows(from target: LabTarget, _ spec: EchoFlowSpec) throws -> BackgroundWork<[EchoFlowReport]> {
    let network = try network(of: target)
    let areOpen = AtomicFlag()
    let work = BackgroundWork<[EchoFlowReport]> { [self] shouldStop in
      try network.run { try EchoFlow.run(spec, opened: areOpen.set) { shouldStop() || self.wasInterrupted } }
    }
    while !areOpen.isSet {
      // Ended before it began: the error says why.
      if work.isDone { _ = try work.wait() }
      usleep(500)
    }
    return work
  }
}
