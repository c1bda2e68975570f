/// One difference between what the tables say and what the kernel has.
public struct Drift: Sendable, Hashable, CustomStringConvertible {
  public enum Kind: String, Sendable { case missing, extra, different }
  public var kind: Kind
  /// The kernel object, in the engine's words.
  public var object: String

  public init(_ kind: Kind, _ object: String) {
    self.kind = kind
    self.object = object
  }
  public var description: String { "\(kind.rawValue): \(object)" }
}

/// What one call to the kernel cost.
public struct ApplyReport: Sendable, Equatable {
  public var messages = 0
  public var batches = 0
  public var dumps = 0

  public init() {}
  public static func += (left: inout ApplyReport, right: ApplyReport) {
    left.messages += right.messages
    left.batches += right.batches
    left.dumps += right.dumps
  }
}

/// Puts tables into the kernel. One writer; every call leaves the kernel in a state in which each packet meets the old
/// tables or the new ones.
public protocol DataplaneEngine {
  associatedtype Failure: Error
  /// Applies a delta already applied to `tables`. Throws where the kernel refused: `resync` then mends.
  mutating func apply(_ delta: TableDelta, tables: Tables) throws(Failure) -> ApplyReport
  /// Reads everything back and changes only what differs: at start (adoption), after an error, on a foreign change.
  mutating func resync(_ tables: Tables) throws(Failure) -> (report: ApplyReport, drift: [Drift])
  /// Reads everything back and reports what differs, changing nothing.
  mutating func verify(_ tables: Tables) throws(Failure) -> [Drift]
  /// Removes everything this engine ever put into the kernel.
  mutating func cleanUp() throws(Failure)
}
