// The asking end of a truth table: one process per place, which asks all its targets at once, again and again.
import Glibc
import NetworkTypes

/// What one cell of a truth table is asked with.
public enum MatrixTransport: String, Sendable, Hashable, CaseIterable {
  case tcp, udp
  /// An echo request; the port means nothing.
  case icmp
}

/// One cell of a truth table, as its source sees it.
public struct MatrixTarget: Sendable, Hashable, CustomStringConvertible {
  public var transport: MatrixTransport
  public var address: IPAddress
  /// 0 for ICMP.
  public var port: UInt16

  public init(_ transport: MatrixTransport, _ address: IPAddress, _ port: UInt16 = 0) {
    self.transport = transport
    self.address = address
    self.port = transport == .icmp ? 0 : port
  }

  /// Parses what `description` writes: `udp fd00::1 80`.
  init?(_ text: some StringProtocol) {
    let parts = text.split(separator: " ")
    guard parts.count == 3, let transport = MatrixTransport(rawValue: String(parts[0])),
      let address = IPAddress(parts[1]), let port = UInt16(parts[2])
    else { return nil }
    self.init(transport, address, port)
  }

  public var description: String { "\(transport.rawValue) \(address) \(port)" }
}

/// What became of one question.
public enum MatrixOutcome: Character, Sendable, Hashable {
  case answered = "+"
  /// Neither an answer nor an error in the time given.
  case silent = "-"
  case refused = "r"
  case reset = "x"
  case unreachable = "u"
  /// Any other error.
  case failed = "f"
}

/// How long a source waits, counted from its last question.
public struct MatrixPatience: Sendable, Hashable {
  /// For a target that is expected to be silent.
  public var silenceMilliseconds = 250
  /// For a target that is expected to answer. Less than a second, at which TCP would repeat a lost first packet.
  public var answerMilliseconds = 900

  public init() {}
}

/// `dpctl lab matrix`, hidden: told on standard input (or by an option), answers on standard output, both line by line.
///
///     targets 2            then so many lines: the targets from now on; no answer
///     tcp 10.244.1.2 80
///     udp fd00::1 81
///     ask 250 900 +-       patience in milliseconds, and for each target whether an answer is expected
///
/// The answer is one letter per target, see `MatrixOutcome`. Every question has a socket, and so a flow, of its own.
public struct MatrixProber {
  private final class Question {
    let socket: Socket
    let transport: MatrixTransport
    /// In an echo request.
    let identifier: UInt16
    var outcome: MatrixOutcome?

    init(_ socket: Socket, _ transport: MatrixTransport, identifier: UInt16) {
      self.socket = socket
      self.transport = transport
      self.identifier = identifier
    }
  }

  private var targets: [MatrixTarget] = []
  private var nextIdentifier = UInt16.random(in: .min ... .max)
  private var buffer = [UInt8](repeating: 0, count: 4096)

  public init() {}

  /// Asks every target once, all at the same time, from the calling thread's network namespace.
  public static func ask(
    _ targets: [MatrixTarget], expected: [Bool], _ patience: MatrixPatience = MatrixPatience()
  ) throws(LabError) -> [MatrixOutcome] {
    var prober = MatrixProber()
    prober.targets = targets
    return try prober.ask(expected: expected, patience)
  }

  /// Serves until there is no further line.
  public mutating func run(nextLine: () -> String?) throws(LabError) {
    var announced = 0
    while let line = nextLine() {
      if announced > 0 {
        guard let target = MatrixTarget(line) else {
          throw .invalid(field: "target", value: line, reason: "is not TRANSPORT ADDRESS PORT")
        }
        targets.append(target)
        announced -= 1
        continue
      }
      let words = line.split(separator: " ")
      if words.count == 2, words[0] == "targets", let count = Int(words[1]) {
        announced = count
        targets = []
      } else if words.count == 4, words[0] == "ask", let silence = Int(words[1]), let answer = Int(words[2]),
        words[3].count == targets.count
      {
        var patience = MatrixPatience()
        patience.silenceMilliseconds = silence
        patience.answerMilliseconds = answer
        let outcomes = try ask(expected: words[3].map { $0 == MatrixOutcome.answered.rawValue }, patience)
        print(String(outcomes.map(\.rawValue)))
        fflush(nil)
      } else {
        throw .invalid(field: "request", value: line, reason: "is neither targets COUNT nor ask MS MS LETTERS")
      }
    }
  }

  private mutating func ask(expected: [Bool], _ patience: MatrixPatience) throws(LabError) -> [MatrixOutcome] {
    let poller = try Poller()
    var questions: [Question] = []
    for target in targets { questions.append(try ask(target, poller, token: questions.count)) }
    let begin = monotonicNanoseconds()
    let ends = expected.map {
      begin + UInt64($0 ? patience.answerMilliseconds : patience.silenceMilliseconds) * 1_000_000
    }
    while true {
      let now = monotonicNanoseconds()
      let open = zip(questions, ends).filter { $0.0.outcome == nil && $0.1 > now }
      guard let last = open.map(\.1).max() else { break }
      for (token, ready) in poller.wait(milliseconds: Int((last - now) / 1_000_000) + 1) {
        advance(questions[Int(token)], ready)
      }
    }
    return questions.map { $0.outcome ?? .silent }
  }

  private mutating func ask(
    _ target: MatrixTarget, _ poller: Poller, token: Int
  ) throws(LabError) -> Question {
    let socket = try Self.socket(for: target)
    nextIdentifier &+= 1
    let question = Question(socket, target.transport, identifier: nextIdentifier)
    if target.transport == .tcp { socket.resetOnClose() }
    let connected = withSockaddr(target.address, target.port) { connect(socket.descriptor, $0, $1) == 0 ? 0 : errno }
    guard connected == 0 || connected == EINPROGRESS else {
      question.outcome = Self.outcome(of: connected)
      return question
    }
    switch target.transport {
    case .tcp: break
    case .udp: send(Array("probe\n".utf8), of: question)
    case .icmp: send(Self.echoRequest(target.address.family, identifier: nextIdentifier), of: question)
    }
    try poller.add(socket, [.read, .edge], token: UInt64(token))
    return question
  }

  private static func socket(for target: MatrixTarget) throws(LabError) -> Socket {
    switch target.transport {
    case .tcp: return try Socket(target.address.family, SOCK_STREAM)
    case .udp: return try Socket(target.address.family, SOCK_DGRAM)
    case .icmp:
      let flags = Int32(SOCK_RAW.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
      let isOld = target.address.family == .v4
      let number = Int32(isOld ? IPPROTO_ICMP : IPPROTO_ICMPV6)
      let descriptor = Glibc.socket(Int32(target.address.family.linuxFamily), flags, number)
      guard descriptor >= 0 else { throw .system(operation: "socket", object: "\(target)", errno: errno) }
      return Socket(owning: descriptor)
    }
  }

  /// What netfilter drops on the way out is silence here, as it is for a sender elsewhere: Linux says EPERM.
  private func send(_ bytes: [UInt8], of question: Question) {
    let sent = question.socket.send(bytes)
    if sent < 0, sent != -Int(EPERM) { question.outcome = Self.outcome(of: Int32(-sent)) }
  }

  private mutating func advance(_ question: Question, _ ready: Poller.Interest) {
    guard question.outcome == nil else { return }
    if ready.contains(.error) {
      let code = question.socket.pendingError()
      if code != 0 {
        question.outcome = Self.outcome(of: code)
        return
      }
    }
    while true {
      let count = question.socket.receive(&buffer)
      if count == -Int(EAGAIN) || count == -Int(EINTR) { return }
      if count < 0 {
        question.outcome = Self.outcome(of: Int32(-count))
      } else if question.transport == .icmp {
        guard Self.isEchoReply(buffer[0..<count], identifier: question.identifier) else { continue }
        question.outcome = .answered
      } else {
        // Any first byte of the greeting will do; the end of a stream will not.
        question.outcome = count > 0 ? .answered : .reset
      }
      return
    }
  }

  private static func outcome(of code: Int32) -> MatrixOutcome {
    switch Probe.outcome(of: code) {
    case .refused: .refused
    case .reset: .reset
    case .unreachable: .unreachable
    case .timedOut: .silent
    default: .failed
    }
  }

  // MARK: Echo

  /// Type, code, checksum, identifier, sequence number. The kernel fills in ICMPv6's checksum.
  static func echoRequest(_ family: IPFamily, identifier: UInt16) -> [UInt8] {
    let type: UInt8 = family == .v4 ? 8 : 128
    var bytes: [UInt8] = [type, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 0xff), 0, 1]
    guard family == .v4 else { return bytes }
    var sum = UInt32(type) << 8 + UInt32(identifier) + 1
    sum = (sum & 0xffff) + sum >> 16
    let checksum = ~UInt16(truncatingIfNeeded: sum)
    bytes[2] = UInt8(checksum >> 8)
    bytes[3] = UInt8(checksum & 0xff)
    return bytes
  }

  /// Raw IPv4 sockets give the IP header as well, IPv6 ones do not.
  static func isEchoReply(_ packet: ArraySlice<UInt8>, identifier: UInt16) -> Bool {
    guard let first = packet.first else { return false }
    let message = first >> 4 == 4 ? packet.dropFirst(Int(first & 15) * 4) : packet
    let start = message.startIndex
    guard message.count >= 8, message[start] == 0 || message[start] == 129 else { return false }
    return UInt16(message[start + 4]) << 8 | UInt16(message[start + 5]) == identifier
  }
}
