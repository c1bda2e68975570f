import Glibc
import LocalAPI
import NetworkTypes

/// Long-lived flows: the same connections for a long time, one small message each per interval.
public struct EchoFlowSpec: Sendable {
  /// `tcp` or `udp`; `http` has no long-lived form here.
  public var mode: ProbeSpec.Mode
  public var target: SocketAddress
  public var flows = 1
  public var intervalMilliseconds = 10
  /// An answer later than that counts as a gap.
  public var gapMilliseconds = 200
  public var sourceAddress: IPAddress?
  /// Shared with other flows to other places; else the kernel chooses one.
  public var sourcePort: Port?
  /// UDP only: goes on after errors, from the same socket and so the same source port, as a resolver or a game does. Only
  /// where the kernel has ended the socket, or refused to connect it, it takes another.
  public var survivesErrors = false

  public init(_ mode: ProbeSpec.Mode, to target: SocketAddress) {
    self.mode = mode
    self.target = target
  }
}

/// What became of one long-lived flow.
public struct EchoFlowReport: Sendable {
  /// A silence longer than the spec allows, in milliseconds since the flow began.
  public struct Gap: Sendable, Equatable {
    public var atMilliseconds: Int
    public var lengthMilliseconds: Int
  }

  public var sent = 0
  public var received = 0
  /// An error that the flow survived; errno nil: there was no socket to be had.
  public struct SurvivedError: Sendable, Equatable {
    public var atMilliseconds: Int
    public var errno: Int32?
  }
  public var survived: [SurvivedError] = []
  public var errors: Int { survived.count }
  public var gaps: [Gap] = []
  /// When datagrams were sent that nothing ever answered, in milliseconds since the flow began. UDP only.
  public var lostAtMilliseconds: [Int] = []
  public var longestSilenceMilliseconds = 0
  /// Why the flow ended early; nil when it lived until it was stopped.
  public var broken: ProbeOutcome?
  public var brokenAtMilliseconds: Int?
  /// The servers that answered, in the order they first did: more than one only for UDP.
  public var pods: [String] = []
  /// When (CLOCK_MONOTONIC, nanoseconds) which server's greeting arrived: every answer over UDP, the first over TCP.
  public var greetings: [(at: UInt64, pod: String)] = []
  public var client: SocketAddress?

  public var json: JSONValue {
    [
      "sent": .int(Int64(sent)), "received": .int(Int64(received)), "errors": .int(Int64(errors)),
      "errors_at": .array(
        survived.map { .string("\($0.atMilliseconds) ms: \($0.errno.map(errorText) ?? "no socket")") }),
      "gaps": .array(
        gaps.map { ["at_ms": .int(Int64($0.atMilliseconds)), "length_ms": .int(Int64($0.lengthMilliseconds))] }),
      "lost_at_ms": .array(lostAtMilliseconds.map { .int(Int64($0)) }),
      "longest_silence_ms": .int(Int64(longestSilenceMilliseconds)),
      "broken": broken.map { .string($0.description) } ?? .null,
      "broken_at_ms": brokenAtMilliseconds.map { .int(Int64($0)) } ?? .null,
      "pods": .array(pods.map { .string($0) }), "client": client.map { .string($0.description) } ?? .null,
    ]
  }
}

/// Runs long-lived flows from the calling thread's network namespace.
public struct EchoFlow {
  private final class State {
    /// nil: the next message opens one.
    var socket: Socket?
    var report = EchoFlowReport()
    var input: [UInt8] = []
    /// When the oldest message that has no answer yet was sent; nil when all are answered.
    var waitingSince: UInt64?
    /// When datagrams without an answer were sent, by number.
    var unanswered: [Int: UInt64] = [:]
    var lastSent = 0
    var greeted = false

    init(_ socket: Socket?) { self.socket = socket }
  }

  /// Opens the flows and keeps them busy until `shouldStop`, or until all have broken.
  ///
  /// Throws where a flow cannot even be opened; what happens later is in the reports, one per flow.
  public static func run(
    _ spec: EchoFlowSpec, opened: () -> Void = {}, shouldStop: () -> Bool
  ) throws(LabError) -> [EchoFlowReport] {
    guard spec.mode != .http else {
      throw .invalid(field: "mode", value: "http", reason: "long-lived flows are tcp or udp")
    }
    var states: [State] = []
    for _ in 0..<spec.flows { states.append(try begin(spec)) }
    opened()
    let begin = monotonicNanoseconds()
    var buffer = [UInt8](repeating: 0, count: 65_536)
    var tick = 0
    while !shouldStop(), states.contains(where: { $0.report.broken == nil }) {
      let now = monotonicNanoseconds()
      for state in states where state.report.broken == nil { send(state, tick, now, begin, spec) }
      tick += 1
      let next = begin + UInt64(tick * spec.intervalMilliseconds) * 1_000_000
      receive(states, until: max(next, now), begin, spec, &buffer)
    }
    // The last messages are still on their way.
    receive(states, until: monotonicNanoseconds() + UInt64(spec.gapMilliseconds) * 1_000_000, begin, spec, &buffer)
    return states.map { state in
      if let since = state.waitingSince { note(silenceSince: since, monotonicNanoseconds(), begin, spec, state) }
      let lost = state.unanswered.values.sorted()
      state.report.lostAtMilliseconds = lost.map { $0 > begin ? Int(($0 - begin) / 1_000_000) : 0 }
      return state.report
    }
  }

  private static func begin(_ spec: EchoFlowSpec) throws(LabError) -> State {
    do throws(LabError) {
      return State(try open(spec))
    } catch .system(operation: "connect", object: _, errno: ECONNREFUSED) where spec.survivesErrors && spec.mode == .udp
    {
      let state = State(nil)
      state.report.survived = [.init(atMilliseconds: 0, errno: ECONNREFUSED)]
      return state
    }
  }

  private static func open(_ spec: EchoFlowSpec) throws(LabError) -> Socket {
    let socket = try Socket(spec.target.address.family, spec.mode == .udp ? SOCK_DGRAM : SOCK_STREAM)
    if spec.sourceAddress != nil || spec.sourcePort != nil {
      socket.set(SOL_SOCKET, SO_REUSEADDR, 1)
      let source = spec.sourceAddress ?? .unspecified(spec.target.address.family)
      let code = socket.bind(source, port: spec.sourcePort?.number ?? 0)
      guard code == 0 else { throw .system(operation: "bind", object: "\(source)", errno: code) }
    }
    var code = socket.connect(spec.target)
    if code == EINPROGRESS {
      var entry = pollfd(fd: socket.descriptor, events: Int16(POLLOUT), revents: 0)
      code = poll(&entry, 1, 2000) == 1 ? socket.pendingError() : ETIMEDOUT
    }
    guard code == 0 else { throw .system(operation: "connect", object: "\(spec.target)", errno: code) }
    if spec.mode == .tcp { socket.set(Int32(IPPROTO_TCP), TCP_NODELAY, 1) }
    return socket
  }

  private static func send(_ state: State, _ tick: Int, _ now: UInt64, _ begin: UInt64, _ spec: EchoFlowSpec) {
    if state.socket == nil { state.socket = try? open(spec) }
    guard let socket = state.socket else {
      state.report.survived.append(.init(atMilliseconds: Int((now - begin) / 1_000_000)))
      return
    }
    let count = socket.send(Array("\(tick)\n".utf8))
    // EPERM: taken by netfilter on the way out; see Probe.
    if count >= 0 || count == -Int(EPERM) {
      state.report.sent += 1
      if spec.mode == .udp {
        state.unanswered[tick] = monotonicNanoseconds()
        state.lastSent = tick
      }
      if state.waitingSince == nil { state.waitingSince = now }
    } else if count != -Int(EAGAIN) {
      fail(state, Int32(-count), now, begin, spec)
    }
  }

  private static func fail(_ state: State, _ code: Int32, _ now: UInt64, _ begin: UInt64, _ spec: EchoFlowSpec) {
    if spec.survivesErrors, spec.mode == .udp {
      state.report.survived.append(.init(atMilliseconds: Int((now - begin) / 1_000_000), errno: code))
      state.waitingSince = nil
      if code == ECONNABORTED { state.socket = nil }
      return
    }
    state.report.broken = Probe.outcome(of: code)
    state.report.brokenAtMilliseconds = Int((now - begin) / 1_000_000)
    state.waitingSince = nil
  }

  private static func receive(
    _ states: [State], until: UInt64, _ begin: UInt64, _ spec: EchoFlowSpec, _ buffer: inout [UInt8]
  ) {
    while true {
      let now = monotonicNanoseconds()
      let live = states.filter { $0.report.broken == nil }
      guard now < until, !live.isEmpty else { return }
      // A negative descriptor is waited for in vain.
      var entries = live.map { pollfd(fd: $0.socket?.descriptor ?? -1, events: Int16(POLLIN), revents: 0) }
      guard poll(&entries, nfds_t(entries.count), Int32((until - now + 999_999) / 1_000_000)) > 0 else { continue }
      for (state, entry) in zip(live, entries) where entry.revents != 0 {
        guard let socket = state.socket else { continue }
        let arrived = monotonicNanoseconds()
        let count = socket.receive(&buffer)
        if count > 0 {
          state.input += buffer[0..<count]
          take(state, isDatagram: spec.mode == .udp, arrived, begin, spec)
        } else if count == 0, spec.mode == .tcp {
          fail(state, ECONNRESET, arrived, begin, spec)
        } else if count < 0, count != -Int(EAGAIN), count != -Int(EINTR) {
          fail(state, Int32(-count), arrived, begin, spec)
        }
      }
    }
  }

  /// Counts complete answers. TCP greets once and then echoes lines; every UDP answer is a greeting and its datagram.
  private static func take(
    _ state: State, isDatagram: Bool, _ now: UInt64, _ begin: UInt64, _ spec: EchoFlowSpec
  ) {
    var answers = 0
    var answered: Int?
    if isDatagram || !state.greeted, let greeting = Greeting(state.input) {
      state.greeted = true
      state.report.client = greeting.client
      state.report.greetings.append((now, greeting.pod))
      if !state.report.pods.contains(greeting.pod) { state.report.pods.append(greeting.pod) }
      if isDatagram {
        answers = 1
        answered = (state.input.firstIndex(of: UInt8(ascii: "\n")))
          .flatMap { Int(String(decoding: state.input[($0 + 1)...].dropLast(), as: UTF8.self)) }
        state.input = []
      } else if let end = state.input.firstIndex(of: UInt8(ascii: "\n")) {
        state.input.removeSubrange(...end)
      }
    }
    if !isDatagram, state.greeted, let end = state.input.lastIndex(of: UInt8(ascii: "\n")) {
      answers = state.input[...end].count { $0 == UInt8(ascii: "\n") }
      state.input.removeSubrange(...end)
    }
    guard answers > 0 else { return }
    state.report.received += answers
    if let since = state.waitingSince { note(silenceSince: since, now, begin, spec, state) }
    // A datagram that was lost is not waited for once a later one is answered.
    let waits = isDatagram ? answered != state.lastSent : state.report.received < state.report.sent
    state.waitingSince = waits ? now : nil
    if let answered { state.unanswered[answered] = nil }
  }

  private static func note(
    silenceSince since: UInt64, _ now: UInt64, _ begin: UInt64, _ spec: EchoFlowSpec, _ state: State
  ) {
    let length = Int((now - since) / 1_000_000)
    state.report.longestSilenceMilliseconds = max(state.report.longestSilenceMilliseconds, length)
    if length > spec.gapMilliseconds {
      let at = since > begin ? Int((since - begin) / 1_000_000) : 0
      state.report.gaps.append(.init(atMilliseconds: at, lengthMilliseconds: length))
    }
  }
}
