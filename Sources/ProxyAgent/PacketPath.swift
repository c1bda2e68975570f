import BPFLoader
import DataplaneModel
import Logging
import NFTables
import Netlink

/// The engine that a configuration asks for.
enum PacketPath {
  static func start(_ configuration: AgentConfiguration, bounds: MapBounds) throws -> (
    engine: any NodeEngine, sockets: SocketBalancer?
  ) {
    switch configuration.engine {
    case .nftables:
      let packets =
        BPFFileSystem.isMounted(configuration.bpffs) ? try PacketFlows(try PinFolder(configuration.bpffs)) : nil
      let programsServe = try packets.map { try !$0.standsAside } ?? false
      // Tables that are still empty would hold back what kube-proxy lets through.
      let proxyServes = try !KubeProxyRemains.find().isEmpty && !NFTablesEngine().hasAwakeTable()
      var engine = try NFTablesEngine(
        markMask: configuration.conntrackMarkMask, keepsEstablished: configuration.keepsEstablished,
        ownership: configuration.ownsTables ? .owned : .shared, sleeps: programsServe || proxyServes)
      // At once, not only when everything has been read: until then anybody could still delete them.
      try engine.takeOwnership(patience: .seconds(1))
      return (engine, try SocketLB.start(configuration))
    case .ebpf:
      try BPFFileSystem.mount(for: configuration.bpffs)
      let pins = try PinFolder(configuration.bpffs)
      let sockets = try SocketBalancer(
        pins: pins, cgroup: try configuration.cgroup ?? BPFFileSystem.cgroupRoot(),
        hostCookie: try NamespaceCookie.of(.current), servesPods: configuration.socketLB == .all, isAlone: false,
        attaches: configuration.socketLB != .off, bounds: bounds)
      let engine = try PacketEngine(
        pins: pins, sockets: sockets, keepsEstablished: configuration.keepsEstablished,
        anotherServes: try NFTablesEngine().hasAwakeTable() || !KubeProxyRemains.find().isEmpty, bounds: bounds)
      return (engine, nil)
    }
  }

  /// What was asked for and this kernel cannot do; nil: nothing.
  static func lack(_ configuration: AgentConfiguration) -> String? {
    guard configuration.socketLB == .all, !NamespaceCookie.isToldToAll else { return nil }
    return "before Linux 5.14 a pod's sockets cannot be known: its connections to Services are balanced by packets, "
      + "as with --socket-lb host"
  }

  /// Has this engine serve alone, once it has its tables in the kernel: it takes over from the one that an agent with another
  /// configuration left in force, or from kube-proxy. Until then that is what keeps the node closed.
  static func takeOver(
    _ engine: inout any NodeEngine, _ tables: Tables, for configuration: AgentConfiguration, _ logger: Logger
  ) throws {
    let proxy = KubeProxyRemains(mayBeRemoved: configuration.migratesFrom == .kubeProxy, logger: logger)
    let change = EngineSwitch(conntrack: try ConntrackSocket(), tables: tables, proxy: proxy, logger: logger)
    if let packets = engine as? PacketEngine {
      try change.toPackets(packets.flows)
    } else if var own = engine as? NFTablesEngine {
      let pins = BPFFileSystem.isMounted(configuration.bpffs) ? try PinFolder(configuration.bpffs) : nil
      if let flows = try pins.flatMap({ try PacketFlows($0) }) {
        try change.toTables(&own, from: flows)
      } else {
        try own.wake()
      }
      engine = own
      // New flows meet ours already: of hooks with one priority the later comes before. So none is half-way through
      // kube-proxy's.
      proxy.remove(try proxy.removable())
      guard let pins else { return }
      if configuration.socketLB == .off { return try SocketLB.removeLeftOvers(configuration.bpffs) }
      try PacketEngine.detachAll(pins)
    }
  }
}
