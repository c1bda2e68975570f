import ArgumentParser
import BPFLoader
import DataplaneModel
import Glibc
import Netlink

/// Whose connections to Services are translated at their socket.
enum SocketLB: String, Sendable, CaseIterable, ExpressibleByArgument {
  /// Nobody's: all by packets.
  case off
  /// The node's own processes.
  case host
  /// And its pods.
  case all
}

extension SocketLB {
  static let defaultFolder = "/sys/fs/bpf/sluice"

  /// Loads what the configuration asks for. What an earlier agent left goes once this one serves (`PacketPath`).
  static func start(_ configuration: AgentConfiguration) throws -> SocketBalancer? {
    guard configuration.socketLB != .off else { return nil }
    try BPFFileSystem.mount(for: configuration.bpffs)
    return try SocketBalancer(
      pins: try PinFolder(configuration.bpffs), cgroup: try configuration.cgroup ?? BPFFileSystem.cgroupRoot(),
      hostCookie: try NamespaceCookie.of(.current), servesPods: configuration.socketLB == .all,
      bounds: configuration.mapBounds)
  }

  static func removeLeftOvers(_ folder: String) throws {
    guard BPFFileSystem.isMounted(folder) else { return }
    try PacketEngine.cleanUp(try PinFolder(folder))
  }
}
