import Dispatch
import Glibc
import Netlink
import NetworkTypes
import Synchronization

@testable import PolicyWorlds

/// Packets that are sent again and again while something happens: some that have to arrive all the time, some that must
/// never.
struct PolicyStream {
  struct Lane: Sendable {
    var name: String
    var isAllowed: Bool
    var frame: PreparedFrame
  }

  struct Count: Sendable {
    var name: String
    var isAllowed: Bool
    var sent = 0
    var arrived = 0

    var lost: Int { isAllowed ? sent - arrived : 0 }
    var leaked: Int { isAllowed ? 0 : arrived }
  }

  fileprivate static let firstNumber: UInt64 = 0x51_1ce0_ffff_0000
  private(set) var lanes: [Lane] = []
  private let rig: PolicyRig

  init(_ rig: PolicyRig) { self.rig = rig }

  /// - Parameter trial: by a pod or from outside.
  mutating func add(_ trial: PolicyTrial) throws {
    let frame = try rig.prepare(trial.packet, number: Self.firstNumber + UInt64(lanes.count), from: trial.from)
    lanes.append(Lane(name: trial.name, isAllowed: trial.to != nil, frame: frame))
  }

  /// Streams while `body` runs on the calling thread, in which nobody may ask the rig for arrivals.
  ///
  /// - Parameter losesSome: whatever is lost is not waited for.
  func during(losesSome: Bool = false, _ body: () throws -> Void) throws -> [Count] {
    _ = try rig.arrivals()
    let sender = Sender(lanes, rig.captureDescriptors, patience: losesSome ? 0 : 2_000_000_000)
    let done = DispatchSemaphore(value: 0)
    DispatchQueue(label: "policy-stream").async {
      sender.run()
      done.signal()
    }
    let outcome = Result { try body() }
    sender.stop()
    done.wait()
    try outcome.get()
    return try sender.counts()
  }

  /// One thread that sends a packet of every lane, reads what arrived, and begins again.
  private final class Sender: Sendable {
    private struct State {
      var isStopping = false
      var result: Result<[Count], SystemError>?
    }
    private let lanes: [Lane]
    private let descriptors: [CInt]
    /// How long what should arrive is waited for at the end, in nanoseconds.
    private let patience: UInt64
    private let state = Mutex(State())

    init(_ lanes: [Lane], _ descriptors: [CInt], patience: UInt64) {
      self.lanes = lanes
      self.descriptors = descriptors
      self.patience = patience
    }

    func stop() { state.withLock { $0.isStopping = true } }

    func counts() throws -> [Count] { try state.withLock { $0.result }?.get() ?? [] }

    func run() {
      let result = Result { () throws(SystemError) in try stream() }
      state.withLock { $0.result = result }
    }

    private func stream() throws(SystemError) -> [Count] {
      var counts = lanes.map { Count(name: $0.name, isAllowed: $0.isAllowed) }
      let reader = FrameReader()
      let sockets = Set(lanes.map(\.frame.socket)).sorted()
      // Few frames at once: a device's queue holds a thousand.
      let first = FrameBurst(frames(sockets.first))
      let second = sockets.count > 1 ? FrameBurst(frames(sockets.last)) : nil
      // At least some of each, however short the body.
      while !state.withLock({ $0.isStopping }) || counts.contains(where: { $0.sent < 50 }) {
        try first.send()
        try second?.send()
        for index in counts.indices { counts[index].sent += Self.repetitions }
        read(reader, &counts)
        // Where softirqs are late they are waited for.
        let deadline = PacketRig.now() + min(patience, 20_000_000)
        while counts.lost > Self.mostUnderWay, PacketRig.now() < deadline {
          usleep(20)
          read(reader, &counts)
        }
      }
      let deadline = PacketRig.now() + patience
      while counts.lost > 0, PacketRig.now() < deadline {
        usleep(1000)
        read(reader, &counts)
      }
      usleep(5000)
      read(reader, &counts)
      return counts
    }

    private static let repetitions = 4
    private static let mostUnderWay = 300

    private func frames(_ socket: CInt?) -> [PreparedFrame] {
      let own = lanes.map(\.frame).filter { $0.socket == socket }
      return (0..<Self.repetitions).flatMap { _ in own }
    }

    private func read(_ reader: borrowing FrameReader, _ counts: inout [Count]) {
      for descriptor in descriptors {
        reader.read(descriptor) { number, length in
          // An error or a redirect that quotes a packet is longer.
          guard number >= PolicyStream.firstNumber, number < PolicyStream.firstNumber + UInt64(lanes.count),
            length == lanes[Int(number - PolicyStream.firstNumber)].frame.bytes.count
          else { return }
          counts[Int(number - PolicyStream.firstNumber)].arrived += 1
        }
      }
    }
  }
}

extension [PolicyStream.Count] {
  var sent: Int { reduce(0) { $0 + $1.sent } }
  var lost: Int { reduce(0) { $0 + $1.lost } }
  var leaked: Int { reduce(0) { $0 + $1.leaked } }

  /// `12000 allowed packets, 0 lost; 11000 denied packets, 0 passed`.
  var summary: String {
    let allowed = filter(\.isAllowed).sent
    return "\(allowed) allowed packets, \(lost) lost; \(sent - allowed) denied packets, \(leaked) passed"
  }

  /// The lanes on which something went wrong.
  var failures: [String] {
    filter { $0.lost != 0 || $0.leaked != 0 }.map {
      "\($0.name): \($0.sent) sent, \($0.arrived) arrived, should \($0.isAllowed ? "all" : "none")"
    }
  }
}
