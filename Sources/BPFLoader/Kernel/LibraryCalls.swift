import Glibc
import Netlink

/// libbpf 1.x answers with a negative errno.
@discardableResult
func check(
  _ operation: String, _ object: @autoclosure () -> String, _ call: () -> CInt
) throws(SystemError) -> CInt {
  while true {
    let result = call()
    if result >= 0 { return result }
    if result != -EINTR { throw SystemError(operation: operation, object: object(), errno: -result) }
  }
}
