import Glibc

/// Kernel settings below /proc/sys, of the calling thread's namespace: for another one, call this within
/// `NetworkNamespace.run`.
public enum Sysctl {
  /// `["net", "ipv4", "conf", "eth0.1", "rp_filter"]`: components, because an interface name may hold a dot.
  public static func path(_ components: [String]) throws(SystemError) -> String {
    let path = "/proc/sys/" + components.joined(separator: "/")
    let isSafe = components.allSatisfy { !$0.isEmpty && $0 != "." && $0 != ".." && !$0.utf8.contains(0x2f) }
    guard isSafe else { throw SystemError(operation: "use setting", object: path, errno: EINVAL) }
    return path
  }

  /// The value without surrounding white space.
  public static func read(_ components: String...) throws(SystemError) -> String { try read(components) }

  public static func read(_ components: [String]) throws(SystemError) -> String {
    let path = try path(components)
    let descriptor = try FileDescriptor.open(path)
    var buffer = [UInt8](repeating: 0, count: 4096)
    let number = descriptor.number
    let count = try SystemCalls.retrying("read setting", path) {
      buffer.withUnsafeMutableBytes { CInt(truncatingIfNeeded: Glibc.read(number, $0.baseAddress, $0.count)) }
    }
    let text = buffer[0..<Int(count)]
    guard let first = text.firstIndex(where: { $0 > 0x20 }), let last = text.lastIndex(where: { $0 > 0x20 }) else {
      return ""
    }
    return String(decoding: text[first...last], as: UTF8.self)
  }

  public static func write(_ components: String..., value: some CustomStringConvertible) throws(SystemError) {
    try write(components, value: value)
  }

  public static func write(_ components: [String], value: some CustomStringConvertible) throws(SystemError) {
    let path = try path(components)
    let descriptor = try FileDescriptor.open(path, O_WRONLY)
    let bytes = Array(value.description.utf8)
    let number = descriptor.number
    _ = try SystemCalls.retrying("write setting", path) {
      bytes.withUnsafeBytes { CInt(truncatingIfNeeded: Glibc.write(number, $0.baseAddress, $0.count)) }
    }
  }
}
