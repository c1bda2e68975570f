import Glibc
import LocalAPI

/// What the runtime says by environment variables, checked.
struct Invocation {
  enum Verb: String, CaseIterable {
    case add = "ADD"
    case delete = "DEL"
    case check = "CHECK"
    case status = "STATUS"
    case collectGarbage = "GC"
    case version = "VERSION"
  }

  var containerID = ""
  var interfaceName = ""
  /// nil for a DEL without a namespace.
  var netnsPath: String?
  /// The runtime means it: attach to the node's own namespace.
  var allowsHostNetns = false
  var podNamespace: String?
  var podName: String?
  var podUID: String?

  static func variable(_ name: String) -> String? {
    guard let value = getenv(name), value.pointee != 0 else { return nil }
    return String(cString: value)
  }

  /// Reads and checks the variables that `verb` needs. Errors have code 4 and name the variable.
  init(_ verb: Verb) throws(CNIError) {
    guard [.add, .delete, .check].contains(verb) else { return }
    containerID = try Self.required("CNI_CONTAINERID", verb)
    guard Self.isIdentifier(containerID) else {
      throw .environment("CNI_CONTAINERID", "'\(containerID)' is not of the form [a-zA-Z0-9][a-zA-Z0-9_.-]*")
    }
    interfaceName = try Self.required("CNI_IFNAME", verb)
    if let reason = Self.interfaceNameFault(interfaceName) {
      throw .environment("CNI_IFNAME", "'\(interfaceName)' \(reason)")
    }
    netnsPath = Self.variable("CNI_NETNS")
    if netnsPath == nil, verb != .delete { throw .environment("CNI_NETNS", "is required for \(verb.rawValue)") }
    allowsHostNetns =
      Self.variable("CNI_NETNS_OVERRIDE").map { ["1", "true", "t", "T", "TRUE", "True"].contains($0) } ?? false
    do throws(CNIError) {
      try readArguments()
    } catch {
      // Nothing that was wrong at ADD may keep a pod from being torn down.
      if verb != .delete { throw error }
    }
  }

  private static func required(_ name: String, _ verb: Verb) throws(CNIError) -> String {
    guard let value = variable(name) else { throw .environment(name, "is required for \(verb.rawValue)") }
    return value
  }

  /// `K=V;K=V` with the keys runtimes send; others only with `IgnoreUnknown`.
  private mutating func readArguments() throws(CNIError) {
    guard let text = Self.variable("CNI_ARGS") else { return }
    var unknown: [Substring] = []
    var ignoresUnknown = false
    for pair in text.split(separator: ";") {
      let parts = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2 else { throw .environment("CNI_ARGS", "'\(pair)' is not of the form KEY=VALUE") }
      let value = parts[1].isEmpty ? nil : String(parts[1])
      switch parts[0] {
      case "IgnoreUnknown":
        switch value?.lowercased() {
        case "1", "t", "true": ignoresUnknown = true
        case "0", "f", "false", nil: ignoresUnknown = false
        default: throw .environment("CNI_ARGS", "IgnoreUnknown '\(parts[1])' is no boolean")
        }
      case "K8S_POD_NAMESPACE": podNamespace = value
      case "K8S_POD_NAME": podName = value
      case "K8S_POD_UID": podUID = value
      case "K8S_POD_INFRA_CONTAINER_ID": break
      default: unknown.append(parts[0])
      }
    }
    if let key = unknown.first, !ignoresUnknown { throw .environment("CNI_ARGS", "has the unknown key '\(key)'") }
  }

  /// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`: container ids and network names.
  static func isIdentifier(_ text: String) -> Bool {
    func isAlphanumeric(_ byte: UInt8) -> Bool {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"):
        true
      default: false
      }
    }
    guard let first = text.utf8.first, isAlphanumeric(first) else { return false }
    return text.utf8.allSatisfy { isAlphanumeric($0) || "_.-".utf8.contains($0) }
  }

  /// What keeps a text from being an interface's name (dev_valid_name in the kernel), nil when it can be one.
  static func interfaceNameFault(_ name: String) -> String? {
    if name.utf8.count > 15 { return "is longer than 15 bytes" }
    if name == "." || name == ".." { return "is not a name" }
    for scalar in name.unicodeScalars {
      if scalar == "/" || scalar == ":" { return "holds a '\(scalar)'" }
      if scalar.properties.isWhitespace { return "holds white space" }
    }
    return nil
  }
}
