// A change stops the live flow that it denies, and takes not one packet from a hundred others.
import Glibc
import NetworkTypes
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour.MustNotPass {
  private static let rule =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: good}}, "
    + "podSelector: {matchExpressions: [{key: role, operator: In, values: [ROLES]}]}}]}]}"

  @Test("a policy, a pod's label and a namespace's label stop a live flow; 100 others lose no packet")
  func otherFlows() throws {
    try PolicyStage.run("np-others") { stage in
      let lab = stage.lab
      for (name, node) in [("s/near", "node1"), ("s/far", "node2")] { try stage.pod(name, on: node) }
      for (name, role) in [("a/rest", "rest"), ("a/policy", "policy"), ("a/label", "label"), ("b/space", "space")] {
        try stage.pod(name, on: "node1", labels: ["role": role])
      }
      for namespace in ["a", "b"] { try lab.setLabels(ofNamespace: namespace, ["team": "good"]) }
      try stage.policy("s/np", Self.rule.replacing("ROLES", with: "rest, policy, label, space"))
      try stage.expect(.allowed("a/rest", "s/far"), .allowed("b/space", "s/far"), .allowed("a/label", "s/far"))

      let servers = try ["s/near", "s/far"].flatMap { try lab.pod(try #require(PodName($0))).addresses }
      let others = try CountedFlows(lab, from: PodName("a", "rest"), to: servers, each: 25)
      let changes: [(source: String, change: () throws -> Void)] = [
        ("a/policy", { try stage.policy("s/np", Self.rule.replacing("ROLES", with: "rest, label, space")) }),
        ("a/label", { try lab.setLabels(PodName("a", "label"), ["role": "nobody"]) }),
        ("b/space", { try lab.setLabels(ofNamespace: "b", ["team": "bad"]) }),
      ]
      for (source, change) in changes {
        let name = try #require(PodName(source))
        let denied = try CountedFlows(lab, from: name, to: servers, each: 1)
        usleep(300_000)
        try change()
        try lab.awaitAPIServer()
        let changed = monotonicNanoseconds()
        usleep(1_500_000)
        let reports = try denied.stop()
        #expect(reports.count == 4)
        for report in reports {
          #expect(report.received > 10, "\(source): a flow that never lived proves nothing: \(report)")
          let last = max(0, (Int64(report.lastAnswer) - Int64(changed)) / 1_000_000)
          print("must not pass: \(source): the last answer came \(last) ms after the change, \(report)")
          #expect(last < 1000, "\(source): \(report)")
        }
      }
      let reports = try others.stop()
      let sent = reports.reduce(0) { $0 + $1.sent }
      print("must not pass: 100 other flows: \(sent) datagrams, \(reports.reduce(0) { $0 + $1.lost.count }) lost")
      #expect(reports.count == 100)
      for report in reports {
        #expect(report.sent > 100, "\(report)")
        #expect(report.lost == [] && report.twice == 0 && report.errors == 0, "\(report)")
      }
      try PolicyStage.expectAgreement(of: lab)
    }
  }
}

/// Long-lived UDP flows to echoing servers, whose every datagram has a number: what was sent, and what came back. (TCP
/// would send again what is lost, and hide it.)
final class CountedFlows {
  struct Report: Sendable, CustomStringConvertible {
    var sent = 0
    var received = 0
    var twice = 0
    var errors = 0
    /// Numbers that did not come back.
    var lost: [Int] = []
    /// CLOCK_MONOTONIC.
    var lastAnswer: UInt64 = 0

    var description: String {
      "\(sent) sent, \(received) answered, \(twice) twice, \(errors) errors, \(lost.count) lost (\(lost.prefix(3))…)"
    }
  }

  private static let intervalMilliseconds = 20
  private let work: BackgroundWork<[Report]>

  /// - Parameter count: flows to each of the servers.
  init(_ lab: Lab, from pod: PodName, to servers: [IPAddress], each count: Int) throws {
    let network = try lab.network(of: .pod(pod))
    let port = try #require(Port(80))
    work = BackgroundWork { shouldStop in
      try network.run {
        let sockets = try servers.flatMap { server in
          try (0..<count).map { _ in
            let socket = try Socket(server.family, SOCK_DGRAM)
            let code = socket.connect(SocketAddress(server, port))
            guard code == 0 else { throw LabError.system(operation: "connect", object: "\(server)", errno: code) }
            return socket
          }
        }
        return Self.run(sockets, shouldStop)
      }
    }
  }

  func stop() throws -> [Report] { try work.stop() }

  private static func run(_ sockets: [Socket], _ shouldStop: () -> Bool) -> [Report] {
    var reports = [Report](repeating: Report(), count: sockets.count)
    var answers = [[Int]](repeating: [], count: sockets.count)
    var buffer = [UInt8](repeating: 0, count: 2048)
    func receive(until deadline: UInt64) {
      while true {
        let now = monotonicNanoseconds()
        guard now < deadline else { return }
        var entries = sockets.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
        guard poll(&entries, nfds_t(entries.count), Int32((deadline - now) / 1_000_000 + 1)) > 0 else { continue }
        for (index, entry) in entries.enumerated() where entry.revents != 0 {
          while true {
            let count = sockets[index].receive(&buffer)
            if count < 0, count != -Int(EAGAIN) { reports[index].errors += 1 }
            guard count > 0 else { break }
            // The server's greeting is one line, the datagram the next.
            let lines = buffer[..<count].split(separator: UInt8(ascii: "\n"))
            guard let number = lines.last.flatMap({ Int(String(decoding: $0, as: UTF8.self)) }) else { continue }
            answers[index].append(number)
            reports[index].lastAnswer = monotonicNanoseconds()
          }
        }
      }
    }
    let begin = monotonicNanoseconds()
    var tick = 0
    while !shouldStop() {
      for (index, socket) in sockets.enumerated() {
        let count = socket.send(Array("\(reports[index].sent)\n".utf8))
        if count > 0 { reports[index].sent += 1 } else { reports[index].errors += 1 }
      }
      tick += 1
      receive(until: begin + UInt64(tick * intervalMilliseconds) * 1_000_000)
    }
    // The last answers are under way.
    receive(until: monotonicNanoseconds() + 500_000_000)
    for index in reports.indices {
      let distinct = Set(answers[index])
      reports[index].received = distinct.count
      reports[index].twice = answers[index].count - distinct.count
      reports[index].lost = (0..<reports[index].sent).filter { !distinct.contains($0) }
    }
    return reports
  }
}
