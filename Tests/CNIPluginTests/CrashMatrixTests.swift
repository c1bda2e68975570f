import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Synchronization
import Testing

/// A runtime kills with SIGKILL wherever the plugin is. Here it is killed at each system call of a whole run, of whatever thread,
/// one after the other, and then whoever cleans up has to find everything.
@Suite("Killed at every system call")
struct CrashMatrixTests {
  /// What is attached.
  enum Kind: String, CaseIterable, CustomStringConvertible {
    case routed
    case bridge = "bridge with gateway, masquerading and isolation"
    case shaped = "bandwidth and host ports"
    case elsewhere = "addresses by host-local"
    case agent = "with an agent, host ports and bandwidth"
    case vlan = "bridge with gateway in a VLAN"

    /// This kernel's bridges may not keep VLANs apart; those of `scripts/vm-test` do.
    static var possible: [Kind] {
      if getenv("SLUICE_OWN_MACHINE") != nil { return [.vlan] }
      return VLANTests.isPossible ? allCases : allCases.filter { $0 != .vlan }
    }

    var description: String { rawValue }

    /// Each way to clean up is tried at each point for the first, where there is time; else they take turns.
    var triesAll: Bool { self == .routed && getenv("SLUICE_SHARED_MACHINE") == nil }
    /// Where two suites share a machine, every second point of the others: odd ones or even ones, by chance.
    /// Emulated, every 24th.
    var stride: Int {
      if getenv("SLUICE_OWN_MACHINE") != nil { return 24 }
      return self == .routed || getenv("SLUICE_SHARED_MACHINE") == nil ? 1 : 2
    }

    /// The network's own, which stays when its pods go; and whom the node has met there.
    func isShared(_ thing: String) -> Bool {
      switch self {
      case .bridge, .vlan:
        ["br-test", "br-test.5"].contains(thing) || thing.hasPrefix("chain masquerade-") || thing.hasPrefix("slv")
          || thing.contains(" dev #") || thing.hasPrefix("neighbour ")
      case .routed, .shaped, .elsewhere, .agent: false
      }
    }

    /// What a pod reaches where its network was made whole.
    var gateways: [String] { self == .bridge || self == .vlan ? ["10.77.0.1", "fd00:77::1"] : [] }

    /// Debian's knows no newer one, so nothing of GC.
    var version: String { self == .elsewhere ? "1.0.0" : "1.1.0" }

    func config(_ node: Node) -> JSONValue {
      let rest: JSONObject = [
        "portMappings": [
          ["hostPort": 8080, "containerPort": 80, "protocol": "tcp"],
          ["hostPort": 8053, "containerPort": 53, "protocol": "udp"],
        ],
        "bandwidth": [
          "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
        ],
      ]
      switch self {
      case .routed: return node.config()
      case .bridge:
        return node.config([
          "mode": "bridge", "bridge": "br-test", "isDefaultGateway": true, "ipMasq": true, "isolation": true,
        ])
      case .vlan:
        return node.config(["mode": "bridge", "bridge": "br-test", "vlan": 5, "isDefaultGateway": true])
      case .shaped: return node.config(["runtimeConfig": .object(rest)])
      case .elsewhere:
        return node.config(
          version: version,
          [
            "ipam": [
              "type": "host-local", "dataDir": .string("\(node.folder)/host-local"),
              "ranges": [[["subnet": "10.77.0.0/24"]], [["subnet": "fd00:77::/64"]]],
            ]
          ])
      case .agent: return node.config(["requireAgent": true, "runtimeConfig": .object(rest)])
      }
    }
  }

  /// A node, a pod, and an agent where there is one.
  private struct Scene {
    let node: Node
    let pod: Pod
    let config: JSONValue
    let agent: FakeAgent?

    init(_ kind: Kind) throws {
      node = try Node()
      pod = try Pod()
      config = kind.config(node)
      agent = kind == .agent ? try node.startAgent() : nil
    }

    func run(_ command: String, under tracer: [String] = []) throws -> Outcome {
      let isCollection = command == "GC"
      var config = config.objectValue ?? [:]
      if isCollection { config["cni.dev/valid-attachments"] = [] }
      let outcome = try node.start(
        command, isCollection ? "" : "c1", netns: isCollection ? "" : pod.path, .object(config),
        extra: ["CNI_PATH": "/usr/lib/cni"].merging(isCollection ? ["CNI_IFNAME": ""] : [:]) { $1 }, under: tracer
      ).finish()
      withExtendedLifetime(self) {}
      return outcome
    }

    func succeed(_ command: String, under tracer: [String] = []) throws -> Outcome {
      let outcome = try run(command, under: tracer)
      try #require(outcome.exitCode == 0, "\(outcome)")
      return outcome
    }

    /// Whether a file can be without a name (`O_TMPFILE`), and so be gone with who made it: an overlay has it since Linux 6.3.
    private var hasNamelessFiles: Bool {
      let descriptor = open(node.folder, 0o20000000 | O_DIRECTORY | O_WRONLY | O_CLOEXEC, 0o600)
      defer { if descriptor >= 0 { close(descriptor) } }
      return descriptor >= 0
    }

    func leftovers() throws -> Set<String> {
      var found = try node.leftovers() + pod.links().filter { $0 != "lo" }.map { "in the pod: \($0)" }
      let filter = try FilterSocket(in: node.network.namespace)
      for family in [FilterTable.Family.ipv4, .ipv6] {
        found += try filter.chains(in: FilterTable(family, "sluice-cni")).map { "chain \($0) of \(family)" }
      }
      let held = try LocalFile.names(in: "\(node.folder)/host-local/pods")
      found += held.filter { $0 != "lock" && !$0.hasPrefix("last_reserved_ip") }.map { "held by host-local: \($0)" }
      // Elsewhere it has a hidden name, by which a reservation finds it a minute later.
      return Set(hasNamelessFiles ? found : found.filter { !$0.hasPrefix(".new.") })
    }
  }

  /// Beside the tests' own program.
  private static let killer: String = {
    var path = [CChar](repeating: 0, count: 4096)
    let length = readlink("/proc/self/exe", &path, path.count)
    let bytes = path.prefix(max(length, 0)).map { UInt8(bitPattern: $0) }
    return String(decoding: bytes, as: UTF8.self).split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" }
      + "/call-killer"
  }()

  private static func tracer(_ number: Int) -> [String] { [killer, "\(number)"] }

  /// Who finds what a killed plugin has left.
  private enum Cleaner {
    case delete
    case collectGarbage
    /// The same ADD again, where the pod does not have the interface yet, and its DEL.
    case again

    static func all(after command: String, _ kind: Kind) -> [Cleaner] {
      [.delete] + (kind.version == "1.1.0" ? [.collectGarbage] : []) + (command == "ADD" ? [.again] : [])
    }
  }

  private struct Tally: Sendable {
    var killed = 0
    var late = 0
    var leaks: [String] = []
  }

  /// What several take from, and write to.
  private final class Progress: Sendable {
    let next = Atomic(0)
    let tally = Mutex(Tally())
  }

  @Test("ADD and DEL leave nothing that DEL, GC or another ADD does not take away", arguments: Kind.possible)
  func matrix(kind: Kind) async throws {
    let clean = try Scene(kind)
    _ = try clean.succeed("ADD")
    // Who looks for leaks sees what there is to leak.
    let attached = try clean.leftovers()
    #expect(attached.contains("in the pod: eth0"), "\(attached)")
    #expect(attached.contains { $0.hasPrefix("held by host-local") } == (kind == .elsewhere), "\(attached)")
    #expect(attached.contains { $0.hasPrefix("slb") } == (kind == .shaped || kind == .agent), "\(attached)")
    _ = try clean.succeed("DEL")
    let left = try clean.leftovers().filter { !kind.isShared($0) }
    try #require(left.isEmpty, "\(left)")
    for command in ["ADD", "DEL"] {
      // A busy machine may have one wait, and look again.
      let runs = try (0..<2).map { _ in try Self.calls(of: command, kind) }
      let calls = runs.min { $0.count < $1.count } ?? []
      let cleaners = Cleaner.all(after: command, kind)
      // Whose turn it is at which point differs from run to run.
      let turn = Int.random(in: 0..<cleaners.count)
      let points = stride(from: Int.random(in: 0..<kind.stride), to: calls.count, by: kind.stride)
      let work = points.flatMap { index in
        (kind.triesAll ? cleaners : [cleaners[(index + turn) % cleaners.count]]).map { (index, $0) }
      }
      let progress = Progress()
      // Most of the time is the kernel's, which waits before it removes a device.
      await withTaskGroup(of: Void.self) { group in
        for _ in 0..<6 {
          group.addTask {
            while true {
              let next = progress.next.add(1, ordering: .relaxed).oldValue
              guard next < work.count else { return }
              let (index, cleaner) = work[next]
              let place = "\(command) killed at call \(index + 1), \(calls[index]), then \(cleaner)"
              do {
                let (wasKilled, leak) = try Self.run(command, kind, killedAt: index + 1, cleaner)
                progress.tally.withLock { tally in
                  if wasKilled { tally.killed += 1 } else { tally.late += 1 }
                  if let leak { tally.leaks.append("\(place): \(leak)") }
                }
              } catch {
                progress.tally.withLock { $0.leaks.append("\(place): \(error)") }
              }
            }
          }
        }
      }
      let result = progress.tally.withLock { $0 }
      let ofMain = calls.count { $0.hasPrefix("0 ") }
      print(
        "crash matrix: \(kind): \(command): \(calls.count) system calls, \(calls.count - ofMain) of them not the main "
          + "thread's, \(kind.stride == 1 ? "all" : "one in \(kind.stride)") tried: killed \(result.killed) of \(work.count), over "
          + "before \(result.late), leaked \(result.leaks.count)")
      let names = Dictionary(calls.map { ($0.split(separator: " ").last ?? "", 1) }, uniquingKeysWith: +)
      let most = names.sorted { ($1.value, $0.key) < ($0.value, $1.key) }
      print("crash matrix: \(kind): \(command): \(most.map { "\($0.key) \($0.value)" }.joined(separator: ", "))")
      #expect(result.leaks.isEmpty, "\(result.leaks.prefix(10).joined(separator: "\n"))")
      #expect(result.killed >= work.count * 9 / 10, "most kills have to hit")
      #expect(calls.count > 50, "a plugin that does nothing leaves nothing")
      #expect(command == "ADD" || calls.contains { $0.hasSuffix(" clone") }, "another waits for the kernel")
      #expect(command == "DEL" || ofMain < calls.count, "what is done in the pod is done by other threads")
    }
  }

  /// Each system call of a whole run in its order: the thread's number and the call's name.
  private static func calls(of command: String, _ kind: Kind) throws -> [String] {
    let scene = try Scene(kind)
    if command == "DEL" { _ = try scene.succeed("ADD") }
    return try scene.succeed(command, under: tracer(0)).notes.split(separator: "\n").map(String.init).filter { line in
      let words = line.split(separator: " ")
      return words.count == 2 && Int(words[0]) != nil
    }
  }

  /// - Returns: whether the plugin was killed, and what was left after the cleaning.
  private static func run(
    _ command: String, _ kind: Kind, killedAt number: Int, _ cleaner: Cleaner
  ) throws -> (Bool, String?) {
    let scene = try Scene(kind)
    if command == "DEL" { _ = try scene.succeed("ADD") }
    let outcome = try scene.run(command, under: tracer(number))
    let wasKilled = outcome.exitCode == nil
    if !wasKilled, outcome.exitCode != 0 { return (false, "\(outcome)") }
    var ends: [Outcome] = []
    switch cleaner {
    case .delete: ends.append(try scene.run("DEL"))
    case .collectGarbage: ends.append(try scene.run("GC"))
    case .again:
      if try !scene.pod.links().contains("eth0") {
        ends.append(try scene.run("ADD"))
        // What the killed one began for the whole network, this one has to end.
        for gateway in kind.gateways.compactMap({ IPAddress($0) }) {
          let isReached = try (0..<3).contains { _ in try scene.pod.reaches(gateway, milliseconds: 1500) }
          if !isReached { return (wasKilled, "the pod does not reach \(gateway): \(ends)") }
        }
      }
      ends.append(try scene.run("DEL"))
    }
    if let failed = ends.first(where: { $0.exitCode != 0 }) { return (wasKilled, "\(failed)") }
    let left = try scene.leftovers().filter { !kind.isShared($0) }.sorted()
    return (wasKilled, left.isEmpty ? nil : left.joined(separator: ", "))
  }
}
