import CLinux
import Glibc
import LocalAPI
import NetworkTypes
import Testing

@testable import Netlink

@Suite("Many plugins on one network, and one that stands still", .serialized)
struct ContentionTests {
  private let node: Node

  init() throws { node = try Node() }

  /// Where a plugin stands still: with the kernel's word that it does.
  private func stop(_ plugin: RunningPlugin) throws {
    kill(plugin.processID, SIGSTOP)
    for _ in 0..<1000 {
      let state = try LocalFile.read("/proc/\(plugin.processID)/stat").map { String(decoding: $0, as: UTF8.self) }
      guard let state, let end = state.lastIndex(of: ")") else { return }
      if "TtZ".contains(state[state.index(end, offsetBy: 2)]) { return }
      usleep(200)
    }
  }

  private func hasEnded(_ plugin: RunningPlugin) -> Bool {
    let state =
      (try? LocalFile.read("/proc/\(plugin.processID)/stat"))?.map { String(decoding: $0, as: UTF8.self) } ?? ""
    guard let end = state.lastIndex(of: ")") else { return true }
    return state[state.index(end, offsetBy: 2)] == "Z"
  }

  @Test(
    "200 ADDs, then 200 ADDs and DELs at once, while others stand still half-way: no address twice, and nobody waits")
  func twoHundred() throws {
    let config = node.config([
      "ipam": ["ranges": [[["subnet": "10.77.0.0/23"]], [["subnet": "fd00:77::/64"]]]]
    ])
    // Six that hold whatever they hold, at different points of their way.
    var stopped: [(plugin: RunningPlugin, pod: Pod, name: String)] = []
    var attempts = 0
    while stopped.count < 6 {
      let (pod, name) = (try Pod(), "s\(attempts)")
      let plugin = try node.start("ADD", name, netns: pod.path, config)
      usleep(UInt32(500 + attempts * 137 % 4000))
      try stop(plugin)
      if hasEnded(plugin) {
        _ = plugin.finish()
        #expect(try node.run("DEL", name, config).exitCode == 0)
      } else {
        stopped.append((plugin, pod, name))
      }
      attempts += 1
      try #require(attempts < 200, "every ADD was quicker than its stop")
    }

    func addAll(_ names: [String]) throws -> (pods: [Pod], outcomes: [Outcome]) {
      let pods = try names.map { _ in try Pod() }
      let running = try zip(names, pods).map { try node.start("ADD", $0, netns: $1.path, config) }
      return (pods, running.map { $0.finish() })
    }
    func requireDifferent(_ outcomes: [Outcome], _ what: String) throws -> Set<String> {
      let failed = outcomes.filter { $0.exitCode != 0 }
      try #require(failed.isEmpty, "\(what): \(failed.prefix(3))")
      let addresses = outcomes.flatMap { $0.json["ips"]?.arrayValue ?? [] }.compactMap { $0["address"]?.stringValue }
      #expect(addresses.count == 2 * outcomes.count && Set(addresses).count == addresses.count, "\(what)")
      return Set(addresses)
    }
    let started = time(nil)
    let first = try addAll((0..<200).map { "a\($0)" })
    let held = try requireDifferent(first.outcomes, "200 ADDs")
    // Half of them end while as many others begin.
    let ends = try (0..<100).map { try node.start("DEL", "a\($0)", netns: first.pods[$0].path, config) }
    let second = try addAll((0..<100).map { "b\($0)" })
    for end in ends { #expect(end.finish().exitCode == 0) }
    let others = try requireDifferent(second.outcomes, "100 ADDs beside 100 DELs")
    let kept = Set(
      first.outcomes[100...].flatMap { $0.json["ips"]?.arrayValue ?? [] }.compactMap { $0["address"]?.stringValue })
    #expect(others.isDisjoint(with: kept) && held.count == 400)
    #expect(time(nil) - started < 60, "somebody waited for one that stood still")

    for (plugin, _, _) in stopped { kill(plugin.processID, SIGCONT) }
    let late = stopped.map { $0.plugin.finish() }
    let ours = try requireDifferent(late, "ADDs that had stood still")
    #expect(ours.isDisjoint(with: kept.union(others)))
    let names = (100..<200).map { "a\($0)" } + (0..<100).map { "b\($0)" } + stopped.map(\.name)
    for end in try names.map({ try node.start("DEL", $0, config) }) { #expect(end.finish().exitCode == 0) }
    #expect(try node.leftovers() == [])
    withExtendedLifetime((first.pods, second.pods, stopped)) {}
  }

  @Test("a full pool is error 11, by name, and serves again as soon as one address is free")
  func exhausted() throws {
    let config = node.config(["ipam": ["ranges": [[["subnet": "10.77.0.0/29"]]]]])
    let pods = try (0..<7).map { _ in try Pod() }
    for index in 0..<6 { try node.add("c\(index)", pods[index], config) }
    let refused = try node.run("ADD", "c6", in: pods[6], config)
    #expect(refused.errorCode == 11 && refused.message.contains("10.77.0.1-10.77.0.6"), "\(refused)")
    #expect(try pods[6].links() == ["lo"])
    #expect(try node.run("DEL", "c3", in: pods[3], config).exitCode == 0)
    let again = try node.add("c6", pods[6], config)
    #expect((again["ips"]?.arrayValue?[0])?["address"] == "10.77.0.4/32")
    for index in 0..<7 { #expect(try node.run("DEL", "c\(index)", config).exitCode == 0) }
    #expect(try node.leftovers() == [])
  }

  // MARK: A state folder that cannot be written

  /// Mounts a file system over the state folder, in a mount namespace of this thread and whom it starts.
  private func withState(
    _ options: String, readOnly: Bool = false, prepare: @escaping @Sendable (Node) throws -> Void = { _ in },
    _ body: @escaping @Sendable (Node) throws -> Void
  ) throws {
    let node = node
    try LocalFile.createDirectories(node.stateDirectory)
    try DedicatedThread.run {
      guard clinux_unshare(CLONE_NEWNS) == 0, mount(nil, "/", nil, UInt(MS_REC | MS_PRIVATE), nil) == 0,
        mount("state", node.stateDirectory, "tmpfs", 0, options) == 0
      else { throw FileError(path: node.stateDirectory, operation: "mount", errno: errno) }
      try prepare(node)
      if readOnly, mount("state", node.stateDirectory, "tmpfs", UInt(MS_REMOUNT | MS_RDONLY), options) != 0 {
        throw FileError(path: node.stateDirectory, operation: "mount read-only", errno: errno)
      }
      try body(node)
    }
  }

  @Test("a full disk is error 5 with the folder's name; what is attached stays, and goes")
  func fullDisk() throws {
    try withState("size=64k") { node in
      let (pod, other) = (try Pod(), try Pod())
      try node.add("c1", pod)
      let ballast = "\(node.stateDirectory)/ballast"
      let descriptor = open(ballast, O_WRONLY | O_CREAT, 0o600)
      let block = [UInt8](repeating: 7, count: 4096)
      while write(descriptor, block, block.count) > 0 {}
      close(descriptor)
      let refused = try node.run("ADD", "c2", in: other)
      #expect(refused.errorCode == 5 && refused.message.contains(node.stateDirectory), "\(refused)")
      #expect(refused.message.contains("No space left on device"), "\(refused)")
      #expect(try other.links() == ["lo"])
      #expect(try pod.links().contains("eth0"))
      #expect(try node.run("DEL", "c2", in: other).exitCode == 0)
      // Freeing needs no room.
      #expect(try node.run("DEL", "c1", in: pod).exitCode == 0)
      #expect(try node.leftovers() == [])
      unlink(ballast)
      #expect(try node.run("ADD", "c2", in: other).exitCode == 0)
      #expect(try node.run("DEL", "c2", in: other).exitCode == 0)
    }
  }

  @Test("a state folder that is read-only is error 5 with its name; DEL takes the device down, and says what is left")
  func readOnly() throws {
    let (pod, other) = (try Pod(), try Pod())
    try withState("size=64k", readOnly: true, prepare: { try $0.add("c1", pod) }) { node in
      let refused = try node.run("ADD", "c2", in: other)
      #expect(refused.errorCode == 5 && refused.message.contains(node.stateDirectory), "\(refused)")
      #expect(try other.links() == ["lo"] && pod.links().contains("eth0"))
      let removed = try node.run("DEL", "c1", in: pod)
      #expect(removed.exitCode == 0 && removed.notes.contains("Read-only file system"), "\(removed)")
      #expect(try pod.links() == ["lo"])
      guard mount("state", node.stateDirectory, "tmpfs", UInt(MS_REMOUNT), "size=64k") == 0 else {
        throw FileError(path: node.stateDirectory, operation: "mount", errno: errno)
      }
      #expect(try node.run("DEL", "c1", in: pod).exitCode == 0)
      #expect(try node.leftovers() == [])
    }
  }
}
