import BPFLoader
import Foundation
import Glibc
import LocalAPI
import Logging
import Netlink

/// `sluice-agent --prepare`: what a node needs once, and what takes more rights than the agent has while it runs. It does no
/// harm beside an agent that runs.
enum NodePreparation {
  /// - Parameters:
  ///   - cniBinDir: where the plugin that stands beside this program goes; nil: nowhere.
  ///   - bpffs: a folder in the BPF file system that is mounted where there is none.
  static func run(stateDir: String, bpffs: String, cniBinDir: String?, logger: Logger) throws {
    try LocalFile.createDirectories(stateDir)
    try BPFFileSystem.mount(for: bpffs)
    // Whoever asks for an entry has the kernel load conntrack, and with it the settings there are of it.
    _ = try? ConntrackSocket().entries(matching: ConntrackFilter(family: .v4, protocolNumber: 255))
    for warning in NodeSettings(savedPath: stateDir + "/sysctls.json").apply() {
      logger.warning("kernel setting", metadata: ["error": "\(warning)"])
    }
    if let cniBinDir { try installPlugin(in: cniBinDir) }
    logger.info("node prepared", metadata: ["plugin": "\(cniBinDir.map { $0 + "/" + plugin } ?? "not installed")"])
  }

  private static let plugin = "sluice"

  private static func data(_ path: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: path)) }

  /// By a rename, as the runtime may be about to run the old one.
  private static func installPlugin(in directory: String) throws {
    var own = [CChar](repeating: 0, count: Int(PATH_MAX))
    let length = readlink("/proc/self/exe", &own, own.count)
    let path = String(decoding: own.prefix(max(length, 0)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    guard let slash = path.lastIndex(of: "/"), let new = try? data(path[...slash] + plugin) else {
      throw LocalAPIRefusal("--cni-bin-dir: there is no '\(plugin)' beside this program to install")
    }
    let target = "\(directory)/\(plugin)"
    guard (try? data(target)) != new else { return }
    umask(0o022)
    try LocalFile.replace(target, with: Array(new), mode: 0o755)
  }
}
