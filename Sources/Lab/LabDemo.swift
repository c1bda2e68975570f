import Glibc
import NetworkTypes

/// What `make run` shows: a shop on two nodes, balanced by Sluice, a NetworkPolicy that names itself in what it drops, and
/// a scale-down that nobody notices.
///
/// Everything printed is checked; `run` says whether all of it held.
public final class LabDemo {
  private static let apps = ["frontend", "orders", "api"]
  private static let requests = 200

  private let lab: Lab
  private let shop: String
  private let policy: String
  private let graceMicroseconds: UInt32
  private var failures: [String] = []

  /// - Parameters:
  ///   - shop: the YAML of the shop's Services.
  ///   - policy: the YAML of its NetworkPolicy.
  ///   - grace: after which a pod that leaves must get no new request.
  public init(lab: Lab, shop: String, policy: String, grace: Duration = .milliseconds(300)) {
    graceMicroseconds = UInt32(clamping: Int64(grace / .microseconds(1)))
    self.lab = lab
    self.shop = shop
    self.policy = policy
  }

  /// Brings the lab up, shows everything, and takes it down again, whatever happens.
  public func run() throws -> Bool {
    if try Lab.allNames().contains(lab.name) {
      step("Removing what an earlier run of the demo left")
      try lab.down()
    }
    let before = try MachineSnapshot.take(lab: lab.name)
    do {
      try show()
    } catch {
      try? lab.down()
      throw error
    }
    step("Taking the lab down")
    try lab.down()
    let left = before.differences(to: try MachineSnapshot.take(lab: lab.name))
    check(left.isEmpty, "links, routes, settings, nftables, mounts, cgroups and folders are as they were before")
    for line in left { say("    \(line)") }
    say(failures.isEmpty ? "\nEverything held. The machine is clean." : "\nDid not hold:")
    for failure in failures { say("  \(failure)") }
    return failures.isEmpty
  }

  private func show() throws {
    step("Bringing up two nodes, a switch and a client, each in namespaces of its own")
    let begin = monotonicNanoseconds()
    try lab.up()
    for (index, node) in lab.configuration.nodes.enumerated() {
      let addresses = LabAddresses.node(index).map(\.description).joined(separator: " ")
      let ranges = LabAddresses.podCIDRs(index).map(\.description).joined(separator: " ")
      say("  \(node.name)   \(addresses)   pods \(ranges)")
    }
    say("  up in \(milliseconds(since: begin)) ms; manifests: \(lab.manifestsDirectory)")

    step("Starting the shop: three Services, two pods each, one per node, attached by the CNI plugin")
    try lab.apply("shop", shop)
    for app in Self.apps {
      for (index, node) in lab.configuration.nodes.enumerated() {
        let pod = try lab.addPod(Self.pod(app, index + 1, node.name))
        say("  \(pod.name)   \(node.name)   \(pod.addresses.map(\.description).joined(separator: " "))")
      }
    }
    try waitForServices()
    try showClusterIPs()
    try showNodePorts()
    try showPolicy()
    try showScaleDown()
    showProgrammingTime()
  }

  private static func pod(_ app: String, _ number: Int, _ node: String) -> PodSpec {
    var spec = PodSpec("shop", "\(app)-\(number)", node: node, labels: ["app": app])
    spec.ports = [("http", L4Protocol.tcp, 8080), ("events", .udp, 9000)].compactMap { name, transport, number in
      app != "orders" && transport == .udp ? nil : Port(number).map { PodPort(name, transport, $0) }
    }
    return spec
  }

  // MARK: What is shown

  /// The agents follow the folder by themselves; they have when both backends answer everywhere.
  private func waitForServices() throws {
    let begin = monotonicNanoseconds()
    let virtual = ["10.96.0.10", "fd00:10:96::10", "10.96.0.20", "fd00:10:96::20", "10.96.0.30", "fd00:10:96::30"]
    let inside = ["frontend-1", "frontend-2"].flatMap { pod in
      virtual.map { (LabTarget.pod(PodName("shop", pod)), $0, 80) }
    }
    let outside = try lab.configuration.nodes.flatMap { node in
      try IPFamily.allCases.map { (LabTarget.client, try lab.nodeAddress(node.name, $0).description, 30080) }
    }
    for (place, host, port) in inside + outside {
      // 20 requests miss one of two backends twice in a million times; then they are simply sent again.
      var spec = ProbeSpec(.http, to: try address(host, port), count: 20)
      spec.timeoutMilliseconds = 200
      while true {
        let report = try lab.probe(from: place, spec)
        if report.answered == spec.count, report.backends.count == 2 { break }
        guard milliseconds(since: begin) < 10_000 else {
          throw LabError.timedOut("\(spec.target) from \(place): \(report.summary)")
        }
        usleep(5000)
      }
    }
    say("  both pods of every Service answer \(milliseconds(since: begin)) ms later, everywhere")
  }

  private func showClusterIPs() throws {
    step("\(Self.requests) requests each from pod shop/frontend-1 through ClusterIPs: every backend gets its share")
    let from = LabTarget.pod(PodName("shop", "frontend-1"))
    for (name, mode, host, port) in [
      ("shop/api     IPv4", ProbeSpec.Mode.http, "10.96.0.10", 80), ("shop/api     IPv6", .http, "fd00:10:96::10", 80),
      ("shop/orders  UDP ", .udp, "10.96.0.20", 9000), ("shop/orders  UDP6", .udp, "fd00:10:96::20", 9000),
    ] {
      let report = try lab.probe(from: from, ProbeSpec(mode, to: try address(host, port), count: Self.requests))
      check(isSpread(report), "\(name)  \(report.summary)")
    }
  }

  private func showNodePorts() throws {
    step("\(Self.requests) requests each from the client outside the cluster to NodePort 30080")
    for node in lab.configuration.nodes {
      for family in IPFamily.allCases {
        let host = try lab.nodeAddress(node.name, family).description
        let report = try lab.probe(from: .client, ProbeSpec(.http, to: try address(host, 30080), count: Self.requests))
        check(isSpread(report), "\(node.name)  \(family)  \(report.summary)")
      }
    }
  }

  private func showPolicy() throws {
    step("Applying NetworkPolicy shop/api-deny-from-frontend: only app=orders may reach app=api, on TCP 8080")
    let applied = monotonicNanoseconds()
    try lab.apply("policy", policy)
    let (frontend, orders) = (LabTarget.pod(PodName("shop", "frontend-1")), LabTarget.pod(PodName("shop", "orders-1")))
    func requests(_ from: LabTarget, _ host: String, _ count: Int) throws -> ProbeReport {
      var spec = ProbeSpec(.http, to: try address(host, 80), count: count)
      spec.timeoutMilliseconds = 300
      return try lab.probe(from: from, spec)
    }
    while try requests(frontend, "10.96.0.10", 1).answered > 0 {
      guard milliseconds(since: applied) < 5000 else { throw LabError.timedOut("the policy denies nothing") }
      usleep(2000)
    }
    let programming = lab.agentLog("node1").split(separator: "\n").last { $0.contains("policies=") }
    if let programming { say("  agent of node1: \(programming)") }
    for host in ["10.96.0.10", "fd00:10:96::10"] {
      let allowed = try requests(orders, host, 20)
      check(allowed.answered == 20, "shop/orders-1   -> \(host)  \(allowed.summary)")
      let denied = try requests(frontend, host, 3)
      check(denied.answered == 0, "shop/frontend-1 -> \(host)  \(denied.summary)")
    }
    try showDrops()
    try lab.removeManifest("policy")
    let removed = monotonicNanoseconds()
    while try requests(frontend, "10.96.0.10", 1).answered == 0 {
      guard milliseconds(since: removed) < 5000 else { throw LabError.timedOut("the removed policy still denies") }
    }
    say("  removed: shop/frontend-1 is answered again")
  }

  /// Every drop names its policy, and `explain` says why before anybody has to try.
  private func showDrops() throws {
    for node in lab.configuration.nodes {
      let drops = try lab.exec(
        in: .node(node.name), [lab.binary("dpctl"), "monitor", "--last", "1", "--type", "drop"])
      for line in drops.stdout.split(separator: "\n") {
        check(line.contains("policy denied by shop/api-deny-from-frontend"), "\(node.name)  \(line)")
      }
    }
    for (source, status) in [("shop/frontend-1", Int32(1)), ("shop/orders-1", 0)] {
      say("  dpctl explain \(source) shop/api:80/tcp")
      let explanation = try lab.exec(
        in: .node("node1"), [lab.binary("dpctl"), "explain", source, "shop/api:80/tcp"])
      for line in explanation.stdout.split(separator: "\n") { say("    \(line)") }
      check(explanation.status == status, "exit status \(explanation.status)")
    }
  }

  private func showScaleDown() throws {
    step("Scaling shop/api from two pods to one while shop/frontend-2 sends 500 requests a second")
    var spec = ProbeSpec(.http, to: try address("10.96.0.10", 80), count: .max)
    spec.rate = 500
    let work = try lab.startProbe(from: .pod(PodName("shop", "frontend-2")), spec)
    usleep(600_000)
    let leaving = PodName("shop", "api-2")
    let asked = monotonicNanoseconds()
    try lab.terminate(leaving)
    usleep(300_000 + graceMicroseconds)
    try lab.removePod(leaving)
    usleep(300_000)
    let report = try work.stop()
    try lab.checkInterrupted()
    printTimeline(report, asked)
    let last = report.results.last { $0.pod == leaving.name }
    let lag = last.map { max(0, Int64($0.started) - Int64(asked)) / 1000 } ?? 0
    let after = report.results.filter { $0.started > asked + UInt64(graceMicroseconds) * 1000 }
    check(report.failures.isEmpty, "\(report.summary): none refused, none lost")
    check(
      !after.isEmpty && after.allSatisfy { $0.pod == "api-1" },
      "the last new request reached api-2 \(Double(lag / 10) / 100) ms after it was marked as leaving")
  }

  private func printTimeline(_ report: ProbeReport, _ asked: UInt64) {
    let width: Int64 = 150_000_000
    let buckets = Dictionary(grouping: report.results) { result -> Int64 in
      let offset = Int64(result.started) - Int64(asked)
      return offset >= 0 ? offset / width : (offset + 1) / width - 1
    }
    for bucket in buckets.keys.sorted() {
      var counts: [String: Int] = [:]
      for result in buckets[bucket] ?? [] { counts[result.pod ?? result.outcome.description, default: 0] += 1 }
      let text = counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: "  ")
      let time = "\(bucket * width / 1_000_000)"
      say("  \(String(repeating: " ", count: max(0, 6 - time.count)))\(time) ms  \(text)")
    }
  }

  /// The agent's own measurement: from the file's event to the kernel's acknowledgement.
  private func showProgrammingTime() {
    step("What the agent of node1 says about its last change (event -> kernel)")
    let line = lab.agentLog("node1").split(separator: "\n").last { line in
      let text = line.lowercased()
      return text.contains("event") && text.contains("kernel")
    }
    check(line != nil, line.map(String.init) ?? "no line with event and kernel in \(lab.agentLogPath("node1"))")
  }

  // MARK: Helpers

  private func isSpread(_ report: ProbeReport) -> Bool {
    // Both backends, and neither below a quarter: by chance less than one in a billion times.
    report.answered == Self.requests && report.backends.count == 2
      && report.backends.values.allSatisfy { $0 > Self.requests / 4 }
  }

  private func address(_ host: String, _ port: Int) throws -> SocketAddress {
    guard let address = IPAddress(host), let port = Port(port) else {
      throw LabError.invalid(field: "address", value: "\(host) \(port)", reason: "is no address and port")
    }
    return SocketAddress(address, port)
  }

  private func milliseconds(since begin: UInt64) -> UInt64 { (monotonicNanoseconds() - begin) / 1_000_000 }

  private func step(_ text: String) { say("\n== \(text)") }

  /// Progress is watched as it happens, also through a pipe.
  private func say(_ text: String) {
    print(text)
    fflush(nil)
  }

  private func check(_ holds: Bool, _ text: String) {
    say("  \(holds ? "ok  " : "FAIL") \(text)")
    if !holds { failures.append(text) }
  }
}
