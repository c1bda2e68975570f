// The address that a cluster gives its pods for its API server is a Service's: on a node without kube-proxy only the agent
// itself can make it work.
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "The first start on a node, as a pod", .serialized,
  .enabled(if: LabHarness.canRun("sluice", "sluice-agent", "apiserver-double")))
struct FirstStartTests {
  private static let node = "node1"
  private static let address = "10.96.0.1"

  @Test("needs an API server's own address, and says so; from then on the Service is enough, also for a new agent")
  func firstStart() throws {
    let directory = "/tmp/\(LabHarness.uniqueName("sluice-first"))"
    defer { Files.removeTree(directory) }
    // A pod has a service account instead of a kubeconfig.
    try LabHarness.wrapPrograms(
      in: directory,
      [
        "sluice-agent": """
        export KUBERNETES_SERVICE_HOST=\(Self.address) KUBERNETES_SERVICE_PORT=443
        account=/var/run/secrets/kubernetes.io/serviceaccount
        mkdir -p $account
        count=$#
        while [ $count -gt 0 ]; do
          if [ "$1" = --kubeconfig ]; then
            cp "${2%/*}/ca.crt" "${2%/*}/token" $account
            shift; count=$((count - 1))
          else
            set -- "$@" "$1"
          fi
          shift; count=$((count - 1))
        done
        exec \(LabHarness.binDirectory)/sluice-agent "$@"
        """
      ])
    var configuration = LabHarness.configuration("first", nodes: 1)
    configuration.binDirectory = directory
    (configuration.usesAPIServer, configuration.startsAgents) = (true, false)
    try LabHarness.withLab(configuration, expectedErrors: ["API server"]) { lab in
      let server = try #require(LabAddresses.gateway.first)
      try lab.apply("kubernetes", Self.service(server))

      try lab.startAgent(Self.node, waits: false)
      try LabHarness.eventually("the log says what is missing") {
        lab.agentLog(Self.node).contains("give the API servers' own addresses by --api-server")
      }
      #expect(!Files.exists(try lab.path("/run/sluice/node.json", on: Self.node)), "no pod may start yet")
      try lab.killAgent(Self.node)

      // Of several servers the first is not there.
      let unused = "192.168.100.250"
      try lab.startAgent(
        Self.node,
        arguments: ["--api-server", "https://\(unused):6443,https://\(server):\(Lab.apiServerPort)"])
      try lab.awaitAPIServer()
      let pod = try lab.addPod(PodSpec("shop", "client", node: Self.node))
      try expectServer(lab, .pod(pod.name))
      try expectServer(lab, .node(Self.node))

      // What the one before left in the kernel leads the next to the server.
      try lab.killAgent(Self.node)
      try lab.startAgent(Self.node)
      try LabHarness.eventually("the API server is followed by its Service") {
        try lab.metrics(Self.node)["sluice_source_following"] == 1
      }
      try StaticService.echo("web", index: 1).apply(to: lab)
      try lab.awaitAPIServer()
      #expect(try lab.dpctl(on: Self.node, "service").stdout.contains("shop/web"))
      #expect(try lab.dpctl(on: Self.node, "status").stdout.contains("https://\(Self.address):443"))
      try expectServer(lab, .pod(pod.name))
      try lab.expectNoDifference(on: Self.node)
    }
  }

  /// Whoever answers at the Service's address proves to be the cluster's API server.
  private func expectServer(
    _ lab: Lab, _ place: LabTarget, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let result = try lab.exec(
      in: place,
      [
        "/usr/bin/openssl", "s_client", "-connect", "\(Self.address):443", "-CAfile",
        "\(lab.apiServerDirectory)/ca.crt",
        "-verify_return_error", "-verify_ip", Self.address,
      ])
    #expect(
      result.status == 0, "\(place): \(result.stdout.suffix(300)) \(result.stderr.suffix(300))",
      sourceLocation: sourceLocation)
  }

  private static func service(_ server: IPAddress) -> String {
    """
    apiVersion: v1
    kind: Service
    metadata: {name: kubernetes, namespace: default}
    spec: {clusterIPs: [\(address)], ports: [{name: https, port: 443, targetPort: \(Lab.apiServerPort)}]}
    ---
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
    addressType: IPv4
    ports: [{name: https, port: \(Lab.apiServerPort)}]
    endpoints: [{addresses: ["\(server)"]}]
    """
  }
}
