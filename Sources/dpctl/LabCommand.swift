// `dpctl lab`: a cluster in namespaces, brought up, looked at, used, and removed.
import ArgumentParser
import Glibc
import Lab

struct LabCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "lab",
    abstract: "A cluster in namespaces on this machine.",
    discussion: """
      Nodes are network and mount namespaces with an agent each, joined by a switch; a client stands outside the \
      cluster. The machine's own network is not touched, and `dpctl lab down` leaves nothing behind.
      """,
    subcommands: [
      LabUp.self, LabDown.self, LabStatus.self, LabExec.self, LabApply.self, LabPodCommand.self, LabDemoCommand.self,
      LabHold.self, LabServe.self, LabProbe.self, LabMatrix.self,
    ])
}

struct LabName: ParsableArguments {
  @Option(name: .long, help: "The lab's name; labs of different names stand side by side.")
  var name = "default"
}

struct LabBinaries: ParsableArguments {
  @Option(name: .long, help: "The folder of dpctl, sluice and sluice-agent. Default: where this dpctl is.")
  var binDir: String?

  func directory() throws -> String { try binDir ?? LabBinary.ownDirectory() }
}

struct LabUp: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "up", abstract: "Bring a lab up.")

  @Option(name: .long, help: "How many nodes (1 to 100).")
  var nodes = 2
  @OptionGroup var name: LabName
  @OptionGroup var binaries: LabBinaries
  @Option(name: .long, help: "The agents' engine.")
  var engine = "nftables"
  @Option(name: .long, help: "Whose connections are translated at the socket: off, host or all.")
  var socketLb: String?
  @Flag(name: .customLong("no-agents"), help: "Start no agents; pods are attached by the plugin alone.")
  var noAgents = false
  @Flag(name: .long, help: "The agents follow an API server for tests, which serves the lab's manifests.")
  var apiServer = false
  @Flag(
    name: .long,
    help: "With --api-server: kubectl changes the API server's objects, Deployments and Services are acted upon.")
  var controllers = false
  @Flag(name: .long, help: "Stay until Ctrl-C, then take the lab down.")
  var foreground = false

  func validate() throws {
    if controllers, !apiServer { throw ValidationError("--controllers: needs --api-server") }
  }

  func run() throws {
    var configuration = LabConfiguration(name: name.name, nodes: nodes, binDirectory: try binaries.directory())
    configuration.startsAgents = !noAgents
    configuration.engine = engine
    configuration.socketLB = socketLb
    configuration.usesAPIServer = apiServer
    configuration.hasControllers = controllers
    let lab = try Lab(configuration)
    let signals = LabSignals(interrupting: lab)
    let begin = monotonicNanoseconds()
    try lab.up()
    let milliseconds = (monotonicNanoseconds() - begin) / 1_000_000
    print("lab \(lab.name): \(nodes) nodes up in \(milliseconds) ms; manifests in \(lab.manifestsDirectory)")
    guard foreground else {
      print("try: dpctl lab status, dpctl lab exec node1 -- ip address, dpctl lab down")
      return
    }
    print("Ctrl-C takes it down")
    signals.wait()
    try lab.down()
    print("lab \(lab.name) is gone")
  }
}

struct LabDown: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "down", abstract: "Remove a lab, also what a crashed one left behind.")

  @OptionGroup var name: LabName
  @Flag(name: .long, help: "All labs of this machine.")
  var all = false

  func run() throws {
    let existing = try Lab.allNames()
    for lab in all ? existing : [name.name] {
      try Lab.down(lab)
      print(existing.contains(lab) ? "lab \(lab) is gone" : "there is no lab \(lab)")
    }
    if all, existing.isEmpty { print("there is no lab") }
  }
}

struct LabStatus: ParsableCommand {
  static let configuration = CommandConfiguration(commandName: "status", abstract: "Show nodes, agents and pods.")

  @OptionGroup var name: LabName

  func run() throws {
    let lab = try Lab(attachingTo: name.name)
    print("lab \(lab.name), manifests \(lab.manifestsDirectory)")
    for (index, node) in lab.configuration.nodes.enumerated() {
      let addresses = LabAddresses.node(index).map(\.description).joined(separator: " ")
      let agent = lab.agentProcessID(node.name).map { "agent pid \($0)" } ?? "no agent"
      print("node \(node.name)  \(node.zone)  \(addresses)  \(agent)")
    }
    for pod in lab.pods {
      let addresses = pod.addresses.map(\.description).joined(separator: " ")
      let condition = pod.isTerminating ? "terminating" : pod.isReady ? "ready" : "not ready"
      print("pod \(pod.name)  \(pod.node)  \(addresses)  \(condition)")
    }
  }
}

struct LabExec: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "exec", abstract: "Run a program in a place of the lab.",
    usage: "dpctl lab exec [--name <name>] <target> -- <command> ...")

  @OptionGroup var name: LabName
  @Argument(help: "A node's name, namespace/pod, client, or switch.")
  var target: String
  @Argument(parsing: .postTerminator, help: "The program and its arguments.")
  var command: [String] = []

  func validate() throws {
    if command.isEmpty { throw ValidationError("Missing the command: dpctl lab exec node1 -- ip address") }
  }

  func run() throws {
    try Lab(attachingTo: name.name).become(in: LabTarget(target), command)
  }
}

struct LabApply: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apply", abstract: "Put a file of YAML into the lab's manifests, with its Services' endpoints.")

  @OptionGroup var name: LabName
  @Argument(
    help: "The file. One of the same name is replaced.", completion: .file(extensions: ["yaml", "yml", "json"]))
  var file: String

  func run() throws {
    let lab = try Lab(attachingTo: name.name)
    try lab.apply(String(file.split(separator: "/").last ?? ""), try LabBinary.readText(file))
  }
}
