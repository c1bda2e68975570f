import LocalAPI
import NetworkTypes

/// A pod of the lab: what was asked for, and what has become of it.
public struct LabPod: Sendable, Hashable {
  public var spec: PodSpec
  public var uid: String
  public var containerID: String
  /// One of each family, once attached.
  public var addresses: [IPAddress] = []
  public var isReady = false
  /// Asked to go: endpoints say terminating, and `isServing` instead of ready.
  public var isTerminating = false
  public var isServing = false
  /// Out of the endpoints for good: what is left is to end it.
  public var isGone = false
  /// The plugin's last result, for CHECK and DEL.
  var cniResult: JSONValue?

  public var name: PodName { spec.pod }
  public var node: String { spec.node }
  public func address(_ family: IPFamily) -> IPAddress? { addresses.first { $0.family == family } }

  init(spec: PodSpec, uid: String, containerID: String) {
    self.spec = spec
    self.uid = uid
    self.containerID = containerID
  }

  /// `portMappings` as containerd sends them: by the names of Go's fields.
  var portMappings: [JSONValue] {
    spec.ports.compactMap { port in
      port.hostPort.map { hostPort in
        [
          "HostPort": .int(Int64(hostPort.port.number)), "ContainerPort": .int(Int64(port.port.number)),
          "Protocol": .string(port.protocol.description), "HostIP": .string(hostPort.address?.description ?? ""),
        ]
      }
    }
  }

  /// Inside its node.
  var netnsPath: String { "/run/netns/\(containerID)" }

  // MARK: State file

  var json: JSONValue {
    let ports: [JSONValue] = spec.ports.map {
      [
        "name": .string($0.name), "protocol": .string($0.protocol.kubernetesName), "port": .int(Int64($0.port.number)),
        "service": .string($0.service.rawValue), "hostPort": $0.hostPort.map { .int(Int64($0.port.number)) } ?? .null,
        "hostIP": $0.hostPort?.address.map { .string($0.description) } ?? .null,
      ]
    }
    return [
      "namespace": .string(name.namespace), "name": .string(name.name), "node": .string(node), "uid": .string(uid),
      "containerID": .string(containerID), "labels": ObjectManifests.strings(spec.labels),
      "ports": .array(ports), "command": spec.command.map { .array($0.map { .string($0) }) } ?? .null,
      "addresses": .array(addresses.map { .string($0.description) }), "ready": .bool(isReady),
      "terminating": .bool(isTerminating), "serving": .bool(isServing), "gone": .bool(isGone),
      "cniResult": cniResult ?? .null,
    ]
  }

  /// nil where the file is not one of ours.
  init?(json: JSONValue) {
    guard let namespace = json["namespace"]?.stringValue, let name = json["name"]?.stringValue,
      let node = json["node"]?.stringValue, let uid = json["uid"]?.stringValue,
      let containerID = json["containerID"]?.stringValue
    else { return nil }
    let ports = (json["ports"]?.arrayValue ?? []).compactMap { port -> PodPort? in
      guard let name = port["name"]?.stringValue, let number = port["port"]?.intValue.flatMap({ Port($0) }),
        let transport = port["protocol"]?.stringValue.flatMap({ L4Protocol(kubernetesName: $0) })
      else { return nil }
      let hostPort = port["hostPort"]?.intValue.flatMap { Port($0) }.map {
        PodPort.HostPort($0, at: port["hostIP"]?.stringValue.flatMap { IPAddress($0) })
      }
      return PodPort(
        name, transport, number, service: port["service"]?.stringValue.flatMap { PodPort.Service(rawValue: $0) },
        hostPort: hostPort)
    }
    let labels = (json["labels"]?.objectValue).map { object in
      Dictionary(object.compactMap { member in member.value.stringValue.map { (member.key, $0) } }) { $1 }
    }
    let spec = PodSpec(
      namespace, name, node: node, labels: labels ?? [:], ports: ports,
      command: json["command"]?.arrayValue?.compactMap(\.stringValue))
    self.init(spec: spec, uid: uid, containerID: containerID)
    addresses = (json["addresses"]?.arrayValue ?? []).compactMap { $0.stringValue.flatMap { IPAddress($0) } }
    isReady = json["ready"]?.boolValue ?? false
    isTerminating = json["terminating"]?.boolValue ?? false
    isServing = json["serving"]?.boolValue ?? false
    isGone = json["gone"]?.boolValue ?? false
    cniResult = json["cniResult"].flatMap { $0.isNull ? nil : $0 }
  }
}
