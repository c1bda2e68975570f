// The must-not-pass prober: first packets of denied flows, a thousand a second on every path, and their allowed twins.
import Glibc
import Netlink
import NetworkTypes
import Synchronization
import Testing

@testable import Lab

/// One kind of packet from one end to another.
struct ProbedLane: Sendable, CustomStringConvertible {
  var source: String
  var target: String
  var family: IPFamily
  var isTCP: Bool
  /// The twin of a denied lane: shows that the path works.
  var isAllowed: Bool

  var description: String { "\(source) -> \(target), \(isTCP ? "TCP SYN" : "UDP"), \(family)" }
}

/// Where packets are sent.
struct ProbeSource: Sendable {
  var name: String
  var network: NetworkNamespace
  var addresses: [IPAddress]
  var isAllowed: Bool
}

/// Where packets are seen that have come through.
struct ProbeWitness: Sendable {
  enum Kind: UInt8, Sendable {
    /// In a pod: what comes in.
    case incoming = 0  // PACKET_HOST
    /// On a node: what leaves it.
    case outgoing = 4  // PACKET_OUTGOING
  }
  var network: NetworkNamespace
  var kind: Kind
  /// The index of a device that is not looked at: a node's uplink, where only what goes to its pods counts.
  var otherThan: Int32?
}

/// Sends first packets from every source to every target: each millisecond one on each path, by turns UDP and TCP SYN,
/// IPv4 and IPv6; and sees which ones come through.
final class MustNotPassProber: Sendable {
  /// By turns.
  static let kinds = 4
  private static let tickNanoseconds: UInt64 = 1_000_000
  /// What is allowed makes entries in conntrack's table: not too many.
  private static let sourcePortsOfAllowed: UInt32 = 500
  private static let sourcePortsOfDenied: UInt32 = 40_000

  struct Log: Sendable {
    /// When each tick was sent, CLOCK_MONOTONIC.
    var ticks: [UInt64] = []
    /// By lane: ticks that were sent, and those that were seen.
    var sent: [[UInt32]]
    var seen: [[UInt32]]
  }

  /// Shared with the threads.
  private final class SharedLog: Sendable {
    let value: Mutex<Log>

    init(lanes: Int) {
      let empty = [[UInt32]](repeating: [], count: lanes)
      value = Mutex(Log(sent: empty, seen: empty))
    }
  }

  let lanes: [ProbedLane]
  private let log: SharedLog
  private let sender: BackgroundWork<Void>
  private let witnesses: [BackgroundWork<Void>]

  /// Starts at once; `stop` ends it.
  init(
    from sources: [ProbeSource], to targets: [(name: String, addresses: [IPAddress])], seenBy places: [ProbeWitness]
  ) throws {
    var lanes: [ProbedLane] = []
    var packets: [MustNotPassPacket] = []
    var outlets: [RawSocket] = []
    for source in sources {
      let sockets = try source.network.run {
        try IPFamily.allCases.map { try RawSocket(Int32($0.linuxFamily), SOCK_RAW, Int32(IPPROTO_RAW)) }
      }
      for target in targets where target.name != source.name {
        for (family, socket) in zip(IPFamily.allCases, sockets) {
          let from = try #require(source.addresses.first { $0.family == family })
          let to = try #require(target.addresses.first { $0.family == family })
          for isTCP in [false, true] {
            packets.append(
              MustNotPassPacket(
                from: from, to: to, isTCP: isTCP, lane: lanes.count,
                sourcePorts: source.isAllowed ? Self.sourcePortsOfAllowed : Self.sourcePortsOfDenied))
            outlets.append(socket)
            lanes.append(
              ProbedLane(
                source: source.name, target: target.name, family: family, isTCP: isTCP, isAllowed: source.isAllowed))
          }
        }
      }
    }
    self.lanes = lanes
    let log = SharedLog(lanes: lanes.count)
    self.log = log
    witnesses = try places.map { place in
      let socket = try place.network.run { try RawSocket(AF_PACKET, SOCK_DGRAM, 0x0300) }  // ETH_P_ALL
      return BackgroundWork { shouldStop in Self.watch(socket, place, log, shouldStop) }
    }
    sender = BackgroundWork { [packets, outlets] shouldStop in Self.send(packets, outlets, log, shouldStop) }
  }

  func stop() throws {
    try sender.stop()
    for witness in witnesses { try witness.stop() }
  }

  private static func send(
    _ packets: [MustNotPassPacket], _ outlets: [RawSocket], _ log: SharedLog, _ shouldStop: () -> Bool
  ) {
    var packets = packets
    let begin = monotonicNanoseconds()
    var tick: UInt32 = 0
    while !shouldStop() {
      let due = begin + UInt64(tick) * tickNanoseconds
      var time = timespec(tv_sec: Int(due / 1_000_000_000), tv_nsec: Int(due % 1_000_000_000))
      // A tick that is late follows at once: the rate holds.
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nil)
      var sent: [Int] = []
      for lane in stride(from: Int(tick) % kinds, to: packets.count, by: kinds) {
        // Refused where there is no way to the target: then it was not sent.
        if packets[lane].send(tick: tick, by: outlets[lane]) { sent.append(lane) }
      }
      let now = monotonicNanoseconds()
      log.value.withLock { log in
        log.ticks.append(now)
        for lane in sent { log.sent[lane].append(tick) }
      }
      tick += 1
    }
  }

  private static func watch(
    _ socket: RawSocket, _ place: ProbeWitness, _ log: SharedLog, _ shouldStop: () -> Bool
  ) {
    var buffer = [UInt8](repeating: 0, count: 2048)
    while !shouldStop() {
      var entry = pollfd(fd: socket.descriptor, events: Int16(POLLIN), revents: 0)
      guard poll(&entry, 1, 20) > 0 else { continue }
      var seen: [(lane: Int, tick: UInt32)] = []
      while seen.count < 100, let packet = socket.receive(&buffer) {
        guard packet.kind == place.kind.rawValue, packet.device != place.otherThan,
          let found = MustNotPassPacket.identify(buffer[..<packet.length])
        else { continue }
        seen.append(found)
      }
      guard !seen.isEmpty else { continue }
      log.value.withLock { log in
        for found in seen where log.seen.indices.contains(found.lane) { log.seen[found.lane].append(found.tick) }
      }
    }
  }

  // MARK: Counting

  /// The number of ticks so far.
  var now: UInt32 { log.value.withLock { UInt32($0.ticks.count) } }

  /// What happened to the packets that were sent while `body` ran.
  func during(_ body: () throws -> Void) throws -> ProbeCount {
    let begin = now
    try body()
    return try count(from: begin, until: now)
  }

  func during(milliseconds: UInt32) throws -> ProbeCount { try during { usleep(milliseconds * 1000) } }

  private func count(from begin: UInt32, until end: UInt32) throws -> ProbeCount {
    // What was sent last is seen after that at the latest.
    let settled = end + 100
    while now < settled { usleep(5000) }
    return ProbeCount(log.value.withLock { $0 }, lanes, begin..<end)
  }

  /// Waits until every denied lane gets through: these packets would arrive.
  func expectOpen(_ what: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
    let deadline = monotonicNanoseconds() + 30_000_000_000
    while true {
      let count = try during(milliseconds: 200)
      let closed = count.lines.filter { $0.passed == 0 }.map { "\($0.lane)" }
      if closed.isEmpty { return }
      guard monotonicNanoseconds() < deadline else {
        Issue.record("\(what): nothing passes: \(closed)", sourceLocation: sourceLocation)
        return
      }
    }
  }

  /// Waits until no denied packet gets through any more, and the allowed ones do.
  func waitUntilClosed(_ what: String, sourceLocation: SourceLocation = #_sourceLocation) throws {
    let deadline = monotonicNanoseconds() + 30_000_000_000
    while true {
      let count = try during(milliseconds: 200)
      if count.passedDenied == 0, count.lostAllowed == 0 { return }
      guard monotonicNanoseconds() < deadline else {
        Issue.record("\(what): not closed: \(count)", sourceLocation: sourceLocation)
        return
      }
    }
  }
}
