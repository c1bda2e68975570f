import BPFPrograms
import Foundation
import Glibc
import Testing

@testable import BPFLoader

/// How many instructions this kernel's verifier walks through for each program, against those in
/// `bpf/verified-instructions`: a verifier gives up at a million, an older one sooner than the one on the desk.
///
/// `scripts/verify-programs` runs this, also on other kernels, and can write the file.
@Suite("Verifier") struct VerifierTests {
  private static let updates = getenv("SLUICE_UPDATE_VERIFIED") != nil
  /// Whether the file has to know this kernel: set for those that the project names.
  private static let mustKnow = getenv("SLUICE_KNOWN_KERNEL") != nil

  @Test("every program loads, and none costs the verifier a tenth more than its last commit says")
  func instructions() throws {
    let kernel = KernelRelease.current.description
    let found = try Self.load()
    var file = try VerifiedInstructions.read()
    if Self.updates {
      file.counts[kernel] = found
      try file.write()
      return print("kernel \(kernel): \(found.count) programs written to \(VerifiedInstructions.name)")
    }
    guard let known = file.counts[kernel] else {
      let text = "\(VerifiedInstructions.name) does not know kernel \(kernel): \(found.count) programs load, their "
      #expect(!Self.mustKnow, "\(text)instructions are compared with nothing; see scripts/verify-programs")
      return print("\(text)instructions are compared with nothing")
    }
    let changes = VerifiedInstructions.changes(from: known, to: found)
    for change in changes where !change.isFailure { print("kernel \(kernel): \(change.text)") }
    for change in changes where change.isFailure { Issue.record("kernel \(kernel): \(change.text)") }
    print("kernel \(kernel): \(found.count) programs verified, \(found.values.reduce(0, +)) instructions")
  }

  @Test(
    "a tenth more fails, a tenth less is told, as are programs that only one side has",
    arguments: [
      (1000, 1100, nil), (1000, 1101, true), (1000, 900, nil), (1000, 899, false), (nil, 1000, true),
      (1000, nil, true), (0, 0, nil), (5, 6, true),
    ] as [(Int?, Int?, Bool?)])
  func comparison(was: Int?, now: Int?, isFailure: Bool?) {
    let changes = VerifiedInstructions.changes(
      from: was.map { ["a/b": $0] } ?? [:], to: now.map { ["a/b": $0] } ?? [:])
    #expect(changes.map(\.isFailure) == (isFailure.map { [$0] } ?? []))
  }

  /// Each program with the constants that an engine may set: of two ways the longer.
  private static func load() throws -> [String: Int] {
    let features = KernelFeatures.probe()
    var found: [String: Int] = [:]
    for (program, constant, values) in [
      (BPFProgram.cookie, nil, [false]), (.sock, "can_set_error", [features.socketErrors]),
      (.endpoint, "keeps_established", [false, true]), (.uplink, "keeps_established", [false, true]),
    ] as [(BPFProgram, String?, [Bool])] {
      for value in values {
        let object = try BPFObject(program)
        if let constant { try object.setConstant(constant, value) }
        if constant == "keeps_established" { try object.setConstant("has_coarse_clock", features.coarseClock) }
        for (name, count) in try count(object) {
          found["\(program.name)/\(name)", default: 0] = max(found["\(program.name)/\(name)", default: 0], count)
        }
      }
    }
    return found
  }

  private static func count(_ object: BPFObject) throws -> [String: Int] {
    let names = object.programNames
    let size = 4096
    let logs = UnsafeMutableBufferPointer<CChar>.allocate(capacity: names.count * size)
    logs.initialize(repeating: 0)
    defer { logs.deallocate() }
    func log(_ index: Int) -> UnsafeMutableBufferPointer<CChar> {
      UnsafeMutableBufferPointer(rebasing: logs[index * size..<(index + 1) * size])
    }
    for (index, name) in names.enumerated() { try object.setStatistics(ofProgram: name, into: log(index)) }
    try object.load()
    var counts: [String: Int] = [:]
    for (index, name) in names.enumerated() {
      let text = String(decoding: log(index).prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      let summary = try #require(
        text.firstMatch(of: /processed ([0-9]+) insns/), "the verifier's word on \(object.name)/\(name): \(text)")
      counts[name] = Int(summary.1)
    }
    return counts
  }
}
