// A cluster as its users have it: kubectl changes objects at an API server, controllers act upon them, pods run, and the network
// follows.
import Glibc
import LocalAPI
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "kubectl", .enabled(if: LabHarness.canRun("sluice", "sluice-agent", "apiserver-double")), .serialized)
struct KubectlTests {
  /// kubectl in the lab, and what its user sees of the network.
  private struct Player {
    let lab: Lab

    /// - Returns: what it prints.
    @discardableResult
    func kubectl(_ arguments: String..., input: String = "", fails: Bool = false) throws -> String {
      let result = try lab.exec(in: .switch, environment + ["kubectl"] + arguments, input: input)
      let text = result.stdout + result.stderr
      #expect((result.status != 0) == fails, "kubectl \(arguments.joined(separator: " ")): \(text)")
      return text
    }

    var environment: [String] { ["env", "KUBECONFIG=\(lab.kubeconfig)", "HOME=\(lab.apiServerDirectory)"] }

    func running(_ app: String) throws -> [String] {
      try kubectl(
        "get", "pods", "-l", "app=\(app)", "--field-selector", "status.phase=Running", "-o",
        "jsonpath={.items[*].metadata.name}"
      ).split(separator: " ").map(String.init)
    }

    /// Which pods answer through both addresses of the Service, asked by a pod of that app.
    ///
    /// - Returns: nil where some requests were answered and others not, or not by the same pods.
    private func answering(_ app: String, port: Int, requests: Int) throws -> Set<String>? {
      guard let asker = try running(app).first else { return nil }
      // Another's view of the lab: this one did not start the pods.
      let lab = try Lab(attachingTo: lab.name)
      let addresses = try kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}").split(separator: " ")
      var found: [Set<String>] = []
      for address in addresses.compactMap({ IPAddress(String($0)) }) {
        var spec = ProbeSpec(.http, to: SocketAddress(address, try #require(Port(port))), count: requests)
        spec.timeoutMilliseconds = 400
        let report = try lab.probe(from: .pod(PodName("default", asker)), spec)
        guard [0, requests].contains(report.answered) else { return nil }
        found.append(Set(report.backends.keys))
      }
      return found.count == 2 && found[0] == found[1] ? found[0] : nil
    }

    /// Waits until all the Deployment's pods, so many, answer that app; none: until nobody does.
    func expectAnswers(_ what: String, from app: String, by count: Int, port: Int = 80) throws {
      try LabHarness.eventually(milliseconds: 60_000, what) {
        guard let found = try answering(app, port: port, requests: count == 0 ? 3 : 40), found.count == count else {
          return false
        }
        return try count == 0 || found == Set(running("web"))
      }
    }
  }

  @Test("apply, get -w, scale, delete: what kubectl changes is in force, live")
  func live() throws {
    let path = "\(#filePath.split(separator: "/").dropLast(3).reduce("") { "\($0)/\($1)" })/deploy/lab/play.yaml"
    let manifest = try #require(Files.text(path))
    let otherPort = manifest.replacing("port: 80,", with: "port: 81,").replacing("replicas: 2", with: "replicas: 1")
    #expect(otherPort != manifest)
    var configuration = LabHarness.configuration("kubectl")
    (configuration.usesAPIServer, configuration.hasControllers) = (true, true)
    try LabHarness.withLab(configuration) { lab in
      let player = Player(lab: lab)
      try player.kubectl("apply", "-f", "-", input: manifest)
      try player.expectAnswers("both pods of the Deployment answer the frontend", from: "frontend", by: 2)
      try player.expectAnswers("nobody answers whom the policy does not name", from: "stranger", by: 0)
      for (kind, cell) in [
        ("deployments", "2/2"), ("services", "80:30080/TCP"), ("nodes", "node1"), ("endpointslices", "8080"),
        ("networkpolicies", "app=web"),
      ] {
        let text = try player.kubectl("get", kind)
        #expect(text.hasPrefix("NAME ") && text.contains(cell), "\(text)")
      }
      try LabHarness.eventually("both agents have told that they serve") {
        let events = try player.kubectl("get", "events")
        return ["node/node1", "node/node2"].allSatisfy { node in
          events.split(separator: "\n").contains { $0.contains("SluiceStarted") && $0.contains(node) }
        }
      }

      let log = "\(lab.apiServerDirectory)/watch.log"
      let watch = try lab.spawn(in: .switch, player.environment + ["kubectl", "get", "pods", "-w"], log: log)
      try LabHarness.eventually("kubectl get -w shows what there is") { Files.text(log)?.contains("Running") == true }
      try player.kubectl("scale", "deployment", "web", "--replicas=4")
      try player.expectAnswers("four pods answer", from: "frontend", by: 4)
      try player.kubectl("scale", "deployment", "web", "--replicas=1")
      try player.expectAnswers("one pod answers", from: "frontend", by: 1)
      try LabHarness.eventually("kubectl get -w has told of pods that came and went") {
        let text = Files.text(log) ?? ""
        return ["Pending", "Running", "Terminating"].allSatisfy { text.contains($0) }
      }
      kill(watch.processID, SIGTERM)

      try player.kubectl("delete", "networkpolicy", "web-for-frontend")
      try player.expectAnswers("without the policy strangers are answered", from: "stranger", by: 1)
      // Ports of a Service are merged by their number: one goes, one comes. And the policy is back.
      try player.kubectl("apply", "-f", "-", input: otherPort)
      try player.expectAnswers("the Service has another port", from: "frontend", by: 1, port: 81)
      try player.expectAnswers("and not the former one", from: "frontend", by: 0)
      try player.expectAnswers("nobody answers strangers again", from: "stranger", by: 0, port: 81)

      // What a server refuses, kubectl's user is told by object and field.
      let noPort = otherPort.replacing("port: 81,", with: "port: 0,")
      let refusal = try player.kubectl("apply", "-f", "-", input: noPort, fails: true)
      #expect(refusal.contains("The Service \"web\" is invalid: spec.ports[0].port: Invalid value"), "\(refusal)")
      let lost = try player.kubectl("apply", "-n", "nowhere", "-f", "-", input: manifest, fails: true)
      #expect(lost.contains("namespaces \"nowhere\" not found"), "\(lost)")
      try player.expectAnswers("nothing of it is in force", from: "frontend", by: 1, port: 81)

      try player.kubectl("delete", "-f", "-", input: otherPort)
      try LabHarness.eventually(milliseconds: 60_000, "nothing is left of it") {
        try Lab(attachingTo: lab.name).pods.isEmpty
          && player.kubectl("get", "pods,services,endpointslices", "-A").contains("No resources")
      }
    }
  }
}
