import Glibc
import LocalAPI

/// One invocation by a container runtime: environment and standard input in, JSON on standard output and an exit code
/// out. Notes for people go to standard error.
enum Command {
  static func main() -> CInt {
    guard let text = Invocation.variable("CNI_COMMAND") else {
      note("Sluice CNI plugin, CNI protocol versions \(SpecVersion.allCases.map(\.rawValue).joined(separator: ", "))")
      return 0
    }
    var version = SpecVersion.v1_0_0.rawValue
    do throws(CNIError) {
      guard let verb = Invocation.Verb(rawValue: text) else {
        throw .environment("CNI_COMMAND", "'\(text)' is not known")
      }
      if verb == .version { return try describeVersions() }
      let invocation = try Invocation(verb)
      let input = try readInput()
      let json = try Config.parse(input)
      version = Config.statedVersion(json)
      let config = try Config(json, input, lenient: verb == .delete)
      switch verb {
      case .add: write(try Attachment.add(invocation, config))
      case .delete: try Attachment.delete(invocation, config)
      case .check: try Attachment.check(invocation, config)
      case .status: try Status.run(config)
      case .collectGarbage: try GarbageCollection.run(config)
      case .version: break
      }
      return 0
    } catch {
      write(error.json(version: version))
      return 1
    }
  }

  /// Answers in the version that was asked for, where it could be read.
  private static func describeVersions() throws(CNIError) -> CInt {
    let asked = (try? JSONValue(parsing: try readInput()))?["cniVersion"]?.stringValue
    write([
      "cniVersion": .string(asked ?? SpecVersion.newest.rawValue),
      "supportedVersions": .array(SpecVersion.allCases.map { .string($0.rawValue) }),
    ])
    return 0
  }

  /// A result of a long chain has some kilobytes; this only keeps a stream without end from filling the memory.
  private static let inputLimit = 16 << 20

  private static func readInput() throws(CNIError) -> [UInt8] {
    var input: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = read(STDIN_FILENO, &chunk, chunk.count)
      if count < 0 {
        if errno == EINTR { continue }
        throw CNIError(.io, "standard input: \(String(cString: strerror(errno)))")
      }
      if count == 0 { return input }
      input += chunk[0..<count]
      guard input.count <= inputLimit else {
        throw CNIError(.decoding, "standard input: longer than \(inputLimit) bytes")
      }
    }
  }

  private static func write(_ json: JSONValue) { write(json.serialized() + "\n", to: STDOUT_FILENO) }

  static func note(_ text: String) { write("sluice: \(text)\n", to: STDERR_FILENO) }

  private static func write(_ text: String, to descriptor: CInt) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0 {
        if errno == EINTR { continue }
        return
      }
      bytes = bytes.dropFirst(count)
    }
  }
}
