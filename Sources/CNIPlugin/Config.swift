import LocalAPI
import NetworkTypes

/// The network configuration from standard input.
///
/// Read in two steps: what DEL needs (`name` and folders) must be readable whatever else has changed since ADD; the rest
/// is checked only by commands that use it.
struct Config {
  let json: JSONObject
  let version: SpecVersion
  let name: String
  let stateDirectory: String
  let runDirectory: String
  let agentSocket: String
  /// Milliseconds.
  let agentTimeout: Int
  let requiresAgent: Bool
  /// What earlier plugins of the chain made.
  let previousResult: JSONObject?

  /// The version to print errors in, whether or not it is one of ours.
  static func statedVersion(_ json: JSONValue) -> String {
    guard let text = json["cniVersion"]?.stringValue, !text.isEmpty else { return SpecVersion.v0_1_0.rawValue }
    return text
  }

  static func parse(_ input: [UInt8]) throws(CNIError) -> JSONValue {
    let json: JSONValue
    do throws(JSONError) {
      json = try JSONValue(parsing: input)
    } catch {
      throw CNIError(.decoding, "network configuration: \(error)")
    }
    guard json.objectValue != nil else { throw CNIError(.decoding, "network configuration: is no JSON object") }
    return json
  }

  /// With `lenient` everything but the name and the version falls back to its default where it is wrong: nothing that
  /// has changed since ADD may keep a pod from being torn down.
  init(_ json: JSONValue, lenient: Bool = false) throws(CNIError) {
    self.json = json.objectValue ?? JSONObject()
    let fields = ConfigFields(self.json)
    func optional<Value>(_ read: () throws(CNIError) -> Value?) throws(CNIError) -> Value? {
      do throws(CNIError) {
        return try read()
      } catch {
        if lenient { return nil }
        throw error
      }
    }
    let text = try fields.string("cniVersion") ?? ""
    guard let version = SpecVersion(rawValue: text.isEmpty ? SpecVersion.v0_1_0.rawValue : text) else {
      let supported = SpecVersion.allCases.map(\.rawValue).joined(separator: ", ")
      throw CNIError(
        .incompatibleVersion, "network configuration: cniVersion: '\(text)' is not supported",
        details: "supported: \(supported)")
    }
    self.version = version
    guard let name = try fields.string("name"), !name.isEmpty else { throw .config("name", "is missing") }
    guard Invocation.isIdentifier(name) else {
      throw .config("name", "'\(name)' is not of the form [a-zA-Z0-9][a-zA-Z0-9_.-]*")
    }
    self.name = name
    stateDirectory =
      try optional { () throws(CNIError) in try fields.path("stateDir") } ?? LocalAPIDefaults.stateDirectory
    runDirectory = try optional { () throws(CNIError) in try fields.path("runDir") } ?? LocalAPIDefaults.runDirectory
    agentSocket =
      try optional { () throws(CNIError) in try fields.path("agentSocket") } ?? "\(runDirectory)/agent.sock"
    agentTimeout =
      try optional { () throws(CNIError) in try fields.integer("agentTimeoutMilliseconds", in: 1...600_000) } ?? 10_000
    requiresAgent = try optional { () throws(CNIError) in try fields.bool("requireAgent") } ?? true
    previousResult = try optional { () throws(CNIError) in try fields.object("prevResult") }
  }

  var endpoints: EndpointRecordStore { EndpointRecordStore(directory: "\(runDirectory)/endpoints") }
  var addresses: AddressStore { AddressStore(stateDirectory: stateDirectory, network: name) }

  func agent(timeoutMilliseconds: Int) -> UnixHTTPClient {
    UnixHTTPClient(path: agentSocket, timeoutMilliseconds: timeoutMilliseconds)
  }

  /// What the agent says about this node; nil where it has said nothing yet.
  func nodeFacts() throws(CNIError) -> NodeFacts? {
    let path = "\(runDirectory)/node.json"
    do {
      guard let bytes = try LocalFile.read(path) else { return nil }
      return try NodeFacts(json: JSONValue(parsing: bytes))
    } catch {
      throw CNIError(.io, "node facts \(path): \(error)")
    }
  }
}

/// Typed members of the configuration: a wrong type is error 7 and names the field.
struct ConfigFields {
  let object: JSONObject
  let prefix: String

  init(_ object: JSONObject, prefix: String = "") {
    self.object = object
    self.prefix = prefix
  }

  private func read<Value>(
    _ key: String, _ kind: String, _ convert: (JSONValue) -> Value?
  ) throws(CNIError) -> Value? {
    guard let json = object[key], !json.isNull else { return nil }
    guard let value = convert(json) else { throw .config(prefix + key, "is no \(kind)") }
    return value
  }

  func string(_ key: String) throws(CNIError) -> String? { try read(key, "string") { $0.stringValue } }
  func bool(_ key: String) throws(CNIError) -> Bool? { try read(key, "boolean") { $0.boolValue } }
  func object(_ key: String) throws(CNIError) -> JSONObject? { try read(key, "object") { $0.objectValue } }
  func array(_ key: String) throws(CNIError) -> [JSONValue]? { try read(key, "array") { $0.arrayValue } }

  func integer(_ key: String, in range: ClosedRange<Int>) throws(CNIError) -> Int? {
    let number = try read(key, "whole number") { $0.intValue.flatMap { Int(exactly: $0) } }
    if let number, !range.contains(number) {
      throw .config(prefix + key, "\(number) is outside \(range.lowerBound)...\(range.upperBound)")
    }
    return number
  }

  func path(_ key: String) throws(CNIError) -> String? {
    let path = try string(key)
    if let path, !path.hasPrefix("/") || path.unicodeScalars.contains("\0") {
      throw .config(prefix + key, "'\(path)' is no absolute path")
    }
    return path
  }
}
