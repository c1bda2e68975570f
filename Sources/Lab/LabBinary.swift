import Glibc

/// Where the programs are, and files that users name.
public enum LabBinary {
  /// The folder of the running program.
  public static func ownDirectory() throws -> String {
    var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
    let count = readlink("/proc/self/exe", &buffer, buffer.count)
    guard count > 0 else { throw LabError.system(operation: "read", object: "/proc/self/exe", errno: errno) }
    let path = String(decoding: buffer[0..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return String(path[..<(path.lastIndex(of: "/") ?? path.endIndex)])
  }

  public static func readText(_ path: String) throws -> String {
    guard let text = Files.text(path) else { throw LabError.system(operation: "read", object: path, errno: errno) }
    return text
  }
}
