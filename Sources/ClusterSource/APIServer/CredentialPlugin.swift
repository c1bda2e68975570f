import Foundation
import LocalAPI

/// A program that gives credentials: `exec` in a kubeconfig, by client.authentication.k8s.io.
public struct CredentialPlugin: Sendable, Equatable {
  public var apiVersion: String
  /// With a slash in it a path, else looked for in PATH.
  public var command: String
  public var arguments: [String] = []
  public var environment: [String: String] = [:]
  /// What to tell whoever has not got it.
  public var installHint = ""
  /// Whether it is told of the cluster.
  public var wantsClusterInfo = false

  /// What a program said: a token, a certificate, or both.
  struct Grant: Sendable, Equatable {
    var token: String?
    var identity: Credentials.Identity?
    /// nil: good until the server refuses it.
    var expires: Date?
  }

  /// A program that talks to nobody must not hold up the agent for ever.
  static let timeLimit = 60

  /// Runs the program and reads its answer.
  func ask(of access: APIServerAccess) async throws -> Grant {
    let request = try self.request(access)
    return try await withCheckedThrowingContinuation { continuation in
      // A thread of its own: waiting for a program must not hold one of the pool's.
      Thread.detachNewThread { continuation.resume(with: Result { try grant(from: try run(telling: request)) }) }
    }
  }

  /// `ExecCredential`, as `KUBERNETES_EXEC_INFO` has it.
  private func request(_ access: APIServerAccess) throws -> String {
    var spec: [(String, JSONValue)] = [("interactive", false)]
    if wantsClusterInfo {
      var cluster: [(String, JSONValue)] = [("server", .string(access.servers[0].description))]
      if let name = access.serverName { cluster.append(("tls-server-name", .string(name))) }
      switch access.trust {
      case .system: break
      case .anyone: cluster.append(("insecure-skip-tls-verify", true))
      case .authorities(let material):
        let text = Data(try material.read("certificate-authority")).base64EncodedString()
        cluster.append(("certificate-authority-data", .string(text)))
      }
      if let proxy = access.proxy { cluster.append(("proxy-url", .string(proxy.description))) }
      spec.append(("cluster", .object(JSONObject(cluster))))
    }
    let request: JSONValue = [
      "kind": "ExecCredential", "apiVersion": .string(apiVersion), "spec": .object(JSONObject(spec)),
    ]
    return request.serialized()
  }

  private func run(telling request: String) throws -> [UInt8] {
    let process = Process()
    let path = try executable()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = arguments
    var environment = ProcessInfo.processInfo.environment
    environment.merge(self.environment) { $1 }
    environment["KUBERNETES_EXEC_INFO"] = request
    process.environment = environment
    let output = Pipe()
    process.standardOutput = output
    process.standardInput = FileHandle.nullDevice
    do { try process.run() } catch { throw AccessProblem("exec: \(path): cannot be started") }
    let answer = Self.read(output.fileHandleForReading.fileDescriptor, of: process)
    process.waitUntilExit()
    guard process.terminationStatus == 0, process.terminationReason == .exit else {
      let how = process.terminationReason == .exit ? "status" : "signal"
      throw AccessProblem("exec: \(path): ended with \(how) \(process.terminationStatus)")
    }
    return answer
  }

  /// What a program writes until it ends; a child that it leaves behind is not waited for.
  private static func read(_ descriptor: CInt, of process: Process) -> [UInt8] {
    var answer: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    let deadline = ContinuousClock.now + .seconds(timeLimit)
    while true {
      // Asked before looking, so that nothing it wrote is missed.
      let hasEnded = !process.isRunning
      var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      if poll(&entry, 1, hasEnded ? 0 : 50) > 0 {
        let count = Foundation.read(descriptor, &chunk, chunk.count)
        guard count > 0, answer.count < 1 << 20 else { return answer }
        answer += chunk[..<count]
      } else if hasEnded {
        return answer
      }
      if ContinuousClock.now > deadline { kill(process.processIdentifier, SIGKILL) }
    }
  }

  private func executable() throws -> String {
    let found: [String]
    if command.contains("/") {
      found = [command]
    } else {
      let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
      found = folders.map { "\($0)/\(command)" }
    }
    if let path = found.first(where: { access($0, X_OK) == 0 }) { return path }
    throw AccessProblem("exec: \(command): not found\(installHint.isEmpty ? "" : "; \(installHint)")")
  }

  private func grant(from answer: [UInt8]) throws -> Grant {
    func wrong(_ what: String) -> AccessProblem { AccessProblem("exec: \(command): \(what)") }
    let json: JSONValue
    do { json = try JSONValue(parsing: answer) } catch { throw wrong("its answer is no JSON") }
    guard json["kind"]?.stringValue == "ExecCredential" else { throw wrong("its answer is no ExecCredential") }
    guard json["apiVersion"]?.stringValue == apiVersion else {
      throw wrong("its answer is not of \(apiVersion)")
    }
    guard let status = json["status"] else { throw wrong("its answer has no status") }
    var grant = Grant(token: status["token"]?.stringValue)
    switch (status["clientCertificateData"]?.stringValue, status["clientKeyData"]?.stringValue) {
    case (let certificate?, let key?):
      grant.identity = .init(certificate: Array(certificate.utf8), key: Array(key.utf8))
    case (nil, nil): break
    default: throw wrong("status: clientCertificateData and clientKeyData belong together")
    }
    guard grant.token != nil || grant.identity != nil else { throw wrong("status: has neither token nor certificate") }
    if let text = status["expirationTimestamp"]?.stringValue {
      guard let date = try? Date(text, strategy: .iso8601) else {
        throw wrong("status.expirationTimestamp: '\(text)' is no time")
      }
      grant.expires = date
    }
    return grant
  }
}
