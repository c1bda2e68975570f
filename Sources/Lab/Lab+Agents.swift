// The agents of the nodes: started, stopped, killed, waited for.
import Glibc
import LocalAPI

extension Lab {
  /// `/run/sluice-lab/NAME/NODE/agent.log`: every run of the node's agent is appended.
  public func agentLogPath(_ node: String) -> String { "\(state.directory(of: node))/agent.log" }

  public func agentLog(_ node: String) -> String { Files.text(agentLogPath(node)) ?? "" }

  public func isAgentRunning(_ node: String) -> Bool { state.agentGroup(of: node).isPopulated }

  /// The agent's process, nil while none runs.
  public func agentProcessID(_ node: String) -> Int32? { state.agentGroup(of: node).processes.first }

  /// Speaks to the node's agent over its socket.
  public func agentClient(_ node: String, timeoutMilliseconds: Int = 5000) throws -> UnixHTTPClient {
    UnixHTTPClient(path: try path(LocalAPIDefaults.agentSocket, on: node), timeoutMilliseconds: timeoutMilliseconds)
  }

  /// Starts a node's agent with the default paths.
  public func startAgent(_ node: String, arguments: [String] = [], waits: Bool = true) throws {
    try checkInterrupted()
    guard !isAgentRunning(node) else { throw LabError.exists(kind: "agent of node", name: node) }
    var surroundings = try surroundings(of: .node(node))
    surroundings.controlGroup = state.agentGroup(of: node)
    let output = open(agentLogPath(node), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard output >= 0 else {
      throw LabError.system(operation: "open", object: agentLogPath(node), errno: errno)
    }
    defer { close(output) }
    var sockets = configuration.socketLB.map { ["--socket-lb", $0] } ?? []
    if configuration.servesSockets { sockets += ["--cgroup", try ControlGroup.ofAllLabs().path] }
    // A server on the same busy machine may be slow to tell of a pod: a little less than the plugin waits.
    let source =
      configuration.usesAPIServer
      ? ["--kubeconfig", kubeconfig, "--pod-wait", "9000"] : ["--manifests", state.manifests]
    let agent = try ChildProcess.start(
      [
        binary("sluice-agent"), "--node-name", node, "--engine", configuration.engine, "--state-dir",
        LocalAPIDefaults.stateDirectory, "--socket", LocalAPIDefaults.agentSocket, "--metrics-address",
        "127.0.0.1:10249", "--healthz-address", "0.0.0.0:10256", "--cni-conf-dir", "/etc/cni/net.d",
      ] + source + sockets + configuration.agentArguments + arguments, name: "agent of \(node)", in: surroundings,
      descriptors: [nil, output, output])
    members.withLock { $0.agents[node] = agent }
    if waits { try waitUntilAgentIsReady(node) }
  }

  /// Waits until the agent answers on its socket and has written the network configuration.
  public func waitUntilAgentIsReady(_ node: String, milliseconds: Int = 30_000) throws {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    let client = try agentClient(node, timeoutMilliseconds: 1000)
    while true {
      try checkInterrupted()
      if let answer = try? client.request("GET", AgentPath.health), answer.status == 200,
        try networkConfigurationFile(on: node) != nil
      {
        return
      }
      let agent = members.withLock { $0.agents[node] }
      let words = agentLog(node).split(separator: "\n").suffix(5).joined(separator: " | ")
      if let status = agent?.poll() {
        throw LabError.process(name: "agent of \(node)", reason: "ended with status \(status): \(words)")
      }
      guard monotonicNanoseconds() < deadline else {
        throw LabError.timedOut("agent of \(node) is not ready after \(milliseconds) ms: \(words)")
      }
      usleep(5000)
    }
  }

  /// SIGTERM, then waits for the end.
  public func stopAgent(_ node: String, milliseconds: Int = 30_000) throws {
    try endAgent(node, SIGTERM, milliseconds)
  }

  /// SIGKILL: what a crash looks like. How long the kernel takes to end a process (it may be waiting for the disk) is not
  /// the agent's doing.
  public func killAgent(_ node: String) throws { try endAgent(node, SIGKILL, 60_000) }

  private func endAgent(_ node: String, _ signal: Int32, _ milliseconds: Int) throws {
    _ = try index(ofNode: node)
    let group = state.agentGroup(of: node)
    group.signal(signal)
    // Who was being started while the signals went out gets his, too.
    try group.waitUntilEmpty(milliseconds: milliseconds) { if signal == SIGKILL { group.signal(signal) } }
    members.withLock { $0.agents.removeValue(forKey: node) }?.wait(milliseconds: 1000)
  }
}
