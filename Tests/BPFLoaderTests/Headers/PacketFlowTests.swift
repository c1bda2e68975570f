import DataplaneModel
import Netlink
import NetworkTypes
import Testing

@testable import BPFLoader
@testable import PolicyWorlds

/// bpf/include/flows.h: connection tracking.
@Suite("flows.h") struct PacketFlowTests {
  /// Nobody may begin anything to a: what gets to it is an answer.
  private static let nothingToA = ["p": "{podSelector: {matchLabels: {name: a}}, policyTypes: [Ingress]}"]

  private static func state(_ scene: PacketScene) throws -> String {
    guard let (flow, isAttempt) = try scene.runner.onlyFlow() else { return "not one flow" }
    return "\(["opening", "open", "closing"][Int(flow.state)])\(isAttempt ? ", not answered" : "")"
  }

  private static func segment(
    _ scene: PacketScene, _ from: String, _ to: String, _ family: IPFamily, _ flags: ProbeContent.TCPFlags,
    port: UInt16 = 4000
  ) -> [UInt8] {
    scene.packet(
      from, to, family,
      from == "a" ? .tcp(source: port, destination: 80, flags) : .tcp(source: 80, destination: port, flags))
  }

  typealias Step = (from: String, flags: ProbeContent.TCPFlags, state: String)
  private static let lives: [(String, [Step])] = [
    (
      "opened and closed",
      [
        ("a", .synchronize, "opening, not answered"), ("a", .synchronize, "opening, not answered"),
        ("a", .acknowledge, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("b", [.synchronize, .acknowledge], "open"), ("a", .acknowledge, "open"),
        ("a", [.finish, .acknowledge], "open"), ("a", [.finish, .acknowledge], "open"), ("b", .acknowledge, "open"),
        ("b", [.finish, .acknowledge], "closing"), ("a", .acknowledge, "closing"),
        // The ports are used again: the flow begins again where it is.
        ("a", .synchronize, "opening"), ("a", .synchronize, "opening"), ("b", [.synchronize, .acknowledge], "open"),
        ("a", [.finish, .acknowledge], "open"), ("b", [.finish, .acknowledge], "closing"),
        ("a", .synchronize, "opening"),
      ]
    ),
    (
      "closed by the other end first",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("b", [.finish, .acknowledge], "open"), ("a", [.finish, .acknowledge], "closing"),
      ]
    ),
    (
      "refused",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.reset, .acknowledge], "closing, not answered"),
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
      ]
    ),
    (
      "reset, and again by who does not know",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("a", .acknowledge, "open"), ("a", .reset, "closing"), ("b", .reset, "closing"), ("a", .synchronize, "opening"),
      ]
    ),
    (
      "a reset that its end has not sent",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("a", .reset, "closing"), ("b", .acknowledge, "closing"), ("a", .acknowledge, "open"),
        ("b", .acknowledge, "open"), ("b", .reset, "closing"), ("a", .acknowledge, "closing"),
        ("b", .acknowledge, "open"),
      ]
    ),
    (
      "a reset, and what was on its way then",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("a", .acknowledge, "open"), ("a", [.reset, .acknowledge], "closing"), ("b", .acknowledge, "closing"),
        ("b", .acknowledge, "closing"), ("a", .synchronize, "opening"),
        ("b", [.synchronize, .acknowledge], "open"), ("b", .acknowledge, "open"),
      ]
    ),
    (
      "opened by one end, then by the other",
      [
        ("a", .synchronize, "opening, not answered"), ("b", [.synchronize, .acknowledge], "open"),
        ("a", .reset, "closing"), ("b", .synchronize, "opening, not answered"),
        ("a", [.synchronize, .acknowledge], "open"), ("b", .reset, "closing"), ("b", .synchronize, "opening"),
      ]
    ),
    (
      "half open: one end alone closes",
      [
        ("a", .synchronize, "opening, not answered"), ("a", [.finish, .acknowledge], "opening, not answered"),
        ("b", [.synchronize, .acknowledge], "open"), ("b", .acknowledge, "open"),
        ("b", [.finish, .acknowledge], "closing"),
      ]
    ),
  ]

  @Test("the states of a TCP connection, by who sends what")
  func tcp() throws {
    try PacketScene.run("flow-tcp") { scene, findings in
      for (name, steps) in Self.lives {
        for family in IPFamily.allCases {
          for (number, step) in steps.enumerated() {
            let packet = Self.segment(scene, step.from, step.from == "a" ? "b" : "a", family, step.flags)
            let what = "\(family), \(name), step \(number + 1)"
            findings.expect(what, try scene.send(step.from, packet), .redirected)
            findings.expect(what, try Self.state(scene), step.state)
          }
          try scene.runner.forgetFlows()
        }
      }
    }
  }

  @Test("ports that are used again after policies have changed: a new flow, judged by them")
  func againAfterChange() throws {
    let toB = "podSelector: {matchLabels: {name: b}}, policyTypes: [Ingress]"
    try PacketScene.run("flow-again") { scene, findings in
      for family in IPFamily.allCases {
        func send(_ from: String, _ flags: ProbeContent.TCPFlags) throws -> PacketRunner.Verdict {
          try scene.send(from, Self.segment(scene, from, from == "a" ? "b" : "a", family, flags))
        }
        for (from, flags) in [("a", .synchronize), ("b", [.synchronize, .acknowledge]), ("a", .reset)]
          as [(String, ProbeContent.TCPFlags)]
        { findings.expect("\(family): \(from) sends \(flags)", try send(from, flags), .redirected) }
        try scene.change(["p": "{\(toB)}"])
        findings.expect("\(family): denied now", try send("a", .synchronize), .dropped(6))
        findings.expect("\(family): denied now", try Self.state(scene), "closing")
        try scene.change(["p": "{\(toB), ingress: [{}]}"])
        findings.expect("\(family): allowed again", try send("a", .synchronize), .redirected)
        findings.expect("\(family): allowed again", try Self.state(scene), "opening, not answered")
        try scene.runner.forgetFlows()
      }
    }
  }

  @Test("without a flow: only a SYN shows who began, and either side may have to be allowed")
  func midStream() throws {
    try PacketScene.run("flow-middle", Self.nothingToA) { scene, findings in
      for family in IPFamily.allCases {
        for flags in [
          ProbeContent.TCPFlags.acknowledge, [.finish, .acknowledge], .reset, [.synchronize, .acknowledge], [],
        ] {
          for (from, to) in [("a", "b"), ("b", "a")] {
            let packet = Self.segment(scene, from, to, family, flags)
            findings.expect("\(family): \(from) sends \(flags)", try scene.send(from, packet), .dropped(6))
          }
        }
        findings.expect(
          "\(family): b begins",
          try scene.send("b", scene.packet("b", "a", family, .tcp(source: 9, destination: 9, .synchronize))),
          .dropped(6))
        findings.expect("\(family): nothing began", try Self.state(scene), "not one flow")
        let begin = Self.segment(scene, "a", "b", family, .synchronize)
        findings.expect("\(family): a begins", try scene.send("a", begin), .redirected)
        // Others' ports are others' connections.
        let stranger = Self.segment(scene, "b", "a", family, [.synchronize, .acknowledge], port: 4001)
        findings.expect("\(family): an answer to another port", try scene.send("b", stranger), .dropped(6))
        try scene.runner.forgetFlows()
      }
    }
  }

  @Test("a flow that was silent for its time is over, and one that was not is not")
  func lifetimes() throws {
    let tcp: (ProbeContent.TCPFlags) -> ProbeContent = { .tcp(source: 4000, destination: 80, $0) }
    let back: (ProbeContent.TCPFlags) -> ProbeContent = { .tcp(source: 80, destination: 4000, $0) }
    let (question, answer) = (
      ProbeContent.udp(source: 4000, destination: 53), ProbeContent.udp(source: 53, destination: 4000)
    )
    // What a and b have sent, what b sends then, and for how long it may wait.
    let cases: [(String, [(String, ProbeContent)], ProbeContent, UInt64)] = [
      ("TCP, not answered", [("a", tcp(.synchronize))], back([.synchronize, .acknowledge]), 60),
      (
        "TCP, open", [("a", tcp(.synchronize)), ("b", back([.synchronize, .acknowledge]))], back(.acknowledge), 86_400
      ),
      (
        "TCP, reset", [("a", tcp(.synchronize)), ("b", back([.synchronize, .acknowledge])), ("a", tcp(.reset))],
        back([.synchronize, .acknowledge]), 60
      ),
      ("UDP, not answered", [("a", question)], answer, 30),
      ("UDP, answered", [("a", question), ("b", answer)], answer, 120),
      ("echo", [("a", .echo(7))], .echoReply(7), 30), ("protocol 253", [("a", .other(253))], .other(253), 600),
      (
        "SCTP", [("a", .sctp(source: 5, destination: 6)), ("b", .sctp(source: 6, destination: 5))],
        .sctp(source: 6, destination: 5), 86_400
      ),
    ]
    let probes = cases.map { ($0.0, $0.1.map { $0 }, $0.2, $0.3) }
    try PacketScene.run("flow-time", Self.nothingToA) { scene, findings in
      for (name, before, answer, seconds) in probes {
        for family in IPFamily.allCases {
          func begin() throws {
            try scene.runner.forgetFlows()
            for (from, content) in before {
              let packet = scene.packet(from, from == "a" ? "b" : "a", family, content)
              findings.expect("\(family), \(name)", try scene.send(from, packet), .redirected)
            }
          }
          let packet = scene.packet("b", "a", family, answer)
          try begin()
          try scene.runner.age(seconds: seconds - 5)
          findings.expect("\(family), \(name), in time", try scene.send("b", packet), .redirected)
          try begin()
          try scene.runner.age(seconds: seconds + 1)
          findings.expect("\(family), \(name), too late", try scene.send("b", packet), .dropped(6))
          guard seconds < 3600 else { continue }
          // Each packet begins the time anew.
          try begin()
          for _ in 0..<3 {
            try scene.runner.age(seconds: seconds - 5)
            guard let (from, content) = before.last else { continue }
            let again = scene.packet(from, from == "a" ? "b" : "a", family, content)
            findings.expect("\(family), \(name), again", try scene.send(from, again), .redirected)
          }
        }
      }
    }
  }

  @Test("datagrams: one way is an attempt, an answer makes a flow; echoes are told apart by who asks")
  func datagrams() throws {
    try PacketScene.run("flow-udp", Self.nothingToA) { scene, findings in
      for family in IPFamily.allCases {
        func send(_ from: String, _ content: ProbeContent) throws -> PacketRunner.Verdict {
          try scene.send(from, scene.packet(from, from == "a" ? "b" : "a", family, content))
        }
        for (ask, answer, other) in [
          (
            ProbeContent.udp(source: 4000, destination: 53), .udp(source: 53, destination: 4000),
            .udp(source: 54, destination: 4000)
          ),
          (.echo(7), .echoReply(7), .echoReply(8)),
        ] as [(ProbeContent, ProbeContent, ProbeContent)] {
          for _ in 0..<3 { findings.expect("\(family): \(ask)", try send("a", ask), .redirected) }
          findings.expect("\(family): \(ask)", try Self.state(scene), "opening, not answered")
          findings.expect("\(family): not the answer", try send("b", other), .dropped(6))
          findings.expect("\(family): \(answer)", try send("b", answer), .redirected)
          findings.expect("\(family): \(answer)", try Self.state(scene), "open")
          try scene.runner.forgetFlows()
        }
        // b's question with the number of a's is b's own.
        findings.expect("\(family): a asks", try send("a", .echo(9)), .redirected)
        findings.expect("\(family): b asks with that number", try send("b", .echo(9)), .dropped(6))
        findings.expect("\(family): b answers", try send("b", .echoReply(9)), .redirected)
        try scene.runner.forgetFlows()
      }
    }
  }

  @Test("an ICMP error keeps no flow alive, and opens none")
  func errors() throws {
    try PacketScene.run("flow-errors", Self.nothingToA) { scene, findings in
      for family in IPFamily.allCases {
        let question = scene.packet("a", "b", family, .udp(source: 4000, destination: 53))
        findings.expect("\(family): a asks", try scene.send("a", question), .redirected)
        let before = try scene.runner.onlyFlow()?.flow.seen
        try scene.runner.age(seconds: 20)
        let error = scene.unreachable("b", "a", family, about: question)
        findings.expect("\(family): an error", try scene.send("b", error), .redirected)
        findings.expect("\(family): state", try Self.state(scene), "opening, not answered")
        findings.expect(
          "\(family): time", try scene.runner.onlyFlow()?.flow.seen, before.map { $0 &- 20_000_000_000 })
        try scene.runner.age(seconds: 11)
        findings.expect("\(family): an error too late", try scene.send("b", error), .dropped(6))
        try scene.runner.forgetFlows()
      }
    }
  }
}
