import Glibc
import LocalAPI
import NetworkTypes

/// What to ask, of whom, how often.
public struct ProbeSpec: Sendable {
  public enum Mode: String, Sendable, CaseIterable {
    /// Connects, reads the server's greeting, closes.
    case tcp
    /// Sends one datagram from a socket of its own, waits for the answer.
    case udp
    /// One `GET /` per connection.
    case http
  }

  public var mode: Mode
  public var target: SocketAddress
  public var count: Int
  /// Probes in flight at once.
  public var concurrency = 64
  /// New probes per second; nil is as fast as it goes.
  public var rate: Double?
  public var timeoutMilliseconds = 2000
  public var sourceAddress: IPAddress?
  /// One fixed source port: use it with a concurrency of 1.
  public var sourcePort: Port?
  /// The first probe's source port; each further one takes the next. Ports the kernel chooses may be those of an earlier
  /// probe, whose UDP flow then simply goes on.
  public var firstSourcePort: Port?
  /// Ends TCP with a reset, so that 20,000 connections do not use up the ephemeral ports in TIME_WAIT.
  public var closesWithReset = true

  public init(_ mode: Mode, to target: SocketAddress, count: Int = 1) {
    self.mode = mode
    self.target = target
    self.count = count
  }
}

/// Runs probes from the calling thread's network namespace.
public struct Probe {
  private final class Attempt {
    let socket: Socket
    let started: UInt64
    var sentRequest = false
    var input: [UInt8] = []

    init(_ socket: Socket, started: UInt64) {
      self.socket = socket
      self.started = started
    }
  }

  private let spec: ProbeSpec
  private let poller: Poller
  private let request: [UInt8]
  private var running: [UInt64: Attempt] = [:]
  /// In order of their deadlines, since all probes have the same limit; finished ones are skipped.
  private var deadlines: [(at: UInt64, id: UInt64)] = []
  private var firstDeadline = 0
  private var results: [ProbeResult] = []
  private var buffer = [UInt8](repeating: 0, count: 16_384)

  private init(_ spec: ProbeSpec) throws(LabError) {
    self.spec = spec
    poller = try Poller()
    request =
      spec.mode == .http
      ? Array("GET / HTTP/1.1\r\nHost: \(spec.target)\r\nConnection: close\r\n\r\n".utf8) : Array("probe\n".utf8)
  }

  /// Starts `spec.count` probes, or fewer when `shouldStop` says so, and returns when the last one has ended.
  public static func run(
    _ spec: ProbeSpec, shouldStop: () -> Bool = { false }
  ) throws(LabError) -> ProbeReport {
    var probe = try Probe(spec)
    return try probe.run(shouldStop)
  }

  private mutating func run(_ shouldStop: () -> Bool) throws(LabError) -> ProbeReport {
    let begin = monotonicNanoseconds()
    let limit = UInt64(spec.timeoutMilliseconds) * 1_000_000
    let interval = spec.rate.map { 1e9 / $0 } ?? 0
    var started = 0
    var stopping = false
    while true {
      var now = monotonicNanoseconds()
      stopping = stopping || shouldStop()
      while !stopping, started < spec.count, running.count < spec.concurrency,
        now >= begin + UInt64(Double(started) * interval)
      {
        try start(id: UInt64(started), now: now)
        deadlines.append((now + limit, UInt64(started)))
        started += 1
        now = monotonicNanoseconds()
      }
      expire(now)
      if running.isEmpty, stopping || started == spec.count { break }
      for (token, ready) in poller.wait(milliseconds: waitTime(now, begin, started, interval, stopping)) {
        advance(token, ready)
      }
    }
    return ProbeReport(results: results, started: begin, ended: monotonicNanoseconds())
  }

  private func waitTime(_ now: UInt64, _ begin: UInt64, _ started: Int, _ interval: Double, _ stopping: Bool) -> Int {
    // Short enough for `shouldStop` to be asked often.
    var until = now + 50_000_000
    if firstDeadline < deadlines.count { until = min(until, deadlines[firstDeadline].at) }
    if !stopping, started < spec.count, running.count < spec.concurrency {
      until = min(until, begin + UInt64(Double(started) * interval))
    }
    return until <= now ? 0 : Int((until - now + 999_999) / 1_000_000)
  }

  private mutating func start(id: UInt64, now: UInt64) throws(LabError) {
    let socket = try Socket(spec.target.address.family, spec.mode == .udp ? SOCK_DGRAM : SOCK_STREAM)
    if spec.mode != .udp, spec.closesWithReset { socket.resetOnClose() }
    var code: Int32 = 0
    let ownPort = spec.firstSourcePort.map { UInt16(truncatingIfNeeded: UInt64($0.number) + id) }
    let port = ownPort ?? spec.sourcePort?.number
    if spec.sourceAddress != nil || port != nil {
      socket.set(SOL_SOCKET, SO_REUSEADDR, 1)
      let address = spec.sourceAddress ?? .unspecified(spec.target.address.family)
      code = socket.bind(address, port: port ?? 0)
    }
    if code == 0 { code = socket.connect(spec.target) }
    let attempt = Attempt(socket, started: now)
    guard code == 0 || code == EINPROGRESS else {
      finish(attempt, Self.outcome(of: code))
      return
    }
    if spec.mode == .udp {
      let sent = socket.send(request)
      // EPERM is how Linux tells a local sender that netfilter took its datagram. Whether it was refused (an ICMP error
      // follows) or dropped shows on the socket, as it does for a sender elsewhere.
      guard sent >= 0 || sent == -Int(EPERM) else {
        finish(attempt, Self.outcome(of: Int32(-sent)))
        return
      }
    }
    running[id] = attempt
    try poller.add(socket, [.read, .write, .edge], token: id)
  }

  private mutating func advance(_ id: UInt64, _ ready: Poller.Interest) {
    guard let attempt = running[id] else { return }
    if ready.contains(.error) {
      let code = attempt.socket.pendingError()
      if code != 0 { return finish(attempt, Self.outcome(of: code), id) }
    }
    if spec.mode == .http, !attempt.sentRequest, ready.contains(.write) {
      attempt.sentRequest = true
      let sent = attempt.socket.send(request)
      if sent < 0 { return finish(attempt, Self.outcome(of: Int32(-sent)), id) }
    }
    guard ready.contains(.read) || ready.contains(.hangUp) else { return }
    while true {
      let count = attempt.socket.receive(&buffer)
      if count == -Int(EAGAIN) || count == -Int(EINTR) { return }
      if count < 0 { return finish(attempt, Self.outcome(of: Int32(-count)), id) }
      // The end of the stream before the answer: a server that went away.
      if count == 0 { return finish(attempt, .reset, id) }
      attempt.input += buffer[0..<count]
      if let answer = spec.mode == .http ? Self.parseHTTP(attempt.input) : Greeting(attempt.input) {
        return finish(attempt, .answered, id, answer)
      }
    }
  }

  private mutating func expire(_ now: UInt64) {
    while firstDeadline < deadlines.count {
      let (at, id) = deadlines[firstDeadline]
      if let attempt = running[id] {
        guard at <= now else { return }
        finish(attempt, .timedOut, id)
      }
      firstDeadline += 1
    }
  }

  private mutating func finish(
    _ attempt: Attempt, _ outcome: ProbeOutcome, _ id: UInt64? = nil, _ answer: Greeting? = nil
  ) {
    results.append(
      ProbeResult(
        started: attempt.started, latency: monotonicNanoseconds() - attempt.started, outcome: outcome,
        pod: answer?.pod, client: answer?.client, serverPort: answer?.port))
    if let id { running[id] = nil }
  }

  static func outcome(of code: Int32) -> ProbeOutcome {
    switch code {
    case ECONNREFUSED: .refused
    case ECONNRESET, EPIPE: .reset
    case ETIMEDOUT: .timedOut
    // EACCES is how Linux reports ICMPv6 "administratively prohibited".
    case EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, EACCES: .unreachable
    default: .failed(errno: code)
    }
  }

  /// nil while the answer is incomplete, or when it is not ours.
  private static func parseHTTP(_ bytes: [UInt8]) -> Greeting? {
    let text = String(decoding: bytes, as: UTF8.self)
    guard text.hasSuffix("}\n"), let start = text.firstIndex(of: "{"),
      let json = try? JSONValue(parsing: String(text[start...])), let pod = json["pod"]?.stringValue
    else { return nil }
    return Greeting(
      pod: pod, client: json["client"]?.stringValue.flatMap(Greeting.parseAddress),
      port: json["port"]?.intValue.flatMap { Port($0) })
  }
}

/// A server's introduction of itself: `pod=… client=… port=…`.
struct Greeting {
  var pod: String
  var client: SocketAddress?
  var port: Port?

  init(pod: String, client: SocketAddress?, port: Port?) {
    self.pod = pod
    self.client = client
    self.port = port
  }

  /// nil while the line is incomplete, or when it is not ours.
  init?(_ bytes: [UInt8]) {
    guard let end = bytes.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
    var fields: [Substring: Substring] = [:]
    for part in String(decoding: bytes[..<end], as: UTF8.self).split(separator: " ") {
      guard let equals = part.firstIndex(of: "=") else { continue }
      fields[part[..<equals]] = part[part.index(after: equals)...]
    }
    guard let pod = fields["pod"] else { return nil }
    self.init(
      pod: String(pod), client: fields["client"].flatMap { Self.parseAddress(String($0)) },
      port: fields["port"].flatMap { Int($0) }.flatMap { Port($0) })
  }

  /// Parses `10.0.0.1:80` and `[fd00::1]:80`.
  static func parseAddress(_ text: String) -> SocketAddress? {
    guard let colon = text.lastIndex(of: ":"), let number = Int(text[text.index(after: colon)...]),
      let port = Port(number)
    else { return nil }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
    return IPAddress(host).map { SocketAddress($0, port) }
  }
}

extension SocketAddress {
  /// Parses `10.0.0.1:80` and `[fd00::1]:80`; nil for anything else.
  public init?(parsing text: String) {
    guard let address = Greeting.parseAddress(text) else { return nil }
    self = address
  }
}
