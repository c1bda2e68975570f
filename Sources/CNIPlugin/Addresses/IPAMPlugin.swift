import CLinux
import Glibc
import LocalAPI
import NetworkTypes

/// Another plugin that gives the addresses (`ipam.type`). It is run as a runtime would run it: out of CNI_PATH, with our
/// environment and the complete configuration on its standard input.
struct IPAMPlugin {
  let type: String
  private let input: [UInt8]
  private let version: SpecVersion

  /// Whether it is there at all is asked when it is run.
  init(_ type: String, _ config: Config) throws(CNIError) {
    // It becomes part of a path.
    guard !type.utf8.contains(UInt8(ascii: "/")), type != ".", type != ".." else {
      throw .config("ipam.type", "'\(type)' is no plugin's name")
    }
    self.type = type
    (input, version) = (config.input, config.version)
  }

  /// Where it is.
  @discardableResult
  func requirePath() throws(CNIError) -> String {
    let folders = Invocation.variable("CNI_PATH") ?? ""
    for folder in folders.split(separator: ":") {
      let path = "\(folder)/\(type)"
      var status = stat()
      if stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG, access(path, X_OK) == 0 { return path }
    }
    throw CNIError(
      .otherPlugin, "network configuration: ipam.type: no folder of CNI_PATH ('\(folders)') has a program '\(type)'")
  }

  // MARK: Commands

  func add() throws(CNIError) -> PodNetwork {
    let output = try run(.add)
    let json: JSONValue
    do throws(JSONError) {
      json = try JSONValue(parsing: output)
    } catch {
      throw fault("its result is no JSON: \(error)")
    }
    let answer = try read(json)
    guard !answer.addresses.isEmpty else { throw fault("its result has no address") }
    for route in answer.routes.map(\.destination) where !answer.families.contains(route.family) {
      throw fault("its result has the route \(route), but no address of that family")
    }
    return answer
  }

  func check() throws(CNIError) { _ = try run(.check) }

  func collectGarbage() throws(CNIError) {
    do throws(CNIError) {
      _ = try run(.collectGarbage)
    } catch {
      // One that knows our version, but not yet this command; it has heard of each stale attachment.
      if error.code != .invalidEnvironment { throw error }
    }
  }

  func delete(containerID: String, interfaceName: String) throws(CNIError) {
    var changes = [("CNI_CONTAINERID", containerID), ("CNI_IFNAME", interfaceName)]
    // One that GC found: its namespace is not the one the runtime speaks of, if it speaks of any.
    if changes.contains(where: { Invocation.variable($0.0) != $0.1 }) { changes.append(("CNI_NETNS", "")) }
    _ = try run(.delete, changes)
  }

  func status() throws(CNIError) {
    do throws(CNIError) {
      _ = try run(.status)
    } catch {
      // One that knows our version, but not yet this command.
      if error.code == .invalidEnvironment { return }
      let isAnswer = error.code == .notAvailable || error.code == .limitedConnectivity
      throw isAnswer ? error : CNIError(.notAvailable, error.message, details: error.details)
    }
  }

  // MARK: Running

  /// - Returns: what it printed.
  /// - Throws: its own error with its code, or `otherPlugin`.
  private func run(_ verb: Invocation.Verb, _ changes: [(String, String)] = []) throws(CNIError) -> [UInt8] {
    let path = try requirePath()
    // This program has one thread: nobody else reads its environment.
    let before = (changes + [("CNI_COMMAND", "")]).map { ($0.0, Invocation.variable($0.0)) }
    for (name, value) in changes + [("CNI_COMMAND", verb.rawValue)] { setenv(name, value, 1) }
    defer {
      for (name, value) in before {
        if let value { setenv(name, value, 1) } else { unsetenv(name) }
      }
    }
    let (output, status) = try start(path)
    if status == 0 { return output }
    guard let json = try? JSONValue(parsing: output), let message = json["msg"]?.stringValue else {
      let words = String(decoding: output.prefix(300), as: UTF8.self)
      throw fault("\(verb.rawValue): ended with status \(status)" + (words.isEmpty ? "" : ": \(words)"))
    }
    let code = json["code"]?.intValue.map(CNIError.Code.init(rawValue:)) ?? .otherPlugin
    throw CNIError(code, "IPAM plugin \(type): \(verb.rawValue): \(message)", details: json["details"]?.stringValue)
  }

  private func start(_ path: String) throws(CNIError) -> (output: [UInt8], status: CInt) {
    // No pipe: whoever does not read it would be no hindrance, and no signal.
    let standardInput = clinux_memory_file("cni-configuration")
    guard standardInput >= 0 else { throw fault("memory file: \(Self.reason())") }
    defer { close(standardInput) }
    guard input.withUnsafeBytes({ pwrite(standardInput, $0.baseAddress, $0.count, 0) }) == input.count else {
      throw fault("memory file: \(Self.reason())")
    }
    var ends: [CInt] = [-1, -1]
    guard clinux_pipe2(&ends, O_CLOEXEC) == 0 else { throw fault("pipe: \(Self.reason())") }
    defer { close(ends[0]) }
    var child = pid_t()
    let code = clinux_spawn_filter(path, standardInput, ends[1], &child)
    close(ends[1])
    guard code == 0 else { throw fault("\(path): \(Self.reason(code))") }
    let output = Self.readAll(ends[0])
    var status: CInt = 0
    while waitpid(child, &status, 0) < 0, errno == EINTR {}
    // WIFEXITED and its like are macros that Swift does not import.
    return (output, status & 0x7f == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f))
  }

  /// More than any result has; what comes after is left.
  private static let outputLimit = 16 << 20

  private static func readAll(_ descriptor: CInt) -> [UInt8] {
    var output: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16 << 10)
    while output.count < outputLimit {
      let count = Glibc.read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { break }
      output += chunk[..<count]
    }
    return output
  }

  private static func reason(_ code: CInt = errno) -> String { String(cString: strerror(code)) }

  private func fault(_ reason: String) -> CNIError { CNIError(.otherPlugin, "IPAM plugin \(type): \(reason)") }

  // MARK: Results

  private func read(_ json: JSONValue) throws(CNIError) -> PodNetwork {
    var answer = PodNetwork(dns: json["dns"]?.objectValue)
    var routes = json["routes"]?.arrayValue ?? []
    var addresses = (json["ips"]?.arrayValue ?? []).map { ($0["address"], $0["gateway"]) }
    if version < .v0_3_0 {
      let parts = ["ip4", "ip6"].compactMap { json[$0] }
      addresses = parts.map { ($0["ip"], $0["gateway"]) }
      routes = parts.flatMap { $0["routes"]?.arrayValue ?? [] }
    }
    for (text, gateway) in addresses {
      let parts = (text?.stringValue ?? "").split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
      guard let address = parts.first.flatMap({ IPAddress($0) }),
        let length = parts.count == 1 ? address.family.addressBits : Int(parts[1]),
        (0...address.family.addressBits).contains(length)
      else { throw fault("its result has the address '\(text?.stringValue ?? "")'") }
      guard !answer.addresses.contains(where: { $0.address == address }) else {
        throw fault("its result has \(address) twice")
      }
      let known = gateway?.stringValue.flatMap { IPAddress($0) }
      answer.addresses.append(PodAddress(address, prefixLength: length, gateway: known))
    }
    for json in routes {
      answer.routes.append(
        try translating { () throws(PodRouteFault) in
          try PodRoute(json)
        } _: {
          fault("its result has a route whose \($0.field), '\($0.value)', is no \($0.expected)")
        })
    }
    return answer
  }
}
