// The API server of a lab whose agents follow one: it serves what stands in the folder of manifests.
import Glibc

extension Lab {
  static let apiServerPort = 6443

  /// Where the API server has its kubeconfig, token and certificates: the same path inside every node.
  public var apiServerDirectory: String { "\(state.directory)/apiserver" }

  public var kubeconfig: String { "\(apiServerDirectory)/kubeconfig" }

  /// On the switch, where every node gets to without a Service's help.
  func startAPIServer(milliseconds: Int = 20_000) throws {
    try Files.makeDirectories(apiServerDirectory)
    unlink(kubeconfig)
    let log = "\(apiServerDirectory)/log"
    let output = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard output >= 0 else { throw LabError.system(operation: "open", object: log, errno: errno) }
    defer { close(output) }
    guard let address = LabAddresses.gateway.first else { return }
    let server = try ChildProcess.start(
      [
        binary("apiserver-double"), "--host", "\(address)", "--port", "\(Self.apiServerPort)", "--manifests",
        state.manifests, "--folder", apiServerDirectory,
      ] + (configuration.hasControllers ? ["--lab", name, "--dpctl", binary("dpctl")] : []), name: "API server",
      in: try surroundings(of: .switch), descriptors: [nil, output, output])
    members.withLock { members in
      members.children.append(server)
      members.apiServer = server
    }
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    while !Files.exists(kubeconfig) {
      try checkInterrupted()
      let words = (Files.text(log) ?? "").split(separator: "\n").suffix(5).joined(separator: " | ")
      if let status = server.poll() {
        throw LabError.process(name: "API server", reason: "ended with status \(status): \(words)")
      }
      guard monotonicNanoseconds() < deadline else {
        throw LabError.timedOut("the API server does not listen: \(words)")
      }
      usleep(5000)
    }
  }

  /// How the API server ended, with its last words, where nobody has ended it.
  func apiServerEnd() -> String? {
    guard let status = members.withLock({ $0.apiServer })?.poll() else { return nil }
    let words = (Files.text("\(apiServerDirectory)/log") ?? "").split(separator: "\n").suffix(20)
    return "the API server ended with status \(status): \(words.joined(separator: "\n"))"
  }

  /// Ends the API server, without a word to anybody.
  public func killAPIServer() {
    guard let server = members.withLock({ $0.apiServer }) else { return }
    kill(server.processID, SIGKILL)
    server.wait(milliseconds: 5000)
    members.withLock { $0.apiServer = nil }
  }

  /// Brings it back with what stands in the manifests now (of a lab with controllers: the nodes), and new numbers for all of it.
  public func restartAPIServer() throws { try startAPIServer() }
}
