import Glibc
import KubernetesObjects
import Testing

@testable import ClusterSource

/// Where API servers are, and who we are to them.
@Suite("Access to an API server") struct KubeconfigTests {
  private static let head = """
    apiVersion: v1
    kind: Config
    current-context: home
    contexts:
    - {name: home, context: {cluster: here, user: me, namespace: shop}}
    - {name: other, context: {cluster: there, user: ""}}
    - {name: lost, context: {cluster: nowhere}}
    """

  private static func config(_ cluster: String, user: String = "{}") -> String {
    head + """

      clusters:
      - {name: there, cluster: {server: "http://[fd00::1]:8080/k8s/"}}
      - name: here
        cluster: \(cluster)
      users:
      - {name: someone, user: {token: theirs}}
      - name: me
        user: \(user)
      """
  }

  private static func access(_ text: String, context: String? = nil) throws(ObjectProblem) -> APIServerAccess {
    try Kubeconfig(path: "/etc/sluice/kubeconfig", bytes: Array(text.utf8)).access(context: context)
  }

  private static func problem(_ text: String, context: String? = nil) -> String {
    do throws(ObjectProblem) {
      return "no problem: \(try access(text, context: context))"
    } catch { return "\(error.line): \(error.field): \(error.message)" }
  }

  private static let here = "{server: \"https://10.0.0.1:6443\"}"

  @Test("the context says which cluster and which user")
  func contexts() throws {
    let home = try Self.access(Self.config(Self.here, user: "{token: mine}"))
    #expect(home.servers.map(\.description) == ["https://10.0.0.1:6443"])
    #expect(home.token == .text("mine") && home.trust == .system && home.proxy == nil && home.serverName == nil)
    let other = try Self.access(Self.config(Self.here), context: "other")
    #expect(other.servers.map(\.description) == ["http://[fd00::1]:8080/k8s"] && other.token == nil)
    #expect(other.servers[0].host == "fd00::1" && !other.servers[0].isSecure && other.servers[0].path == "/k8s")
  }

  @Test("what stands in it wins over a file; a file is looked for beside it")
  func cluster() throws {
    let files = try Self.access(
      Self.config(
        "{server: \"https://kube.example\", certificate-authority: pki/ca.pem, tls-server-name: kube, "
          + "proxy-url: \"http://10.0.0.9:3128\"}",
        user: "{client-certificate: /var/lib/me.pem, client-key: me.key, tokenFile: token, token: not this}"))
    #expect(files.servers[0].port == 443 && files.serverName == "kube" && files.proxy?.host == "10.0.0.9")
    #expect(files.trust == .authorities(.file("/etc/sluice/pki/ca.pem")))
    #expect(files.certificate == .file("/var/lib/me.pem") && files.key == .file("/etc/sluice/me.key"))
    #expect(files.token == .file("/etc/sluice/token"))

    let bytes = try Self.access(
      Self.config(
        "{server: \"https://kube.example\", certificate-authority: ca.pem, certificate-authority-data: Y2E=}",
        user: "{client-certificate: c, client-certificate-data: Y2VydA==, client-key: k, client-key-data: a2V5}"))
    #expect(bytes.trust == .authorities(.bytes(Array("ca".utf8))))
    #expect(bytes.certificate == .bytes(Array("cert".utf8)) && bytes.key == .bytes(Array("key".utf8)))
    #expect(try Self.access(Self.config("{server: \"https://h\", insecure-skip-tls-verify: true}")).trust == .anyone)
  }

  @Test("a plugin, where there is no token")
  func plugin() throws {
    let text = """
      {exec: {apiVersion: client.authentication.k8s.io/v1, command: bin/login, args: [a, b],
        env: [{name: X, value: "1"}], installHint: get it, provideClusterInfo: true, interactiveMode: IfAvailable}}
      """
    guard case .plugin(let plugin) = try Self.access(Self.config(Self.here, user: text)).token else {
      Issue.record("no plugin")
      return
    }
    #expect(plugin.command == "/etc/sluice/bin/login" && plugin.arguments == ["a", "b"])
    #expect(plugin.environment == ["X": "1"] && plugin.wantsClusterInfo && plugin.installHint == "get it")
    let bare = try Self.access(
      Self.config(Self.here, user: "{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: aws}}"))
    guard case .plugin(let found) = bare.token else {
      Issue.record("no plugin")
      return
    }
    #expect(found.command == "aws" && !found.wantsClusterInfo)
  }

  @Test(
    "what is wrong is named with its field",
    arguments: [
      ("{}", "{}", "11: clusters[1].cluster.server: is missing"),
      (
        "{server: 10.0.0.1}", "{}",
        "11: clusters[1].cluster.server: must be an address such as https://10.0.0.1:6443, without user, query and fragment"
      ),
      (
        "{server: \"https://u:p@h\"}", "{}",
        "11: clusters[1].cluster.server: must be an address such as https://10.0.0.1:6443, without user, query and fragment"
      ),
      (
        "{server: \"https://h\", certificate-authority-data: \"%\"}", "{}",
        "11: clusters[1].cluster.certificate-authority-data: must be base64"
      ),
      (
        "{server: \"https://h\", proxy-url: \"https://10.0.0.9:3128\"}", "{}",
        "11: clusters[1].cluster.proxy-url: must be http: proxies that are spoken to by TLS are not supported"
      ),
      (
        "{server: \"https://h\", certificate-authority: ca, insecure-skip-tls-verify: true}", "{}",
        "11: clusters[1].cluster.insecure-skip-tls-verify: must not stand beside certificate-authority"
      ),
      (
        here, "{client-key: k}",
        "15: users[1].user.client-certificate: is missing: a certificate and its key belong together"
      ),
      (
        here, "{client-certificate: c}",
        "15: users[1].user.client-key: is missing: a certificate and its key belong together"
      ),
      (
        here, "{auth-provider: {name: gcp}}",
        "15: users[1].user.auth-provider: is not supported: Kubernetes no longer has it"
      ),
      (
        here, "{exec: {apiVersion: v1, command: x}}",
        "15: users[1].user.exec.apiVersion: must be one of client.authentication.k8s.io/v1, "
          + "client.authentication.k8s.io/v1beta1, is \"v1\""
      ),
      (here, "{token: [a]}", "15: users[1].user.token: must be text, is a list"),
    ])
  func problems(_ cluster: String, _ user: String, _ expected: String) {
    #expect(Self.problem(Self.config(cluster, user: user)) == expected)
  }

  @Test("names that lead nowhere, and what is no kubeconfig")
  func missing() {
    #expect(Self.problem(Self.config(Self.here), context: "lost") == "9: clusters: has no 'nowhere'")
    #expect(Self.problem(Self.config(Self.here), context: "x") == "5: contexts: has no 'x'")
    #expect(Self.problem("contexts: []") == "1: current-context: is missing")
    #expect(Self.problem("a: [").contains("is not YAML"))
    #expect(Self.problem("- a").contains("must be a mapping"))
  }

  @Test("in a cluster: what the kubelet tells; nothing where there is no token")
  func inCluster() throws {
    var template = Array("/tmp/sluice-account-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    defer { rmdir(folder) }
    let variables = ["KUBERNETES_SERVICE_HOST": "fd00:96::1", "KUBERNETES_SERVICE_PORT": "443"]
    #expect(APIServerAccess.inCluster(environment: variables, folder: folder) == nil)
    let file = try #require(fopen("\(folder)/token", "w"))
    fclose(file)
    defer { unlink("\(folder)/token") }
    let access = try #require(APIServerAccess.inCluster(environment: variables, folder: folder))
    #expect(access.servers.map(\.description) == ["https://[fd00:96::1]:443"])
    #expect(access.token == .file("\(folder)/token") && access.trust == .authorities(.file("\(folder)/ca.crt")))
    #expect(APIServerAccess.inCluster(environment: [:], folder: folder) == nil)
  }
}
