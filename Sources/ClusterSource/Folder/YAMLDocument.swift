import KubernetesObjects

/// One YAML document as a neutral tree: for config files, which follow the manifests' rules (duplicate keys and syntax
/// errors are refused with their line). An empty document is an empty mapping.
public func parseYAMLDocument(_ bytes: [UInt8]) throws -> ManifestNode {
  try YAMLReader.documents(in: bytes[...], firstLine: 1).first ?? .mapping([], line: 1)
}

/// All documents of a file that is small enough to be held whole.
package func parseYAMLDocuments(_ bytes: [UInt8]) throws -> [ManifestNode] {
  try YAMLReader.documents(in: bytes[...], firstLine: 1)
}
