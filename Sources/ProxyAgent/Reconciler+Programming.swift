import BPFLoader
import CLinux
import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import Logging
import NFTables
import Netlink
import NetworkTypes
import PolicyCompiler
import ServiceCompiler

/// From changes to the kernel: apply, repair, compare.
extension Reconciler {
  func firstSync() {
    let start = clock.now
    let delta = compiler.compile(state.services.keys, in: state, tables: tables)
    tables.apply(delta)
    _ = readOwnAddresses()
    var hostPorts = TableDelta()
    compileHostPorts(of: endpoints.values.flatMap(\.portMappings), into: &hostPorts)
    tables.apply(hostPorts)
    compiler.numbering.sync()
    compiler.forgetInheritedSlots()
    var everything = ChangeEffect()
    everything.nodes = Array(state.nodes.keys)
    everything.namespaces = Array(state.namespaces.keys)
    everything.pods = Array(state.pods.keys)
    everything.networkPolicies = Array(state.networkPolicies.keys)
    let locals: [String: LocalPod?] = Dictionary(
      endpoints.values.map { ($0.hostInterface, .some(LocalPod($0))) }
    ) { $1 }
    let policy = policies.compile(everything, endpoints: locals, in: state, tables: tables)
    _ = policies.takeReusedAddresses()
    clauses.note(policy)
    tables.apply(policy)
    let node = nodeDelta()
    tables.apply(node)
    isSynced = true
    let compiled = clock.now
    tellOfClosedSubjects()
    resync("first sync")
    resyncSockets("first sync")
    updateRoutes()
    updateHealthChecks()
    giveMemoryBack()
    logger.info(
      "ready",
      metadata: [
        "services": "\(state.services.count)", "slices": "\(state.endpointSliceCount)",
        "pods": "\(state.pods.count)", "policies": "\(state.networkPolicies.count)",
        "compiled": "\(milliseconds(compiled - start))", "programmed": "\(milliseconds(clock.now - start))",
        "since-first-object": "\(milliseconds(clock.now - (firstHeard ?? start)))",
      ])
    reportConflicts()
  }

  func program(
    _ effect: ChangeEffect, receivedAt: ContinuousClock.Instant, triggered: [Int64], nodeMayHaveChanged: Bool = false
  ) {
    var services = Set(effect.services)
    if effect.ownNodeChanged { services.formUnion(state.services.keys) }
    var delta = compiler.compile(services, in: state, tables: tables)
    compiler.numbering.sync()
    if !effect.pods.isEmpty || !effect.namespaces.isEmpty || !effect.networkPolicies.isEmpty || !effect.nodes.isEmpty {
      delta.takePolicy(from: policies.compile(effect, in: state, tables: tables))
    }
    // The node's part walks all nodes: only where something of it can have changed.
    if nodeMayHaveChanged || effect.ownNodeChanged || !effect.nodes.isEmpty || effect.serviceCIDRsChanged {
      delta.takeNode(from: nodeDelta())
      compileHostPorts(of: boundHostPorts, into: &delta)
    } else {
      delta.endpoints = subjectChanges()
    }
    // What does not wait for nf_tables, and must not be lost where that fails.
    if !effect.nodes.isEmpty { updateRoutes() }
    updateHealthChecks()
    do {
      let report = try apply(delta)
      let took = clock.now - receivedAt
      oldestPending = nil
      metrics.syncDuration.observe(seconds(took))
      let now = Self.wallClock()
      metrics.lastSync = now
      for time in triggered where time > 0 { metrics.programmingDuration.observe(max(0, now - Double(time) / 1000)) }
      if report.batches > 0 {
        logger.info(
          "programmed",
          metadata: [
            "services": "\(services.count == 1 ? "\(services.first.map { "\($0)" } ?? "")" : "\(services.count)")",
            "frontends": "\(delta.frontends.count)", "sets": "\(delta.sets.count)",
            "policies": "\(effect.networkPolicies.count)", "identities": "\(delta.identities.count)",
            "messages": "\(report.messages)", "event-to-kernel": "\(milliseconds(took))", "revision": "\(revision)",
          ])
      }
      reportConflicts()
    } catch is RepairUnderWay {
      // The repair puts the tables as they are then into the kernel.
    } catch {
      failed(error)
    }
  }

  /// Endpoints whose policies have changed.
  private func subjectChanges() -> [String: Change<LocalEndpoint>] {
    var changes: [String: Change<LocalEndpoint>] = [:]
    for (name, endpoint) in tables.node.endpoints {
      var new = endpoint
      new.subjects = policies.subjects(of: name)
      if new != endpoint { changes[name] = Change(old: endpoint, new: new) }
    }
    return changes
  }

  private func updateHealthChecks() {
    guard servedHealthChecks != compiler.healthCheckRevision else { return }
    servedHealthChecks = compiler.healthCheckRevision
    healthChecks.update(compiler.healthChecks)
  }

  /// Applies a delta to tables and kernel, and ends the UDP flows it leaves behind.
  func apply(_ delta: TableDelta) throws -> ApplyReport {
    guard !delta.isEmpty else { return ApplyReport() }
    clauses.note(delta)
    tables.apply(delta)
    revision += 1
    tellOfClosedSubjects()
    guard !needsResync else { throw RepairUnderWay() }
    var report = try engine.apply(delta, tables: tables)
    // Packets first: what sockets leave alone, they have to answer.
    report += applyToSockets(delta)
    count(report)
    let reused = policies.takeReusedAddresses()
    if !reused.isEmpty { Task { await sweeper.end(flowsOf: reused) } }
    if engine.hasDeferredRemovals { removalsDue = removalsDue ?? clock.now + .milliseconds(20) }
    endStaleFlows(delta)
    endStaleSockets(delta)
    return report
  }

  /// Has the flows looked at that a delta may have left behind.
  func endStaleFlows(_ delta: TableDelta) {
    var targets: Set<FlowSweeper.Target> = []
    for stale in delta.staleFlows(after: tables, frontendsOf: { compiler.frontendKeys(of: $0) }) {
      let destinations: [IPAddress] =
        switch stale.key.destination {
        case .address(let address): [address]
        case .node(let family): tables.node.nodePortAddresses.filter { $0.family == family }
        }
      for destination in destinations {
        targets.insert(
          FlowSweeper.Target(proto: stale.key.proto, destination: SocketAddress(destination, stale.key.port)))
      }
    }
    guard !targets.isEmpty else { return }
    Task { await sweeper.sweep(targets, for: self) }
  }

  /// Every address and port by which a UDP Service is reached. Costs what there is.
  func datagramFrontends() -> Set<SocketAddress> {
    var places: Set<SocketAddress> = []
    for key in tables.services.frontends.keys where key.proto == .udp {
      switch key.destination {
      case .address(let address): places.insert(SocketAddress(address, key.port))
      case .node(let family):
        for address in tables.node.nodePortAddresses where address.family == family {
          places.insert(SocketAddress(address, key.port))
        }
      }
    }
    return places
  }

  /// Whether flows lead to a backend that the tables have for their destination.
  func areServed(_ entries: [ConntrackEntry]) -> [Bool] {
    entries.map { entry in
      guard let port = Port(entry.reply.sourcePort) else { return false }
      let backend = SocketAddress(entry.reply.source, port)
      return tables.frontends(of: entry.original).contains { frontend in
        [frontend.nodeScope, frontend.outsideScope].contains { scope in
          let id = BackendSetID(service: frontend.service, scope: scope, family: entry.original.destination.family)
          let set = tables.services.sets[id]
          return set?.backends.contains(backend) == true || set?.draining.contains(backend) == true
        }
      }
    }
  }

  func areFrontends(_ entries: [ConntrackEntry]) -> [Bool] {
    entries.map { !tables.frontends(of: $0.original).isEmpty }
  }

  /// Pods that allow nothing in one direction: nobody asked for that.
  private func tellOfClosedSubjects() {
    guard !policies.closedSubjects.isEmpty || !toldClosedSubjects.isEmpty else { return }
    let closed = Set(policies.closedSubjects.map { $0.map(\.description).sorted().joined(separator: ", ") })
    for policies in closed.subtracting(toldClosedSubjects) {
      logger.warning(
        "pods of these policies allow nothing, in one direction at least: together they need more pairs than a node has",
        metadata: ["policies": "\(policies)"])
    }
    toldClosedSubjects = closed
  }

  func count(_ report: ApplyReport) {
    metrics.netlinkMessages += report.messages
    metrics.dumps += report.dumps
  }

  func failed(_ error: any Error) {
    metrics.transactionFailures += 1
    lastFailure = "\(error)"
    logger.error("programming failed, the kernel will be read back", metadata: ["error": "\(error)"])
    if let error = error as? SystemError, error.errno == ENOSPC { growMap(error.object) }
    guard !needsResync else { return }
    needsResync = true
    nextResync = clock.now + resyncDelay
  }

  /// Gives a map of the packet programs twice the room: a new generation of maps and programs takes the place of the old
  /// one at the next resync, with what that one remembers. Packets see nothing of it.
  func growMap(_ map: String) {
    guard engine is PacketEngine else { return }
    do {
      let pins = try PinFolder(configuration.bpffs)
      guard
        let maximum = try PinnedMap.all(in: pins).filter({ $0.name == map && $0.kind.canFill }).map(\.maximum).max(),
        let bounds = mapBounds.growing(map, beyond: maximum)
      else { return }
      mapBounds = bounds
      let grown = try PacketPath.start(configuration, bounds: bounds).engine
      engine = grown
      if let packets = grown as? PacketEngine { Task { await sweeper.follow(packets.flows) } }
      logger.warning(
        "map grows", metadata: ["map": "\(map)", "from": "\(maximum)", "to": "\(bounds.bounds[map] ?? 0)"])
      needsResync = true
      nextResync = clock.now
    } catch {
      logger.error("map cannot grow", metadata: ["map": "\(map)", "error": "\(error)"])
    }
  }

  private static let ownFailure = "a transaction failed"

  /// Makes the kernel equal to the tables, whatever it has.
  func resync(_ why: String) {
    do {
      let (report, drift) = try engine.resync(tables)
      count(report)
      if !servesAlone {
        try PacketPath.takeOver(&engine, tables, for: configuration, logger)
        servesAlone = true
      }
      needsResync = false
      lastFailure = nil
      oldestPending = nil
      resyncDelay = .milliseconds(100)
      lastVerified = clock.now
      metrics.lastSync = Self.wallClock()
      if var tables = engine as? NFTablesEngine {
        let access = try tables.tableAccess()
        engine = tables
        noteTableAccess(access)
      }
      // What the failed change was about never got to the sockets.
      if why != "first sync" { resyncSockets(why) }
      if why != "first sync", !drift.isEmpty {
        metrics.repairs += 1
        metrics.drift += drift.count
        if why != Self.ownFailure { foreignChanges += 1 }
        logger.warning("kernel repaired", metadata: ["why": "\(why)", "objects": "\(drift.count)"])
        for object in drift.prefix(20) { logger.warning("repaired", metadata: ["object": "\(object)"]) }
      } else {
        logger.info("kernel adopted", metadata: ["differences": "\(drift.count)", "messages": "\(report.messages)"])
      }
      if engine is PacketEngine { Task { await socketSweeper.sweep(nil, for: self) } }
      Task {
        await sweeper.sweepAll(for: self)
        hasSwept = true
      }
    } catch {
      resyncDelay = min(resyncDelay * 2, .seconds(10))
      needsResync = false
      failed(error)
    }
  }

  private func noteTableAccess(_ access: TableAccess?) {
    defer { tableAccess = access }
    guard let access, access != tableAccess else { return }
    switch access {
    case .owned, .shared: logger.info("tables", metadata: ["access": "\(access.rawValue)"])
    case .unsupported:
      logger.info(
        "tables", metadata: ["access": "\(access.rawValue)", "why": "others can change them before Linux 6.9"])
    case .inherited:
      logger.warning(
        "tables",
        metadata: [
          "access": "\(access.rawValue)",
          "why": "made by a version without ownership: others can change them until they are made anew",
        ])
    }
  }

  /// What time brings: removals that were put off, repairs, comparisons. Called a few times a second.
  func tick() {
    lastTurn = clock.now
    guard isSynced else { return }
    if clock.now >= nextRelease { releaseProgramPages() }
    if needsResync {
      if clock.now >= nextResync { resync(Self.ownFailure) }
      return
    }
    do {
      if let due = removalsDue, clock.now >= due {
        removalsDue = nil
        count(try engine.finishRemovals())
      }
      if let expired = policies.expire(in: state, tables: tables) { count(try apply(expired)) }
      let isOld = lastVerified.map { clock.now - $0 > .seconds(configuration.verifyInterval) } ?? true
      let wasChanged = try engine.wasChangedByOthers()
      count(engine.takeReport())
      guard isOld || wasChanged else { return }
      let drift = try engine.verify(tables)
      count(engine.takeReport())
      if isOld { verifySockets() }
      lastVerified = clock.now
      if !drift.isEmpty {
        resync(isOld ? "a periodic comparison found differences" : "somebody else changed our tables")
      }
      if isOld {
        lookForKubeProxy()
        forgetDeadEndpoints()
        restoreSenderChecks()
        let routesDiffer = (try? routes.reread()) ?? false
        if routesDiffer { logger.warning("routes to other nodes had been changed") }
        updateRoutes()
      }
    } catch {
      failed(error)
    }
  }

  /// After what touches much and is not soon done again.
  func giveMemoryBack() {
    clinux_malloc_trim()
    releaseProgramPages()
  }

  /// Rare paths of the program are in memory from when they were taken once, and were two fifths of it in the end. What is in use
  /// comes back from the page cache.
  private func releaseProgramPages() {
    nextRelease = clock.now + .seconds(10)
    clinux_release_program_pages()
  }

  /// One that was started, or came back, beside this agent; or what could not be removed of it.
  private func lookForKubeProxy() {
    guard let found = try? KubeProxyRemains.find(), !found.isEmpty else { return }
    if configuration.migratesFrom == .kubeProxy, !found.hasVirtualServers {
      return KubeProxyRemains(mayBeRemoved: true, logger: logger).remove(found)
    }
    logger.warning(
      "kube-proxy programs this node too: stop it, then restart this agent with --migrate-from kube-proxy",
      metadata: ["objects": "\(found.names.joined(separator: ", "))"])
  }

  /// `tick`, at once where something waits, else once a second.
  func tickIfDue() {
    let isUrgent = removalsDue != nil || needsResync
    wakeWaiters { $0 <= clock.now }
    lookForLoss()
    tickSockets()
    guard isUrgent || nextTick.map({ clock.now >= $0 }) ?? true else { return }
    nextTick = clock.now + .seconds(1)
    tick()
  }

  /// Twenty times a second, for one small request each: whoever takes our rules away opens the node for as long as nobody
  /// sees it. Elements that are taken away close it: `tick` finds those.
  private func lookForLoss() {
    guard isSynced, !needsResync, nextLook.map({ clock.now >= $0 }) ?? true else { return }
    nextLook = clock.now + .milliseconds(50)
    do {
      let isLost = try engine.hasLostStructure(tables)
      // Nothing was done about a change, and nothing is to be counted as that.
      _ = engine.takeReport()
      if isLost { resync("somebody else changed our tables") }
    } catch {
      failed(error)
    }
  }

  /// Reads the node's addresses and programs what follows from a change.
  func addressesMayHaveChanged() {
    guard readOwnAddresses(), isSynced else { return }
    program(ChangeEffect(), receivedAt: clock.now, triggered: [], nodeMayHaveChanged: true)
  }
}

extension Tables {
  /// By what a flow that was sent there reaches a Service.
  func frontends(of original: ConntrackTuple) -> [Frontend] {
    guard let proto = L4Protocol(rawValue: original.protocolNumber), let port = Port(original.destinationPort) else {
      return []
    }
    var keys = [FrontendKey(.address(original.destination), proto, port)]
    if node.nodePortAddresses.contains(original.destination) {
      keys.append(FrontendKey(.node(original.destination.family), proto, port))
    }
    return keys.compactMap { services.frontends[$0] }
  }
}
