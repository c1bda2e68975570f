// Pods: kubelet's and the runtime's part, from the namespace to the endpoint slice and back.
import Glibc
import LocalAPI
import Netlink
import NetworkTypes

extension Lab {
  public var pods: [LabPod] { members.withLock { $0.pods.values.sorted { $0.name < $1.name } } }

  public func pod(_ name: PodName) throws(LabError) -> LabPod {
    guard let pod = members.withLock({ $0.pods[name] }) else {
      throw .unknown(kind: "pod", name: name.description)
    }
    return pod
  }

  /// Attaches a pod with the plugin, starts its program, and publishes it.
  ///
  /// When it returns, the built-in server listens, and the manifests say so: never the other way round.
  @discardableResult
  public func addPod(_ spec: PodSpec) throws -> LabPod {
    var pod = try register(spec)
    do {
      // The API server knows a pod before its sandbox is made.
      try writePod(pod)
      try createSandbox(pod)
      let result = try attach(pod)
      pod.cniResult = result
      pod.addresses = (result["ips"]?.arrayValue ?? []).compactMap { ip in
        ip["address"]?.stringValue?.split(separator: "/").first.flatMap { IPAddress($0) }
      }
      try update(pod)
      try startProgram(of: pod)
      pod.isReady = spec.startsReady
      try update(pod)
      return pod
    } catch {
      // The first error tells more than one of the removal would.
      try? discard(pod)
      throw error
    }
  }

  /// Changes whether the pod counts as ready: its status, and its endpoints.
  public func setReady(_ name: PodName, _ isReady: Bool) throws {
    var pod = try pod(name)
    pod.isReady = isReady
    try update(pod)
  }

  /// Changes a pod's labels, and the endpoints of the Services that select it now or did before.
  public func setLabels(_ name: PodName, _ labels: [String: String]) throws {
    let old = try pod(name)
    var new = old
    new.spec.labels = labels
    try update(new)
    try members.withLock { try publishServices(selecting: old, &$0) }
  }

  /// Marks the pod as going: its endpoints are terminating, no longer ready, and still serving or not. It runs on.
  public func terminate(_ name: PodName, serving: Bool = true) throws {
    var pod = try pod(name)
    pod.isTerminating = true
    pod.isServing = serving
    pod.isReady = false
    try update(pod)
  }

  /// Takes a pod down.
  ///
  /// - Parameters:
  ///   - graceful: first terminating for `graceMilliseconds`, then out of the endpoints, and only after that long again
  ///     the server ends: what a pod with a preStop hook does. Otherwise the server is killed while it is still ready.
  public func removePod(_ name: PodName, graceful: Bool = true, graceMilliseconds: UInt32 = 300) throws {
    var pod = try pod(name)
    if graceful {
      if !pod.isTerminating { try terminate(name, serving: pod.isReady) }
      usleep(graceMilliseconds * 1000)
      pod = try self.pod(name)
      pod.isGone = true
      try update(pod)
      usleep(graceMilliseconds * 1000)
    }
    try discard(pod)
  }

  // MARK: Steps

  private func register(_ spec: PodSpec) throws -> LabPod {
    try checkInterrupted()
    _ = try index(ofNode: spec.node)
    for (field, value) in [("pod namespace", spec.pod.namespace), ("pod name", spec.pod.name)] {
      try LabConfiguration.validate(field, value)
    }
    let uid = try spec.uid ?? Self.randomUUID()
    let containerID = try (Self.randomUUID() + Self.randomUUID()).filter { $0 != "-" }
    let pod = LabPod(spec: spec, uid: uid, containerID: containerID)
    try members.withLock { members in
      guard members.pods[spec.pod] == nil else { throw LabError.exists(kind: "pod", name: "\(spec.pod)") }
      members.pods[spec.pod] = pod
      try ensureNamespace(spec.pod.namespace, &members)
    }
    return pod
  }

  /// The Pod object and its sandbox, for a caller that plays the runtime itself.
  func createSandbox(of spec: PodSpec) throws -> LabPod {
    let pod = try register(spec)
    try writePod(pod)
    try createSandbox(pod)
    return pod
  }

  private static func randomUUID() throws(LabError) -> String {
    guard let text = Files.text("/proc/sys/kernel/random/uuid") else {
      throw .system(operation: "read", object: "/proc/sys/kernel/random/uuid", errno: errno)
    }
    return String(text.prefix { $0 != "\n" })
  }

  private func writePod(_ pod: LabPod) throws {
    try writeManifest("pod_\(pod.name.namespace)_\(pod.name.name)", [ObjectManifests.pod(pod)])
    try Files.replace(state.podFile(pod), pod.json.serialized() + "\n")
  }

  /// Status first, endpoints second: whoever follows both never sees an endpoint of an unknown address.
  private func update(_ pod: LabPod) throws {
    try members.withLock { members in
      guard members.pods[pod.name]?.uid == pod.uid else {
        throw LabError.unknown(kind: "pod", name: pod.name.description)
      }
      members.pods[pod.name] = pod
      try writePod(pod)
      try publishServices(selecting: pod, &members)
    }
  }

  /// The network namespace with its loopback up, as containerd hands it to the plugin, and the cgroup.
  private func createSandbox(_ pod: LabPod) throws {
    let node = try surroundings(of: .node(pod.node))
    let path = pod.netnsPath
    try node.network.run(mountNamespace: node.mounts) {
      let namespace = try NetworkNamespace.create(at: path)
      try LabNetwork.bringUpLoopback(try RouteSocket(in: namespace))
    }
    try state.podGroup(pod).create()
  }

  private func startProgram(of pod: LabPod) throws {
    let log = "\(state.podDirectory(of: pod.node))/\(pod.name.namespace)_\(pod.name.name).log"
    if let command = pod.spec.command {
      _ = try spawn(in: .pod(pod.name), command, log: log)
      return
    }
    guard !pod.spec.ports.isEmpty else { return }
    func option(_ name: String, _ matches: (PodPort) -> Bool) -> [String] {
      let ports = pod.spec.ports.filter(matches).map { "\($0.port)" }
      return ports.isEmpty ? [] : [name, ports.joined(separator: ",")]
    }
    let arguments =
      [binary("dpctl"), "lab", "serve", "--name", pod.name.name, "--node", pod.node, "--ready-fd", "3"]
      + option("--http") { $0.protocol == .tcp && $0.service == .http }
      + option("--tcp") { $0.protocol == .tcp && $0.service == .echo } + option("--udp") { $0.protocol == .udp }
    let server = try ChildProcess.startReporting(
      arguments, name: "server of \(pod.name)", in: try surroundings(of: .pod(pod.name)), log: log)
    members.withLock { $0.children.append(server) }
  }

  /// Ends and removes everything of a pod, in the order a runtime would.
  private func discard(_ pod: LabPod) throws {
    let group = state.podGroup(pod)
    try group.killAll()
    try detach(pod)
    let node = try surroundings(of: .node(pod.node))
    let path = pod.netnsPath
    try node.network.run(mountNamespace: node.mounts) { try NetworkNamespace.remove(at: path) }
    try group.remove()
    try members.withLock { members in
      members.pods[pod.name] = nil
      unlink("\(state.manifests)/pod_\(pod.name.namespace)_\(pod.name.name).yaml")
      unlink(state.podFile(pod))
      try publishServices(selecting: pod, &members)
      members.children.removeAll { $0.poll() != nil }
    }
  }
}
