import ClusterSource
import Testing

@testable import ProxyAgent

@Suite("Where an agent's objects come from")
struct AgentSourceTests {
  static let kubeconfig = Array(text.utf8)
  private static let text = """
    apiVersion: v1
    kind: Config
    current-context: home
    contexts:
    - {name: home, context: {cluster: home, user: node}}
    - {name: away, context: {cluster: away, user: node}}
    clusters:
    - {name: home, cluster: {server: 'https://192.0.2.1:6443', insecure-skip-tls-verify: true}}
    - {name: away, cluster: {server: 'https://192.0.2.2:6443', insecure-skip-tls-verify: true}}
    users:
    - {name: node, user: {token: secret}}
    """

  private struct Missing: Error, CustomStringConvertible {
    var description: String
  }

  private func source(_ arguments: [String], environment: [String: String] = [:]) throws -> AgentSource {
    try AgentSource(try AgentOptions.parse(arguments), ConfigFile(), environment: environment) { flag, path in
      guard path == "/etc/kubeconfig" else { throw Missing(description: "\(flag): \(path): no such file") }
      return Self.kubeconfig
    }
  }

  private func problem(_ arguments: [String]) -> String {
    do { return "none: \(try source(arguments))" } catch { return "\(error)" }
  }

  @Test("manifests, a kubeconfig's current or another context, or servers' own addresses")
  func kinds() throws {
    #expect(try source(["--manifests", "/etc/cluster"]) == .manifests("/etc/cluster"))
    let cases: [([String], String)] = [
      (["--kubeconfig", "/etc/kubeconfig"], "https://192.0.2.1:6443"),
      (["--kubeconfig", "/etc/kubeconfig", "--context", "away"], "https://192.0.2.2:6443"),
      (
        ["--kubeconfig", "/etc/kubeconfig", "--api-server", "https://192.0.2.8:6443,https://[2001:db8::8]:6443"],
        "https://192.0.2.8:6443,https://[2001:db8::8]:6443"
      ),
    ]
    for (arguments, servers) in cases {
      let source = try source(arguments)
      #expect(source.description == servers, "\(arguments)")
      #expect(source.kind == "apiserver")
      #expect(!source.isBehindService, "\(arguments)")
    }
  }

  @Test("what cannot be followed is refused, and says which flag")
  func refusals() {
    #expect(problem([]).contains("no source of objects: give --kubeconfig or --manifests"))
    #expect(
      problem(["--manifests", "/a", "--kubeconfig", "/etc/kubeconfig"]).contains("--manifests: does not go with"))
    #expect(
      problem(["--manifests", "/a", "--api-server", "https://192.0.2.1"]).contains("--manifests: does not go with"))
    #expect(problem(["--manifests", "/a", "--context", "home"]).contains("--context: needs --kubeconfig"))
    #expect(problem(["--kubeconfig", "/nowhere"]).contains("--kubeconfig: /nowhere"))
    #expect(problem(["--kubeconfig", "/etc/kubeconfig", "--context", "x"]).contains("has no 'x'"))
    #expect(throws: (any Error).self) { try AgentOptions.parse(["--api-server", "https://192.0.2.1:6443,ftp://a"]) }
  }
}
