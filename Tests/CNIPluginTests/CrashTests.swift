import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Testing

@Suite("Many at once, and killed at any moment")
struct CrashTests {
  private let node: Node

  init() throws { node = try Node() }

  @Test("50 ADDs at once get 50 different addresses of each family, and their DELs leave nothing")
  func parallel() throws {
    // 62 addresses for 50 pods: they meet at nearly every link(2).
    let config = node.config([
      "ipam": ["ranges": [[["subnet": "10.77.0.0/26"]], [["subnet": "fd00:77::/64"]]]]
    ])
    let pods = try (0..<50).map { _ in try Pod() }
    let running = try pods.enumerated().map { index, pod in
      try node.start("ADD", "c\(index)", netns: pod.path, config)
    }
    let outcomes = running.map { $0.finish() }
    #expect(outcomes.allSatisfy { $0.exitCode == 0 }, "\(outcomes.filter { $0.exitCode != 0 })")
    let addresses = outcomes.flatMap { $0.json["ips"]?.arrayValue ?? [] }.compactMap { $0["address"]?.stringValue }
    #expect(addresses.count == 100)
    #expect(Set(addresses).count == 100)
    #expect(try node.endpoints.list().records.count == 50)
    let ends = try pods.enumerated().map { index, pod in try node.start("DEL", "c\(index)", netns: pod.path, config) }
    for end in ends { #expect(end.finish().exitCode == 0) }
    #expect(try node.leftovers() == [])
  }

  @Test("ADD killed at random moments: DEL leaves nothing, and a repeated ADD succeeds")
  func killedAdd() throws {
    let pod = try Pod()
    var killed = 0
    let whole = try medianOfFive {
      let time = try microseconds { try node.add("c1", pod) }
      #expect(try node.run("DEL", in: pod).exitCode == 0)
      return time
    }
    for round in 0..<150 {
      let running = try node.start("ADD", netns: pod.path)
      usleep(UInt32.random(in: 0..<whole))
      kill(running.processID, SIGKILL)
      if running.finish().exitCode == nil { killed += 1 }
      if round % 3 == 0, try !pod.links().contains("eth0") {
        let again = try node.run("ADD", in: pod)
        #expect(again.exitCode == 0, "round \(round), \(again)")
      }
      let outcome = try node.run("DEL", in: pod)
      #expect(outcome.exitCode == 0, "\(outcome)")
      #expect(try node.leftovers() == [], "round \(round)")
      #expect(try pod.links() == ["lo"])
    }
    #expect(killed > 10, "the kills came too late to mean anything")
  }

  @Test("DEL killed at random moments: a repeated DEL leaves nothing")
  func killedDelete() throws {
    var killed = 0
    let whole = try medianOfFive {
      let pod = try Pod()
      try node.add("c1", pod)
      var outcome: Outcome?
      let time = try microseconds { outcome = try node.run("DEL", in: pod) }
      #expect(outcome?.exitCode == 0)
      return time
    }
    for _ in 0..<60 {
      let pod = try Pod()
      try node.add("c1", pod)
      let running = try node.start("DEL", netns: pod.path)
      usleep(UInt32.random(in: 0..<whole))
      kill(running.processID, SIGKILL)
      if running.finish().exitCode == nil { killed += 1 }
      #expect(try node.run("DEL", in: pod).exitCode == 0)
      #expect(try node.leftovers() == [])
    }
    #expect(killed > 5, "the kills came too late to mean anything")
  }

  @Test("no address is ever held twice while eight processes attach, get killed and detach in a /28")
  func churn() async throws {
    let node = node
    let config = node.config(["ipam": ["ranges": [[["subnet": "10.77.0.0/28"]]]]])
    try await withThrowingTaskGroup(of: Void.self) { group in
      for worker in 0..<8 {
        group.addTask {
          let pod = try Pod()
          for round in 0..<15 {
            let name = "w\(worker)-\(round)"
            let running = try node.start("ADD", name, netns: pod.path, config)
            if round % 3 == 1 {
              usleep(UInt32.random(in: 0..<8000))
              kill(running.processID, SIGKILL)
            }
            let outcome = running.finish()
            #expect(outcome.exitCode == 0 || outcome.exitCode == nil, "\(outcome)")
            // Two pods with one address would have two routes to it, of which the kernel keeps the later.
            if outcome.exitCode == 0 {
              let check = try node.run(
                "CHECK", name, in: pod, node.config(["prevResult": outcome.json]))
              #expect(check.exitCode == 0, "\(check)")
            }
            #expect(try node.run("DEL", name, in: pod, config).exitCode == 0)
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(try node.leftovers() == [])
  }

  /// How long `body` takes: a kill is to come within the plugin's own time, whatever machine this is.
  private func microseconds(_ body: () throws -> Void) rethrows -> UInt32 {
    let time = try ContinuousClock().measure(body)
    return UInt32(time / .microseconds(1))
  }

  private func medianOfFive(_ time: () throws -> UInt32) rethrows -> UInt32 {
    try (0..<5).map { _ in try time() }.sorted()[2]
  }
}
