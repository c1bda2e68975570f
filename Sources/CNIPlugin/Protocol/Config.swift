import LocalAPI
import NetworkTypes

/// The network configuration from standard input.
///
/// Read in two steps: what DEL needs (`name` and folders) must be readable whatever else has changed since ADD; the rest
/// is checked only by commands that use it.
struct Config {
  /// As it came, for plugins that are run on its behalf.
  let input: [UInt8]
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
  /// `ipam.type` where another plugin gives the addresses.
  let ipamPlugin: String?

  /// The version to print errors in, whether or not it is one of ours.
  static func statedVersion(_ json: JSONObject) -> String {
    guard let text = json["cniVersion"]?.stringValue, !text.isEmpty else { return SpecVersion.v0_1_0.rawValue }
    return text
  }

  static func parse(_ input: [UInt8]) throws(CNIError) -> JSONObject {
    let json: JSONValue
    do throws(JSONError) {
      json = try JSONValue(parsing: input)
    } catch {
      throw CNIError(.decoding, "network configuration: \(error)")
    }
    guard let object = json.objectValue else {
      throw CNIError(.decoding, "network configuration: is no JSON object")
    }
    return object
  }

  /// With `lenient` everything but the name and the version falls back to its default where it is wrong: nothing that
  /// has changed since ADD may keep a pod from being torn down.
  init(_ json: JSONObject, _ input: [UInt8], lenient: Bool = false) throws(CNIError) {
    (self.json, self.input) = (json, input)
    let fields = ConfigFields(json)
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
    let type = try optional { () throws(CNIError) in
      let ipam = try fields.object("ipam") ?? JSONObject()
      return try ConfigFields(ipam, prefix: "ipam.").string("type")
    }
    ipamPlugin = type == "sluice" || type?.isEmpty == true ? nil : type
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
