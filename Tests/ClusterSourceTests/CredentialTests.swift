import Foundation
import LocalAPI
import Synchronization
import Testing

@testable import ClusterSource

/// Credentials as they are read for a request, and programs that give them.
@Suite("Credentials") struct CredentialTests {
  private static let version = "client.authentication.k8s.io/v1"

  private func access() throws -> APIServerAccess {
    APIServerAccess(servers: [try #require(APIServerURL("https://10.0.0.1:6443"))])
  }

  private func plugin(_ folder: TestFolder, _ script: String) throws -> CredentialPlugin {
    try folder.write("plugin", "#!/bin/sh\n\(script)\n")
    chmod("\(folder.path)/plugin", 0o755)
    return CredentialPlugin(apiVersion: Self.version, command: "\(folder.path)/plugin")
  }

  private func answer(_ status: String) -> String {
    "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"\(Self.version)\",\"status\":{\(status)}}'"
  }

  @Test("a token's file is read each time, without what stands around the token")
  func tokenFile() async throws {
    let folder = try TestFolder()
    try folder.write("token", "one\n")
    var access = try access()
    access.token = .file("\(folder.path)/token")
    let reader = CredentialReader(access)
    #expect(try await reader.read().token == "one")
    try folder.write("token", " two ")
    #expect(try await reader.read().token == "two")
  }

  @Test(
    "what is no token is told by its file, and never shown",
    arguments: [("", "holds no token"), ("secret\r\nHost: evil", "characters that no token has")])
  func badToken(_ text: String, _ message: String) async throws {
    let folder = try TestFolder()
    try folder.write("token", text)
    var access = try access()
    access.token = .file("\(folder.path)/token")
    let problem = await #expect(throws: AccessProblem.self) { try await CredentialReader(access).read() }
    let told = try #require(problem).description
    #expect(told.contains(message) && told.contains("\(folder.path)/token") && !told.contains("secret"))
  }

  @Test("a file that is not there is named with its field")
  func missing() async throws {
    var access = try access()
    access.trust = .authorities(.file("/nowhere/ca.crt"))
    let problem = await #expect(throws: AccessProblem.self) { try await CredentialReader(access).read() }
    #expect(problem?.description == "certificate-authority: /nowhere/ca.crt: no such file")
  }

  @Test("a program is told of the cluster, gives a token, and is asked again once that has expired or was refused")
  func program() async throws {
    let folder = try TestFolder()
    let log = "\(folder.path)/log"
    let script = """
      echo "$KUBERNETES_EXEC_INFO" >> \(log)
      n=$(wc -l < \(log))
      echo '{"kind":"ExecCredential","apiVersion":"\(Self.version)",\
      "status":{"token":"t'$n'-'$FLAVOUR'","expirationTimestamp":"2026-01-01T01:00:00Z"}}'
      """
    var access = try access()
    var plugin = try plugin(folder, script)
    plugin.environment = ["FLAVOUR": "mint"]
    plugin.wantsClusterInfo = true
    access.token = .plugin(plugin)
    access.serverName = "kubernetes"
    let now = Mutex(Date(timeIntervalSince1970: 1_767_225_600))
    let reader = CredentialReader(access) { now.withLock { $0 } }
    #expect(try await reader.read().token == "t1-mint")
    #expect(try await reader.read().token == "t1-mint")
    now.withLock { $0 += 3601 }
    #expect(try await reader.read().token == "t2-mint")
    now.withLock { $0 -= 3601 }
    await reader.refused(try await reader.read())
    #expect(try await reader.read().token == "t3-mint")
    let asked = try String(contentsOfFile: log, encoding: .utf8).split(separator: "\n")
    #expect(asked.count == 3)
    let wanted: JSONValue = [
      "kind": "ExecCredential", "apiVersion": .string(Self.version),
      "spec": [
        "interactive": false, "cluster": ["server": "https://10.0.0.1:6443", "tls-server-name": "kubernetes"],
      ],
    ]
    #expect(try JSONValue(parsing: String(asked[0])) == wanted)
  }

  @Test("a program may give a certificate instead")
  func certificate() async throws {
    let folder = try TestFolder()
    var access = try access()
    access.token = .plugin(
      try plugin(folder, answer("\"clientCertificateData\":\"CERT\",\"clientKeyData\":\"KEY\"")))
    let credentials = try await CredentialReader(access).read()
    #expect(credentials.identity == .init(certificate: Array("CERT".utf8), key: Array("KEY".utf8)))
    #expect(credentials.token == nil)
  }

  @Test(
    "a program that fails is told by its name and by what failed",
    arguments: [
      ("exit 3", "ended with status 3"), ("echo secret", "is no JSON"), ("echo '{}'", "no ExecCredential"),
      (
        "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1beta1\",\"status\":{}}'",
        "not of client.authentication.k8s.io/v1"
      ),
      (
        "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{}}'",
        "neither token nor certificate"
      ),
      (
        "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\","
          + "\"status\":{\"clientKeyData\":\"secret\"}}'", "belong together"
      ),
    ])
  func failures(_ script: String, _ message: String) async throws {
    let folder = try TestFolder()
    var access = try access()
    access.token = .plugin(try plugin(folder, script))
    let problem = await #expect(throws: AccessProblem.self) { try await CredentialReader(access).read() }
    let told = try #require(problem).description
    #expect(
      told.contains(message) && told.contains("exec: \(folder.path)/plugin") && !told.contains("secret"), "\(told)")
  }

  @Test("a program that is not there is told with how to get it")
  func absent() async throws {
    var access = try access()
    var plugin = CredentialPlugin(apiVersion: Self.version, command: "no-such-program")
    plugin.installHint = "install it from the vault"
    access.token = .plugin(plugin)
    let problem = await #expect(throws: AccessProblem.self) { try await CredentialReader(access).read() }
    #expect(problem?.description == "exec: no-such-program: not found; install it from the vault")
  }
}
