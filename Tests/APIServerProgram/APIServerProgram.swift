import APIServerDouble
import ArgumentParser
import Foundation
import LocalAPI

/// The API server of labs: serves what stands in a folder of manifests.
@main
struct APIServerProgram: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apiserver-double", abstract: "An API server for tests, over a folder of manifests.")

  @Option(help: "Address to listen on.") var host = "127.0.0.1"
  @Option(help: "Port to listen on.") var port = 6443
  @Option(help: "Folder of manifests to serve.") var manifests: String
  @Option(help: "Folder for certificates, token and kubeconfig.") var folder: String
  @Option(help: "Seed of faults at random, until there is a file 'calm' in the folder; 'faults' there tells them.")
  var faults: UInt64?
  @Option(
    help: """
      The lab whose pods are run by what stands here: of its manifests only nodes count, controllers turn, and kubectl may \
      change everything.
      """)
  var lab: String?
  @Option(help: "The program that runs the lab's pods.") var dpctl = "dpctl"

  func run() async throws {
    try LocalFile.createDirectories(folder)
    let token = UUID().uuidString
    let certificates = try TestCertificates(folder: folder, address: host)
    try LocalFile.replace("\(folder)/token", with: Array(token.utf8))
    var options = APIServerDouble.Options()
    options.certificate = certificates.serverCertificate
    options.key = certificates.serverKey
    options.clientAuthorities = certificates.authorities
    options.tokens = [token]
    options.host = host
    options.runsPods = lab != nil
    let double = APIServerDouble(options, faults: Faults(seed: faults ?? 0))
    var mirror = ManifestMirror(folder: manifests, store: double.store, kinds: lab == nil ? ServedKind.all : [.node])
    double.store.addDefaultNamespace()
    mirror.update()
    var controllers = lab.map { _ in ClusterControllers(double.store) }
    let runner = lab.map { PodRunner(store: double.store, dpctl: dpctl, lab: $0) }
    _ = try await double.start(port: port)
    // Last: who waits for it may go on.
    try LocalFile.replace("\(folder)/kubeconfig", with: Array(kubeconfig(certificates).utf8))
    var turns = 0
    var told: String?
    while true {
      try await Task.sleep(for: .milliseconds(10))
      // Read before: what was written earlier is seen by this look.
      let barrier = try LocalFile.read("\(folder)/barrier").map { String(decoding: $0, as: UTF8.self) }
      mirror.update()
      controllers?.turn()
      runner?.turn()
      if let barrier, barrier != told {
        told = barrier
        try LocalFile.replace("\(folder)/version", with: Array("\(barrier) \(double.store.announce())".utf8))
      }
      turns += 1
      if faults != nil, turns % 100 == 0 { try misbehave(double, second: turns / 100) }
    }
  }

  /// Once a second.
  private func misbehave(_ double: APIServerDouble, second: Int) throws {
    let isCalm = access("\(folder)/calm", F_OK) == 0
    var rates = Faults.manyOfEach
    // A real agent waits after each: more of what ends a watch, or there would be few.
    (rates[.expiredWatch], rates[.cutMidFrame]) = (500, 500)
    double.faults.set(isCalm ? [:] : rates)
    if !isCalm {
      // A storm: nobody's version is known any more.
      if second % 7 == 0 { double.store.compact(keeping: 0) }
      if second % 11 == 0 {
        let token = UUID().uuidString
        double.setTokens([token])
        try LocalFile.replace("\(folder)/token", with: Array(token.utf8))
      }
    }
    var told = double.faults.counts.map { "\($0.key) \($0.value)" }.sorted()
    told.append("token rotations \(second / 11)")
    let text = "\(double.faults.total + second / 11) faults: \(told.joined(separator: ", "))\n"
    try LocalFile.replace("\(folder)/faults", with: Array(text.utf8))
  }

  private func kubeconfig(_ certificates: TestCertificates) -> String {
    """
    apiVersion: v1
    kind: Config
    current-context: lab
    contexts:
    - name: lab
      context: {cluster: lab, user: agent}
    clusters:
    - name: lab
      cluster:
        server: https://\(host.contains(":") ? "[\(host)]" : host):\(port)
        certificate-authority: ca.crt
    users:
    - name: agent
      user:
        tokenFile: token

    """
  }
}
