import Glibc
import LocalAPI

/// The network configuration of a node, as libcni reads it.
struct NetworkConfiguration {
  var name: String
  var version: String
  var plugins: [JSONObject]

  /// The newest spec version this runtime speaks.
  private static let supportedVersions = ["0.4.0", "1.0.0", "1.1.0"]

  init(text: String, file: String) throws {
    let json: JSONValue
    do {
      json = try JSONValue(parsing: text)
    } catch {
      throw LabError.manifest(file: file, reason: "\(error)")
    }
    guard let name = json["name"]?.stringValue, let plugins = json["plugins"]?.arrayValue else {
      throw LabError.manifest(file: file, reason: "name or plugins is missing")
    }
    self.name = name
    self.plugins = plugins.compactMap(\.objectValue)
    // The newest of those that the file offers and the runtime speaks, as libcni >= 1.2 chooses.
    let offered = (json["cniVersions"]?.arrayValue ?? []).compactMap(\.stringValue)
    let own = json["cniVersion"]?.stringValue ?? "0.1.0"
    version = Self.supportedVersions.last { (offered + [own]).contains($0) } ?? own
  }

  /// What one plugin of the chain gets on its standard input.
  ///
  /// - Parameter pod: what it wants of the runtime is told to those that have the capability.
  func input(for plugin: JSONObject, of pod: LabPod, previous: JSONValue?) -> JSONValue {
    var object = plugin
    var wishes = JSONObject()
    let mappings = pod.portMappings
    if !mappings.isEmpty { wishes["portMappings"] = .array(mappings) }
    wishes["bandwidth"] = pod.spec.bandwidth?.json
    let meant = wishes.filter { plugin["capabilities"]?[$0.key] == true }
    if !meant.isEmpty { object["runtimeConfig"] = .object(JSONObject(meant.map { ($0.key, $0.value) })) }
    object["capabilities"] = nil
    object["name"] = .string(name)
    object["cniVersion"] = .string(version)
    if let previous { object["prevResult"] = previous }
    return .object(object)
  }
}

extension Lab {
  private static let configurationDirectory = "/etc/cni/net.d"
  private static let pluginDirectory = "/opt/cni/bin"

  /// The file a runtime would use: lexically first, from this process's point of view. nil while there is none.
  func networkConfigurationFile(on node: String) throws -> String? {
    let folder = try path(Self.configurationDirectory, on: node)
    return Files.names(in: folder).first { $0.hasSuffix(".conflist") && !$0.hasPrefix(".") }.map { "\(folder)/\($0)" }
  }

  private func networkConfiguration(on node: String) throws -> NetworkConfiguration {
    guard let file = try networkConfigurationFile(on: node), let text = Files.text(file) else {
      let name = "\(Self.configurationDirectory)/*.conflist on \(node)"
      throw LabError.unknown(kind: "network configuration", name: name)
    }
    return try NetworkConfiguration(text: text, file: file)
  }

  /// For nodes without an agent: the plugin alone, with this node's ranges.
  func writeStaticNetworkConfiguration(node: String, index: Int) throws {
    let configuration: JSONValue = [
      "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "sluice",
      "plugins": [
        [
          "type": "sluice", "mode": "routed", "requireAgent": false,
          "ipam": [
            "type": "sluice",
            "ranges": .array(LabAddresses.podCIDRs(index).map { [["subnet": .string($0.description)]] }),
          ],
        ]
      ],
    ]
    let file = try path("\(Self.configurationDirectory)/05-sluice.conflist", on: node)
    try Files.replace(file, configuration.serialized(pretty: true) + "\n")
  }

  /// ADD of the whole chain; the last plugin's result.
  func attach(_ pod: LabPod) throws -> JSONValue {
    let configuration = try networkConfiguration(on: pod.node)
    var result: JSONValue?
    for plugin in configuration.plugins {
      let answer = try invoke("ADD", plugin, configuration, pod, previous: result)
      guard answer.status == 0, let json = try? JSONValue(parsing: answer.stdout) else {
        throw LabError.plugin(command: "ADD", pod: "\(pod.name)", answer: Self.words(of: answer))
      }
      result = json
    }
    return result ?? .null
  }

  /// DEL of the whole chain, last plugin first, as often as one likes.
  func detach(_ pod: LabPod) throws {
    let configuration = try networkConfiguration(on: pod.node)
    for plugin in configuration.plugins.reversed() {
      let answer = try invoke("DEL", plugin, configuration, pod, previous: pod.cniResult)
      guard answer.status == 0 else {
        throw LabError.plugin(command: "DEL", pod: "\(pod.name)", answer: Self.words(of: answer))
      }
    }
  }

  /// CHECK of the whole chain: throws the plugin's answer where something of the attachment is missing.
  public func checkAttachment(_ name: PodName) throws {
    let pod = try pod(name)
    let configuration = try networkConfiguration(on: pod.node)
    for plugin in configuration.plugins {
      let answer = try invoke("CHECK", plugin, configuration, pod, previous: pod.cniResult)
      guard answer.status == 0 else {
        throw LabError.plugin(command: "CHECK", pod: "\(name)", answer: Self.words(of: answer))
      }
    }
  }

  private static func words(of answer: ExecResult) -> String {
    let text = answer.stdout + answer.stderr
    return "status \(answer.status): \(text.split(separator: "\n").joined(separator: " ").prefix(500))"
  }

  /// Executes one plugin exactly as a runtime does.
  private func invoke(
    _ command: String, _ plugin: JSONObject, _ configuration: NetworkConfiguration, _ pod: LabPod,
    previous: JSONValue?
  ) throws -> ExecResult {
    guard let type = plugin["type"]?.stringValue else {
      throw LabError.invalid(field: "plugins[].type", value: "", reason: "is missing")
    }
    let arguments = [
      "IgnoreUnknown=1", "K8S_POD_NAMESPACE=\(pod.name.namespace)", "K8S_POD_NAME=\(pod.name.name)",
      "K8S_POD_INFRA_CONTAINER_ID=\(pod.containerID)", "K8S_POD_UID=\(pod.uid)",
    ]
    return try ChildProcess.run(
      ["\(Self.pluginDirectory)/\(type)"], name: "CNI \(command) of \(pod.name)",
      in: try surroundings(of: .node(pod.node)),
      environment: [
        "CNI_COMMAND": command, "CNI_CONTAINERID": pod.containerID, "CNI_NETNS": pod.netnsPath, "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments.joined(separator: ";"), "CNI_PATH": Self.pluginDirectory,
      ], input: Array(configuration.input(for: plugin, of: pod, previous: previous).serialized().utf8),
      milliseconds: 30_000)
  }
}
