import BPFLoader
import DataplaneModel
import Netlink
import NetworkTypes

/// Services at the socket, beside the packet path and never in its way: where sockets cannot be served, connections go by
/// packets, and pods start all the same.
extension Reconciler {
  func applyToSockets(_ delta: TableDelta) -> ApplyReport {
    guard sockets != nil, !socketsNeedResync else { return ApplyReport() }
    do {
      return try sockets?.apply(delta, tables: tables) ?? ApplyReport()
    } catch {
      socketsFailed(error)
      return ApplyReport()
    }
  }

  /// Makes maps and links equal to the tables.
  func resyncSockets(_ why: String) {
    do {
      guard let (report, drift) = try sockets?.resync(tables) else { return }
      count(report)
      socketsNeedResync = false
      socketResyncDelay = .milliseconds(100)
      socketFailure = nil
      if why != "first sync", !drift.isEmpty {
        metrics.repairs += 1
        metrics.drift += drift.count
        logger.warning("sockets repaired", metadata: ["why": "\(why)", "objects": "\(drift.count)"])
        for object in drift.prefix(20) { logger.warning("repaired", metadata: ["object": "\(object)"]) }
      }
      Task { await socketSweeper.sweep(nil, for: self) }
    } catch {
      socketsNeedResync = false
      socketResyncDelay = min(socketResyncDelay * 2, .seconds(30))
      socketsFailed(error)
    }
  }

  private func socketsFailed(_ error: any Error) {
    metrics.transactionFailures += 1
    socketFailure = "\(error)"
    logger.error("sockets cannot be served, it will be tried again", metadata: ["error": "\(error)"])
    guard !socketsNeedResync else { return }
    socketsNeedResync = true
    nextSocketResync = clock.now + socketResyncDelay
  }

  /// What time brings.
  func tickSockets() {
    guard isSynced, sockets != nil, socketsNeedResync, clock.now >= nextSocketResync else { return }
    resyncSockets("a change failed")
  }

  func verifySockets() {
    guard sockets != nil, !socketsNeedResync else { return }
    do {
      if try sockets?.verify(tables).isEmpty == false { resyncSockets("a periodic comparison found differences") }
    } catch {
      socketsFailed(error)
    }
  }

  // MARK: Sockets that stay behind

  /// Whose sockets may be translated: also those of pods that were served before, and are not any more.
  func socketNamespaces() -> [NetworkNamespace] {
    endpoints.values.map { NetworkNamespace(path: $0.netnsPath) }
  }

  /// Whether anything of ours is in BPF maps.
  nonisolated var usesMaps: Bool { configuration.engine == .ebpf || configuration.socketLB != .off }

  /// Sockets are served, beside the packet path or by it.
  private var servesSockets: Bool { sockets != nil || (engine is PacketEngine && configuration.socketLB != .off) }

  private func requestedPeer(cookie: UInt64) throws -> SocketAddress? {
    if let sockets { return try sockets.requestedPeer(cookie: cookie) }
    return try (engine as? PacketEngine)?.requestedPeer(cookie: cookie)
  }

  /// Packets of the node's own sockets are not translated: one that asked for a Service before there was one, and would
  /// send into the void.
  private var translatesOnlySockets: Bool { engine is PacketEngine && configuration.socketLB != .off }

  private func udpFrontends(_ address: SocketAddress) -> [FrontendKey] {
    [FrontendAddress.address(address.address), .node(address.address.family)].map {
      FrontendKey($0, .udp, address.port)
    }
  }

  private func isFrontend(_ address: SocketAddress) -> Bool {
    let frontends = udpFrontends(address).map { tables.services.frontends[$0] }
    return frontends[0] != nil || (tables.node.nodePortAddresses.contains(address.address) && frontends[1] != nil)
  }

  /// Whether sockets talk to a backend of what they asked for; true for those that were never translated, unless that is
  /// what they need.
  ///
  /// - Parameter areNodes: the node's own, not a pod's.
  func areServed(_ connected: [ConnectedSocket], areNodes: Bool) -> [Bool] {
    connected.map { socket in
      // Where the map cannot be read nothing is known against the socket, and it lives.
      let known: SocketAddress?
      do { known = try requestedPeer(cookie: socket.cookie) } catch { return true }
      guard let told = known else { return !(areNodes && translatesOnlySockets && isFrontend(socket.peer)) }
      return udpFrontends(told).contains { key in
        guard let frontend = tables.services.frontends[key] else { return false }
        let id = BackendSetID(service: frontend.service, scope: frontend.nodeScope, family: key.destination.family)
        let set = tables.services.sets[id]
        return set?.backends.contains(socket.peer) == true || set?.draining.contains(socket.peer) == true
      }
    }
  }

  /// Has the sockets looked at that a delta may have left behind.
  func endStaleSockets(_ delta: TableDelta) {
    guard servesSockets else { return }
    var gone: Set<SocketAddress> = []
    func members(_ set: BackendSet?) -> [SocketAddress] { set.map { $0.backends + $0.draining } ?? [] }
    func isDatagram(_ service: ServicePortID) -> Bool {
      compiler.frontendKeys(of: service).contains { $0.proto == .udp }
        || delta.frontends.contains { $0.key.proto == .udp && $0.value.old?.service == service }
    }
    for (id, change) in delta.sets {
      let left = Set(members(change.old)).subtracting(members(change.new))
      if !left.isEmpty, isDatagram(id.service) { gone.formUnion(left) }
    }
    // A frontend that goes, or asks another set, leaves its backends behind.
    func leaves(_ frontend: Frontend) {
      for scope in BackendScope.allCases {
        for family in IPFamily.allCases {
          let id = BackendSetID(service: frontend.service, scope: scope, family: family)
          gone.formUnion(members(tables.services.sets[id] ?? delta.sets[id]?.old))
        }
      }
    }
    for (key, change) in delta.frontends where key.proto == .udp {
      guard let old = change.old, old.service != change.new?.service || old.nodeScope != change.new?.nodeScope else {
        continue
      }
      leaves(old)
    }
    // Rare: the one case in which the table is walked.
    if !delta.nodePortAddresses.removed.isEmpty {
      for (key, frontend) in tables.services.frontends where key.proto == .udp {
        if case .node = key.destination { leaves(frontend) }
      }
    }
    if !gone.isEmpty { Task { await socketSweeper.sweep(gone, for: self) } }
    guard translatesOnlySockets else { return }
    var new: Set<SocketAddress> = []
    for (key, change) in delta.frontends where key.proto == .udp && change.old == nil {
      switch key.destination {
      case .address(let address): new.insert(SocketAddress(address, key.port))
      case .node(let family):
        for address in tables.node.nodePortAddresses where address.family == family {
          new.insert(SocketAddress(address, key.port))
        }
      }
    }
    if !new.isEmpty { Task { await socketSweeper.sweep(new, onlyNode: true, for: self) } }
  }
}
