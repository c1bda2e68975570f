import Glibc
import NetworkTypes

/// A kernel transaction or a read that failed.
public struct NFTablesError: Error, Sendable, CustomStringConvertible {
  public var operation: String
  /// The message the kernel refused, in our words; empty where it is the whole batch.
  public var object: String
  public var errno: Int32
  /// The kernel's own words, where it had some.
  public var detail: String?
  /// Another socket owns the table.
  public var isAboutOwner = false

  /// - Parameter owner: the port ID of that socket.
  static func ownedByOther(_ family: IPFamily, _ owner: UInt32) -> NFTablesError {
    NFTablesError(
      operation: "commit", object: "table \(family.tableFamily) \(Layout.tableName)", errno: EPERM,
      detail: "another program owns it, by the netlink socket with port ID \(owner) (often its process ID): "
        + "stop the sluice-agent that runs in this network namespace first",
      isAboutOwner: true)
  }

  public var description: String {
    let text = String(cString: strerror(errno))
    return "nftables: \(operation)\(object.isEmpty ? "" : " (\(object))"): \(text)"
      + (detail.map { ": \($0)" } ?? "")
  }
}
