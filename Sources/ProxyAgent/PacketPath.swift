import BPFLoader
import DataplaneModel
import NFTables
import Netlink

/// The engine that a configuration asks for.
enum PacketPath {
  static func start(_ configuration: AgentConfiguration) throws -> (engine: any NodeEngine, sockets: SocketBalancer?) {
    switch configuration.engine {
    case .nftables:
      var engine = try NFTablesEngine(
        markMask: configuration.conntrackMarkMask, keepsEstablished: configuration.keepsEstablished,
        ownership: configuration.ownsTables ? .owned : .shared)
      // At once, not only when everything has been read: until then anybody could still delete them.
      try engine.takeOwnership(patience: .seconds(1))
      return (engine, try SocketLB.start(configuration))
    case .ebpf:
      try BPFFileSystem.mount(for: configuration.bpffs)
      let pins = try PinFolder(configuration.bpffs)
      let sockets = try SocketBalancer(
        pins: pins, cgroup: try configuration.cgroup ?? BPFFileSystem.cgroupRoot(),
        hostCookie: try NetworkNamespace.current.cookie(), servesPods: configuration.socketLB == .all, isAlone: false,
        attaches: configuration.socketLB != .off)
      let engine = try PacketEngine(pins: pins, sockets: sockets, keepsEstablished: configuration.keepsEstablished)
      return (engine, nil)
    }
  }

  /// Removes what another engine left, once this one serves: two would judge each packet twice.
  static func removeOthers(than configuration: AgentConfiguration) throws {
    switch configuration.engine {
    case .nftables:
      guard BPFFileSystem.isMounted(configuration.bpffs) else { return }
      try PacketEngine.detachAll(try PinFolder(configuration.bpffs))
    case .ebpf:
      var other = try NFTablesEngine()
      try other.cleanUp()
    }
  }
}
