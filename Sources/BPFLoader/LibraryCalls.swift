import Glibc

/// What libbpf or the kernel refused, by name.
public struct BPFError: Error, Sendable, Hashable, CustomStringConvertible {
  /// What was tried: "load program".
  public let operation: String
  /// On what: "connect4".
  public let object: String
  public let errno: CInt
  /// The verifier's last words, or libbpf's, where there are any.
  public let detail: String?

  public init(operation: String, object: String, errno: CInt, detail: String? = nil) {
    self.operation = operation
    self.object = object
    self.errno = errno
    self.detail = detail
  }

  public var description: String {
    let reason = String(cString: strerror(errno))
    return "\(operation) \(object): \(reason)" + (detail.map { "\n\($0)" } ?? "")
  }
}

/// libbpf 1.x answers with a negative errno.
@discardableResult
func check(
  _ operation: String, _ object: @autoclosure () -> String, _ call: () -> CInt
) throws(BPFError) -> CInt {
  while true {
    let result = call()
    if result >= 0 { return result }
    if result != -EINTR { throw BPFError(operation: operation, object: object(), errno: -result) }
  }
}
