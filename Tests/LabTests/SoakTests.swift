// A real agent, a real kernel, and an API server with which everything goes wrong.
import Glibc
import Lab
import NetworkTypes
import Testing

@testable import Lab

@Suite(
  "A node through faults of its API server", .serialized,
  .enabled(if: LabHarness.canRun("sluice", "sluice-agent", "apiserver-double")))
struct SoakTests {
  /// `SLUICE_SOAK_MINUTES`: from 20 on its memory is judged too.
  private static let minutes = getenv("SLUICE_SOAK_MINUTES").flatMap { Double(String(cString: $0)) } ?? 0.3
  /// `SLUICE_SOAK_HURRY`: how many times shorter the agent waits after a fault, so that 20 minutes see 10,000 of them.
  private static let hurry = getenv("SLUICE_SOAK_HURRY").flatMap { Double(String(cString: $0)) } ?? 1
  private static let seed = UInt64.random(in: 0 ... .max)

  @Test(
    """
    refused, torn, expired, out of order, with tokens that change and a clock that jumps: tables equal objects at the end, \
    nothing is programmed twice or taken back, no connection notices, and in the long run memory does not grow
    """)
  func soak() throws {
    print("soak: SLUICE_SOAK_MINUTES=\(Self.minutes) SLUICE_SOAK_HURRY=\(Self.hurry), seed \(Self.seed)")
    let directory = "/tmp/\(LabHarness.uniqueName("sluice-soak"))"
    defer { Files.removeTree(directory) }
    try Files.makeDirectories(directory)
    let clock = try JumpingClock(directory)
    try LabHarness.wrapPrograms(
      in: directory,
      [
        "sluice-agent":
          "exec env \(clock.environment) SLUICE_TEST_HURRY=\(Self.hurry) \(LabHarness.binDirectory)/sluice-agent \"$@\"",
        "apiserver-double": "exec \(LabHarness.binDirectory)/apiserver-double \"$@\" --faults \(Self.seed)",
      ])
    var configuration = LabHarness.configuration("soak", nodes: 1)
    configuration.usesAPIServer = true
    configuration.binDirectory = directory
    try LabHarness.withLab(configuration, expectedErrors: ["API server", "apiserver", "the server"]) { lab in
      var random = SeededRandom("soak")
      // A pod's start waits some seconds for its object, not for a server that answers nobody.
      let calm = "\(lab.apiServerDirectory)/calm"
      try Files.replace(calm, "")
      let client = try lab.addPod(PodSpec("shop", "client", node: "node1"))
      let pods = try (1...4).map { try lab.addPod(StaticService.backend("backend-\($0)")) }
      let stable = StaticService.echo("stable", index: 1, nodePort: 30080)
      var edited = (2...20).map { (service: StaticService.echo("web-\($0)", index: $0), pods: pods) }
      for service in [stable] + edited.map(\.service) {
        try service.apply(to: lab)
        try service.scale(to: pods, in: lab)
      }
      for service in [stable] + edited.map(\.service) {
        try lab.waitUntilCommitted(service, pods, milliseconds: 120_000)
      }
      var flows: [BackgroundWork<[EchoFlowReport]>] = []
      for family in IPFamily.allCases {
        for mode in [ProbeSpec.Mode.tcp, .udp] {
          var spec = EchoFlowSpec(mode, to: try stable.target(family))
          (spec.flows, spec.intervalMilliseconds, spec.gapMilliseconds) = (4, 50, 2000)
          flows.append(try lab.startFlows(from: .pod(client.name), spec))
        }
      }
      let before = lab.programmedLines("node1").count

      unlink(calm)
      let start = monotonicNanoseconds()
      let length = UInt64(Self.minutes * 60e9)
      var (edits, jumps) = (0, 0)
      var early: Int?
      while monotonicNanoseconds() - start < length {
        let index = Int.random(in: 0..<edited.count, using: &random)
        edited[index].pods = pods.filter { _ in Bool.random(using: &random) }
        try edited[index].service.scale(to: edited[index].pods, in: lab)
        edits += 1
        if edits % 40 == 0 {
          try clock.jump(bySeconds: [3600, -3600, 400 * 86_400].randomElement(using: &random) ?? 0)
          jumps += 1
        }
        if early == nil, monotonicNanoseconds() - start > length / 4 { early = try Self.resident(lab) }
        usleep(UInt32.random(in: Self.hurry > 1 ? 1_000...12_000 : 20_000...120_000, using: &random))
      }
      let late = try Self.resident(lab)
      let live = lab.programmedLines("node1").count - before
      try clock.jump(bySeconds: 0)
      try Files.replace(calm, "")
      for (service, pods) in edited { try lab.waitUntilCommitted(service, pods, milliseconds: 120_000) }
      try lab.expectNoDifference(on: "node1")

      let faults = try #require(Files.text("\(lab.apiServerDirectory)/faults"))
      let lines = lab.programmedLines("node1").dropFirst(before)
      let growth = Double(late) / Double(try #require(early))
      print(
        "soak: \(faults.dropLast()), clock jumps \(jumps); \(edits) edits, \(lines.count) times programmed; resident "
          + "\(try #require(early)) KiB after a quarter, \(late) KiB at the end (\((growth * 1000).rounded() / 1000)x)")
      // What one edit changes are two slices, and each is told of by itself. Lists that tell what is known program nothing.
      #expect(lines.count <= 2 * edits)
      #expect(live >= 3 && jumps > 0, "nothing was followed while things went wrong: \(live), \(jumps)")
      #expect(!lines.contains { $0.services.contains("stable") }, "a Service that nobody touched was programmed")
      if Self.minutes >= 20 { #expect(growth <= 1.05) }
      // Where everything fails an agent waits up to 30 s before it asks again.
      let least = Self.minutes * (Self.hurry > 1 ? 500 : 10)
      #expect(Int(faults.prefix { $0.isNumber }) ?? 0 > Int(least), "\(faults)")
      for flow in flows { LabHarness.expectUninterrupted(try flow.stop()) }
    }
  }

  /// In KiB.
  private static func resident(_ lab: Lab) throws -> Int {
    let process = try #require(lab.agentProcessID("node1"))
    let status = try #require(Files.text("/proc/\(process)/status"))
    let line = try #require(status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") })
    return try #require(Int(line.filter(\.isNumber)))
  }
}

/// The time of day as one process sees it. Nobody else's clock is touched.
private struct JumpingClock {
  private let offset: String
  private let library: String
  var environment: String { "LD_PRELOAD=\(library) TEST_CLOCK_OFFSET=\(offset)" }

  private static let source = """
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <time.h>
    #include <unistd.h>
    static volatile int64_t *seconds;
    __attribute__((constructor)) static void begin(void) {
      int file = open(getenv("TEST_CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
      seconds = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
      close(file);
    }
    int clock_gettime(clockid_t clock, struct timespec *now) {
      int result = syscall(SYS_clock_gettime, clock, now);
      if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *seconds;
      return result;
    }
    int gettimeofday(struct timeval *restrict now, void *restrict zone) {
      struct timespec exact;
      clock_gettime(CLOCK_REALTIME, &exact);
      now->tv_sec = exact.tv_sec;
      now->tv_usec = exact.tv_nsec / 1000;
      return 0;
    }
    time_t time(time_t *result) {
      struct timespec now;
      clock_gettime(CLOCK_REALTIME, &now);
      if (result) *result = now.tv_sec;
      return now.tv_sec;
    }

    """

  init(_ directory: String) throws {
    (offset, library) = ("\(directory)/clock", "\(directory)/clock.so")
    try Files.replace(offset, String(repeating: "\0", count: 8))
    try Files.replace("\(directory)/clock.c", Self.source)
    let path = getenv("PATH").map { String(cString: $0) } ?? ""
    let compilers = path.split(separator: ":").flatMap { ["\($0)/clang", "\($0)/cc"] }
    let compiler = try #require(compilers.first { Files.exists($0) })
    let result = try ChildProcess.run(
      [compiler, "-shared", "-fPIC", "-O2", "-o", library, "\(directory)/clock.c"], name: "compiler", in: nil,
      milliseconds: 30_000)
    try #require(result.status == 0, "\(result.stderr)")
  }

  /// From the machine's own time.
  func jump(bySeconds seconds: Int64) throws {
    let file = try #require(fopen(offset, "r+"))
    defer { fclose(file) }
    // In place: the process has it mapped.
    withUnsafeBytes(of: seconds) { _ = fwrite($0.baseAddress, 1, $0.count, file) }
  }
}
