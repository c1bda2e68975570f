import LocalAPI

/// Where a lab is on disk and among the cgroups, and what another `dpctl` needs to find it again.
struct LabState: Sendable {
  static let root = "/run/sluice-lab"
  static let fileName = "lab.json"
  static let switchHost = "switch"
  static let clientHost = "client"

  let name: String
  let controlGroup: ControlGroup

  init(name: String) throws(LabError) {
    self.name = name
    controlGroup = try ControlGroup.ofAllLabs().child(name)
  }

  var directory: String { "\(Self.root)/\(name)" }
  var file: String { "\(directory)/\(Self.fileName)" }
  var manifests: String { "\(directory)/manifests" }
  func directory(of host: String) -> String { "\(directory)/\(host)" }
  func podDirectory(of node: String) -> String { "\(directory)/\(node)/pods" }
  func podFile(_ pod: LabPod) -> String {
    "\(podDirectory(of: pod.node))/\(pod.name.namespace)_\(pod.name.name).json"
  }

  func holderGroup(of host: String) -> ControlGroup { controlGroup.child(host).child("holder") }
  func agentGroup(of host: String) -> ControlGroup { controlGroup.child(host).child("agent") }
  func execGroup(of host: String) -> ControlGroup { controlGroup.child(host).child("exec") }
  func podGroup(_ pod: LabPod) -> ControlGroup { controlGroup.child(pod.node).child("pods").child(pod.containerID) }

  /// Whether any process of the lab lives.
  var isAlive: Bool { controlGroup.exists && controlGroup.isPopulated }
  /// Whether anything of the lab is left.
  var exists: Bool { controlGroup.exists || Files.exists(directory) }

  /// Every lab of which something is left, alive or not.
  static func allNames() throws -> [String] {
    let groups = try ControlGroup.ofAllLabs().path
    let inGroups = Files.names(in: groups).filter { Files.isDirectory("\(groups)/\($0)") }
    return Set(inGroups + Files.names(in: root)).sorted()
  }

  func save(_ configuration: LabConfiguration) throws {
    let nodes: [JSONValue] = configuration.nodes.map {
      ["name": .string($0.name), "zone": .string($0.zone), "labels": ObjectManifests.strings($0.labels)]
    }
    let json: JSONValue = [
      "name": .string(configuration.name), "nodes": .array(nodes), "binDirectory": .string(configuration.binDirectory),
      "startsAgents": .bool(configuration.startsAgents), "engine": .string(configuration.engine),
      "usesAPIServer": .bool(configuration.usesAPIServer),
      "hasControllers": .bool(configuration.hasControllers),
      "socketLB": configuration.socketLB.map { .string($0) } ?? .null,
      "agentArguments": .array(configuration.agentArguments.map { .string($0) }),
    ]
    try Files.replace(file, json.serialized(pretty: true) + "\n")
  }

  func loadConfiguration() throws -> LabConfiguration {
    guard let text = Files.text(file) else { throw LabError.unknown(kind: "lab", name: name) }
    let json = try JSONValue(parsing: text)
    guard let nodes = json["nodes"]?.arrayValue, let binDirectory = json["binDirectory"]?.stringValue else {
      throw LabError.manifest(file: file, reason: "nodes or binDirectory is missing")
    }
    let specs = nodes.compactMap { node -> LabNodeSpec? in
      guard let name = node["name"]?.stringValue, let zone = node["zone"]?.stringValue else { return nil }
      var spec = LabNodeSpec(name: name, zone: zone)
      for label in node["labels"]?.objectValue ?? [:] { spec.labels[label.key] = label.value.stringValue }
      return spec
    }
    var configuration = LabConfiguration(name: name, nodes: specs, binDirectory: binDirectory)
    configuration.startsAgents = json["startsAgents"]?.boolValue ?? true
    configuration.usesAPIServer = json["usesAPIServer"]?.boolValue ?? false
    configuration.hasControllers = json["hasControllers"]?.boolValue ?? false
    configuration.engine = json["engine"]?.stringValue ?? configuration.engine
    configuration.socketLB = json["socketLB"]?.stringValue
    configuration.agentArguments = json["agentArguments"]?.arrayValue?.compactMap(\.stringValue) ?? []
    return configuration
  }

  func loadPods(of node: String) throws -> [LabPod] {
    let folder = podDirectory(of: node)
    return try Files.names(in: folder).filter { $0.hasSuffix(".json") && !$0.hasPrefix(".") }.compactMap { name in
      try Files.text("\(folder)/\(name)").flatMap { LabPod(json: try JSONValue(parsing: $0)) }
    }
  }

  /// Ends everything the lab runs and removes everything it left. Succeeds also when there is nothing.
  func removeEverything() throws {
    var tries = 0
    while true {
      try controlGroup.killAll()
      // What was just being started when its lab was killed may still join the group: then once more.
      do {
        try controlGroup.remove()
        break
      } catch {
        tries += 1
        guard tries < 5 else { throw error }
      }
    }
    Files.removeTree(directory)
    // The common folders go with the last lab.
    rmdirIfEmpty(Self.root)
    rmdirIfEmpty(try ControlGroup.ofAllLabs().path)
  }
}
