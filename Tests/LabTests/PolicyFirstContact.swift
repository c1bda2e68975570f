// Policy before traffic: the first packets of a pod, and the first packets to it, while policies come and go.
import Glibc
import NetworkTypes
import Synchronization
import Testing

@testable import Lab
@testable import PolicyWorlds

extension PolicyBehaviour {
  @Suite("before traffic", .serialized)
  struct BeforeTraffic {
    @Test("policy.md 21: a pod's first packets, and the first ones to it, are judged by every policy, whatever changes")
    func firstPackets() throws {
      try PolicyStage.run("np-first") { stage in
        // `good` may be asked by new pods, and asks them; `gate` may be asked by them alone; `bad` neither nor.
        for (name, node) in [("fixed/good", "node1"), ("fixed/gate", "node2"), ("fixed/bad", "node2")] {
          try stage.pod(name, on: node)
        }
        for namespace in ["fixed", "new"] { try stage.lab.setLabels(ofNamespace: namespace, ["ns": namespace]) }
        func fixed(_ names: String) -> String {
          "{namespaceSelector: {matchLabels: {ns: fixed}}, "
            + "podSelector: {matchExpressions: [{key: pod, operator: In, values: [\(names)]}]}}"
        }
        try stage.policy("new/in", "{podSelector: {}, ingress: [{from: [\(fixed("good"))]}]}")
        try stage.policy(
          "new/out", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [\(fixed("good, gate"))]}]}")
        try stage.policy(
          "fixed/gate",
          "{podSelector: {matchLabels: {pod: gate}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: new}}, "
            + "podSelector: {matchLabels: {role: client}}}]}]}")
        // Addresses are given in order: these are the last ones so far. Nothing isolates these pods.
        var last: [String: [IPAddress]] = [:]
        for node in ["node1", "node2"] { last[node] = try stage.pod("fixed/\(node)", on: node).addresses }
        try stage.expect(.allowed("fixed/bad", "fixed/node1"), .denied("fixed/good", "fixed/gate"))

        let lab = stage.lab
        let churn = BackgroundWork<Int> { shouldStop in try Self.churn(lab, shouldStop) }
        let workers = last.map { node, addresses in
          return BackgroundWork<FirstContact> { _ in
            var contact = FirstContact(lab: lab, node: node, lastAddresses: addresses)
            for number in 0..<FirstContact.pairs {
              try contact.startClient(number)
              try contact.startServer(number)
            }
            return contact
          }
        }
        let contacts = try workers.map { try $0.wait() }
        let changes = try churn.stop()
        for contact in contacts { print(contact) }
        print("\(changes) changes of policies meanwhile")
        #expect(changes > FirstContact.pairs)
        for contact in contacts {
          #expect(contact.clients == FirstContact.pairs && contact.servers == FirstContact.pairs)
          #expect(contact.forbidden == [], "\(contact.node): forbidden flows were answered")
          #expect(contact.late == [], "\(contact.node): allowed flows were denied for too long, or again")
        }
        try stage.expect(.allowed("fixed/bad", "fixed/node1"), .denied("fixed/good", "fixed/gate"))
        try PolicyStage.expectAgreement(of: stage.lab)
      }
    }

    /// Adds, changes and removes policies that select the new pods and decide nothing, until it is told to stop. Returns
    /// how many changes there were.
    private static func churn(_ lab: Lab, _ shouldStop: () -> Bool) throws -> Int {
      let specs = [
        "{podSelector: {}}", "{podSelector: {}, policyTypes: [Ingress, Egress]}",
        "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}",
        "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: fixed}}, "
          + "podSelector: {matchLabels: {pod: good}}}], ports: [{port: 80}, {protocol: UDP}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 9999}]}], egress: [{ports: [{port: nowhere}]}]}",
      ]
      var random = SmallRandom(state: 7)
      var count = 0
      while !shouldStop() {
        let name = "np_churn_\(Int.random(in: 0..<6, using: &random))"
        let choice = Int.random(in: 0...specs.count, using: &random)
        if choice == specs.count {
          try lab.removeManifest(name)
        } else {
          try lab.apply(
            name,
            """
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata: {name: \(name.replacing("_", with: "-")), namespace: new}
            spec: \(specs[choice])

            """)
        }
        count += 1
        usleep(30_000)
      }
      return count
    }
  }
}

/// Pods of one node, one after the other: what their first packets met.
struct FirstContact: Sendable, CustomStringConvertible {
  /// Pods that connect with their first instruction, and as many that are connected to from their first moment.
  static let pairs = 50
  /// Of those that ask from their first instruction on: how often, and after how many an allowed target has answered.
  static let rounds = 8
  static let roundsUntilAllowed = 7
  /// What is allowed gets through to a new pod at the latest after that time.
  static let limitMilliseconds = 2000

  let lab: Lab
  let node: String
  /// Of the pod that was attached last.
  var lastAddresses: [IPAddress]

  private(set) var clients = 0
  private(set) var servers = 0
  private(set) var questionsOfClients = 0
  private(set) var questionsToServers = 0
  private(set) var slowestRounds = 1
  private(set) var slowestMilliseconds = 0
  /// What went wrong, in words.
  private(set) var forbidden: [String] = []
  private(set) var late: [String] = []

  init(lab: Lab, node: String, lastAddresses: [IPAddress]) {
    self.lab = lab
    self.node = node
    self.lastAddresses = lastAddresses
  }

  var description: String {
    """
    \(node): \(clients) pods asked \(questionsOfClients) times from their first instruction on: \(forbidden.count) \
    forbidden answers, allowed ones in round \(slowestRounds) of \(Self.rounds) at the latest
    \(node): \(servers) pods were asked \(questionsToServers) times by a forbidden client from their first moment on; the \
    allowed one was answered \(slowestMilliseconds) ms after the start at the latest; \(late.count) were late
    """
  }

  // MARK: Clients

  /// Starts a pod whose first instruction is to ask all its targets, and which goes on asking.
  mutating func startClient(_ number: Int) throws {
    let names = ["good", "gate", "bad"]
    let addresses = try names.map { try lab.pod(PodName("fixed", $0)).addresses }
    let targets = addresses.flatMap { addresses in
      addresses.flatMap { [MatrixTarget(.tcp, $0, 80), MatrixTarget(.udp, $0, 80)] }
    }
    let expected = zip(names, addresses).flatMap { name, addresses in
      Array(repeating: name != "bad", count: addresses.count * 2)
    }
    let letters = String(expected.map { ($0 ? MatrixOutcome.answered : .silent).rawValue })
    let script =
      ["targets \(targets.count)"] + targets.map { "\($0)" }
      + Array(repeating: "ask 30 900 \(letters)", count: Self.rounds)
    let name = PodName("new", "client-\(node)-\(number)")
    let pod = try lab.addPod(
      PodSpec(
        name.namespace, name.name, node: node, labels: ["role": "client"],
        command: [lab.binary("dpctl"), "lab", "matrix", "--script", script.joined(separator: ";")]))
    lastAddresses = pod.addresses
    clients += 1
    let log = "\(lab.state.podDirectory(of: node))/\(name.namespace)_\(name.name).log"
    let answers = try Self.lines(of: log, count: Self.rounds)
    for (index, target) in targets.enumerated() {
      let outcomes = answers.map { Array($0)[index] == MatrixOutcome.answered.rawValue }
      questionsOfClients += outcomes.count
      if !expected[index] {
        if outcomes.contains(true) { forbidden.append("\(name) -> \(target): \(answers)") }
      } else if let first = outcomes.firstIndex(of: true), !outcomes[first...].contains(false),
        first < Self.roundsUntilAllowed
      {
        slowestRounds = max(slowestRounds, first + 1)
      } else {
        late.append("\(name) -> \(target): \(answers)")
      }
    }
    try lab.removePod(name, graceful: false)
  }

  /// Waits until a file has that many lines.
  private static func lines(of file: String, count: Int) throws -> [Substring] {
    let deadline = monotonicNanoseconds() + 20_000_000_000
    while true {
      let lines = (Files.text(file) ?? "").split(separator: "\n")
      if lines.count >= count { return lines }
      guard monotonicNanoseconds() < deadline else {
        throw LabError.timedOut("\(file) has \(lines.count) of \(count) lines: \(lines)")
      }
      usleep(5000)
    }
  }

  // MARK: Servers

  /// Starts a pod that is asked before it exists, by one that may and by one that may not.
  mutating func startServer(_ number: Int) throws {
    let next = lastAddresses.compactMap { IPAddress(family: $0.family, number: $0.number + 1) }
    let targets = next.flatMap { [MatrixTarget(.tcp, $0, 80), MatrixTarget(.udp, $0, 80)] }
    let bad = try asking(targets, from: "bad")
    let good = try asking(targets, from: "good")
    let name = PodName("new", "server-\(node)-\(number)")
    var spec = PodSpec(name.namespace, name.name, node: node, labels: ["role": "server"])
    for (label, transport) in [("tcp", L4Protocol.tcp), ("udp", .udp)] {
      if let port = Port(80) { spec.ports.append(PodPort(label, transport, port, service: .echo)) }
    }
    let pod = try lab.addPod(spec)
    let started = monotonicNanoseconds()
    guard pod.addresses == next else {
      throw LabError.process(name: "\(name)", reason: "has \(pod.addresses), expected \(next)")
    }
    lastAddresses = pod.addresses
    usleep(150_000)
    let (answers, questions) = (try good.stop(), try bad.stop())
    servers += 1
    questionsToServers += questions.count * targets.count
    for (index, target) in targets.enumerated() {
      if questions.contains(where: { $0.outcomes[index] == .answered }) {
        forbidden.append("fixed/bad -> \(name) \(target)")
      }
      // From the first answer on, everything is answered.
      let first = answers.firstIndex { $0.outcomes[index] == .answered }
      guard let first, answers[first...].allSatisfy({ $0.outcomes[index] == .answered }) else {
        late.append("fixed/good -> \(name) \(target): \(answers.map { $0.outcomes[index].rawValue })")
        continue
      }
      let asked = answers[first].asked
      slowestMilliseconds = max(slowestMilliseconds, asked > started ? Int((asked - started) / 1_000_000) : 0)
    }
    if slowestMilliseconds > Self.limitMilliseconds { late.append("\(name) after \(slowestMilliseconds) ms") }
    try lab.removePod(name, graceful: false)
  }

  private struct Round {
    /// CLOCK_MONOTONIC.
    var asked: UInt64
    var outcomes: [MatrixOutcome]
  }

  /// Asks again and again, until it is told to stop and, for the one that may, has been answered or waited too long.
  private func asking(_ targets: [MatrixTarget], from name: String) throws -> BackgroundWork<[Round]> {
    let network = try lab.network(of: .pod(PodName("fixed", name)))
    let isGood = name == "good"
    let expected = targets.map { _ in isGood }
    return BackgroundWork { shouldStop in
      try network.run {
        var patience = MatrixPatience()
        patience.silenceMilliseconds = 15
        var rounds: [Round] = []
        var stopping: UInt64?
        while true {
          let asked = monotonicNanoseconds()
          // Before there is an answer, what is lost is asked again soon; afterwards nothing may be lost.
          patience.answerMilliseconds = rounds.last?.outcomes.contains(.answered) == true ? 900 : 50
          rounds.append(Round(asked: asked, outcomes: try MatrixProber.ask(targets, expected: expected, patience)))
          if shouldStop(), stopping == nil { stopping = asked }
          let isAnswered = !isGood || rounds.last?.outcomes.allSatisfy { $0 == .answered } == true
          if let stopping, isAnswered || asked > stopping + UInt64(Self.limitMilliseconds) * 1_000_000 { return rounds }
          usleep(5000)
        }
      }
    }
  }
}
