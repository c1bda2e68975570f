import Glibc
import LocalAPI

/// The files the agent writes for the CNI plugin and the runtime once it serves.
enum CNIConfigFile {
  static let name = "05-sluice.conflist"

  /// Portable to every runtime: the old version first, the newer ones offered (docs/cni.md).
  static func content(socket: String, runDir: String, stateDir: String) -> JSONValue {
    [
      "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "sluice",
      "plugins": [
        [
          "type": "sluice", "mode": "routed", "capabilities": ["portMappings": true, "bandwidth": true],
          "agentSocket": .string(socket), "runDir": .string(runDir),
          "stateDir": .string(stateDir), "ipam": ["type": "sluice"],
        ]
      ],
    ]
  }

  /// Writes by rename within the folder: a runtime's watcher must see it arrive, whole.
  static func install(in directory: String, _ content: JSONValue) throws {
    try LocalFile.createDirectories(directory)
    let path = "\(directory)/\(name)"
    let bytes = Array((content.serialized(pretty: true) + "\n").utf8)
    guard try LocalFile.read(path) != bytes else { return }
    try LocalFile.replace(path, with: bytes, mode: 0o644)
  }

  static func publish(_ facts: NodeFacts, runDir: String) throws {
    let path = runDir + "/node.json"
    let bytes = Array((facts.json.serialized() + "\n").utf8)
    guard try LocalFile.read(path) != bytes else { return }
    try LocalFile.replace(path, with: bytes, mode: 0o644)
  }
}
