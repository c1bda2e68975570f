import ArgumentParser
import Lab

struct LabDemoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "demo",
    abstract: "Two nodes, a small shop, requests through its Services, a policy, a scale-down; then nothing is left.")

  @Option(name: .long, help: "The lab's name.")
  var name = "demo"
  @Option(name: .long, help: "The agents' engine: nftables or ebpf.")
  var engine = "nftables"
  @Option(
    name: .long,
    help: "Milliseconds after which a pod that leaves must get no new request; an emulated machine needs more.")
  var grace = 300
  @OptionGroup var binaries: LabBinaries
  @Option(name: .long, help: "The shop's Services. Default: deploy/lab/shop.yaml next to the folder of the programs.")
  var shop: String?
  @Option(name: .long, help: "Its NetworkPolicy. Default: deploy/lab/policy.yaml beside it.")
  var policy: String?

  func run() throws {
    let binDirectory = try binaries.directory()
    let folder = "\(binDirectory)/../deploy/lab"
    let shop = try LabBinary.readText(shop ?? "\(folder)/shop.yaml")
    let policy = try LabBinary.readText(policy ?? "\(folder)/policy.yaml")
    var configuration = LabConfiguration(name: name, nodes: 2, binDirectory: binDirectory)
    configuration.engine = engine
    let lab = try Lab(configuration)
    _ = LabSignals(interrupting: lab)
    let demo = LabDemo(lab: lab, shop: shop, policy: policy, grace: .milliseconds(grace))
    guard try demo.run() else { throw ExitCode(1) }
  }
}
