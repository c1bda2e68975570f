// What an API server has been given reaches agents kind by kind: tests that say "from now on" have to wait for all of them.
import Glibc
import KubernetesObjects
import LocalAPI
import Testing

@testable import Lab

extension Lab {
  /// Waits until each agent that runs has put in force whatever stands in the folder of manifests now. Needs no waiting where
  /// agents follow the folder itself.
  func awaitAPIServer() throws {
    guard configuration.usesAPIServer, members.withLock({ $0.apiServer }) != nil else { return }
    let version = try servedVersion()
    for node in configuration.nodes where isAgentRunning(node.name) {
      let agent = try agentClient(node.name)
      var told: JSONValue?
      var hasHeard = false
      // An agent that has lost its server asks again after half a minute at the latest.
      try LabHarness.eventually(milliseconds: 40_000, "the agent of \(node.name) has heard of version \(version)") {
        guard let answer = try? agent.request("GET", "/v1/status"),
          let status = try? JSONValue(parsing: String(decoding: answer.body, as: UTF8.self))
        else { return false }
        told = status["source"]
        let reached = told?["resourceVersions"]?.objectValue ?? [:]
        let versions = reached.compactMap { $0.value.stringValue.flatMap { Int($0) } }
        hasHeard = versions.count == ObjectKind.allCases.count && versions.allSatisfy { $0 >= version }
        return hasHeard
      }
      if !hasHeard {
        let words = agentLog(node.name).split(separator: "\n").suffix(10).joined(separator: "\n")
        Issue.record("\(node.name) told \(told?.serialized() ?? "nothing"), its log ends with:\n\(words)")
      }
    }
  }

  /// The version that the server announces to all who watch, once it has looked at the folder anew.
  private func servedVersion() throws -> Int {
    let number = "\(monotonicNanoseconds())"
    try Files.replace("\(apiServerDirectory)/barrier", number)
    var version = Int.max
    try LabHarness.eventually("the API server has looked at the manifests") {
      let words = (Files.text("\(apiServerDirectory)/version") ?? "").split(separator: " ")
      guard words.count == 2, words[0] == number, let announced = Int(words[1]) else { return false }
      version = announced
      return true
    }
    return version
  }
}
