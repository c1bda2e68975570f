import Glibc

/// A kernel transaction or a read that failed.
public struct NFTablesError: Error, Sendable, CustomStringConvertible {
  public var operation: String
  /// The message the kernel refused, in our words; empty where it is the whole batch.
  public var object: String
  public var errno: Int32
  /// The kernel's own words, where it had some.
  public var detail: String?

  public var description: String {
    let text = String(cString: strerror(errno))
    return "nftables: \(operation)\(object.isEmpty ? "" : " (\(object))"): \(text)"
      + (detail.map { ": \($0)" } ?? "")
  }
}
