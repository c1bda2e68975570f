import CLinux
import Glibc
import NetworkTypes

/// One row of a truth table: a place of the lab, and a process there that asks its targets whenever it is told to.
public final class MatrixSource {
  public let place: LabTarget
  public let targets: [MatrixTarget]
  private let process: ChildProcess
  private var input: Channel
  private var output: Channel
  private var received: [UInt8] = []

  /// Starts the process. It ends with this object, and with the lab at the latest.
  public init(_ lab: Lab, from place: LabTarget, to targets: [MatrixTarget]) throws {
    self.place = place
    self.targets = targets
    var input = try Channel()
    var output = try Channel()
    process = try ChildProcess.start(
      [lab.binary("dpctl"), "lab", "matrix"], name: "matrix in \(place)", in: try lab.surroundings(of: place),
      descriptors: [input.childs, output.childs, 2])
    input.closeChildsEnd()
    output.closeChildsEnd()
    self.input = input
    self.output = output
    try tell("targets \(targets.count)\n" + targets.map { "\($0)\n" }.joined())
  }

  deinit {
    input.closeOwnEnd()
    process.wait(milliseconds: 2000)
  }

  /// Begins to ask. Several sources ask at the same time when each is begun before any is finished.
  public func begin(expected: [Bool], _ patience: MatrixPatience = MatrixPatience()) throws(LabError) {
    let letters = String(expected.map { ($0 ? MatrixOutcome.answered : .silent).rawValue })
    try tell("ask \(patience.silenceMilliseconds) \(patience.answerMilliseconds) \(letters)\n")
  }

  /// Waits for what `begin` began: one outcome per target.
  public func finish(milliseconds: Int = 10_000) throws(LabError) -> [MatrixOutcome] {
    let deadline = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
    var chunk = [UInt8](repeating: 0, count: 4096)
    while true {
      if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
        let outcomes = String(decoding: received[..<end], as: UTF8.self).compactMap { MatrixOutcome(rawValue: $0) }
        received.removeSubrange(...end)
        guard outcomes.count == targets.count else {
          throw .process(name: process.name, reason: "answered \(outcomes.count) of \(targets.count) questions")
        }
        return outcomes
      }
      let now = monotonicNanoseconds()
      guard now < deadline else { throw .timedOut("\(process.name) does not answer") }
      var entry = pollfd(fd: output.own, events: Int16(POLLIN), revents: 0)
      guard poll(&entry, 1, Int32((deadline - now) / 1_000_000 + 1)) > 0 else { continue }
      let count = read(output.own, &chunk, chunk.count)
      guard count > 0 else { throw .process(name: process.name, reason: "ended") }
      received += chunk[0..<count]
    }
  }

  private func tell(_ text: String) throws(LabError) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let sent = rest.withUnsafeBytes { send(input.own, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      guard sent > 0 else { throw .system(operation: "write to", object: process.name, errno: errno) }
      rest = rest.dropFirst(sent)
    }
  }
}
