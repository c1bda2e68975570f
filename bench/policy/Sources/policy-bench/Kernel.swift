import DataplaneModel
import Foundation
import NFTables

/// The nftables engine in this process's network namespace.
struct Kernel {
  private var engine: NFTablesEngine

  init(_ tables: Tables) throws {
    engine = try NFTablesEngine()
    _ = try engine.resync(tables)
  }

  /// - Returns: how long until the kernel had acknowledged the change, and how long the removals after it took.
  mutating func program(_ delta: TableDelta, _ tables: Tables) throws -> (now: Duration, later: Duration) {
    let clock = ContinuousClock()
    let now = try clock.measure { _ = try engine.apply(delta, tables: tables) }
    let later = try clock.measure { _ = try engine.finishRemovals() }
    return (now, later)
  }

  /// How many differences there are between tables and kernel.
  mutating func verify(_ tables: Tables) throws -> Int { try engine.verify(tables).count }

  /// Rules in both of our tables. Each has a comment; no element has.
  static func ruleCount() throws -> Int {
    let nft = Process()
    nft.executableURL = URL(fileURLWithPath: "/usr/sbin/nft")
    nft.arguments = ["--terse", "list", "ruleset"]
    let output = Pipe()
    nft.standardOutput = output
    try nft.run()
    let text = output.fileHandleForReading.readDataToEndOfFile()
    nft.waitUntilExit()
    return String(decoding: text, as: UTF8.self).split(separator: "\n").count { $0.contains(" comment ") }
  }

  /// What all of the kernel has allocated for itself, in MiB: where it grows by much, a table's elements do it.
  static func memory() -> Int {
    let text = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8)) ?? ""
    let lines = text.split(separator: "\n").filter { $0.hasPrefix("Slab:") || $0.hasPrefix("VmallocUsed:") }
    return lines.reduce(0) { $0 + (Int($1.filter(\.isNumber)) ?? 0) } / 1024
  }
}
