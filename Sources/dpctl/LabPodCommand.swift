// `dpctl lab pod`: pods of a running lab.
import ArgumentParser
import Lab
import NetworkTypes

struct LabPodCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pod", abstract: "Start and remove pods of a running lab.",
    subcommands: [LabPodAdd.self, LabPodRemove.self])
}

struct LabPodAdd: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Attach a pod with the plugin and start the built-in server in it.")

  @OptionGroup var name: LabName
  @Argument(help: "namespace/name")
  var pod: String
  @Option(name: .long, help: "The node to run on.")
  var node: String
  @Option(name: .long, parsing: .upToNextOption, help: "Labels, key=value.")
  var label: [String] = []
  @Option(
    name: .long, parsing: .upToNextOption,
    help: """
      Ports, name:tcp|udp:number[:hostPort]; a TCP port named http… answers HTTP, others greet and echo.
      """)
  var port: [String] = []
  @Option(name: .long, help: "The Pod object's uid, where an API server has one.")
  var uid: String?

  func run() throws {
    guard let podName = PodName(pod) else { throw ValidationError("\"\(pod)\" is not namespace/name") }
    var spec = PodSpec(podName.namespace, podName.name, node: node)
    for text in label {
      let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2 else { throw ValidationError("label \"\(text)\" is not key=value") }
      spec.labels[String(parts[0])] = String(parts[1])
    }
    for text in port {
      let parts = text.split(separator: ":", omittingEmptySubsequences: false)
      guard (3...4).contains(parts.count), let transport = L4Protocol(kubernetesName: parts[1].uppercased()),
        let number = Int(parts[2]).flatMap({ Port($0) })
      else { throw ValidationError("port \"\(text)\" is not name:tcp|udp:number[:hostPort]") }
      var port = PodPort(String(parts[0]), transport, number)
      if parts.count == 4 {
        guard let hostPort = Int(parts[3]).flatMap({ Port($0) }) else {
          throw ValidationError("port \"\(text)\": \"\(parts[3])\" is no port of the node")
        }
        port.hostPort = PodPort.HostPort(hostPort)
      }
      spec.ports.append(port)
    }
    spec.uid = uid
    let added = try Lab(attachingTo: name.name).addPod(spec)
    print("pod \(added.name) on \(added.node): \(added.addresses.map(\.description).joined(separator: " "))")
  }
}

struct LabPodRemove: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "remove", abstract: "Take a pod down.")

  @OptionGroup var name: LabName
  @Argument(help: "namespace/name")
  var pod: String
  @Flag(name: .long, help: "Kill it while its endpoints still say ready.")
  var now = false

  func run() throws {
    guard let podName = PodName(pod) else { throw ValidationError("\"\(pod)\" is not namespace/name") }
    try Lab(attachingTo: name.name).removePod(podName, graceful: !now)
  }
}
