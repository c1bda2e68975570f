import Glibc
import LocalAPI
import Netlink
import NetworkTypes
import Synchronization
import Testing

/// A runtime kills with SIGKILL wherever the plugin is. Here it is killed at each system call of its main thread, one after the
/// other, and then whoever cleans up has to find everything. (What happens in the pod's namespace is done by short-lived
/// threads, whose calls strace cannot count together with these: `CrashTests` kill there at random.)
@Suite("Killed at every system call of its main thread")
struct CrashMatrixTests {
  private static let strace = "/usr/bin/strace"
  /// Without strace there is nothing to test with; where somebody insists on all tests, its absence is a failure.
  static var canTrace: Bool {
    access(strace, X_OK) == 0 || getenv("CI") != nil || getenv("SLUICE_BIN_DIR") != nil
  }

  private struct Point: Sendable, CustomStringConvertible {
    var call: String
    var number: Int
    var description: String { "\(call) \(number)" }

    var tracer: [String] {
      [strace, "-qq", "-o", "/dev/null", "-e", "trace=\(call)", "-e", "inject=\(call):signal=KILL:when=\(number)"]
    }
  }

  /// Who finds what a killed plugin has left.
  private enum Cleaner: CaseIterable {
    case delete
    case collectGarbage
    /// The same ADD again, where the pod does not have the interface yet, and its DEL.
    case again
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

  @Test("ADD and DEL leave nothing that DEL, GC or another ADD does not take away", .enabled(if: canTrace))
  func matrix() async throws {
    for command in ["ADD", "DEL"] {
      let points = try Self.points(of: command)
      let cleaners = command == "ADD" ? Cleaner.allCases : [.delete, .collectGarbage]
      let work = points.flatMap { point in cleaners.map { (point, $0) } }
      let progress = Progress()
      // Most of the time is the kernel's, which waits before it removes a device.
      await withTaskGroup(of: Void.self) { group in
        for _ in 0..<4 {
          group.addTask {
            while true {
              let index = progress.next.add(1, ordering: .relaxed).oldValue
              guard index < work.count else { return }
              let (point, cleaner) = work[index]
              do {
                let (wasKilled, leak) = try Self.run(command, point, cleaner)
                progress.tally.withLock { tally in
                  if wasKilled { tally.killed += 1 } else { tally.late += 1 }
                  if let leak { tally.leaks.append("\(command) killed at \(point), then \(cleaner): \(leak)") }
                }
              } catch {
                progress.tally.withLock { $0.leaks.append("\(command) at \(point), \(cleaner): \(error)") }
              }
            }
          }
        }
      }
      let result = progress.tally.withLock { $0 }
      let calls = Dictionary(points.map { ($0.call, 1) }, uniquingKeysWith: +).sorted { $0.value > $1.value }
      print(
        "crash matrix: \(command): \(points.count) system calls x \(cleaners.count) ways to clean up: killed \(result.killed), "
          + "over before \(result.late), leaked \(result.leaks.count)")
      print("crash matrix: \(command): \(calls.map { "\($0.key) \($0.value)" }.joined(separator: ", "))")
      #expect(result.leaks.isEmpty, "\(result.leaks.prefix(10).joined(separator: "\n"))")
      #expect(result.killed >= work.count * 9 / 10, "most kills have to hit")
      #expect(points.count > 50, "a plugin that does nothing leaves nothing")
    }
  }

  /// Each system call of a whole run, by name and how many there were of it before.
  private static func points(of command: String) throws -> [Point] {
    let (node, pod) = (try Node(), try Pod())
    if command == "DEL" { try node.add("c1", pod) }
    let trace = "\(node.folder)/trace"
    let outcome = try node.start(command, netns: pod.path, under: [strace, "-qq", "-o", trace]).finish()
    try #require(outcome.exitCode == 0, "\(outcome)")
    var counts: [String: Int] = [:]
    var points: [Point] = []
    let text = String(decoding: try #require(try LocalFile.read(trace)), as: UTF8.self)
    for line in text.split(separator: "\n") {
      let call = String(line.prefix { $0 == "_" || $0.isLetter || $0.isNumber })
      // The first is the tracer's own, that starts the plugin.
      guard !call.isEmpty, line.dropFirst(call.utf8.count).first == "(", call != "execve", call != "exit_group" else {
        continue
      }
      counts[call, default: 0] += 1
      points.append(Point(call: call, number: counts[call] ?? 1))
    }
    withExtendedLifetime(pod) {}
    return points
  }

  /// - Returns: whether the plugin was killed, and what was left after the cleaning.
  private static func run(_ command: String, _ point: Point, _ cleaner: Cleaner) throws -> (Bool, String?) {
    let (node, pod) = (try Node(), try Pod())
    if command == "DEL" { try node.add("c1", pod) }
    let outcome = try node.start(command, netns: pod.path, under: point.tracer).finish()
    let wasKilled = outcome.exitCode == nil
    if !wasKilled, outcome.exitCode != 0 { return (false, "\(outcome)") }
    var ends: [Outcome] = []
    switch cleaner {
    case .delete: ends.append(try node.run("DEL", in: pod))
    case .collectGarbage:
      let everything = node.config(["cni.dev/valid-attachments": []])
      ends.append(try node.run("GC", "", everything, extra: ["CNI_IFNAME": ""]))
    case .again:
      if try !pod.links().contains("eth0") { ends.append(try node.run("ADD", in: pod)) }
      ends.append(try node.run("DEL", in: pod))
    }
    if let failed = ends.first(where: { $0.exitCode != 0 }) { return (wasKilled, "\(failed)") }
    let left = try node.leftovers() + pod.links().filter { $0 != "lo" }.map { "in the pod: \($0)" }
    return (wasKilled, left.isEmpty ? nil : left.joined(separator: ", "))
  }
}
