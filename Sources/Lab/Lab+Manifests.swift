// The folder of manifests: what users apply, and what the endpoint slice controller makes of it.
import Glibc
import LocalAPI

extension Lab {
  /// Writes a file of YAML into the folder, replacing one of the same name, and the EndpointSlices of its Services.
  ///
  /// A file that is no valid YAML is written all the same: reporting it is the agent's part.
  public func apply(_ manifestName: String, _ yaml: String) throws {
    let file = try Self.fileName(manifestName)
    try members.withLock { members in
      let services = (try? LabService.read(yaml: yaml, file: file)) ?? []
      let before = members.withServices { $0.updateValue(services, forKey: file) ?? [] }
      try Files.replace("\(state.manifests)/\(file)", yaml)
      let gone = Set(before.map(\.name)).subtracting(services.map(\.name))
      for name in gone { removeSlices(of: name) }
      for service in services {
        try ensureNamespace(service.name.namespace, &members)
        try publish(service, members)
      }
    }
  }

  /// Removes a file and the EndpointSlices of the Services in it. Succeeds also when there is no such file.
  public func removeManifest(_ manifestName: String) throws {
    let file = try Self.fileName(manifestName)
    members.withLock { members in
      let gone = members.withServices { $0.removeValue(forKey: file) ?? [] }
      unlink("\(state.manifests)/\(file)")
      for service in gone { removeSlices(of: service.name) }
    }
  }

  /// Changes a Namespace's labels; `kubernetes.io/metadata.name` is always among them.
  public func setLabels(ofNamespace name: String, _ labels: [String: String]) throws {
    try LabConfiguration.validate("namespace", name)
    try members.withLock { members in
      members.namespaces.insert(name)
      try writeManifest("namespace_\(name)", [ObjectManifests.namespace(name, labels: labels)])
    }
  }

  private static func fileName(_ name: String) throws(LabError) -> String {
    guard !name.isEmpty, !name.hasPrefix("."), !name.contains("/") else {
      throw .invalid(field: "manifest name", value: name, reason: "is no file name")
    }
    return name.hasSuffix(".yaml") || name.hasSuffix(".yml") || name.hasSuffix(".json") ? name : "\(name).yaml"
  }

  /// Writes objects of the lab's own.
  func writeManifest(_ name: String, _ objects: [JSONValue]) throws {
    try Files.replace("\(state.manifests)/\(name).yaml", YAML.documents(objects))
  }

  func ensureNamespace(_ name: String, _ members: inout Members) throws {
    guard members.namespaces.insert(name).inserted else { return }
    try writeManifest("namespace_\(name)", [ObjectManifests.namespace(name)])
  }

  /// Rewrites the slices of all Services that select the pod.
  func publishServices(selecting pod: LabPod, _ members: inout Members) throws {
    let services = members.withServices { $0.values.joined().filter { $0.selects(pod) } }
    for service in services { try publish(service, members) }
  }

  private func publish(_ service: LabService, _ members: Members) throws {
    guard !service.selector.isEmpty else { return }
    let zones = Dictionary(configuration.nodes.map { ($0.name, $0.zone) }) { $1 }
    let slices = SliceController.slices(of: service, pods: Array(members.pods.values), zones: zones)
    try writeManifest(Self.slicesName(service.name), slices)
  }

  private func removeSlices(of service: PodName) {
    unlink("\(state.manifests)/\(Self.slicesName(service)).yaml")
  }

  /// Underscores occur in no object's name, so these are unambiguous and clash with no user's file of an object's name.
  private static func slicesName(_ service: PodName) -> String { "slices_\(service.namespace)_\(service.name)" }
}
