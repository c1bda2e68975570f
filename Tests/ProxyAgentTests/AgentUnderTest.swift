import ClusterSource
import Glibc
import LocalAPI
import Logging
import Netlink
import NetworkTypes
import Testing

@testable import ProxyAgent

/// A reconciler in a network namespace of its own, which has read a small shop and has two of its pods attached: their
/// devices do not exist, nothing is sent.
final class AgentUnderTest: Sendable {
  let reconciler: Reconciler
  let folder: String
  /// Kept open: the reconciler's sockets belong to it.
  let namespace: AnonymousNetworkNamespace

  init() async throws {
    var template = Array("/tmp/sluice-agent-test-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw AgentError(what: "mkdtemp: errno \(errno)") }
    folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let manifests = folder + "/manifests"
    try LocalFile.createDirectories(manifests)
    try LocalFile.replace(manifests + "/shop.yaml", with: Array(Self.world.utf8))
    let options = try AgentOptions.parse([
      "--node-name", "node-1", "--manifests", manifests, "--state-dir", folder, "--run-dir", folder,
      "--socket", folder + "/agent.sock", "--pod-wait", "0",
      // Some tests damage them.
      "--own-tables", "false",
    ])
    let configuration = try AgentConfiguration(options) { _, _ in [] }
    namespace = try AnonymousNetworkNamespace()
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    reconciler = try namespace.namespace.run { [logger] in
      try Reconciler(configuration: configuration, logger: logger)
    }
    for await event in ManifestFolder(path: manifests).events() {
      await reconciler.handle(event)
      if case .synced = event { break }
    }
    for (number, pod, uid) in [(2, "cart-1", "u1"), (3, "db-0", "u2")] { try await attach(number, pod, uid) }
  }

  deinit {
    for file in ["/manifests/shop.yaml", "/service-numbers", "/agent.sock"] { unlink(folder + file) }
    rmdir(folder + "/manifests")
    rmdir(folder)
  }

  private func attach(_ number: Int, _ pod: String, _ uid: String) async throws {
    let mac = try #require(MACAddress("02:00:00:00:00:0\(number)"))
    let addresses = try ["10.244.1.\(number)", "fd00:10:244:1::\(number)"].map { try #require(IPAddress($0)) }
    try await reconciler.publish(
      EndpointRecord(
        network: "sluice", containerID: pod, interfaceName: "eth0", hostInterface: "slc\(number)", mac: mac,
        addresses: addresses, netnsPath: "", netnsInode: 1, bootID: "", podNamespace: "shop", podName: pod,
        podUID: uid, createdAt: 0))
  }

  /// `explain` in as few words as tell one answer from another.
  func explain(
    _ source: String, _ destination: String, _ port: String? = nil, proto: String = "tcp", family: String? = nil
  ) async throws -> JSONValue {
    var arguments = ["source": source, "destination": destination, "protocol": proto]
    (arguments["port"], arguments["family"]) = (port, family)
    return try await reconciler.explain(ExplainRequest(arguments))
  }

  struct AgentError: Error { var what: String }

  private static let world = """
    apiVersion: v1
    kind: Node
    metadata: {name: node-1}
    spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
    status: {addresses: [{type: InternalIP, address: 192.168.100.1}, {type: InternalIP, address: "fd00:100::1"}]}
    ---
    apiVersion: v1
    kind: Namespace
    metadata: {name: shop}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: cart-1, namespace: shop, uid: u1, labels: {app: cart}}
    spec: {nodeName: node-1}
    status: {phase: Running, podIPs: [{ip: 10.244.1.2}, {ip: "fd00:10:244:1::2"}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: db-0, namespace: shop, uid: u2, labels: {app: db}}
    spec: {nodeName: node-1}
    status: {phase: Running, podIPs: [{ip: 10.244.1.3}, {ip: "fd00:10:244:1::3"}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: db-1, namespace: shop, uid: u3, labels: {app: db}}
    spec: {nodeName: node-2}
    status: {phase: Running, podIPs: [{ip: 10.244.2.3}]}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: job, namespace: shop, uid: u4, labels: {app: job}}
    spec: {nodeName: node-2}
    status: {phase: Succeeded, podIPs: [{ip: 10.244.2.4}]}
    ---
    apiVersion: v1
    kind: Service
    metadata: {name: db, namespace: shop}
    spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: pg, port: 5432}]}
    ---
    apiVersion: v1
    kind: Service
    metadata: {name: headless, namespace: shop}
    spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}
    ---
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: db-x, namespace: shop, labels: {kubernetes.io/service-name: db}}
    addressType: IPv4
    ports: [{name: pg, port: 5432, protocol: TCP}]
    endpoints:
    - {addresses: [10.244.1.3], conditions: {ready: true}, nodeName: node-1}
    - {addresses: [10.244.2.3], conditions: {ready: true}, nodeName: node-2}
    ---
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: deny-db, namespace: shop}
    spec:
      podSelector: {matchLabels: {app: db}}
      policyTypes: [Ingress]
      ingress:
      - {from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 8080}]}
      - {from: [{podSelector: {matchLabels: {role: api}}}], ports: [{port: 9090}]}
      - {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16]}}]}
    ---
    apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: audit-cart, namespace: shop, annotations: {sluice.dev/mode: audit}}
    spec:
      podSelector: {matchLabels: {app: cart}}
      policyTypes: [Egress]
      egress:
      - {to: [{podSelector: {}}], ports: [{protocol: UDP, port: 53}]}

    """
}

extension JSONValue {
  /// A member of members: `at("paths", "0", "ingress")`.
  func at(_ path: String...) -> JSONValue? {
    path.reduce(self) { value, key in Int(key).flatMap { value?.arrayValue?[$0] } ?? value?[key] }
  }
}
